"""Intervals for what is measured more than once."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

BOOTSTRAP_DRAWS = 10_000
Floats = npt.NDArray[np.float64]


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


def difference(best: Floats, chosen: Floats) -> tuple[float, float, float]:
    """How much better one model is than another after fine-tuning, in points, with its 95 % bootstrap interval.

    A draw draws test rows, the same for both models, and seeds of each model.

    Args:
        best: right answers of the one [seeds, test rows].
        chosen: and of the other [seeds, test rows].
    """
    generator = np.random.default_rng(0)
    seeds, rows = best.shape
    drawn = np.empty(BOOTSTRAP_DRAWS)
    for draw in range(BOOTSTRAP_DRAWS):
        sample = generator.integers(rows, size=rows)
        one, other = generator.integers(seeds, size=(2, seeds))
        drawn[draw] = best[one].mean(axis=0)[sample].mean() - chosen[other].mean(axis=0)[sample].mean()
    low, high = np.quantile(drawn, [0.025, 0.975])
    return 100 * float(best.mean() - chosen.mean()), 100 * float(low), 100 * float(high)
