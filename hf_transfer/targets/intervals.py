"""95 % intervals of metrics."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from hf_transfer.targets.target import Interval

RESAMPLES = 1000


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % interval of a share, by scipy.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927,
    https://doi.org/10.1080/01621459.1927.10502953.
    """
    low, high = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)


def bootstrap_interval(samples: int, metric: Callable[[npt.NDArray[np.int64]], float]) -> Interval:
    """95 % interval of a metric, from percentiles over samples drawn with replacement.

    Reference: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979,
    https://doi.org/10.1214/aos/1176344552.

    Args:
        samples: how many there are.
        metric: its value on the samples at these positions.
    """
    generator = np.random.default_rng(0)
    scores = [metric(generator.integers(0, samples, samples)) for _ in range(RESAMPLES)]
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)
