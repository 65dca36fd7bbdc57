"""Several labels for a sample, from columns of every form; what cannot be read is refused with a message."""

from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.targets.label_sets import parts_of, read_label_sets, why_label_sets
from hf_transfer.targets.target import LabelColumns
from tests.data.conftest import user_error_with

COLUMN = LabelColumns(("tags",))
FLAGS = LabelColumns(("red", "round"))
NAMED = datasets.List(datasets.ClassLabel(names=["zebra", "ant", "unused"]))
# Three labels, of which two also occur alone, and all beside different others.
JOINED = ["red; round", "red", "round; soft", "soft", "red; soft", "round"]


def table(values: list[Any], feature: Any = None) -> datasets.Dataset:
    features = None if feature is None else datasets.Features({"tags": feature})
    return datasets.Dataset.from_dict({"tags": values}, features=features)


def flags(red: list[Any], round_: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"red": red, "round": round_})


def test_a_list_of_class_labels_keeps_its_own_names_and_numbers() -> None:
    names, separator, cells = read_label_sets({"train": table([[1, 0], [], [0]], NAMED)}, COLUMN)
    assert (names, separator) == (["zebra", "ant", "unused"], ";")
    assert cells["train"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert cells["train"].dtype == np.float32


def test_a_list_of_names_is_sorted_and_says_the_same_in_every_split() -> None:
    splits = {"train": table([["b", "a"], ["c"], ["b", "b"]]), "test": table([["c", "b"], []])}
    names, _, cells = read_label_sets(splits, COLUMN)
    assert names == ["a", "b", "c"]
    assert cells["train"].tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert cells["test"].tolist() == [[0, 1, 1], [0, 0, 0]]


def test_a_list_of_numbers_names_labels_in_the_order_of_numbers() -> None:
    names, _, cells = read_label_sets({"train": table([[10, 9], [2], [9]])}, COLUMN)
    assert names == ["2", "9", "10"]
    assert cells["train"].tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("kind", ["int64", "float32"])
def test_lists_of_zeros_and_ones_have_a_place_for_each_label(kind: str) -> None:
    """As transformers takes them. No list of labels has a label twice."""
    rows = table([[0, 1, 1], [1, 0, 0], [0, 0, 0]], datasets.List(datasets.Value(kind)))
    names, _, cells = read_label_sets({"train": rows}, COLUMN)
    assert names == ["0", "1", "2"]
    assert cells["train"].tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    with user_error_with(expected="lists of 3 numbers 0 or 1 in split 'test'", found="[1.0, 0.0]", do="correct this"):
        read_label_sets({"train": rows, "test": table([[1.0, 0.0]])}, COLUMN)


@pytest.mark.parametrize("sign", [";", "|", ","])
def test_texts_are_divided_at_the_separator_that_they_have(sign: str) -> None:
    values = [value.replace(";", sign) for value in JOINED] + [None, "", f"red{sign}"]
    names, separator, cells = read_label_sets({"train": table(values)}, COLUMN)
    assert (names, separator) == (["red", "round", "soft"], sign)
    assert cells["train"][[0, 1, 6, 7, 8]].tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_the_separator_of_the_settings_wins() -> None:
    columns = LabelColumns(("tags",), "/")
    names, separator, _ = read_label_sets({"train": table(["a, b/c", "c", "a, b"])}, columns)
    assert (names, separator) == (["a, b", "c"], "/")


def test_one_label_for_each_row_is_a_set_of_one() -> None:
    names, separator, cells = read_label_sets({"train": table(["dog", "cat"])}, COLUMN)
    assert (names, separator, cells["train"].tolist()) == (["cat", "dog"], ";", [[0, 1], [1, 0]])
    one_class = table([1, 0], datasets.ClassLabel(names=["x", "y"]))
    assert read_label_sets({"train": one_class}, COLUMN).cells["train"].tolist() == [[0, 1], [1, 0]]


def test_columns_of_zeros_and_ones_may_lack_cells_but_no_whole_row() -> None:
    rows = flags([1, 0, None, 1], ["0", "1", "yes", ""])
    names, _, cells = read_label_sets({"train": rows}, FLAGS)
    assert names == ["red", "round"]
    assert np.array_equal(cells["train"], np.array([[1, 0], [0, 1], [np.nan, 1], [1, np.nan]]), equal_nan=True)
    with user_error_with(
        expected="labels in every row of columns 'red', 'round'",
        found="none in 1 rows of split 'test', first in rows [1]",
        do="fill in or remove these rows",
    ):
        read_label_sets({"train": rows, "test": flags([1, None], [None, None])}, FLAGS)


def test_a_cell_that_is_neither_zero_nor_one_is_refused() -> None:
    with user_error_with(
        expected="0, 1 or nothing in column 'round'", found="2 in row 1 of split 'train'", do="regression"
    ):
        read_label_sets({"train": flags([1, 0], [1, 2])}, FLAGS)


def test_a_row_without_a_list_is_refused_and_an_empty_list_is_not() -> None:
    with user_error_with(
        expected="labels in every row of column 'tags'; a sample without any label has an empty list",
        found="none in 2 rows of split 'train', first in rows [0, 2]",
        do="fill in or remove these rows",
    ):
        read_label_sets({"train": table([None, ["a"], None, []])}, COLUMN)


def test_a_label_that_training_never_has_is_refused_by_name() -> None:
    with user_error_with(
        expected="in column 'tags' of split 'test' only labels that training has (a, b)",
        found="'c' in 1 rows, first in row 1 of split 'test'; 'd' in 1 rows, first in row 0 of split 'test'",
        do="add training samples with these labels, or rename or remove them",
    ):
        read_label_sets({"train": table([["a"], ["b"]]), "test": table([["d", "a"], ["c"]])}, COLUMN)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (table([["a;b"], ["c"]]), COLUMN),
        (table([[0], [1]], datasets.List(datasets.ClassLabel(names=["a;b", "c"]))), COLUMN),
        (datasets.Dataset.from_dict({"a;b": [0, 1], "c": [1, 1]}), LabelColumns(("a;b", "c"))),
    ],
    ids=["names", "ClassLabel", "columns"],
)
def test_a_label_name_with_the_separator_is_refused(rows: datasets.Dataset, columns: LabelColumns) -> None:
    """Joined in a table, it could not be told from two labels."""
    with user_error_with(
        expected="label names without the separator ';'", found="'a;b'", do="name another sign in --label_separator"
    ):
        read_label_sets({"train": rows}, columns)
    assert read_label_sets({"train": rows}, columns._replace(separator="|")).names[0] == "a;b"


def test_a_quoted_name_with_the_separator_is_refused() -> None:
    with user_error_with(
        expected="label names without the separator ','", found="parts of a quoted name", do="--label_separator"
    ):
        read_label_sets({"train": table(['"red, dark",round', "round"])}, LabelColumns(("tags",), ","))


@pytest.mark.parametrize(
    ("rows", "columns", "reason"),
    [
        (table([["a"], []]), COLUMN, "lists"),
        (table([[0], [1]], NAMED), COLUMN, "lists"),
        (table(JOINED), COLUMN, "texts joined by ';'"),
        (flags([0, 1], [None, "1"]), FLAGS, "columns of 0 and 1"),
    ],
)
def test_several_labels_are_recognised(rows: datasets.Dataset, columns: LabelColumns, reason: str) -> None:
    assert why_label_sets(rows, columns) == reason


@pytest.mark.parametrize(
    "values",
    [
        ["cat", "dog", "cat"],
        ["Paris, France", "Lyon, France", "Rome, Italy", "Bari, Italy", "Bonn, Germany"],
        ["a; b", "a; b", "c", "c"],
        ["one sentence, with a comma that is rather long, as sentences are, and no name of a label", "another, too"],
        [0.5, 1.5],
        [[0.5, 1.0], [1.0, 2.0]],
        [1, 2, 3],
    ],
    ids=["classes", "places", "one name with a sign", "sentences", "fractions", "lists of fractions", "numbers"],
)
def test_other_columns_are_not_taken_for_several_labels(values: list[Any]) -> None:
    assert why_label_sets(table(values), COLUMN) is None


def test_columns_of_other_numbers_are_not_taken_for_several_labels() -> None:
    assert why_label_sets(flags([0, 1], [0, 7]), FLAGS) is None


@given(st.lists(st.sampled_from("abcde"), unique=True, max_size=4))
def test_joined_names_come_back(names: list[str]) -> None:
    assert parts_of("; ".join(names), ";") == names


def lists_of(*names: str) -> Any:
    return datasets.List(datasets.ClassLabel(names=list(names)))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (table([[0, 1], [2]], lists_of("a", "b", "c")), table([[0], [1, 0], []], lists_of("c", "a"))),
        (table([[0, 1], [2]], lists_of("a", "b", "c")), table([["c"], ["a", "c"], []])),
        (table([["a", "b"], ["c"]]), table([[2], [0, 2], []], lists_of("a", "b", "c"))),
        (table(["a;b", "c"]), table(["c", "c;a", ""])),
    ],
    ids=["another order and a label less", "names", "numbers beside names", "texts"],
)
def test_labels_of_splits_with_names_of_their_own_are_matched_by_name(
    train: datasets.Dataset, test: datasets.Dataset
) -> None:
    names, _, cells = read_label_sets({"train": train, "test": test}, COLUMN)
    assert names == ["a", "b", "c"]
    assert cells["test"].tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_a_label_that_only_a_split_itself_names_is_refused_with_its_row() -> None:
    data = {"train": table([[0], [1]], lists_of("a", "b")), "test": table([[0], [2, 1]], lists_of("b", "a", "c"))}
    with user_error_with(
        expected="of split 'test' only labels that training has (a, b)", found="'c' in 1 rows, first in row 1", do="add"
    ):
        read_label_sets(data, COLUMN)


def test_a_number_without_a_name_in_a_list_is_refused() -> None:
    stored = datasets.Dataset(
        table([[0], [5]]).data.table.replace_schema_metadata(None),
        info=datasets.DatasetInfo(features=datasets.Features({"tags": lists_of("a", "b")})),
    )
    with user_error_with(expected="class numbers from 0 to 1", found="5 in row 1 of split 'train'", do="correct"):
        read_label_sets({"train": stored}, COLUMN)


@pytest.mark.parametrize(
    ("rows", "columns", "cells"),
    [
        (table([["c"], [], ["a", "b"]]), COLUMN, [[0, 1, 0], [0, 0, 0], [1, 0, 1]]),
        (table(["c", "", "a,b"]), COLUMN, [[0, 1, 0], [0, 0, 0], [1, 0, 1]]),
        (table([[0], [], [1, 2]], lists_of("c", "b", "a")), COLUMN, [[0, 1, 0], [0, 0, 0], [1, 0, 1]]),
        (
            datasets.Dataset.from_dict({"a": [0, 0, 1], "b": [0, 0, 1]}), LabelColumns(("a", "b")),
            [[0, np.nan, 0], [0, np.nan, 0], [1, np.nan, 1]],
        ),
        (datasets.Dataset.from_dict({"c": [1, 0]}), LabelColumns(("c",)), [[np.nan, 1, np.nan], [np.nan, 0, np.nan]]),
    ],
    ids=["lists", "texts", "numbers", "two columns of three", "one column"],
)  # fmt: skip
def test_with_a_finished_model_the_labels_are_those_of_the_model(
    rows: datasets.Dataset, columns: LabelColumns, cells: Any
) -> None:
    """Of labels for which there is no column, nothing is known."""
    names, _, read = read_label_sets({"test": rows}, columns._replace(outputs=("b", "c", "a")))
    assert names == ["b", "c", "a"]
    np.testing.assert_array_equal(read["test"], cells)
