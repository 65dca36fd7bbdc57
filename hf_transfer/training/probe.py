"""The head, solved: with a frozen backbone it is a convex problem, and no loop of small steps is needed."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_transfer.config import RunConfig
from hf_transfer.data.inputs import Loaders
from hf_transfer.models.groups import Group, evaluating
from hf_transfer.training.predictions import Metrics, Predictions, is_better, predict_split

# Of the mean loss of a sample, on standardised features, from strong to weak.
REGULARISATIONS = tuple(10.0**exponent for exponent in np.arange(1.0, -6.5, -0.5))
MOST_ITERATIONS = 1_000
# A gradient is small beside that of the penalty: scikit-learn's own limit would leave a weak one where it started.
LARGEST_GRADIENT = 1e-4
SHARE_OF_REGULARISATION = 0.01
# Two decades without a gain on validation: what is weaker still takes longest, and would only overfit more.
PATIENCE = 4
# A class that training lacks must not win for want of evidence.
NEVER = -30.0
Floats = npt.NDArray[np.float64]


def last_layer(model: nn.Module, head: Group) -> str | None:
    """Name of the one Linear layer that gives the logits; None if there are several, as in a distilled DeiT."""
    names = [name for name in head.modules if isinstance(model.get_submodule(name), nn.Linear)]
    return names[0] if len(head.modules) == len(names) == 1 else None


def solve_head(
    model: nn.Module, layer_name: str, loaders: Loaders, accelerator: Accelerator, config: RunConfig
) -> Metrics:
    """Multinomial logistic regression on what enters the last layer; the solution is written into that layer.

    Features are standardised, and the standardisation is folded into the weights. The regularisation is the one with
    which validation goes best, from strong to weak, each solution starting from the one before, until two decades have
    brought no gain.

    References: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644; Liu and Nocedal, "On the limited memory BFGS method for large scale
    optimization", Mathematical Programming 1989, https://doi.org/10.1007/BF01589116 (by scikit-learn).

    Args:
        model: classifier, not wrapped; every process holds it.
        layer_name: its last Linear layer.
        loaders: batches of training and validation.
        accelerator: the processes that share the forward passes.
        config: the metric that picks the regularisation, and whether each class counts alike.

    Returns:
        A row of history: loss on training, seconds, the regularisation, and the metrics of validation.
    """
    started = time.perf_counter()
    layer = model.get_submodule(layer_name)
    assert isinstance(layer, nn.Linear)
    views: tuple[int | None, ...] = (None, *range(loaders.views))
    with _without(model, layer_name):
        passes = [predict_split(model, loaders, "train", accelerator, view) for view in views]
        held_out = predict_split(model, loaders, "validation", accelerator)
    features = np.concatenate([found.logits.double().numpy() for found in passes])
    labels = np.concatenate([found.labels for found in passes])
    # On one process, since another's arithmetic may round otherwise.
    found = torch.zeros(layer.out_features, layer.in_features + 2, dtype=torch.float64)
    if accelerator.is_main_process:
        balanced = config.class_weights == "balanced"
        path = regularisation_path(features, labels, layer.out_features, layer.bias is not None, balanced)
        weight, bias, regularisation = _best(path, held_out, config.metric_for_best_model)
        found = torch.cat([weight, bias[:, None], torch.full_like(bias, regularisation)[:, None]], dim=1)
    if accelerator.num_processes > 1:
        # Not where there is nobody to tell: Apple's GPUs know no double precision.
        found = broadcast(found.to(accelerator.device)).cpu()
    weight, bias, regularisation = found[:, :-2], found[:, -2], found[0, -1].item()
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
    seconds = time.perf_counter() - started
    return {
        "train_loss": cross_entropy(torch.from_numpy(features) @ weight.T + bias, torch.from_numpy(labels)).item(),
        "learning_rate": 0.0,
        "seconds": seconds,
        "samples_per_second": len(labels) / seconds,
        "regularisation": regularisation,
        **_judged(held_out, weight, bias),
    }


def regularisation_path(
    features: Floats, labels: npt.NDArray[np.int64], classes: int, intercept: bool, balanced: bool
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Solutions from strong to weak regularisation: weight [classes, features], bias [classes], regularisation.

    Each minimises the mean cross-entropy plus half the regularisation times the squared weights, those of the
    standardised features.
    """
    # Not at the top: it takes a second to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    centre = features.mean(0) if intercept else np.zeros(features.shape[1])
    spread = features.std(0)
    spread[spread <= 1e-6 * spread.max(initial=0.0)] = 1.0
    standard = (features - centre) / spread
    present = np.unique(labels)
    weighting = "balanced" if balanced else None
    model = LogisticRegression(
        fit_intercept=intercept, max_iter=MOST_ITERATIONS, warm_start=True, class_weight=weighting
    )
    # Of two classes scikit-learn keeps the difference alone, whose square is twice the sum of both classes' squares.
    pair = len(present) == 2
    strength = (2.0 if pair else 1.0) / len(labels)
    for regularisation in REGULARISATIONS:
        tolerance = min(LARGEST_GRADIENT, SHARE_OF_REGULARISATION * regularisation)
        with warnings.catch_warnings():
            # After so many iterations a better solution is not worth the wait.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength / regularisation, tol=tolerance).fit(standard, labels)
        coefficients = np.asarray(model.coef_)
        intercepts = np.broadcast_to(model.intercept_, len(coefficients))
        if pair:
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, NEVER if intercept else 0.0)
        weight[present] = coefficients / spread
        bias[present] = intercepts - weight[present] @ centre
        yield torch.from_numpy(weight), torch.from_numpy(bias), regularisation


def _best(
    path: Iterator[tuple[Tensor, Tensor, float]], held_out: Predictions, metric: str
) -> tuple[Tensor, Tensor, float]:
    rows: list[Metrics] = []
    best = -1
    for weight, bias, regularisation in path:
        row = _judged(held_out, weight, bias)
        if is_better(row, rows, best, metric):
            best, solution = len(rows), (weight, bias, regularisation)
        rows.append(row)
        if len(rows) - best > PATIENCE:
            break
    return solution


def _judged(features: Predictions, weight: Tensor, bias: Tensor) -> Metrics:
    return replace(features, logits=features.logits.double() @ weight.T + bias).metrics()


@contextmanager
def _without(model: nn.Module, layer_name: str) -> Iterator[None]:
    """The model gives what enters its last layer, in the place of logits; afterwards it is as it was."""
    layer = model.get_submodule(layer_name)
    with evaluating(model):
        model.set_submodule(layer_name, nn.Identity())
        try:
            yield
        finally:
            model.set_submodule(layer_name, layer)
