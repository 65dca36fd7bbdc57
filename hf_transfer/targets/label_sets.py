"""Sets of labels: from columns of any form to cells of 0 and 1."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import numpy.typing as npt

from hf_transfer.errors import LISTED, UserError, some, user_error
from hf_transfer.targets.class_labels import LISTS, class_name, in_order, refuse_other_types
from hf_transfer.targets.target import LabelColumns

Cells = npt.NDArray[np.float32]
# A comma is often a part of a name.
CLEAR_SEPARATORS = (";", "|")
# In this order, where a column has several of them.
SEPARATORS = (*CLEAR_SEPARATORS, ",")
# A text is taken for several labels if at least this share of the parts of joined values also occurs in others.
SHARE_OF_SHARED_PARTS = 2 / 3
# Parts that are longer, or more of them in all, are no names of labels.
LONGEST_NAME = 60
MOST_NAMES = 1_000
YES = frozenset({"1", "1.0", "true", "yes"})
NO = frozenset({"0", "0.0", "false", "no"})


class LabelSetData(NamedTuple):
    """What some columns say.

    Attributes:
        names: of the labels.
        separator: between the names of several labels in a text.
        cells: for each split, 1 for a label that a sample has, 0 for one that it has not, NaN where that is not known
            [samples, labels].
    """

    names: list[str]
    separator: str
    cells: dict[str, Cells]


def why_label_sets(train: datasets.Dataset, columns: LabelColumns) -> str | None:
    """Why columns have several labels for a sample ("lists"); None: they have not."""
    if len(columns.names) > 1:
        are_flags = all(_flag(value) is not None for name in columns.names for value in train[name][:])
        return "columns of 0 and 1" if are_flags else None
    feature = train.features[columns.only]
    if isinstance(feature, LISTS):
        values = [row for row in train[columns.only][:] if row]
        return None if _has_fractions(values) else "lists"
    if not isinstance(feature, datasets.Value) or feature.dtype not in ("string", "large_string"):
        return None
    separator = columns.separator or _separator_in(train[columns.only][:])
    return f"texts joined by {separator!r}" if separator else None


def read_label_sets(splits: Mapping[str, datasets.Dataset], columns: LabelColumns) -> LabelSetData:
    """The labels of every sample; names are those of a `ClassLabel`, of the columns, or the values in training.

    Raises:
        UserError: cells that are neither 0 nor 1, rows without a list, labels that training never has, or names that
            cannot be told apart in a text.
    """
    if len(columns.names) > 1:
        names, cells = (
            list(columns.names),
            {split: _cells_of_flags(rows, columns, split) for split, rows in splits.items()},
        )
        separator = columns.separator or SEPARATORS[0]
    else:
        values, names, separator = _values(splits, columns)
        cells = {split: _cells_of_sets(rows, names, split, columns) for split, rows in values.items()}
    _refuse_joined_names(names, separator, columns)
    return LabelSetData(names, separator, cells)


def _values(
    splits: Mapping[str, datasets.Dataset], columns: LabelColumns
) -> tuple[dict[str, list[list[str]]], list[str], str]:
    """The names of the labels of each row, all names, and the separator, of one column."""
    column, feature = columns.only, splits["train"].features[columns.only]
    refuse_other_types(feature, columns)
    raw = {split: rows[column][:] for split, rows in splits.items()}
    separator = columns.separator or SEPARATORS[0]
    inner = getattr(feature, "feature", None) if not isinstance(feature, list) else feature[0]
    if isinstance(feature, LISTS):
        for split, rows in raw.items():
            _refuse_missing(rows, split, columns)
    if isinstance(feature, LISTS) and (width := _width_of_flags(raw["train"])):
        names = [str(number) for number in range(width)]
        listed = {split: [_flagged(row, width, split) for row in rows] for split, rows in raw.items()}
        return listed, names, separator
    if isinstance(inner or feature, datasets.ClassLabel):
        names = [str(name) for name in (inner or feature).names]
        as_lists = {split: [row if isinstance(row, list) else [row] for row in rows] for split, rows in raw.items()}
        return {
            split: [[names[number] for number in row if number is not None and number >= 0] for row in rows]
            for split, rows in as_lists.items()
        }, names, separator  # fmt: skip
    if isinstance(feature, LISTS):
        sets = {
            split: [[_name(value) for value in row if value is not None] for row in rows] for split, rows in raw.items()
        }
    else:
        separator = columns.separator or _separator_in(raw["train"]) or _most_frequent(raw["train"])
        sets = {split: [parts_of(value, separator) for value in rows] for split, rows in raw.items()}
        _refuse_quotes(sets["train"], separator, columns)
    return sets, in_order({name for row in sets["train"] for name in row}), separator


def parts_of(value: object, separator: str) -> list[str]:
    """The labels in a value; an empty text has none, and empty parts do not count."""
    if value is None or value != value:
        return []
    return [part.strip() for part in _name(value).split(separator) if part.strip()]


def _name(value: object) -> str:
    return class_name(value).strip()


def _separator_in(values: Iterable[object]) -> str | None:
    """The sign by which the values of a column are joined labels; None: they are not.

    Labels that belong together by chance also occur alone, or beside others. The parts of "Paris, France" do not.
    """
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    for separator in SEPARATORS:
        joined = {text for text in texts if len(parts_of(text, separator)) > 1}
        if not joined:
            continue
        places: dict[str, int] = Counter(part for text in set(texts) for part in set(parts_of(text, separator)))
        parts = {part for text in joined for part in parts_of(text, separator)}
        if len(places) > min(MOST_NAMES, len(texts)) or max(map(len, parts)) > LONGEST_NAME:
            continue
        if sum(places[part] > 1 for part in parts) >= SHARE_OF_SHARED_PARTS * len(parts):
            return separator
    return None


def _most_frequent(values: Iterable[object]) -> str:
    """The separator that most values have; the first one, if none has any."""
    counts = defaultdict(int, Counter(sign for value in values for sign in SEPARATORS if sign in str(value)))
    return max(SEPARATORS, key=lambda sign: counts[sign])


def _has_fractions(rows: Sequence[Sequence[object]]) -> bool:
    return any(isinstance(value, float) and not value.is_integer() for row in rows for value in row)


def _width_of_flags(rows: Sequence[Sequence[object]]) -> int:
    """The length of lists of 0 and 1 that have a place for every label; 0: lists of labels."""
    widths = {len(row) for row in rows}
    flags = all(value in (0, 1) and not isinstance(value, str) for row in rows for value in row)
    # A list of labels has none of them twice.
    repeats = any(len(set(row)) < len(row) for row in rows)
    return widths.pop() if len(widths) == 1 and flags and repeats else 0


def _flagged(row: Sequence[object], width: int, split: str) -> list[str]:
    if len(row) != width or any(value not in (0, 1) for value in row):
        raise user_error(
            expected=f"lists of {width} numbers 0 or 1 in split '{split}', as in training",
            found=f"{list(row)!r:.200}",
            do="correct this list",
        )
    return [str(place) for place, value in enumerate(row) if value]


def _flag(value: object) -> float | None:
    """1 or 0; NaN for a value that is missing; None for any other value."""
    text = "" if value is None or value != value else str(value).strip().lower()
    return float("nan") if not text else 1.0 if text in YES else 0.0 if text in NO else None


def _cells_of_flags(rows: datasets.Dataset, columns: LabelColumns, split: str) -> Cells:
    """Cells of columns of 0 and 1, of which some may be empty, but none of a whole row."""
    cells = np.empty((len(rows), len(columns.names)), dtype=np.float32)
    for place, name in enumerate(columns.names):
        for row, value in enumerate(rows[name][:]):
            flag = _flag(value)
            if flag is None:
                raise user_error(
                    expected=f"0, 1 or nothing in column '{name}', of which each row says whether it has that label",
                    found=f"{value!r} in row {row} of split '{split}'",
                    do="correct this value; for numbers: --problem_type regression",
                )
            cells[row, place] = flag
    empty = np.flatnonzero(np.isnan(cells).all(1)).tolist()
    if empty:
        raise _without_labels(len(empty), empty, split, columns)
    return cells


def _cells_of_sets(rows: Sequence[Collection[str]], names: Sequence[str], split: str, columns: LabelColumns) -> Cells:
    places = {name: place for place, name in enumerate(names)}
    unknown = sorted({name for row in rows for name in row} - places.keys())
    if unknown:
        raise user_error(
            expected=f"in split '{split}' only labels that training has ({some(list(names))})",
            found=f"{some([repr(name) for name in unknown])} in {columns}",
            do="add training samples with these labels, or remove the labels",
        )
    cells = np.zeros((len(rows), len(names)), dtype=np.float32)
    for row, labels in enumerate(rows):
        cells[row, [places[name] for name in labels]] = 1.0
    return cells


def _refuse_missing(rows: Sequence[Any], split: str, columns: LabelColumns) -> None:
    missing = [row for row, value in enumerate(rows) if value is None]
    if missing:
        raise _without_labels(len(missing), missing, split, columns)


def _without_labels(count: int, rows: Sequence[int], split: str, columns: LabelColumns) -> UserError:
    return user_error(
        expected=f"labels in every row of {columns}; a sample without any label has an empty list, or zeros",
        found=f"nothing in {count} rows of split '{split}', first in rows {list(rows[:LISTED])}",
        do="fill in or remove these rows (rows count from 0)",
    )


def _refuse_quotes(rows: Sequence[Sequence[str]], separator: str, columns: LabelColumns) -> None:
    """Refuse parts of a quoted name: it contains the separator."""
    if cut := sorted({name for row in rows for name in row if name.count('"') % 2}):
        raise user_error(
            expected=f"label names without the separator {separator!r} in {columns}",
            found=f"{some([repr(name) for name in cut])}, parts of a quoted name",
            do="name another --label_separator, or rename the labels",
        )


def _refuse_joined_names(names: Sequence[str], separator: str, columns: LabelColumns) -> None:
    if joined := [name for name in names if separator in name]:
        raise user_error(
            expected=f"label names without the separator {separator!r}, which joins them in tables of answers",
            found=f"{some([repr(name) for name in joined])} in {columns}",
            do="rename the labels, or name another sign in --label_separator",
        )
