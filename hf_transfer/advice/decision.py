"""Which of several trained models to take, by their scores on the same held-out samples, and how good it will be."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.target import Interval

Floats = npt.NDArray[np.float64]
# A difference that is not worth more time: half a point of a share, or so large a share of an error.
NOT_WORTH_IT = 0.005
DRAWS = 1000


class Estimate(NamedTuple):
    """How good a model is that was chosen by its scores.

    Attributes:
        mean: of its scores for other samples.
        interval: 95 %.
    """

    mean: float
    interval: Interval


class Compared(NamedTuple):
    """Scores of several models for the same samples.

    Attributes:
        totals: the sum over the samples of a unit, higher is better [models, units].
        counts: how many samples a unit has [units].
        by_cost: the models, the cheapest first.
    """

    totals: Floats
    counts: Floats
    by_cost: Sequence[int]

    @classmethod
    def of(cls, scores: Sequence[npt.ArrayLike], units: npt.NDArray[np.int64], costs: Sequence[float]) -> "Compared":
        """Of scores by model [samples each], the unit of each sample [samples], and what each model costs."""
        numbers = np.unique(units, return_inverse=True)[1]
        totals: Floats = np.stack([np.bincount(numbers, np.asarray(one, dtype=float)) for one in scores]).astype(float)
        return cls(totals, np.bincount(numbers).astype(float), np.argsort(costs, kind="stable").tolist())

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.counts)


def choose(compared: Compared) -> int:
    """The model with the highest mean or, if another is hardly worse, the cheapest of those.

    Hardly worse is: by no more than half a point, and by no more than one standard error of the paired difference. (To
    take the cheapest within one standard error alone loses more than it saves where there are few samples.)
    """
    return int(_choices(compared, np.ones((1, compared.units)))[0])


def corrected_estimate(compared: Compared, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """How good the chosen model is, without the optimism of a choice by the same samples.

    Units are drawn with replacement; a model is chosen on those drawn, as by `choose`, and scored on those left out.

    Reference: Tsamardinos, Greasidou and Borboudakis, "Bootstrapping the out-of-sample predictions for efficient and
    accurate cross-validation", Machine Learning 2018, https://doi.org/10.1007/s10994-018-5714-4.

    Args:
        compared: the scores.
        draws: how many.
        seed: of the draws.

    Returns:
        NaN, if there is a single unit.
    """
    drawn = np.random.default_rng(seed).multinomial(compared.units, np.full(compared.units, 1 / compared.units), draws)
    outside = (drawn == 0).astype(float)
    drawn, outside = drawn[outside.any(axis=1)], outside[outside.any(axis=1)]
    if not len(drawn):
        return Estimate(float("nan"), (float("nan"), float("nan")))
    chosen = _choices(compared, drawn.astype(float))
    scores = (outside @ compared.totals.T)[np.arange(len(chosen)), chosen] / (outside @ compared.counts)
    low, high = np.quantile(scores, [0.025, 0.975])
    return Estimate(float(scores.mean()), (float(low), float(high)))


def _choices(compared: Compared, weights: Floats) -> npt.NDArray[np.int64]:
    """What `choose` takes, for several weights of the units [choices, units]: numbers of models [choices]."""
    totals, counts, by_cost = compared
    samples = weights @ counts
    means = (weights @ totals.T) / samples[:, None]
    best: npt.NDArray[np.int64] = means.argmax(axis=1)
    chosen: npt.NDArray[np.int64] = best.copy()
    highest = means.max(axis=1)
    # Errors have no scale of their own.
    margin = NOT_WORTH_IT * np.where(highest < 0, -highest, 1.0)
    # The most expensive first, so that the cheapest has the last word.
    for model in reversed(by_cost):
        for leader in range(len(totals)):
            behind = highest - means[:, model]
            rows = best == leader
            error = _error(totals[leader] - totals[model], counts, weights[rows], behind[rows], samples[rows])
            chosen[rows] = np.where(behind[rows] <= np.minimum(margin[rows], error), model, chosen[rows])
    return chosen


def _error(differences: Floats, counts: Floats, weights: Floats, mean: Floats, samples: Floats) -> Floats:
    """Standard error of a mean difference, where units are drawn: see `mean_and_error`, here with weights [choices]."""
    units = weights.sum(axis=1)
    squares = weights @ differences**2 - 2 * mean * (weights @ (differences * counts)) + mean**2 * (weights @ counts**2)
    variance = np.maximum(squares, 0.0) / np.maximum(units - 1, 1)
    error: Floats = np.sqrt(units * variance) / samples
    return error
