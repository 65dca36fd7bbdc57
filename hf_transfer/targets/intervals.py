"""95 % intervals of metrics."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.target import Interval

RESAMPLES, PAIRED_RESAMPLES = 1000, 2000
# With fewer, the bounds of an interval would depend on the draw.
FEWEST_RESAMPLES = 200
# Weights of samples that are held at once, if possible: a processor's cache has room for 1 MB.
WEIGHTS_AT_ONCE = 2**17
Floats = npt.NDArray[np.float64]


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % interval of a share, by scipy.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927,
    https://doi.org/10.1080/01621459.1927.10502953.
    """
    from scipy.stats import binomtest

    low, high = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)


def bootstrap_interval(
    samples: int, metric: Callable[[npt.NDArray[np.int64]], float], resamples: int | None = None
) -> Interval:
    """95 % interval of a metric, from percentiles over samples drawn with replacement.

    Reference: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979,
    https://doi.org/10.1214/aos/1176344552.

    Args:
        samples: how many there are.
        metric: its value on the samples at these positions.
        resamples: how many draws are made; None: `RESAMPLES`.
    """
    return _percentiles(np.array([metric(rows) for rows in _draws(samples, resamples or RESAMPLES)]))


def paired_interval(first: Floats, second: Floats, units: npt.NDArray[np.int64]) -> Interval:
    """95 % interval of how much better the first of two models is, from bootstrap percentiles.

    What is drawn are units, since samples that belong together say the same twice; each is a sample where none do. If
    the interval contains 0, the samples do not tell the models apart.

    Reference: Efron and Tibshirani, "An introduction to the bootstrap", Chapman and Hall 1993, chapters 8 and 13.

    Args:
        first: scores of the same samples by the first model, higher is better [samples].
        second: and by the second [samples].
        units: the unit of each sample [samples].
    """
    totals, counts = _by_unit(first - second, units)
    return bootstrap_interval(
        len(totals), lambda drawn: float(totals[drawn].sum() / counts[drawn].sum()), PAIRED_RESAMPLES
    )


def mean_and_error(scores: Floats, units: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The mean of scores and its standard error, where only units are drawn independently.

    Where each sample is a unit, the error is the standard deviation divided by the root of the number of samples.
    Otherwise it is that of a ratio of two totals: Cochran, "Sampling techniques", Wiley 1977, section 2.11.

    Args:
        scores: of samples [samples].
        units: the unit of each [samples].

    Returns:
        The error of a single unit is NaN.
    """
    totals, counts = _by_unit(scores, units)
    mean = float(scores.mean())
    if len(totals) < 2:
        return mean, math.nan
    return mean, math.sqrt(len(totals) * float((totals - mean * counts).var(ddof=1))) / len(scores)


class ScoresByUnit:
    """What has a score for each sample, and units of samples: their mean and its standard error.

    Attributes:
        scores: how good the answer to each sample is, higher is better [samples].
        units: of each sample: those of one unit belong together [samples].
    """

    scores: Floats
    units: npt.NDArray[np.int64]

    @property
    def score(self) -> float:
        """The mean of the scores."""
        return mean_and_error(self.scores, self.units)[0]

    @property
    def standard_error(self) -> float:
        """Of the mean, over units: models of different folds share most of their samples, so folds would say less."""
        return mean_and_error(self.scores, self.units)[1]


def _by_unit(values: Floats, units: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The sum of the values of each unit, and how many there are [units]."""
    numbers = np.unique(units, return_inverse=True)[1]
    totals: Floats = np.bincount(numbers, values).astype(float)
    counts: Floats = np.bincount(numbers).astype(float)
    return totals, counts


def bootstrap_intervals(
    samples: int, metrics: Callable[[Floats], Mapping[str, Floats]], resamples: int, at_once: int
) -> dict[str, Interval]:
    """95 % intervals of several metrics, as of `bootstrap_interval`, from the same draws for all of them.

    A draw is given by how often it has each sample, so that a metric may sort the samples once for all draws.

    Args:
        samples: how many there are.
        metrics: their values [draws] by name, of weights [samples, draws]; NaN where a draw has none.
        resamples: how many draws are made; None: `RESAMPLES`.
        at_once: how many of them `metrics` gets at once.

    Returns:
        Intervals by name; a metric that no draw has is NaN.
    """
    parts = [metrics(weights) for weights in _weights(samples, resamples, at_once)]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: _percentiles(drawn[~np.isnan(drawn)]) for name, drawn in values.items()}


def affordable_resamples(cells: int, budget: int) -> int:
    """How many draws to make, so that draws times cells stays within a budget: from 200 to 1000."""
    return int(np.clip(budget // max(cells, 1), FEWEST_RESAMPLES, RESAMPLES))


def _draws(samples: int, resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(resamples):
        yield generator.integers(0, samples, samples)


def _weights(samples: int, resamples: int, at_once: int) -> Iterator[Floats]:
    """How often each draw has each sample [samples, draws]."""
    draws = _draws(samples, resamples)
    for first in range(0, resamples, at_once):
        weights = np.empty((samples, min(at_once, resamples - first)))
        for column in weights.T:
            column[:] = np.bincount(next(draws), minlength=samples)
        yield weights


def _percentiles(values: Floats) -> Interval:
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
