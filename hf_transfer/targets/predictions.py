"""What a model gives for the samples of a split, and how epochs are ranked by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hf_transfer.errors import user_error
from hf_transfer.targets.target import Interval, Metrics, Target, Values

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """The outputs of a model for a split: every sample once, on every process, in the order of its row numbers.

    Attributes:
        target: what is predicted.
        outputs: float32 [samples, outputs].
        targets: true values [samples, ...].
        index: row numbers [samples].
        masked: how many samples were masked; they are not among the rows above.
    """

    target: Target
    outputs: Tensor
    targets: Values
    index: npt.NDArray[np.int64]
    masked: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    def metrics(self, only: str | None = None) -> Metrics:
        """The target's metrics and the mean loss; see `Target.evaluate`."""
        return self.target.evaluate(self.outputs, self.targets, only)

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals by metric."""
        return self.target.intervals(self.outputs, self.targets)

    def sample_scores(self) -> npt.NDArray[np.float64]:
        """How good the answer to each sample is, higher is better [samples]."""
        return self.target.sample_scores(self.outputs, self.targets)


@dataclass(frozen=True)
class Ranking:
    """How epochs are ranked: by one metric of a target, and equal ones by the loss.

    Attributes:
        metric: its name.
        lower_is_better: whether a smaller value is the better one.
    """

    metric: str
    lower_is_better: bool

    @classmethod
    def of(cls, target: Target | type[Target], metric: str | None) -> Ranking:
        """The ranking by a metric, or by the target's own if it is None.

        Raises:
            UserError: the target has no such metric.
        """
        lower_is_better = {one.name: one.lower_is_better for one in target.metrics} | {"loss": True}
        name = target.main_metric if metric is None else metric
        if name not in lower_is_better:
            raise user_error(
                expected=f"for --metric_for_best_model one of {', '.join(lower_is_better)}",
                found=name,
                do="use one of these, or leave it out",
            )
        return cls(name, lower_is_better[name])

    def scores(self, row: Metrics) -> tuple[float, float]:
        """What epochs are compared by, higher is better; of equal ones the lower loss wins."""
        ranked = (-row[self.metric] if self.lower_is_better else row[self.metric]), -row["loss"]
        # NaN compares with no number: it is worse than any.
        first, second = (-math.inf if math.isnan(score) else score for score in ranked)
        return first, second

    def is_better(self, row: Metrics, history: Sequence[Metrics], best_epoch: int) -> bool:
        """Whether an epoch beats the best so far; -1 stands for none."""
        return best_epoch < 0 or self.scores(row) > self.scores(history[best_epoch])
