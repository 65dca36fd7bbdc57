"""The head, solved: with a frozen backbone it is a convex problem, and no loop of small steps is needed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from hf_transfer.config import RunConfig
from hf_transfer.data.inputs import Loaders
from hf_transfer.models.groups import Group, evaluating
from hf_transfer.training.features import Features, best_solution, features_of
from hf_transfer.training.linear_classifier import LinearProblem, Solution
from hf_transfer.training.predictions import Metrics
from hf_transfer.training.recording import identity


def last_layer(model: nn.Module, head: Group) -> str | None:
    """Name of the one Linear layer that gives the logits; None if there are several, as in a distilled DeiT."""
    names = [name for name in head.modules if isinstance(model.get_submodule(name), nn.Linear)]
    return names[0] if len(head.modules) == len(names) == 1 else None


def solve_head(
    model: nn.Module, layer_name: str, loaders: Loaders, accelerator: Accelerator, config: RunConfig,
    say: Callable[[str], None] = print,
) -> Metrics:  # fmt: skip
    """A linear classifier on what enters the last layer; the solution is written into that layer.

    The regularisation is the one with which validation goes best, from strong to weak, each solution starting from the
    one before, until two decades have brought no gain.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.

    Args:
        model: classifier, not wrapped; every process holds it.
        layer_name: its last Linear layer.
        loaders: batches of training and validation.
        accelerator: the processes that share the forward passes.
        config: where features are kept, the metric that picks the regularisation, whether each class counts alike.
        say: is told how good the nearest neighbours are, if asked for: no layer can be that, so logistic regression is
            what the model gets.

    Returns:
        A row of history: loss on training, seconds, how many of them went into features, the regularisation, and the
        metrics of validation.
    """
    started = time.perf_counter()
    layer = _linear(model, layer_name)
    model.to(accelerator.device)
    material = {"what enters": layer_name, **identity(model, (layer_name,), accelerator)}
    with (
        _without(model, layer_name),
        features_of(
            lambda inputs: [model(**inputs).logits], [layer.in_features], loaders.views, material, loaders, accelerator,
            config,
        ) as features,
    ):  # fmt: skip
        frozen_seconds = time.perf_counter() - started
        best = _solved(features, layer, accelerator, config)
        if config.probe == "knn":
            accuracy, count = features.nearest_neighbours()
            say(f"Nearest neighbours: validation accuracy {accuracy:.4f} by a vote of {count}; not saved.")
        metrics, samples = features.judged(best).metrics(), features.samples
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


def _solved(features: Features, layer: nn.Linear, accelerator: Accelerator, config: RunConfig) -> Solution:
    """The best solution, on every process."""
    # Found by one, since another's arithmetic may round otherwise.
    found = torch.zeros(layer.out_features, layer.in_features + 3, dtype=torch.float64)
    if accelerator.is_main_process:
        problem = LinearProblem(
            features.blocks, layer.out_features, intercept=layer.bias is not None,
            balanced=config.class_weights == "balanced", loss="svm" if config.probe == "svm" else "logistic",
        )  # fmt: skip
        best, _ = best_solution(problem, features, config.metric_for_best_model)
        numbers = torch.tensor([best.regularisation, best.loss], dtype=torch.float64).expand(layer.out_features, 2)
        found = torch.cat([best.weight, best.bias[:, None], numbers], dim=1)
    if accelerator.num_processes > 1:
        # Not where there is nobody to tell: Apple's GPUs know no double precision.
        found = broadcast(found.to(accelerator.device)).cpu()
    return Solution(found[:, :-3], found[:, -3], found[0, -2].item(), found[0, -1].item())


def _linear(model: nn.Module, layer_name: str) -> nn.Linear:
    layer = model.get_submodule(layer_name)
    assert isinstance(layer, nn.Linear)
    return layer


@contextmanager
def _without(model: nn.Module, layer_name: str) -> Iterator[None]:
    """The model gives what enters its last layer, in the place of logits; afterwards it is as it was."""
    layer = model.get_submodule(layer_name)
    with evaluating(model), torch.no_grad():
        model.set_submodule(layer_name, nn.Identity())
        try:
            yield
        finally:
            model.set_submodule(layer_name, layer)
