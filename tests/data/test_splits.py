"""Cutting and thinning by class: nothing is lost, nothing is shared, each class is on each side."""

from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.data.splits import Split, cut_stratified, few_per_class

NO_IMAGES = datasets.Dataset.from_dict({"image": [None]})
# Class numbers of at least two samples each, in any order.
LABELS = st.lists(st.integers(2, 12), min_size=1, max_size=6).flatmap(
    lambda counts: st.permutations([number for number, count in enumerate(counts) for _ in range(count)])
)
FRACTIONS = st.floats(0.01, 0.5)


def split_of(labels: Any, first_row: int = 0) -> Split:
    rows: npt.NDArray[np.int64] = np.arange(first_row, first_row + 3 * len(labels), 3)
    return Split(NO_IMAGES, rows, np.asarray(labels, dtype=np.int64))


@given(LABELS, FRACTIONS, st.integers(0, 2**32))
def test_a_cut_is_disjoint_covering_and_keeps_each_row_with_its_label(
    labels: list[int], fraction: float, seed: int
) -> None:
    """Rows stay ascending on both sides."""
    whole = split_of(labels, first_row=5)
    kept, cut = cut_stratified(whole, fraction, seed)
    assert sorted([*kept.rows, *cut.rows]) == whole.rows.tolist()
    label_of = dict(zip(whole.rows.tolist(), labels, strict=True))
    for side in (kept, cut):
        assert np.all(np.diff(side.rows) > 0)
        assert side.labels.tolist() == [label_of[row] for row in side.rows.tolist()]
        assert len(side) == len(side.rows)


@given(LABELS, FRACTIONS)
def test_each_class_is_on_each_side_in_its_share(labels: list[int], fraction: float) -> None:
    """The share is exact up to rounding, and at least 1 on each side."""
    kept, cut = cut_stratified(split_of(labels), fraction, seed=0)
    for number, total in zip(*np.unique(labels, return_counts=True), strict=True):
        off = int((cut.labels == number).sum())
        assert 1 <= off <= total - 1
        assert off in (1, total - 1) or abs(off - fraction * total) <= 0.5
        assert off + (kept.labels == number).sum() == total


def test_a_class_of_two_keeps_one_on_each_side_even_at_the_largest_fraction() -> None:
    """90 % of 2 would round to both."""
    kept, cut = cut_stratified(split_of([0, 0, 1, 1, 1, 2, 2]), 0.9, seed=3)
    assert sorted(kept.labels) == [0, 1, 2]
    assert sorted(cut.labels) == [0, 1, 1, 2]


def test_the_same_seed_cuts_alike_and_another_one_differs() -> None:
    """Another `--split_seed` is another cut."""
    whole = split_of(np.repeat([0, 1, 2], 40))
    rows = [cut_stratified(whole, 0.25, seed)[1].rows.tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_a_cut_is_drawn_at_random_and_not_from_one_end() -> None:
    whole = split_of(np.zeros(200, dtype=np.int64))
    times = np.zeros(200)
    for seed in range(200):
        times[cut_stratified(whole, 0.5, seed)[1].rows // 3] += 1
    # Binomial(200, 1/2): six standard deviations are 42.
    assert np.all(np.abs(times - 100) < 43)


@given(LABELS, st.integers(1, 15), st.integers(0, 2**32))
def test_few_per_class_keeps_the_limit_of_each_class_or_all_it_has(labels: list[int], limit: int, seed: int) -> None:
    """Rows stay ascending and keep their labels."""
    whole = split_of(labels)
    few = few_per_class(whole, limit, seed)
    expected = {number: min(limit, labels.count(number)) for number in set(labels)}
    assert {number: few.labels.tolist().count(number) for number in set(labels)} == expected
    label_of = dict(zip(whole.rows.tolist(), labels, strict=True))
    assert few.labels.tolist() == [label_of[row] for row in few.rows.tolist()]
    assert np.all(np.diff(few.rows) > 0)
    assert few_per_class(whole, limit, seed).rows.tolist() == few.rows.tolist()


def test_few_per_class_varies_with_its_seed() -> None:
    whole = split_of(np.repeat([0, 1], 50))
    assert few_per_class(whole, 5, 0).rows.tolist() != few_per_class(whole, 5, 1).rows.tolist()


@pytest.mark.parametrize(("path", "words"), [("/there/a.png", "/there/a.png"), (None, "row 0")])
def test_a_row_is_described_by_the_path_of_its_image_or_by_its_number(path: str | None, words: str) -> None:
    """Embedded images have no path."""
    data = datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": path}]})
    assert Split(data, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)).describe(0) == words


def test_a_row_without_an_image_is_raw_with_neither_bytes_nor_path() -> None:
    empty = {"bytes": None, "path": None}
    assert Split(NO_IMAGES, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)).raw(0) == empty
