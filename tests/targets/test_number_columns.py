"""Numbers from one or several columns; what is no finite number is refused with its row."""

from typing import Any

import datasets
import numpy as np
import pytest

from hf_transfer.targets.label_sets import why_label_sets
from hf_transfer.targets.number_columns import read_numbers, why_numbers
from hf_transfer.targets.target import LabelColumns
from tests.data.conftest import user_error_with

COLUMN = LabelColumns(("height",))
BOTH = LabelColumns(("height", "width"))


def table(values: list[Any], feature: Any = None) -> datasets.Dataset:
    features = None if feature is None else datasets.Features({"height": feature})
    return datasets.Dataset.from_dict({"height": values}, features=features)


def sizes(height: list[Any], width: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"height": height, "width": width})


@pytest.mark.parametrize("values", [[-0.4, 2, 1e9], ["-0.4", "2", " 1e9 "]], ids=["numbers", "texts"])
def test_numbers_are_read_in_double_precision(values: list[Any]) -> None:
    numbers = read_numbers({"train": table(values), "test": table(values[:1])}, COLUMN)
    assert numbers["train"].tolist() == [[-0.4], [2.0], [1e9]]
    assert numbers["train"].dtype == np.float64
    assert numbers["test"].tolist() == [[-0.4]]


def test_one_of_several_numbers_may_be_missing() -> None:
    numbers = read_numbers({"train": sizes([1.5, None, 3.0], [None, 2.0, 4.0])}, BOTH)["train"]
    assert np.array_equal(numbers, [[1.5, np.nan], [np.nan, 2.0], [3.0, 4.0]], equal_nan=True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("tall", "'tall'"), ("nan", "'nan'"), (float("inf"), "inf"), ("-inf", "'-inf'")],
)
def test_a_value_that_is_no_finite_number_is_refused_with_its_row(value: Any, shown: str) -> None:
    rows = table([1.5, value] if isinstance(value, float) else ["1.5", value])
    with user_error_with(
        expected="finite numbers in column 'height'",
        found=f"{shown} in row 1 of split 'train'",
        do="correct or remove this row",
    ):
        read_numbers({"train": rows}, COLUMN)


@pytest.mark.parametrize("values", [["1,5", "-0,25", "3"], ["1.5", "0,8", "2.5"]])
def test_a_decimal_comma_is_refused_with_what_to_write(values: list[str]) -> None:
    """A column of such numbers is not one of labels that are joined by commas."""
    rows = table(values)
    with user_error_with(expected="finite numbers in column 'height'", found="in row", do="a decimal point, as 0.8"):
        read_numbers({"train": rows}, COLUMN)
    alone = table([f"{number},{number % 7}" for number in range(40)])
    assert why_numbers(alone, COLUMN) == "numbers with a decimal comma"
    assert why_label_sets(alone, COLUMN) is None
    few = table(["1,2", "2,3", "1,3", "1"] * 10)
    assert (why_numbers(few, COLUMN), why_label_sets(few, COLUMN)) == (None, "texts joined by ','")


@pytest.mark.parametrize("values", [[1.5, None, 2.0], [1.5, float("nan"), 2.0], ["1.5", "", "2"]])
def test_a_row_without_its_number_is_refused(values: list[Any]) -> None:
    with user_error_with(
        expected="a number in every row of column 'height'",
        found="none in 1 rows of split 'train', first in rows [1]",
        do="fill in or remove these rows",
    ):
        read_numbers({"train": table(values)}, COLUMN)


def test_a_row_without_any_of_several_numbers_is_refused() -> None:
    with user_error_with(
        expected="a number in every row of columns 'height', 'width'", found="in 1 rows of split 'test'", do="fill in"
    ):
        read_numbers({"train": sizes([1.0], [2.0]), "test": sizes([1.0, None], [2.0, None])}, BOTH)


@pytest.mark.parametrize(
    ("values", "feature", "words"),
    [
        ([0, 1], datasets.ClassLabel(names=["a", "b"]), "classes"),
        ([[1.0], [2.0]], datasets.List(datasets.Value("float32")), "lists"),
    ],
)
def test_classes_and_lists_are_no_numbers(values: list[Any], feature: Any, words: str) -> None:
    with user_error_with(expected="a number in every row of column 'height'", found=words, do="--label_column_names"):
        read_numbers({"train": table(values, feature)}, COLUMN)


@pytest.mark.parametrize(
    ("values", "is_measured"),
    [
        ([0.5, 1.25], True),
        ([0.0, 1.0, 2.0], False),
        ([1, 2, 3], False),
        ([f"{n / 10}" for n in range(25)] * 9, True),
        (["0.5", "1.5", "2.5"] * 9, False),
        (["0.1", "0.7", "1.3"], True),
        (["0.5", "cat"], False),
        ([*(f"{n / 7}" for n in range(19)), "inf"], True),
        ([[0.5], [1.5]], False),
    ],
    ids=[
        "fractions",
        "whole floats",
        "whole",
        "many texts",
        "grades",
        "different texts",
        "a word",
        "a mistake",
        "lists",
    ],
)
def test_numbers_are_recognised_by_their_fractions(values: list[Any], is_measured: bool) -> None:
    """A few fractions in the texts of a CSV file may be class names, such as grades or versions."""
    assert why_numbers(table(values), COLUMN) == ("numbers with fractions" if is_measured else None)


def test_several_columns_of_numbers_are_recognised() -> None:
    assert why_numbers(sizes([1, 2], [0.5, 1.0]), BOTH) == "several columns of numbers"
    assert why_numbers(sizes([1, 2], ["a", "b"]), BOTH) is None
