"""Samples with several labels are divided so that each part has about its share of every label."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.targets.stratification import cut_by_label, few_of_each_label


def cells(samples: int, shares: list[float], seed: int = 0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).random((samples, len(shares))) < shares).astype(np.float32)


def cut(values: npt.NDArray[np.float32], fraction: float, seed: int = 0) -> npt.NDArray[np.int64]:
    return cut_by_label(values, fraction, np.random.default_rng(seed))


SHARES = [0.5, 0.3, 0.1, 0.05, 0.03, 0.02]


def test_every_label_has_its_share_of_the_part_to_within_a_sample_or_two() -> None:
    """At random, the most frequent of these labels would be off by five samples in one case of three."""
    deviations, at_random = [], []
    for seed in range(20):
        values = cells(400, SHARES, seed)
        part = cut(values, 0.15, seed)
        assert abs(len(part) - 60) <= 3
        deviations.append(np.abs(values[part].sum(0) - 0.15 * values.sum(0)))
        drawn = np.random.default_rng(seed).permutation(400)[:60]
        at_random.append(np.abs(values[drawn].sum(0) - 0.15 * values.sum(0)))
    assert np.max(deviations) <= 2.5
    assert np.mean(deviations) < 0.35 * np.mean(at_random)


def test_samples_without_labels_are_divided_in_proportion_too() -> None:
    values = np.zeros((100, 3), dtype=np.float32)
    values[:20, 1] = 1
    part = cut(values, 0.2)
    assert (part < 20).sum() == 4
    assert len(part) == 20


@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.3, 0.5])
def test_a_label_with_one_sample_stays_in_training(fraction: float) -> None:
    for seed in range(10):
        values = cells(60, [0.5, 0.3], seed)
        values = np.column_stack([values, np.eye(60, dtype=np.float32)[:, seed]])
        assert seed not in cut(values, fraction, seed)


@given(st.integers(2, 40), st.floats(0.05, 0.5), st.integers(0, 2**32))
def test_the_positions_are_ascending_and_a_pure_function_of_the_seed(samples: int, fraction: float, seed: int) -> None:
    values = cells(samples, [0.5, 0.2, 0.05])
    part = cut(values, fraction, seed)
    assert np.all(np.diff(part) > 0)
    assert part.tolist() == cut(values, fraction, seed).tolist()
    assert set(part.tolist()) <= set(range(samples))


def test_cells_that_are_not_known_count_as_no_label() -> None:
    values = cells(200, [0.4, 0.1])
    unknown = np.where(values == 0, np.float32(np.nan), values)
    assert cut(values, 0.2).tolist() == cut(unknown, 0.2).tolist()


@pytest.mark.parametrize("limit", [1, 5, 1_000])
def test_so_many_samples_of_each_label_are_kept_or_all(limit: int) -> None:
    values = np.column_stack([cells(300, SHARES), np.zeros(300, dtype=np.float32)])
    kept = few_of_each_label(values, limit, np.random.default_rng(0))
    assert np.all(np.diff(kept) > 0)
    assert np.all(values[kept].sum(0) >= np.minimum(limit, values.sum(0)))
    without = int((values == 0).all(1).sum())
    assert (values[kept] == 0).all(1).sum() == min(limit, without)
    # The last sample that was drawn of the rarest labels brings others with it, but not many.
    assert len(kept) <= limit * (len(SHARES) + 1)
