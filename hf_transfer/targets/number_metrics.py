"""How close predicted numbers are to the true ones, and how wide an interval around a prediction has to be.

Truth is NaN where a number is not known: such a cell counts nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.intervals import WEIGHTS_AT_ONCE, affordable_resamples, bootstrap_intervals
from hf_transfer.targets.target import Interval

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = npt.NDArray[np.float64]

METRICS = ("rmse", "mae", "r2", "pearson", "spearman")
# Cells times bootstrap samples that take about 10 s on one core.
RESAMPLED_CELLS = 2 * 10**8
FEWEST_DRAWS_AT_ONCE = 8


def number_metrics(predicted: Floats, truth: Floats, only: str | None = None) -> dict[str, float]:
    """The metrics of a data set: with several outputs, the plain mean over those with a known number.

    Args:
        predicted: in the units of the truth [samples, outputs].
        truth: NaN where a number is not known [samples, outputs].
        only: compute this metric alone; nothing, if it is none of them.

    Returns:
        `rmse`: the root of the mean squared error.
        `mae`: the mean absolute error.
        `r2`: the share of the variance of the truth that is explained. Where the truth is constant it is 1 if all
            predictions are right and else 0, as scikit-learn's `r2_score` has it.
        `pearson`: the linear correlation; 0 where one side is constant.
        `spearman`: the correlation of ranks, equal numbers having their mean rank; 0 where one side is constant.
        All are NaN if nothing is known.
    """
    unweighted = np.ones((len(truth), 1))
    values = _mean_over_outputs(_outputs(predicted, truth), unweighted, METRICS if only is None else (only,))
    return {name: float(drawn[0]) for name, drawn in values.items()}


def number_intervals(predicted: Floats, truth: Floats) -> dict[str, Interval]:
    """95 % intervals of `number_metrics`, from percentiles over bootstrap samples, which are the same for all of them.

    Each output is sorted once; a bootstrap sample is then how often each row counts, and its ranks are sums of these
    weights. There are 1,000 bootstrap samples, and fewer, at least 200, for more than 200,000 cells, which take about
    10 s on one core; a million cells take 10 to 20 s.

    Args:
        predicted: in the units of the truth [samples, outputs].
        truth: NaN where a number is not known [samples, outputs].
    """
    outputs = _outputs(predicted, truth)
    at_once = WEIGHTS_AT_ONCE // len(truth)
    return bootstrap_intervals(
        len(truth),
        lambda weights: _mean_over_outputs(outputs, weights, METRICS),
        affordable_resamples(truth.size, RESAMPLED_CELLS),
        # Two to seven take longer for each than one alone.
        at_once if at_once >= FEWEST_DRAWS_AT_ONCE else 1,
    )


def number_rows(names: Sequence[str], predicted: Floats, truth: Floats) -> list[dict[str, Any]]:
    """A row for each output, for a table: `output`, the metrics, and `samples`, how many numbers are known.

    The metrics of an output without a known number are None.
    """
    rows = []
    for output, name in enumerate(names):
        here = slice(output, output + 1)
        metrics = number_metrics(predicted[:, here], truth[:, here])
        known = int((~np.isnan(truth[:, output])).sum())
        rows.append(
            {"output": name, **{key: value if known else None for key, value in metrics.items()}, "samples": known}
        )
    return rows


def interval_half_widths(predicted: Floats, truth: Floats, coverage: float) -> list[float] | None:
    """How far an interval must reach to both sides of a prediction to hold the true number with a given probability.

    It is the ceil((samples + 1) * coverage)-th smallest absolute error. The interval of a new sample of the same kind
    then holds its number with at least this probability, and at most 1 / (samples + 1) more, if errors do not repeat.

    Reference: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, "Distribution-Free Predictive Inference for Regression",
    JASA 2018, https://doi.org/10.1080/01621459.2017.1307116 (split conformal prediction).

    Args:
        predicted: of samples that the model was not trained on [samples, outputs].
        truth: NaN where a number is not known [samples, outputs].
        coverage: the probability, between 0 and 1.

    Returns:
        A half width for each output; None if one of them has too few samples for any.
    """
    widths = []
    for answers, numbers in zip(predicted.T, truth.T, strict=True):
        known = np.sort(np.abs(answers - numbers)[~np.isnan(numbers)])
        # In floating point 0.07 * 100 is above 7.
        place = math.ceil(Fraction(str(coverage)) * (len(known) + 1))
        if place > len(known):
            return None
        widths.append(float(known[place - 1]))
    return widths


def interval_coverage(predicted: Floats, truth: Floats, half_widths: Sequence[float]) -> float:
    """The share of the known numbers that lie in the intervals around their predictions; NaN if nothing is known.

    Args:
        predicted: in the units of the truth [samples, outputs].
        truth: NaN where a number is not known [samples, outputs].
        half_widths: of each output.
    """
    known = ~np.isnan(truth)
    inside = np.abs(predicted - truth) <= np.asarray(half_widths)
    return float(inside[known].mean()) if known.any() else math.nan


@dataclass(frozen=True)
class _Ranks:
    """The ranks of the samples of an output.

    Attributes:
        group: for each sample, the number of its value among the distinct values [samples].
        sums: sums weights over the samples of equal value [values, samples].
    """

    group: npt.NDArray[np.int64]
    sums: csr_array

    @classmethod
    def of(cls, values: Floats) -> _Ranks:
        from scipy.sparse import csr_array

        distinct, group = np.unique(values, return_inverse=True)
        samples = np.arange(len(values))
        shape = (len(distinct), len(values))
        return cls(group, csr_array((np.ones(len(values)), (group, samples)), shape))

    def centred(self, weights: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Ranks less their mean [samples, draws], and which draws have one value alone [draws].

        In a draw equal values have the mean of their ranks.
        """
        drawn = self.sums @ weights
        ranks = drawn.cumsum(0)
        constant = (drawn > 0).sum(0) <= 1
        # The mean rank is (drawn samples + 1) / 2.
        ranks -= (drawn + ranks[-1]) / 2
        return ranks[self.group], constant


@dataclass(frozen=True)
class _Output:
    """The known cells of an output.

    Attributes:
        known: which samples have one, bool [all samples].
        predicted: less their mean [samples].
        truth: less their mean [samples].
        errors: predicted less true numbers [samples].
        ranks: of the predicted and of the true numbers.
    """

    known: npt.NDArray[np.bool_]
    predicted: Floats
    truth: Floats
    errors: Floats
    ranks: tuple[_Ranks, _Ranks]

    @classmethod
    def of(cls, predicted: Floats, truth: Floats) -> _Output:
        known = ~np.isnan(truth)
        here, there = predicted[known].astype(float), truth[known].astype(float)
        # Squares of numbers far from 0 would lose the digits in which they differ.
        return cls(known, here - here.mean(), there - there.mean(), here - there, (_Ranks.of(here), _Ranks.of(there)))

    def metrics(self, all_weights: Floats, names: Sequence[str]) -> dict[str, Floats]:
        """Metrics by name, of samples with weights [all samples, draws]; NaN where a draw has no known cell."""
        weights = all_weights if self.known.all() else all_weights[self.known]
        total = weights.sum(0)
        total[total == 0] = np.nan
        metrics: dict[str, Floats] = {}
        if "rmse" in names:
            metrics["rmse"] = np.sqrt(self.errors**2 @ weights / total)
        if "mae" in names:
            metrics["mae"] = np.abs(self.errors) @ weights / total
        if {"r2", "pearson", "spearman"} & set(names):
            (ranks, constant), (true_ranks, true_constant) = (one.centred(weights) for one in self.ranks)
            truth = _centred(self.truth, weights, total)
            if "r2" in names:
                metrics["r2"] = _explained(self.errors**2 @ weights, _sum_of(truth, truth, weights), true_constant)
            if "pearson" in names:
                predicted = _centred(self.predicted, weights, total)
                metrics["pearson"] = _correlation(predicted, truth, weights, constant | true_constant)
            if "spearman" in names:
                metrics["spearman"] = _correlation(ranks, true_ranks, weights, constant | true_constant)
        return {name: np.where(np.isnan(total), np.nan, values) for name, values in metrics.items()}


def _outputs(predicted: Floats, truth: Floats) -> list[_Output]:
    """The outputs that have a known cell."""
    pairs = zip(predicted.T, truth.T, strict=True)
    return [_Output.of(here, there) for here, there in pairs if not np.isnan(there).all()]


def _mean_over_outputs(outputs: Sequence[_Output], weights: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """Metrics by name [draws], over the outputs of which a draw has a known cell; NaN if it has none."""
    of_outputs = [one.metrics(weights, names) for one in outputs]
    means = {}
    for name in (one for one in METRICS if one in names):
        values = np.array([metrics[name] for metrics in of_outputs]).reshape(-1, weights.shape[1])
        known = (~np.isnan(values)).sum(0)
        means[name] = np.divide(np.nansum(values, 0), known, out=np.full(len(known), np.nan), where=known > 0)
    return means


def _centred(values: Floats, weights: Floats, total: Floats) -> Floats:
    return values[:, None] - values @ weights / total


def _sum_of(first: Floats, second: Floats, weights: Floats) -> Floats:
    products: Floats = np.einsum("sd,sd,sd->d", first, second, weights)
    return products


def _explained(squared_errors: Floats, variation: Floats, constant: npt.NDArray[np.bool_]) -> Floats:
    share = 1 - np.divide(squared_errors, variation, out=np.zeros_like(variation), where=~constant)
    return np.where(constant, squared_errors == 0, share)


def _correlation(first: Floats, second: Floats, weights: Floats, constant: npt.NDArray[np.bool_]) -> Floats:
    """The correlation of centred numbers [samples, draws]; 0 in draws where one of them is constant."""
    variation = np.sqrt(_sum_of(first, first, weights)) * np.sqrt(_sum_of(second, second, weights))
    correlation = np.divide(
        _sum_of(first, second, weights), variation, out=np.zeros_like(variation), where=~constant & (variation > 0)
    )
    # Rounding may lead beyond.
    clipped: Floats = np.clip(correlation, -1, 1)
    return clipped
