"""Labels: from a column of any type to class numbers and names that all splits share."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from hf_transfer.errors import LISTED, UserError, some, user_error
from hf_transfer.targets.class_names import shown_names, similar_names
from hf_transfer.targets.distinct import Distinct, distinct
from hf_transfer.targets.label_columns import SEPARATORS, LabelColumns
from hf_transfer.targets.missing_labels import missing_labels, refuse_missing

Labels = npt.NDArray[np.int64]
# What empty cells may mean where others look like joined labels.
SEVERAL = (
    "or, if the cells list labels, and an empty one says that a row has none, use "
    "--problem_type multi_label_classification"
)
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?")
# A number as it is written in much of Europe.
DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+(,[0-9]+)?")
LISTS = (datasets.Sequence, datasets.List, datasets.LargeList, list)
# In a column of numbers other texts are mistakes, which reading it reports; in one of classes they are names.
SHARE_OF_NUMBERS = 0.9
# More fractional numbers than that are measurements, and no class names.
MOST_CLASSES_OF_FRACTIONS = 20
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def read_labels(splits: Mapping[str, datasets.Dataset], columns: LabelColumns) -> tuple[list[str], dict[str, Labels]]:
    """Class names, and for every split its rows' class numbers; classes of all splits are matched by name.

    Names come from a `ClassLabel` column of the training split itself, and else are its sorted values; with a finished
    model they are the model's.

    Raises:
        UserError: missing, unlabelled or unknown labels, several columns, or lists.
    """
    if len(columns.names) > 1:
        raise _unsuitable("several columns", columns)
    named = {split: _named(rows, split, columns) for split, rows in splits.items()}
    names = list(columns.outputs) or _names(splits["train"], columns.only)
    known = list(columns.outputs) or in_training(names, named["train"].values)
    number_of = {name: number for number, name in enumerate(names)}
    for split, of_rows in named.items():
        if not set(of_rows.values) <= set(known):
            in_each_row = [[of_rows.values[number]] for number in of_rows.numbers.tolist()]
            refuse_unknown(split, in_each_row, known, columns, "classes")
    return names, {
        split: np.asarray([number_of[name] for name in of_rows.values], dtype=np.int64)[of_rows.numbers]
        for split, of_rows in named.items()
    }


def in_training(names: Sequence[str], names_of_rows: Iterable[str]) -> list[str]:
    """The names that training has, in the order of all names: a `ClassLabel` may have more."""
    present = set(names_of_rows)
    return [name for name in names if name in present]


def _names(train: datasets.Dataset, column: str) -> list[str]:
    """The names of all classes, in the order of their numbers."""
    feature = train.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return [str(name) for name in feature.names]
    return [class_name(value) for value in in_order(set(distinct(train, column).values))]


def _named(rows: datasets.Dataset, split: str, columns: LabelColumns) -> Distinct:
    """The names of the classes of all rows; numbers are read by the names that this split itself has for them."""
    feature = rows.features[columns.only]
    refuse_other_types(feature, columns)
    if isinstance(feature, LISTS):
        raise _unsuitable("a list in each row", columns)
    different = distinct(rows, columns.only)
    refuse_missing(
        missing_labels(rows, columns), split, columns, expected=f"a label in every row of {columns}",
        otherwise=SEVERAL if any(sign in str(value) for value in different.values for sign in SEPARATORS) else "",
    )  # fmt: skip
    if not isinstance(feature, datasets.ClassLabel):
        return different._replace(values=[class_name(value) for value in different.values])
    if not all(0 <= number < len(feature.names) for number in different.values):
        names_of_numbers([[number] for number in rows[columns.only][:]], feature, split, columns)
    return different._replace(values=[str(feature.names[number]) for number in different.values])


def names_of_numbers(
    rows: Sequence[Sequence[int | None]], feature: datasets.ClassLabel, split: str, columns: LabelColumns
) -> list[list[str]]:
    """The names of the class numbers of each row; -1 and None stand for no class.

    Raises:
        UserError: a number has no name.
    """
    names = [str(name) for name in feature.names]
    numbers = [[number for number in row if number is not None and number != -1] for row in rows]
    if wrong := [place for place, row in enumerate(numbers) if any(not 0 <= one < len(names) for one in row)]:
        raise user_error(
            expected=f"class numbers from 0 to {len(names) - 1} in {columns}",
            found=f"{next(one for one in numbers[wrong[0]] if not 0 <= one < len(names))} in "
            f"{columns.at(split, wrong[0])} ({len(wrong)} such rows)",
            do="correct or remove these rows",
        )
    return [[names[number] for number in row] for row in numbers]


def check_classes(names: list[str], labels: Mapping[str, Labels], *, splits_to_cut: int) -> None:
    """Refuse labels that no classifier can be trained or evaluated on.

    Args:
        names: class names.
        labels: class numbers of every split that the data set brings; only those of training are read.
        splits_to_cut: how many splits must still be split off training; each needs a sample of each class.

    Raises:
        UserError: one class only, or a class with too few samples.
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
    few = [
        f"{name!r} ({count})" + "".join(f", beside {near!r}" for near in similar_names(name, present)[:1])
        for name, count in zip(names, counts, strict=True)
        if 0 < count < max(2, needed)
    ]
    if few:
        raise user_error(
            expected=f"at least {max(2, needed)} training samples of each class"
            + (f", to cut {splits_to_cut} more split(s) from them" if splits_to_cut else ""),
            found=f"too few of {some(few)}",
            do="add samples of these classes, merge or remove them, or bring your own validation and test splits"
            + ("; for numbers: --problem_type regression" if all(map(NUMBER.fullmatch, names)) else ""),
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
    # A column of many rows has few different values.
    are_numbers = {text for text in set(texts) if NUMBER.fullmatch(text.strip())}
    numbers = [text for text in texts if text in are_numbers]
    different = len(are_numbers)
    return (
        len(numbers) >= SHARE_OF_NUMBERS * len(texts)
        and any(not WHOLE_NUMBER.fullmatch(text.strip()) for text in are_numbers)
        and (different > MOST_CLASSES_OF_FRACTIONS or 2 * different > len(numbers))
    )


def decimal_commas_among(values: Iterable[object]) -> bool:
    """Whether all values are texts of numbers, with fractions behind a comma instead of a point."""
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    return all(map(DECIMAL_COMMA.fullmatch, texts)) and fractions_among([text.replace(",", ".") for text in texts])


def _unsuitable(kind: str, columns: LabelColumns) -> UserError:
    return user_error(
        expected=f"one class for each row in {columns}",
        found=kind,
        do="leave out --problem_type or name another; or name a column with one class label in --label_column_name",
    )


def refuse_unknown(
    split: str, names_of_rows: Sequence[Collection[str]], known: Sequence[str], columns: LabelColumns, outputs: str
) -> None:
    """Refuse names that training lacks, or that a finished model lacks.

    Args:
        split: of the rows.
        names_of_rows: the names that each row has.
        known: those that training has, or the model.
        columns: of the labels.
        outputs: what the names are ("classes").

    Raises:
        UserError: there are such names.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    known_names = set(known)
    for row, names in enumerate(names_of_rows):
        for name in set(names) - known_names:
            rows_of[name].append(row)
    if not rows_of:
        return
    unknown = [
        f"{name!r} in {len(rows):,} rows, first in {columns.at(split, rows[0])}"
        + "".join(f", and {near!r} is among them" for near in similar_names(name, known)[:1])
        for name, rows in sorted(rows_of.items())
    ]
    owner = "the model" if columns.outputs else "training"
    raise user_error(
        expected=f"in {columns} of split '{split}' only {outputs} that {owner} has ({shown_names(known)})",
        found=f"{'; '.join(unknown[:LISTED])}{f'; and {len(unknown) - LISTED} more' * (len(unknown) > LISTED)}",
        do="rename or remove these labels, or name the folder OUT/model of a run that learned them"
        if columns.outputs
        else "add training samples with these labels, or rename or remove them",
    )


def refuse_unknown_columns(columns: LabelColumns, outputs: str) -> None:
    """Refuse columns whose names a finished model does not have.

    Args:
        columns: of the labels or numbers.
        outputs: what they are ("labels").

    Raises:
        UserError: there are such columns, and there is a model.
    """
    if columns.outputs and (unknown := [name for name in columns.names if name not in columns.outputs]):
        raise user_error(
            expected=f"columns of {outputs} that the model has ({shown_names(columns.outputs)})",
            found=f"{columns}, of which the model does not have {some([repr(name) for name in unknown])}",
            do="name other columns in --label_column_names, or the folder OUT/model of a run that learned them",
        )


def in_order(values: set[Any]) -> list[Any]:
    """Sorted; whole numbers by value, also where they are text, as in a CSV file: 9 before 10."""
    numbers = all(isinstance(value, str) and WHOLE_NUMBER.fullmatch(value) for value in values)
    return sorted(values, key=int if numbers else None)


def class_name(value: object) -> str:
    """The name of the class that a value of the label column stands for."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
