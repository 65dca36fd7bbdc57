"""Folds: whole units, in proportion, by content alone."""

import datasets
import numpy as np
import numpy.typing as npt
import pytest

from hf_transfer.data import folds as folds_module
from hf_transfer.data.folds import NO_FOLD, Folds, NoFoldsError, folds_of
from hf_transfer.data.groups import Keys, key_of, units_of
from hf_transfer.data.splits import Split
from hf_transfer.errors import UserError
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.target import Target, Values

CLASSES = Classes(("a", "b", "c"))


def split_of(values: Values) -> Split:
    return Split(datasets.Dataset.from_dict({}), np.arange(len(values)), values)


def keys(contents: npt.NDArray[np.int64]) -> Keys:
    return np.asarray([key_of(str(content).encode()) for content in contents.tolist()], dtype=np.uint64)


def folds(
    values: Values, contents: npt.NDArray[np.int64] | None = None, *, target: Target = CLASSES, seed: int = 0
) -> Folds:
    contents = np.arange(len(values)) if contents is None else contents
    return folds_of(split_of(values), units_of([keys(contents)]), target, seed)


def classes(size: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Numbers of three classes, of which the last is rare."""
    return np.random.default_rng(seed).choice(3, size, p=[0.6, 0.3, 0.1])


@pytest.mark.parametrize(
    ("size", "smallest", "expected"),
    [(60, 20, (2, 5)), (60, 3, (4, 3)), (60, 1, (5, 2)), (999, 100, (2, 5)), (1_000, 100, (1, 3)), (1_000, 2, (1, 2))],
)
def test_few_rows_get_more_folds_and_repeats(size: int, smallest: int, expected: tuple[int, int]) -> None:
    """At least ten heads, of at most as many folds as the smallest class has rows."""
    values = np.repeat([0, 1], [size - smallest, smallest])
    of_rows = folds(values).of_rows
    assert (len(of_rows), len(np.unique(of_rows))) == expected
    assert of_rows.shape[1] == size


def test_of_many_rows_a_fifth_is_held_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds_module, "MANY_ROWS", 1_999)
    held_out = folds(classes(2_000))
    assert set(held_out.of_rows.ravel().tolist()) == {0, NO_FOLD}
    assert held_out.of_rows.shape == (1, 2_000)
    assert held_out.predicted.mean() == pytest.approx(0.2, abs=0.03)
    assert [(repeat, inside.sum()) for repeat, inside in held_out.each()] == [(0, held_out.predicted.sum())]


@pytest.mark.parametrize("size", [90, 1_500])
def test_each_class_is_in_each_fold_in_proportion(size: int) -> None:
    values = classes(size)
    for numbers in folds(values).of_rows:
        counts = np.stack([np.bincount(values[numbers == fold], minlength=3) for fold in np.unique(numbers)])
        expected = np.bincount(values) / len(counts)
        assert np.all(np.abs(counts - expected) <= np.maximum(1, 0.4 * expected))
        assert counts.min() >= 1


def test_labels_are_in_each_fold_and_numbers_of_all_sizes() -> None:
    generator = np.random.default_rng(0)
    cells = (generator.random((200, 4)) < [0.5, 0.3, 0.2, 0.1]).astype(np.float32)
    for numbers in folds(cells, target=LabelSets(("a", "b", "c", "d"))).of_rows:
        assert all(cells[numbers == fold].sum(0).min() >= 1 for fold in np.unique(numbers))
    values = generator.normal(size=(200, 1))
    for numbers in folds(values, target=Numbers(("x",))).of_rows:
        means = [values[numbers == fold].mean() for fold in np.unique(numbers)]
        assert np.ptp(means) < 3 * values.std() / np.sqrt(40)


def test_copies_and_groups_share_a_fold_in_every_repeat() -> None:
    contents = np.random.default_rng(1).integers(0, 25, 120)
    values = np.random.default_rng(2).integers(0, 2, 25)[contents]
    divided = folds(values, contents)
    for numbers in divided.of_rows:
        for content in np.unique(contents):
            assert len(set(numbers[contents == content].tolist())) == 1
    assert len(divided.of_rows) > 1


def test_the_fold_of_a_row_depends_on_its_content_and_not_on_the_order_of_rows() -> None:
    values = classes(150)
    order = np.random.default_rng(3).permutation(150)
    assert np.array_equal(folds(values).of_rows[:, order], folds(values[order], order).of_rows)


def test_another_seed_makes_other_folds_and_repeats_differ() -> None:
    values = classes(150)
    first, again, other = folds(values).of_rows, folds(values).of_rows, folds(values, seed=1).of_rows
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_rows_that_all_belong_together_are_refused() -> None:
    with pytest.raises(UserError, match="Found:    4 rows that are copies of each other, or of one group"):
        folds(np.array([0, 1, 0, 1]), np.zeros(4, dtype=np.int64))


@pytest.mark.parametrize(
    ("target", "values", "kind"),
    [(CLASSES, np.arange(3), "class"), (LabelSets(("a", "b")), np.eye(2), "label")], ids=["classes", "labels"],
)  # fmt: skip
def test_where_no_two_rows_are_alike_none_can_be_left_out(target: Target, values: Values, kind: str) -> None:
    """A head would be solved on no rows."""
    with pytest.raises(NoFoldsError, match=f"at least 2 training samples of one {kind} that differ") as error:
        folds(values, target=target)
    assert "use --strategy linear_probe" in str(error.value)
    two_of_the_first = np.concatenate([values, values[:1]])
    assert all(rows.any() for rows in folds(two_of_the_first, target=target).outside())
