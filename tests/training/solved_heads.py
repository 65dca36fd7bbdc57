"""A solved head, and what scikit-learn makes of the same features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from hf_transfer.data.inputs import MASKED
from hf_transfer.training.loop import start_accelerator
from hf_transfer.training.predictions import Metrics, predict_split
from hf_transfer.training.probe import last_layer, solve_head
from tests.training.toy_task import Rows, loaders_of, settings, tiny

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
    """A solved head, and what it was solved on."""

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
    """What enters the last layer of a live model, and the labels, without masked rows."""
    caught: list[Tensor] = []
    hook = model.get_submodule(HEADS[name]).register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    with torch.no_grad():
        model.eval()(**rows.inputs)
    hook.remove()
    (found,) = caught
    if found.ndim == 3:
        # A decoder says it with the last token that is no padding.
        found = found[torch.arange(len(found)), rows.inputs["attention_mask"].sum(1) - 1]
    counted = rows.labels != MASKED
    return found[counted].double().numpy(), rows.labels[counted].numpy()


def solve(name: str, rows: Rows, validation: Rows, *, edit: Any = None, **more: Any) -> Solved:
    model, groups, _ = tiny(name)
    if edit is not None:
        edit(model)
    config = settings(**more)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 4)
        layer = last_layer(model, groups[-1])
        assert layer == HEADS[name]
        row = solve_head(model, layer, loaders, accelerator, config)
        live = predict_split(model, loaders, "validation", accelerator).metrics()
    return Solved(model, row, live, name, rows, validation)


def loss(scores: Floats, labels: npt.NDArray[np.int64], weights: Floats | None = None) -> float:
    own = -torch.log_softmax(torch.from_numpy(scores), 1).numpy()[np.arange(len(labels)), labels]
    return float(np.average(own, weights=weights))


def reference(
    seen: Floats,
    labels: npt.NDArray[np.int64],
    regularisation: float,
    *,
    intercept: bool = True,
    balanced: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """Scikit-learn's solution by another algorithm and from a cold start; weight, centre and spread of the features."""
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


def agrees(found: Solved, *, balanced: bool = False) -> None:
    """Loss, objective and predictions of the head are those of scikit-learn."""
    intercept = found.head.bias is not None
    seen, labels = found.features(found.train)
    present = np.unique(labels)
    weight, bias, spread = reference(seen, labels, found.row["regularisation"], intercept=intercept, balanced=balanced)
    own = found.head.weight.detach().double().numpy()
    own_bias = found.head.bias.detach().double().numpy() if intercept else np.zeros(len(own))
    whole, numbers = np.zeros_like(own), np.searchsorted(present, labels)
    whole[present] = weight
    scores, expected = seen @ own.T + own_bias, seen @ weight.T + bias
    counts = np.bincount(numbers)
    each = (len(labels) / (len(counts) * counts))[numbers] if balanced else None

    def objective(given: Floats, matrix: Floats, which: npt.NDArray[np.int64]) -> float:
        penalty = found.row["regularisation"] / 2 * np.square(matrix * spread).sum()
        return loss(given, which, each) + float(penalty)

    assert loss(scores, labels) == pytest.approx(found.row["train_loss"], abs=1e-5)
    assert found.row["train_loss"] == pytest.approx(loss(expected, numbers), abs=1e-3)
    assert objective(scores, own, labels) == pytest.approx(objective(expected, weight, numbers), abs=2e-5)
    assert found.row["samples_per_second"] * found.row["seconds"] == pytest.approx(len(labels))
