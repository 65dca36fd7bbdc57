"""Numbers to predict: from one or several columns to an array."""

from collections.abc import Mapping

import datasets
import numpy as np
import numpy.typing as npt

from hf_transfer.errors import LISTED, UserError, user_error
from hf_transfer.targets.class_labels import LISTS, fractions_among, refuse_other_types
from hf_transfer.targets.target import LabelColumns

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
    return "numbers with fractions" if fractions_among(train[columns.only][:]) else None


def read_numbers(splits: Mapping[str, datasets.Dataset], columns: LabelColumns) -> dict[str, Floats]:
    """The numbers of every split [samples, columns]; NaN where one of several is missing.

    Raises:
        UserError: a value that is no finite number, or a row without any.
    """
    for name in columns.names:
        feature = splits["train"].features[name]
        refuse_other_types(feature, columns)
        if isinstance(feature, (datasets.ClassLabel, *LISTS)):
            raise user_error(
                expected=f"a number in every row of column '{name}'",
                found="classes" if isinstance(feature, datasets.ClassLabel) else "lists",
                do="name a column of numbers, or several in --label_column_names, or another --problem_type",
            )
    return {split: _numbers(rows, columns, split) for split, rows in splits.items()}


def _numbers(rows: datasets.Dataset, columns: LabelColumns, split: str) -> Floats:
    numbers = np.empty((len(rows), len(columns.names)))
    for place, name in enumerate(columns.names):
        for row, value in enumerate(rows[name][:]):
            numbers[row, place] = _number(value, name, row, split)
    missing = np.flatnonzero(np.isnan(numbers).all(1)).tolist()
    if missing:
        raise user_error(
            expected=f"a number in every row of {columns}",
            found=f"none (missing or NaN) in {len(missing)} rows of split '{split}', first in rows {missing[:LISTED]}",
            do="fill in or remove these rows (rows count from 0)",
        )
    return numbers


def _number(value: object, name: str, row: int, split: str) -> float:
    """The number; NaN, if the value is missing."""
    if value is None or value == "":
        return float("nan")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise _no_number(value, name, row, split) from error
    # A text that says so is no missing value.
    if np.isinf(number) or (np.isnan(number) and isinstance(value, str)):
        raise _no_number(value, name, row, split)
    return number


def _no_number(value: object, name: str, row: int, split: str) -> UserError:
    return user_error(
        expected=f"finite numbers in column '{name}'",
        found=f"{value!r} in row {row} of split '{split}'",
        do="correct or remove this row (rows count from 0); for classes: --problem_type single_label_classification",
    )


def _is_numeric(feature: object) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float", "double"))
