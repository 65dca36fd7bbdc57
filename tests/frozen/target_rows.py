"""Labels and numbers as targets, with what a solved head needs of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hf_transfer.frozen.solvers import LABELS, RIDGE
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.reporting import Metric
from hf_transfer.targets.target import Metrics, Values
from tests.training.toy_task import Rows


@dataclass(frozen=True)
class ToyLabels(Classes):
    """Several labels for each sample [samples, labels]: 1, 0 or NaN."""

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("right", "share of right cells"),)
    main_metric: ClassVar[str] = "right"
    solver: ClassVar[str | None] = LABELS
    is_calibrated: ClassVar[bool] = True

    def describe(self) -> str:
        return f"{len(self.label_names)} labels"

    def evaluate(self, outputs: Tensor, targets: Values, only: str | None = None) -> Metrics:
        cells = torch.from_numpy(targets)
        known = ~cells.isnan()
        loss = binary_cross_entropy_with_logits(outputs[known], cells[known].to(outputs))
        return {"right": ((outputs > 0) == (cells > 0))[known].double().mean().item(), "loss": loss.item()}


@dataclass(frozen=True)
class ToyNumbers(Classes):
    """Numbers [samples, outputs], NaN where one is not known.

    Attributes:
        centre: of the numbers, the same for all outputs.
        scale: what a model learns is divided by.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("rmse", "RMSE", lower_is_better=True),)
    main_metric: ClassVar[str] = "rmse"
    solver: ClassVar[str | None] = RIDGE
    is_calibrated: ClassVar[bool] = True

    centre: float = 0.0
    scale: float = 1.0

    def describe(self) -> str:
        return f"{len(self.label_names)} numbers"

    def learned(self, targets: Tensor) -> Tensor:
        return (targets - self.centre) / self.scale

    def evaluate(self, outputs: Tensor, targets: Values, only: str | None = None) -> Metrics:
        errors = outputs - self.learned(torch.from_numpy(targets))
        loss = errors.square().nanmean().item()
        return {"rmse": loss**0.5 * self.scale, "loss": loss}


def with_targets(rows: Rows, values: Values) -> Rows:
    """The same samples with other targets."""
    rows.labels, rows.split = torch.from_numpy(values), replace(rows.split, targets=values)
    return rows


def label_rows(size: int, *, seed: int = 0, missing: float = 0.0, masked: Sequence[int] = ()) -> Rows:
    """Three labels that depend on the pattern of a sample; some cells are wrong, and some are missing."""
    rows = Rows(size, seed=seed, masked=tuple(masked))
    generator = np.random.default_rng(seed)
    cells = np.asarray([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32)[rows.labels.numpy()]
    cells = np.where(generator.random(cells.shape) < 0.2, 1 - cells, cells)
    cells[generator.random(cells.shape) < missing] = np.nan
    return with_targets(rows, cells)


def number_rows(size: int, *, seed: int = 0, missing: float = 0.0, masked: Sequence[int] = ()) -> Rows:
    """Two numbers that depend on the pattern of a sample, in units of their own, with noise."""
    rows = Rows(size, seed=seed, masked=tuple(masked))
    generator = np.random.default_rng(seed)
    plain: npt.NDArray[np.float64] = np.asarray([[1, -2], [2, 0], [3, 2], [4, 0], [5, 1]], dtype=np.float64)
    numbers = 100 + 20 * (plain[rows.labels.numpy()] + generator.normal(size=(size, 2)))
    numbers[generator.random(numbers.shape) < missing] = np.nan
    return with_targets(rows, numbers)
