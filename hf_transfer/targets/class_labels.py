"""Labels: from a column of any type to class numbers and names that all splits share."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from hf_transfer.errors import LISTED, UserError, some, user_error
from hf_transfer.targets.target import LabelColumns

Labels = npt.NDArray[np.int64]
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?")
LISTS = (datasets.Sequence, datasets.List, datasets.LargeList, list)
# In a column of numbers other texts are mistakes, which reading it reports; in one of classes they are names.
SHARE_OF_NUMBERS = 0.9
# More fractional numbers than that are measurements, and no class names.
MOST_CLASSES_OF_FRACTIONS = 20
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def read_labels(splits: Mapping[str, datasets.Dataset], columns: LabelColumns) -> tuple[list[str], dict[str, Labels]]:
    """Class names, and for every split its rows' class numbers.

    Names come from a `ClassLabel` column itself; otherwise they are the sorted values of the training split.

    Raises:
        UserError: missing, unlabelled or unknown labels, several columns, or lists.
    """
    if len(columns.names) > 1:
        raise _unsuitable("several columns", columns)
    column = columns.only
    feature = splits["train"].features[column]
    refuse_other_types(feature, columns)
    if isinstance(feature, LISTS):
        raise _unsuitable("a list in each row", columns)
    values = {name: split.select_columns([column])[:][column] for name, split in splits.items()}
    for name, column_values in values.items():
        _refuse_missing(column_values, column, name)
    if isinstance(feature, datasets.ClassLabel):
        names = [str(name) for name in feature.names]
        number_of = {number: number for number in range(len(names))}
        _refuse_out_of_range(values, len(names), column)
    else:
        keys = in_order(set(values["train"]))
        names = [class_name(key) for key in keys]
        number_of = {key: number for number, key in enumerate(keys)}
        _refuse_unknown(values, number_of, column)
    return names, {
        split: np.asarray([number_of[one] for one in column_values], dtype=np.int64)
        for split, column_values in values.items()
    }


def check_classes(names: list[str], labels: Mapping[str, Labels], *, splits_to_cut: int) -> None:
    """Refuse labels that no classifier can be trained or evaluated on.

    Args:
        names: class names.
        labels: class numbers of every split that the data set brings.
        splits_to_cut: how many splits must still be split off training; each needs a sample of each class.

    Raises:
        UserError: one class only, a class with too few samples, a class that only evaluation has.
    """
    counts = np.bincount(labels["train"], minlength=len(names))
    present = [name for name, count in zip(names, counts, strict=True) if count]
    if len(present) < 2:
        raise user_error(
            expected="at least 2 classes to tell apart",
            found=f"only 1 class, {present[0]!r}, in {counts.sum()} rows" if present else "no rows",
            do="add samples of another class, or name another --label_column_name",
        )
    needed = 1 + splits_to_cut
    few = [f"{name!r} ({count})" for name, count in zip(names, counts, strict=True) if 0 < count < max(2, needed)]
    if few:
        raise user_error(
            expected=f"at least {max(2, needed)} training samples of each class"
            + (f", to cut {splits_to_cut} more split(s) from them" if splits_to_cut else ""),
            found=f"too few of {some(few)}",
            do="add samples of these classes, merge or remove them, or bring your own validation and test splits"
            + ("; for numbers: --problem_type regression" if all(map(NUMBER.fullmatch, names)) else ""),
        )
    for name, numbers in labels.items():
        lacking = sorted({names[number] for number in numbers if not counts[number]})
        if lacking:
            raise user_error(
                expected=f"in split '{name}' only classes that training has",
                found=f"{some([repr(label) for label in lacking])} in '{name}', of which training has no sample",
                do="add training samples of these classes, or remove these rows",
            )


def refuse_other_types(feature: object, columns: LabelColumns) -> None:
    """Refuse columns of which no target can be read.

    Raises:
        UserError: bytes, dates, or nested values.
    """
    kind = None
    if isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary"):
        kind = "bytes"
    elif isinstance(feature, datasets.Value) and feature.dtype.startswith(("timestamp", "date", "time")):
        # Arrow also makes dates of texts in JSON, and writes them in another form.
        kind = "dates"
    elif not isinstance(feature, (datasets.Value, datasets.ClassLabel, *LISTS)):
        kind = f"a column of type {type(feature).__name__}"
    if kind is not None:
        raise user_error(
            expected=f"classes, labels or numbers in {columns}",
            found=f"{kind}, which cannot be predicted",
            do="name another column in --label_column_name",
        )


def fractions_among(values: Collection[object]) -> bool:
    """Whether nearly all values are numbers, also as text, with fractions, and too many different ones for classes."""
    # A CSV file has text only; 0.5 and 1.5 may be classes, but not if there are many of them.
    texts = [value for value in values if isinstance(value, str)]
    if not texts:
        return any(isinstance(value, float) and value == value and not value.is_integer() for value in values)
    numbers = [text for text in texts if NUMBER.fullmatch(text.strip())]
    different = len(set(numbers))
    return (
        len(numbers) >= SHARE_OF_NUMBERS * len(texts)
        and any(not WHOLE_NUMBER.fullmatch(text.strip()) for text in numbers)
        and (different > MOST_CLASSES_OF_FRACTIONS or 2 * different > len(numbers))
    )


def _unsuitable(kind: str, columns: LabelColumns) -> UserError:
    return user_error(
        expected=f"one class for each row in {columns}",
        found=kind,
        do="leave out --problem_type or name another; or name a column with one class label in --label_column_name",
    )


def _refuse_missing(values: list[object], column: str, split: str) -> None:
    rows = [row for row, value in enumerate(values) if value is None or value != value or value == ""]
    if rows:
        raise user_error(
            expected=f"a label in every row of column '{column}'",
            found=f"none in {len(rows)} rows of split '{split}', first in rows {rows[:LISTED]}",
            do="fill in or remove these rows (rows count from 0)",
        )
    if values and all(value in (-1, "-1") for value in values):
        raise user_error(
            expected=f"a labelled split '{split}'",
            found=f"-1 in every row of column '{column}': the labels are withheld, which is not supported yet",
            do="use a copy of the data set without this split; a test split is then cut from training",
        )


def _refuse_out_of_range(values: Mapping[str, list[Any]], classes: int, column: str) -> None:
    for split, numbers in values.items():
        if rows := [row for row, number in enumerate(numbers) if not 0 <= number < classes]:
            raise user_error(
                expected=f"class numbers from 0 to {classes - 1} in column '{column}'",
                found=f"{numbers[rows[0]]} in row {rows[0]} of split '{split}' ({len(rows)} such rows)",
                do="correct or remove these rows",
            )


def _refuse_unknown(values: Mapping[str, list[Any]], known: Collection[object], column: str) -> None:
    for split, split_values in values.items():
        unknown = sorted({class_name(value) for value in split_values if value not in known})
        if unknown:
            raise user_error(
                expected=f"in split '{split}' only labels that training has ({some(sorted(map(class_name, known)))})",
                found=f"{some([repr(label) for label in unknown])} in column '{column}'",
                do="add training samples of these classes, or remove these rows",
            )


def in_order(values: set[Any]) -> list[Any]:
    """Sorted; whole numbers by value, also where they are text, as in a CSV file: 9 before 10."""
    numbers = all(isinstance(value, str) and WHOLE_NUMBER.fullmatch(value) for value in values)
    return sorted(values, key=int if numbers else None)


def class_name(value: object) -> str:
    """The name of the class that a value of the label column stands for."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
