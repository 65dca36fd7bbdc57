"""A head on a frozen backbone is solved: it is a convex problem, which needs no training step by step."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from hf_transfer.frozen.features import best_solution, features_of
from hf_transfer.frozen.recording import Passes, from_main_process, identity
from hf_transfer.frozen.solvers import SolverOptions
from hf_transfer.models.groups import Group, evaluating
from hf_transfer.targets.target import Metrics, Target


def solvable_layer(model: nn.Module, head: Group, target: Target) -> str | None:
    """Name of the one Linear layer that computes the outputs, if there is a solver for the target.

    None if the target has no solver, or there are several such layers, as in a distilled DeiT: the head is trained.
    """
    if target.solver is None:
        return None
    names = [name for name in head.modules if isinstance(model.get_submodule(name), nn.Linear)]
    return names[0] if len(head.modules) == len(names) == 1 else None


def solve_head(
    model: nn.Module, layer_name: str, passes: Passes, options: SolverOptions, report: Callable[[str], None] = print
) -> Metrics:
    """Solve the last layer on its inputs, and write the solution into it.

    The regularisation is the one that is best on validation, tried from strong to weak, each solution starting from the
    one before, until two decades have brought no gain.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.

    Args:
        model: classifier, not wrapped; every process holds it.
        layer_name: its last Linear layer.
        passes: the samples of training and validation, and where features are stored.
        options: how the layer is solved.
        report: takes a sentence on the nearest neighbours, if they are asked for. They are only reported: no layer can
            do what they do, so the model gets the solution of logistic regression.

    Returns:
        A row of history: loss on training, seconds, how many of them were spent on features, the regularisation, and
        the metrics of validation.

    Raises:
        UserError: the probe does not suit the target, or features cannot be stored.
    """
    started = time.perf_counter()
    loaders, accelerator = passes.loaders, passes.accelerator
    # Asked before the passes: it may be an error.
    solver = options.solver(loaders.target)
    model.to(accelerator.device)
    material = {"what enters": layer_name, **identity(model, (layer_name,), accelerator)}
    with (
        _without(model, layer_name) as layer,
        features_of(
            lambda inputs: [model(**inputs).logits], [layer.in_features], loaders.views, material, passes
        ) as features,
    ):
        frozen_seconds = time.perf_counter() - started
        solve = partial(best_solution, solver, features, options, intercept=layer.bias is not None)
        best = from_main_process(accelerator, solve)
        if options.probe == "knn":
            accuracy, count = features.nearest_neighbours()
            report(f"Nearest neighbours: validation accuracy {accuracy:.4f} by a vote of {count}; not saved.")
        metrics = features.predictions(best).metrics()
        samples = sum(len(targets) for _, targets in features.blocks())  # Each view counts.
    with torch.no_grad():
        layer.weight.copy_(best.weight)
        if layer.bias is not None:
            layer.bias.copy_(best.bias)
    seconds = time.perf_counter() - started
    return {
        "train_loss": best.loss,
        "learning_rate": 0.0,
        "seconds": seconds,
        "frozen_seconds": frozen_seconds,
        "samples_per_second": samples / seconds,
        "regularisation": best.regularisation,
        **metrics,
    }


@contextmanager
def _without(model: nn.Module, layer_name: str) -> Iterator[nn.Linear]:
    """Inside, the logits of the model are the inputs of its last layer; afterwards the model is as it was."""
    layer = model.get_submodule(layer_name)
    assert isinstance(layer, nn.Linear)
    with evaluating(model), torch.no_grad():
        model.set_submodule(layer_name, nn.Identity())
        try:
            yield layer
        finally:
            model.set_submodule(layer_name, layer)
