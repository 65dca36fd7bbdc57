"""Intervals for what is measured more than once."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

BOOTSTRAP_DRAWS = 10_000


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval, by Student's t distribution."""
    sample = np.asarray(values, dtype=np.float64)
    half = float(stats.t.ppf(0.975, len(sample) - 1)) * float(sample.std(ddof=1)) / float(np.sqrt(len(sample)))
    return float(sample.mean()), half


def median_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Median with its 95 % bootstrap interval: (median, low, high).

    Reference: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979,
    https://doi.org/10.1214/aos/1176344552.
    """
    sample: npt.NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).choice(sample, size=(BOOTSTRAP_DRAWS, len(sample)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(sample)), float(low), float(high)
