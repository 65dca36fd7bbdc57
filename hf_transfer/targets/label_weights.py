"""What a positive cell counts in the loss of labels, where rare labels are to count more."""

from typing import Any

import numpy as np
import numpy.typing as npt

# A label with few positives would otherwise depend on each of them alone.
POSITIVE_WEIGHT_LIMIT = 20.0
Floats = npt.NDArray[np.float64]


def positive_weights(values: npt.NDArray[Any]) -> Floats:
    """Weights with which the positives of each label count as much as its negatives, float64 [labels].

    See `weights_of_counts`.

    Args:
        values: of the training samples that count [samples, labels]: 1, 0 or, where it is not known, NaN.
    """
    return weights_of_counts((values == 1).sum(0), (values == 0).sum(0))


def weights_of_counts(positives: npt.NDArray[Any], negatives: npt.NDArray[Any]) -> Floats:
    """The number of negatives over that of positives, at most `POSITIVE_WEIGHT_LIMIT`, float64 [labels].

    A label that lacks one of the two has nothing to balance: its weight is 1.

    Reference: King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001,
    https://doi.org/10.1093/oxfordjournals.pan.a004868.

    Args:
        positives: known cells with the label [labels].
        negatives: known cells without it [labels].
    """
    both = (positives > 0) & (negatives > 0)
    ratios = np.divide(negatives, positives, out=np.ones(len(both)), where=both)
    weights: Floats = np.minimum(ratios, POSITIVE_WEIGHT_LIMIT)
    return weights
