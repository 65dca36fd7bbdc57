"""Rows without a label, and splits without any."""

from typing import Any

import datasets
import pytest

from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.missing_labels import has_no_labels
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.target import LabelColumns, Target

COLUMN = LabelColumns(("label",))
NAMED = datasets.ClassLabel(names=["a", "b"])


def table(values: list[Any], feature: Any = None) -> datasets.Dataset:
    features = None if feature is None else datasets.Features({"label": feature})
    return datasets.Dataset.from_dict({"label": values}, features)


@pytest.mark.parametrize(
    ("kind", "rows", "missing"),
    [
        (Classes, table(["a", None, "", "b"]), [1, 2]),
        (Classes, table([0, -1, 1], NAMED), [1]),
        (Classes, table([0, -1, 1]), []),
        (Classes, table([1.0, float("nan")]), [1]),
        (LabelSets, table([["a"], None, []]), [1]),
        (LabelSets, table([[0], [-1], [], [1, -1]], datasets.List(NAMED)), [1]),
        (LabelSets, table(["a;b", "", None]), []),
        (Numbers, table([0.5, None, float("nan"), -1.0]), [1, 2]),
    ],
)
def test_rows_without_a_label_are_told_from_rows_with_none_of_the_labels(
    kind: type[Target], rows: datasets.Dataset, missing: list[int]
) -> None:
    """An empty list and an empty text say that a sample has none of the labels; -1 is a number of no class."""
    assert kind.missing(rows, COLUMN).nonzero()[0].tolist() == missing


@pytest.mark.parametrize("kind", [LabelSets, Numbers])
def test_a_row_of_several_columns_lacks_a_label_if_all_are_empty(kind: type[Target]) -> None:
    rows = datasets.Dataset.from_dict({"x": [1.0, None, None], "y": [None, 0.0, None]})
    assert kind.missing(rows, LabelColumns(("x", "y"))).tolist() == [False, False, True]


@pytest.mark.parametrize(
    "rows",
    [
        table([None, None]), table(["", ""]), table([-1, -1]), table([-1.0, -1.0]), table(["-1", "-1"]),
        table([-1, -1], NAMED), table([[], []], datasets.List(NAMED)), table([[-1], [-1]]), table([None], NAMED),
        datasets.Dataset.from_dict({"text": ["one", "two"]}),
    ],
)  # fmt: skip
def test_a_split_without_labels_is_recognised(rows: datasets.Dataset) -> None:
    assert has_no_labels(rows, COLUMN, ["a", "b"])


@pytest.mark.parametrize(
    ("rows", "known"),
    [
        (table([-1, -1]), [1, -1]),
        (table(["-1"]), ["-1", "1"]),
        (table([-1, 1]), [0, 1]),
        (table([None, "a"]), ["a", "b"]),
        (table([0, -1], NAMED), [0, 1]),
        (table([["a"], []]), ["a"]),
    ],
)
def test_a_split_with_some_labels_is_no_such_split(rows: datasets.Dataset, known: list[object]) -> None:
    """-1 is a label if training has it beside others."""
    assert not has_no_labels(rows, COLUMN, known)
