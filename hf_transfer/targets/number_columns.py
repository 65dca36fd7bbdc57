"""Numbers to predict: from one or several columns to an array."""

import re
from collections.abc import Mapping

import datasets
import numpy as np
import numpy.typing as npt

from hf_transfer.errors import UserError, user_error
from hf_transfer.targets.class_labels import (
    DECIMAL_COMMA,
    LISTS,
    NUMBER,
    decimal_commas_among,
    fractions_among,
    refuse_other_types,
    refuse_unknown_columns,
)
from hf_transfer.targets.distinct import distinct
from hf_transfer.targets.label_columns import LabelColumns
from hf_transfer.targets.missing_labels import missing_labels, refuse_missing

# A number with a decimal point or comma.
NUMERIC = re.compile(rf"\s*({NUMBER.pattern}|{DECIMAL_COMMA.pattern})\s*")
Floats = npt.NDArray[np.float64]


def why_numbers(train: datasets.Dataset, columns: LabelColumns) -> str | None:
    """Why columns have numbers that are no classes ("numbers with fractions"); None: they have none."""
    if len(columns.names) > 1:
        return (
            "several columns of numbers" if all(_is_numeric(train.features[name]) for name in columns.names) else None
        )
    feature = train.features[columns.only]
    if not isinstance(feature, datasets.Value):
        return None
    # How often each occurs matters only where some are texts of numbers.
    values = distinct(train, columns.only).values
    if any(isinstance(value, str) and NUMERIC.fullmatch(value) for value in values):
        values = train[columns.only][:]
    elif any(isinstance(value, str) for value in values):
        return None
    if decimal_commas_among(values):
        return "numbers with a decimal comma"
    return "numbers with fractions" if fractions_among(values) else None


def read_numbers(splits: Mapping[str, datasets.Dataset], columns: LabelColumns) -> dict[str, Floats]:
    """The numbers of every split [samples, outputs]; NaN where one of several is missing.

    Raises:
        UserError: a value that is no finite number, a row without any, or a column that a finished model lacks.
    """
    places = _places(columns)
    for name in columns.names:
        for feature in (rows.features[name] for rows in splits.values()):
            refuse_other_types(feature, columns)
            if isinstance(feature, (datasets.ClassLabel, *LISTS)):
                raise user_error(
                    expected=f"a number in every row of column '{name}'",
                    found="classes" if isinstance(feature, datasets.ClassLabel) else "lists",
                    do="name a column of numbers, or several in --label_column_names, or another --problem_type",
                )
    return {split: _numbers(rows, columns, split, places) for split, rows in splits.items()}


def _places(columns: LabelColumns) -> dict[str, int]:
    """Which output of the model each column is, by name; a model of one number takes one column of any name."""
    names = columns.outputs or columns.names
    if len(names) == len(columns.names) == 1:
        return {columns.only: 0}
    refuse_unknown_columns(columns, "numbers")
    return {name: names.index(name) for name in columns.names}


def _numbers(rows: datasets.Dataset, columns: LabelColumns, split: str, places: Mapping[str, int]) -> Floats:
    refuse_missing(missing_labels(rows, columns), split, columns, expected=f"a number in every row of {columns}")
    # Of outputs of the model for which there is no column, nothing is known.
    numbers = np.full((len(rows), len(columns.outputs or columns.names)), np.nan)
    for name, place in places.items():
        for row, value in enumerate(rows[name][:]):
            if (number := _number(value)) is None:
                raise _no_number(value, name, columns.at(split, row))
            numbers[row, place] = number
    return numbers


def _number(value: object) -> float | None:
    """The number; NaN, if the value is missing; None for any other value."""
    if value is None or value == "":
        return float("nan")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    # A text that says so is no missing value.
    return None if np.isinf(number) or (np.isnan(number) and isinstance(value, str)) else number


def _no_number(value: object, name: str, where: str) -> UserError:
    return user_error(
        expected=f"finite numbers in column '{name}'",
        found=f"{value!r} in {where}",
        do="write numbers with a decimal point, as 0.8; if these are several labels: "
        "--problem_type multi_label_classification"
        if isinstance(value, str) and DECIMAL_COMMA.fullmatch(value.strip())
        else "correct or remove this row; for classes: --problem_type single_label_classification",
    )


def _is_numeric(feature: object) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float", "double"))
