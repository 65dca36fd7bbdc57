"""Weights of positive cells, by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.utils import compute_class_weight

from hf_transfer.targets.label_weights import POSITIVE_WEIGHT_LIMIT, positive_weights, weights_of_counts


def test_positives_count_as_much_as_negatives() -> None:
    """As with scikit-learn's balanced weights, relative to each other; cells that are not known count nowhere."""
    generator = np.random.default_rng(0)
    values = (generator.random((400, 5)) < [0.1, 0.3, 0.5, 0.7, 0.95]).astype(np.float32)
    values[generator.random(values.shape) < 0.2] = np.nan
    for label, weight in enumerate(positive_weights(values)):
        known = values[~np.isnan(values[:, label]), label]
        negative, positive = compute_class_weight("balanced", classes=np.asarray([0.0, 1.0]), y=known)
        assert weight == pytest.approx(positive / negative)
        assert weight * (known == 1).sum() == pytest.approx((known == 0).sum())


def test_a_rare_label_has_the_largest_weight_and_not_more() -> None:
    values = np.zeros((1_000, 3), dtype=np.float32)
    values[:1, 0] = values[:47, 1] = values[:48, 2] = 1
    assert positive_weights(values).tolist() == [POSITIVE_WEIGHT_LIMIT, POSITIVE_WEIGHT_LIMIT, 952 / 48]


def test_a_label_that_lacks_one_side_has_nothing_to_balance() -> None:
    values = np.asarray([[1, 0, np.nan, 1], [1, 0, np.nan, np.nan]], dtype=np.float32)
    assert positive_weights(values).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert weights_of_counts(np.asarray([2, 0, 4]), np.asarray([0, 3, 2])).tolist() == [1.0, 1.0, 0.5]
