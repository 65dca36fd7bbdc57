"""A head on a frozen backbone is solved: it is a convex problem, which needs no training step by step.

Probes of earlier layers are only reported, since the head of the model reads the last layer alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hf_transfer.data.batches import Batch
from hf_transfer.frozen.features import Features, best_solution, features_of
from hf_transfer.frozen.out_of_fold import out_of_fold
from hf_transfer.frozen.recording import Passes, from_main_process, identity
from hf_transfer.frozen.solvers import Solver, SolverOptions
from hf_transfer.frozen.standardised import Solution
from hf_transfer.models.groups import Group, evaluating
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Metrics, Target


class SolvedHead(NamedTuple):
    """What is known of a solved head.

    Attributes:
        row: of history: loss on training, seconds, how many of them were spent on features, the regularisation, and
            the metrics of validation.
        held_out: if the target is calibrated: predictions for samples by heads that were solved without them, those of
            validation followed by those of training. None: it is not, or there are too many training samples.
    """

    row: Metrics
    held_out: Predictions | None


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
) -> SolvedHead:
    """Solve the last layer on its inputs, and write the solution into it.

    The regularisation is the best one, tried from strong to weak until two decades have brought no gain; see
    `best_solution`.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.

    Args:
        model: classifier, not wrapped; every process holds it.
        layer_name: its last Linear layer.
        passes: the samples of training and validation, and where features are stored.
        options: how the layer is solved.
        report: takes a sentence on the nearest neighbours, if they are asked for. They are only reported: no layer can
            do what they do, so the model gets the solution of logistic regression.

    Raises:
        UserError: the probe does not suit the target, or features cannot be stored.
    """
    started = time.perf_counter()
    loaders, accelerator = passes.loaders, passes.accelerator
    # Asked before the passes: it may be an error.
    solver = options.solver(loaders.target)
    with head_features(model, layer_name, passes, loaders.views) as (layer, features):
        frozen_seconds = time.perf_counter() - started
        solve = partial(_solved, solver, features, options, intercept=layer.bias is not None)
        best, held_out = from_main_process(accelerator, solve)
        if options.probe == "knn":
            accuracy, count = features.nearest_neighbours()
            report(f"Nearest neighbours: validation accuracy {accuracy:.4f} by a vote of {count}; not saved.")
        metrics = features.predictions(best).metrics()
        samples = features.samples * len(features.train)  # Each view counts.
    with torch.no_grad():
        layer.weight.copy_(best.weight)
        if layer.bias is not None:
            layer.bias.copy_(best.bias)
    seconds = time.perf_counter() - started
    row = {
        "train_loss": best.loss,
        "learning_rate": 0.0,
        "seconds": seconds,
        "frozen_seconds": frozen_seconds,
        "samples_per_second": samples / seconds,
        "regularisation": best.regularisation,
        **metrics,
    }
    return SolvedHead(row, held_out)


def _solved(
    solver: Solver, features: Features, options: SolverOptions, *, intercept: bool
) -> tuple[Solution, Predictions | None]:
    """The best solution and, if the target is calibrated, predictions by heads that were solved without the samples."""
    best = best_solution(solver, features, options, intercept=intercept)
    left_out = None
    if features.target.is_calibrated:
        left_out = out_of_fold(solver, features, best, options, intercept=intercept)
    if left_out is None:
        return best, None
    both = features.predictions(best), left_out
    outputs, targets = torch.cat([one.outputs for one in both]), np.concatenate([one.targets for one in both])
    return best, Predictions(features.target, outputs, targets, np.arange(len(targets)))


@contextmanager
def head_features(
    model: nn.Module, layer_name: str, passes: Passes, views: int, *, of_validation: bool = True
) -> Iterator[tuple[nn.Linear, Features]]:
    """What enters the last layer of a model, for training and validation; afterwards the model is as it was.

    Args:
        model: classifier, not wrapped; every process holds it.
        layer_name: its last Linear layer.
        passes: the samples, and where features are stored.
        views: augmented views of the training samples, beside the samples as in evaluation.
        of_validation: whether features of validation are needed.

    Yields:
        The layer, and the features.
    """
    model.to(passes.accelerator.device)
    material = {"what enters": layer_name, **identity(model, (layer_name,), passes.accelerator)}
    layer = model.get_submodule(layer_name)
    assert isinstance(layer, nn.Linear)
    with evaluating(model), torch.no_grad():
        # The logits of the model are then the inputs of the layer.
        model.set_submodule(layer_name, nn.Identity())
        try:
            with features_of(
                lambda inputs: [model(**inputs).logits], [layer.in_features], views, material, passes,
                of_validation=of_validation,
            ) as features:  # fmt: skip
                yield layer, features
        finally:
            model.set_submodule(layer_name, layer)


def probe_layers(
    model: nn.Module, groups: Sequence[Group], layers: Sequence[int], passes: Passes, options: SolverOptions,
    report: Callable[[str], None],
) -> None:  # fmt: skip
    """Solve a probe on each of some layers, and one on all of them together; report how good they are.

    The features of a layer are the mean of its outputs over all tokens or all places of an image. The model is not
    changed, and every process has to call this.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.

    Args:
        model: classifier, not wrapped, whose target has a solver.
        groups: its groups in depth order.
        layers: blocks, counted from 1 at the input; none: nothing is done.
        passes: the samples of training and validation, and where features are stored.
        options: how probes are solved; their solver is always the one that the target names.
        report: takes the sentences.
    """
    target = passes.loaders.target
    if not layers:
        return
    solver = replace(options, probe="logistic").solver(target)
    blocks = [group for group in groups if group.is_block]
    chosen = [blocks[layer - 1] for layer in layers]
    metric = next(one for one in target.metrics if one.name == target.main_metric)
    with evaluating(model), torch.no_grad():
        model.to(passes.accelerator.device)
        pooled = partial(_pooled, model, [group.modules[0] for group in chosen])
        example = passes.loaders.some_samples("validation", [0], None, passes.accelerator.device)
        widths = [tensor.shape[1] for tensor in pooled(example.inputs)]
        weights = identity(model, groups[-1].modules, passes.accelerator)
        material = {"means of": [group.name for group in chosen], **weights}
        with features_of(pooled, widths, 0, material, passes) as features:
            if not passes.accelerator.is_main_process:
                return
            combinations: list[tuple[int, ...]] = [(place,) for place in range(len(chosen))]
            if len(chosen) > 1:
                combinations.append(tuple(range(len(chosen))))
            for places in combinations:
                some = replace(features, columns=places)
                best = best_solution(solver, some, options, intercept=True)
                row = some.predictions(best).metrics(metric.name)
                names = " + ".join(str(layers[place]) for place in places)
                report(
                    f"Probe of layer {names} of {len(blocks)}: validation {metric.title} {row[metric.name]:.4f}, "
                    f"loss {row['loss']:.4f}."
                )


def _pooled(model: nn.Module, names: Sequence[str], inputs: Batch) -> list[Tensor]:
    """The outputs of some modules for a batch, averaged over tokens or places [samples, features]."""
    means: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _args: object, output: object) -> None:
        means[name] = _mean(output, inputs.get("attention_mask"))

    with ExitStack() as stack:
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_hook(partial(keep, name)).remove)
        model(**inputs)
    return [means[name] for name in names]


def _mean(output: object, mask: Tensor | None) -> Tensor:
    tensor = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(tensor, Tensor)
    if tensor.ndim == 3 and mask is not None:
        weights = mask.to(tensor)[:, :, None]
        return (tensor * weights).sum(1) / weights.sum(1).clamp_min(1)
    # Tokens are the middle dimension [samples, tokens, features], places the last [samples, channels, height, width].
    return tensor.mean(1) if tensor.ndim == 3 else tensor.flatten(2).mean(2) if tensor.ndim > 2 else tensor
