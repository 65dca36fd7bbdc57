"""Dividing and reducing splits by stratum: nothing is lost, nothing is shared, each stratum is on each side."""

import dataclasses
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.data.rows import describe_row, encoded_image
from hf_transfer.data.splits import Split, cut_stratified, few_of_each, part_of
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.target import Strata, Values

NO_IMAGES = datasets.Dataset.from_dict({"image": [None]})
CLASSES = Classes(tuple("abcdef"))
# Class numbers of at least two samples each, in any order.
LABELS = st.lists(st.integers(2, 12), min_size=1, max_size=6).flatmap(
    lambda counts: st.permutations([number for number, count in enumerate(counts) for _ in range(count)])
)
FRACTIONS = st.floats(0.01, 0.5)


class Vectors(Classes):
    """Vectors of numbers, whose stratum is the sign of the first."""

    def strata(self, values: Values) -> Strata:
        return (values[:, 0] > 0).astype(np.int64)


def split_of(labels: Any, first_row: int = 0) -> Split:
    rows: npt.NDArray[np.int64] = np.arange(first_row, first_row + 3 * len(labels), 3)
    return Split(NO_IMAGES, rows, np.asarray(labels, dtype=np.int64))


@given(LABELS, FRACTIONS, st.integers(0, 2**32))
def test_the_two_parts_are_disjoint_and_complete_and_keep_each_row_with_its_label(
    labels: list[int], fraction: float, seed: int
) -> None:
    """Rows stay ascending on both sides."""
    whole = split_of(labels, first_row=5)
    kept, cut = cut_stratified(whole, fraction, seed, CLASSES)
    assert sorted([*kept.rows, *cut.rows]) == whole.rows.tolist()
    label_of = dict(zip(whole.rows.tolist(), labels, strict=True))
    for side in (kept, cut):
        assert np.all(np.diff(side.rows) > 0)
        assert side.targets.tolist() == [label_of[row] for row in side.rows.tolist()]
        assert len(side) == len(side.rows)


@given(LABELS, FRACTIONS)
def test_each_class_is_on_each_side_in_its_share(labels: list[int], fraction: float) -> None:
    """The share is exact up to rounding, and at least 1 on each side."""
    kept, cut = cut_stratified(split_of(labels), fraction, 0, CLASSES)
    for number, total in zip(*np.unique(labels, return_counts=True), strict=True):
        off = int((cut.targets == number).sum())
        assert 1 <= off <= total - 1
        assert off in (1, total - 1) or abs(off - fraction * total) <= 0.5
        assert off + (kept.targets == number).sum() == total


def test_a_class_of_two_keeps_one_on_each_side_even_at_the_largest_fraction() -> None:
    """90 % of 2 would round to both."""
    kept, cut = cut_stratified(split_of([0, 0, 1, 1, 1, 2, 2]), 0.9, 3, CLASSES)
    assert sorted(kept.targets) == [0, 1, 2]
    assert sorted(cut.targets) == [0, 1, 1, 2]


def test_the_same_seed_divides_alike_and_another_one_differs() -> None:
    """Another `--split_seed` makes another test split."""
    whole = split_of(np.repeat([0, 1, 2], 40))
    rows = [cut_stratified(whole, 0.25, seed, CLASSES)[1].rows.tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_the_part_that_is_split_off_is_drawn_at_random_and_not_from_one_end() -> None:
    whole = split_of(np.zeros(200, dtype=np.int64))
    times = np.zeros(200)
    for seed in range(200):
        times[cut_stratified(whole, 0.5, seed, CLASSES)[1].rows // 3] += 1
    # Binomial(200, 1/2): six standard deviations are 42.
    assert np.all(np.abs(times - 100) < 43)


@given(LABELS, st.integers(1, 15), st.integers(0, 2**32))
def test_at_most_so_many_rows_of_each_class_are_kept(labels: list[int], limit: int, seed: int) -> None:
    """Rows stay ascending and keep their labels."""
    whole = split_of(labels)
    few = few_of_each(whole, limit, seed, CLASSES)
    expected = {number: min(limit, labels.count(number)) for number in set(labels)}
    assert {number: few.targets.tolist().count(number) for number in set(labels)} == expected
    label_of = dict(zip(whole.rows.tolist(), labels, strict=True))
    assert few.targets.tolist() == [label_of[row] for row in few.rows.tolist()]
    assert np.all(np.diff(few.rows) > 0)
    assert few_of_each(whole, limit, seed, CLASSES).rows.tolist() == few.rows.tolist()


def test_which_rows_are_kept_varies_with_the_seed() -> None:
    whole = split_of(np.repeat([0, 1], 50))
    first, second = (few_of_each(whole, 5, seed, CLASSES).rows.tolist() for seed in (0, 1))
    assert first != second


def test_targets_that_are_vectors_stay_with_their_rows_unchanged() -> None:
    """A target decides on its own strata; its values are not interpreted."""
    values = np.random.default_rng(0).normal(size=(40, 3))
    whole = Split(NO_IMAGES, np.arange(40), values)
    kept, cut = cut_stratified(whole, 0.25, 0, Vectors(("a", "b")))
    for side in (kept, cut, few_of_each(whole, 5, 0, Vectors(("a", "b")))):
        assert side.targets.dtype == np.float64
        assert np.array_equal(side.targets, values[side.rows])
        assert len({*(side.targets[:, 0] > 0)}) == 2


def test_an_unreadable_row_keeps_its_target_and_does_not_count_in_any_part() -> None:
    whole = split_of([0, 1, 2, 0, 1, 2])
    masked = dataclasses.replace(whole, unreadable={3: "empty", 12: "empty"})
    assert masked.targets.tolist() == whole.targets.tolist()
    assert masked.counted.tolist() == [True, False, True, True, False, True]
    part = part_of(masked, np.asarray([1, 2, 3]))
    assert (part.counted.tolist(), part.unreadable) == ([False, True, True], {3: "empty"})


@pytest.mark.parametrize(("path", "words"), [("/there/a.png", "/there/a.png"), (None, "row 0")])
def test_a_row_is_described_by_the_path_of_its_image_or_by_its_number(path: str | None, words: str) -> None:
    """Embedded images have no path."""
    data = datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": path}]})
    assert describe_row(Split(data, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)), 0) == words


def test_a_row_without_an_image_has_neither_bytes_nor_path() -> None:
    no_image = {"bytes": None, "path": None}
    assert encoded_image(Split(NO_IMAGES, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)), 0) == no_image
