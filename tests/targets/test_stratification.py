"""Units are divided so that each part has about its share of every kind, and few move when units are added."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.stratification import cut_units, few_of_each_label
from hf_transfer.targets.target import one_kind_each

Bools = npt.NDArray[np.bool_]
SHARES = [0.5, 0.3, 0.1, 0.05, 0.03, 0.02]
LABELS = LabelSets(tuple("abcdef"))
FRACTION = 0.15


def cells(samples: int, shares: list[float], seed: int = 0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).random((samples, len(shares))) < shares).astype(np.float32)


def places(units: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng([seed, 1]).random(units)


def cut_classes(numbers: npt.NDArray[np.int64], fraction: float = FRACTION, seed: int = 0) -> Bools:
    return cut_units(one_kind_each(numbers), places(len(numbers), seed), fraction)


def test_units_below_the_fraction_are_split_off_where_proportions_allow_it() -> None:
    """Of 20,000 units of two classes no one is moved."""
    numbers = np.arange(20_000) % 2
    assert np.array_equal(cut_classes(numbers), places(20_000) < FRACTION)


@pytest.mark.parametrize("samples", [20, 60, 200, 1_000])
def test_each_class_and_the_whole_are_within_their_tolerance(samples: int) -> None:
    """Within half a sample, or a fifth of the wished size of a class and a tenth of that of the whole."""
    for seed in range(30):
        numbers = np.random.default_rng(seed).permutation(np.arange(samples) % 3)
        chosen = cut_classes(numbers, seed=seed)
        for number in range(3):
            wanted = FRACTION * (numbers == number).sum()
            assert abs((chosen & (numbers == number)).sum() - wanted) <= max(0.5, 0.2 * wanted) + 1e-9
        assert abs(chosen.sum() - FRACTION * samples) <= max(1.5, 0.1 * FRACTION * samples)


@given(st.lists(st.integers(2, 12), min_size=1, max_size=8), st.floats(0.01, 0.5), st.integers(0, 1_000))
def test_a_kind_of_two_units_or_more_is_on_both_sides(counts: list[int], fraction: float, seed: int) -> None:
    """Where units have one kind each."""
    numbers = np.repeat(np.arange(len(counts)), counts)
    chosen = cut_classes(numbers, fraction, seed)
    for number in range(len(counts)):
        assert 0 < chosen[numbers == number].sum() < counts[number]


@given(st.integers(2, 60), st.integers(1, 6), st.floats(0.01, 0.5), st.integers(0, 1_000))
def test_every_kind_stays_in_the_other_part_whatever_kinds_a_unit_has(
    units: int, kinds: int, fraction: float, seed: int
) -> None:
    """A model must learn each of them."""
    counts = np.random.default_rng(seed).integers(0, 4, (units, kinds))
    chosen = cut_units(csr_array(counts), places(units, seed), fraction)
    left = counts[~chosen].sum(0)
    assert np.all((left > 0) | (counts.sum(0) == 0))
    assert chosen.tolist() == cut_units(csr_array(counts), places(units, seed), fraction).tolist()


def test_a_kind_that_one_unit_has_is_not_split_off() -> None:
    for seed in range(20):
        numbers = np.append(np.arange(60) % 2, 2)
        assert not cut_classes(numbers, 0.5, seed)[60]


@pytest.mark.parametrize("kinds", [1, 3, 10])
def test_one_more_unit_moves_few_others_and_mostly_none(kinds: int) -> None:
    """Wherever it is added."""
    moved = []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        numbers, where = np.arange(200) % kinds, places(200, seed)
        before = cut_units(one_kind_each(numbers), where, FRACTION)
        position = int(generator.integers(200))
        more = cut_units(
            one_kind_each(np.insert(numbers, position, generator.integers(kinds))),
            np.insert(where, position, generator.random()), FRACTION,
        )  # fmt: skip
        moved.append(int((np.delete(more, position) != before).sum()))
    assert max(moved) <= 3
    assert np.mean(np.asarray(moved) > 0) < 0.4


def test_large_units_are_split_off_only_where_they_bring_the_sizes_nearer() -> None:
    """A unit of half of all samples stays, wherever it is placed."""
    counts = csr_array(np.asarray([[50], *([1],) * 50]))
    for seed in range(20):
        chosen = cut_units(counts, places(51, seed), FRACTION)
        assert not chosen[0]
        assert 14 <= chosen.sum() <= 16


def test_every_label_has_its_share_of_the_part() -> None:
    """At random, the most frequent of these labels would be off by five samples in one case of three."""
    deviations, at_random = [], []
    for seed in range(20):
        values = cells(400, SHARES, seed)
        chosen = cut_units(LABELS.kinds(values), places(400, seed), FRACTION)
        assert abs(chosen.sum() - 60) <= 7
        deviations.append(np.abs(values[chosen].sum(0) - FRACTION * values.sum(0)))
        drawn = np.random.default_rng(seed).permutation(400)[:60]
        at_random.append(np.abs(values[drawn].sum(0) - FRACTION * values.sum(0)))
    assert np.max(deviations) <= 7
    assert np.mean(deviations) < 0.8 * np.mean(at_random)


def test_samples_without_labels_are_a_kind_and_unknown_cells_are_none() -> None:
    values = np.asarray([[1, 0], [np.nan, 0], [np.nan, 1], [1, 1]], dtype=np.float32)
    assert LABELS.kinds(values).toarray().tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("columns", [1, 2])
def test_numbers_are_in_proportion_and_nearly_all_stay_when_one_is_added(columns: int) -> None:
    """Edges between ranges move with each number, but few numbers with them."""
    target, moved = Numbers(tuple("ab"[:columns])), []
    for seed in range(50):
        values = np.exp(np.random.default_rng(seed).normal(size=(301, columns)))
        before, after = (
            cut_units(target.kinds(values[:count]), places(301, seed)[:count], FRACTION) for count in (300, 301)
        )
        moved.append((before != after[:300]).sum())
        quarters = np.searchsorted(np.quantile(values[:300, 0], [0.25, 0.5, 0.75]), values[:300, 0])
        if columns == 1:
            assert np.all(np.abs(np.bincount(quarters[before], minlength=4) - FRACTION * 75) < 5)
    assert np.mean(moved) < 1


def test_numbers_that_are_all_the_same_are_one_range() -> None:
    assert Numbers(("a",)).kinds(np.full((50, 1), 2.5)).shape == (50, 1)


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
