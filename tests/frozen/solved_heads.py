"""A solved head, and scikit-learn's solution for the same features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from hf_transfer.data.batches import Loaders
from hf_transfer.frozen.probe import solvable_layer, solve_head
from hf_transfer.frozen.recording import Passes
from hf_transfer.frozen.solvers import SolverOptions
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.target import Metrics, Target
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.predictions import predict_split
from tests.training.toy_task import TARGET, Rows, loaders_of, settings, tiny

Floats = npt.NDArray[np.float64]
HEADS = {
    "vit": "classifier",
    "resnet_basic": "classifier.1",
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "gpt2": "score",
}
# What the library tries, written out: half decades.
TRIED = [10.0**exponent for exponent in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -3.5, -4, -4.5, -5, -5.5, -6)]


@dataclass
class Solved:
    """A solved head, and the samples that it was solved on."""

    model: nn.Module
    row: Metrics
    live: Metrics
    name: str
    train: Rows
    validation: Rows

    @property
    def head(self) -> nn.Linear:
        layer = self.model.get_submodule(HEADS[self.name])
        assert isinstance(layer, nn.Linear)
        return layer

    def features(self, rows: Rows) -> tuple[Floats, npt.NDArray[np.int64]]:
        return features(self.model, self.name, rows)


def features(model: nn.Module, name: str, rows: Rows) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The inputs of the last layer of a live model, and the labels, without masked rows."""
    inputs: list[Tensor] = []
    hook = model.get_submodule(HEADS[name]).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model.eval()(**rows.inputs)
    hook.remove()
    (features,) = inputs
    if features.ndim == 3:
        # A decoder classifies by the last token that is not padding.
        features = features[torch.arange(len(features)), rows.inputs["attention_mask"].sum(1) - 1]
    return features[rows.counted].double().numpy(), rows.labels[rows.counted].numpy()


def passes_of(loaders: Loaders, accelerator: Accelerator, config: RunConfig) -> Passes:
    """What passes over the samples need, as the loop has it."""
    return Passes.of(loaders, accelerator, config)


def options_of(loaders: Loaders, config: RunConfig) -> SolverOptions:
    """How a head is solved, as the loop has it."""
    ranking = Ranking.of(loaders.target, config.training.metric_for_best_model)
    return SolverOptions(ranking, config.strategy.probe, balanced=config.training.class_weights == "balanced")


def solve(name: str, rows: Rows, validation: Rows, *, edit: Any = None, target: Target = TARGET, **more: Any) -> Solved:
    """Solve the head of a tiny model."""
    model, groups, _ = tiny(name)
    if edit is not None:
        edit(model)
    config = settings(**more)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 4, target=target)
        layer = solvable_layer(model, groups[-1], loaders.target)
        assert layer == HEADS[name]
        row = solve_head(model, layer, passes_of(loaders, accelerator, config), options_of(loaders, config)).row
        live = predict_split(model, loaders, "validation", accelerator).metrics()
    return Solved(model, row, live, name, rows, validation)


def loss(scores: Floats, labels: npt.NDArray[np.int64], weights: Floats | None = None) -> float:
    """The weighted mean of the cross-entropy."""
    losses = -torch.log_softmax(torch.from_numpy(scores), 1).numpy()[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))


def reference(
    seen: Floats,
    labels: npt.NDArray[np.int64],
    regularisation: float,
    *,
    intercept: bool = True,
    balanced: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """Scikit-learn's weight and bias, by another algorithm and from a cold start; and the spread of the features."""
    centre = seen.mean(0) if intercept else np.zeros(seen.shape[1])
    spread = np.where(seen.std(0) < 1e-6, 1.0, seen.std(0))
    # Of two classes scikit-learn takes the difference, whose square is twice the sum of the squares of both.
    scale = 2.0 if len(np.unique(labels)) == 2 else 1.0
    model = LogisticRegression(
        C=scale / (regularisation * len(labels)), solver="newton-cg", tol=1e-8, max_iter=2000,
        fit_intercept=intercept, class_weight="balanced" if balanced else None,
    ).fit((seen - centre) / spread, labels)  # fmt: skip
    weight, bias = np.asarray(model.coef_), np.broadcast_to(model.intercept_, len(model.coef_))
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight / spread, bias - weight / spread @ centre, spread


def assert_agrees(result: Solved, *, balanced: bool = False) -> None:
    """Loss and objective of the head are those of scikit-learn."""
    intercept = result.head.bias is not None
    seen, labels = result.features(result.train)
    present = np.unique(labels)
    weight, bias, spread = reference(seen, labels, result.row["regularisation"], intercept=intercept, balanced=balanced)
    solved = result.head.weight.detach().double().numpy()
    solved_bias = result.head.bias.detach().double().numpy() if intercept else np.zeros(len(solved))
    numbers = np.searchsorted(present, labels)
    scores, expected = seen @ solved.T + solved_bias, seen @ weight.T + bias
    counts = np.bincount(numbers)
    each = (len(labels) / (len(counts) * counts))[numbers] if balanced else None

    def objective(given: Floats, matrix: Floats, which: npt.NDArray[np.int64]) -> float:
        penalty = result.row["regularisation"] / 2 * np.square(matrix * spread).sum()
        return loss(given, which, each) + float(penalty)

    assert loss(scores, labels) == pytest.approx(result.row["train_loss"], abs=1e-5)
    assert result.row["train_loss"] == pytest.approx(loss(expected, numbers), abs=1e-3)
    assert objective(scores, solved, labels) == pytest.approx(objective(expected, weight, numbers), abs=2e-5)
    assert result.row["samples_per_second"] * result.row["seconds"] == pytest.approx(len(labels))
