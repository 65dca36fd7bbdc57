"""Sets of labels: from columns of any form to cells of 0 and 1."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import datasets
import numpy as np
import numpy.typing as npt

from hf_transfer.errors import some, user_error
from hf_transfer.targets.class_labels import (
    LISTS,
    class_name,
    decimal_commas_among,
    in_order,
    in_training,
    names_of_numbers,
    refuse_other_types,
    refuse_unknown,
    refuse_unknown_columns,
)
from hf_transfer.targets.distinct import TEXT_TYPES
from hf_transfer.targets.label_columns import SEPARATORS, LabelColumns
from hf_transfer.targets.missing_labels import class_feature, missing_labels, refuse_missing

Cells = npt.NDArray[np.float32]
# A text is taken for several labels if at least this share of the parts of joined values also occurs in others.
SHARE_OF_SHARED_PARTS = 2 / 3
EACH_ROW = "labels in every row of {}; a sample without any label has an empty list, or zeros"
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
    if not isinstance(feature, datasets.Value) or feature.dtype not in TEXT_TYPES:
        return None
    separator = columns.separator or _separator_in(train[columns.only][:])
    return f"texts joined by {separator!r}" if separator else None


def read_label_sets(splits: Mapping[str, datasets.Dataset], columns: LabelColumns) -> LabelSetData:
    """The labels of every sample; names are those of a `ClassLabel`, of the columns, or the values in training.

    Labels of all splits are matched by name. With a finished model the names are the model's; of its labels for which
    there is no column, nothing is known.

    Raises:
        UserError: cells that are neither 0 nor 1, rows without a list, labels that training or the model never has, or
            names that cannot be told apart in a text.
    """
    if are_flags(columns):
        names, separator = list(columns.outputs or columns.names), columns.separator or SEPARATORS[0]
        refuse_unknown_columns(columns, "labels")
        cells = {split: _cells_of_flags(rows, names, columns, split) for split, rows in splits.items()}
    else:
        names, separator, sets = _sets(splits, columns)
        known = list(columns.outputs) or in_training(names, (name for row in sets["train"] for name in row))
        for split, rows in sets.items():
            refuse_unknown(split, rows, known, columns, "labels")
        cells = {split: _cells_of_sets(rows, names) for split, rows in sets.items()}
    _refuse_joined_names(names, separator, columns)
    return LabelSetData(names, separator, cells)


def missing_sets(rows: datasets.Dataset, columns: LabelColumns) -> npt.NDArray[np.bool_]:
    """Whether nothing is known about the labels of each row [rows]; an empty text says that there are none."""
    if are_flags(columns):
        unknown = [[(flag := _flag(value)) is not None and np.isnan(flag) for value in rows[name][:]]
                   for name in columns.names]  # fmt: skip
        return np.asarray(np.all(unknown, axis=0), dtype=bool)
    is_named = isinstance(rows.features[columns.only], (*LISTS, datasets.ClassLabel))
    return missing_labels(rows, columns) if is_named else np.zeros(len(rows), dtype=bool)


def are_flags(columns: LabelColumns) -> bool:
    """Whether each column is for one label: there are several, or it is named like a label of the model."""
    return len(columns.names) > 1 or columns.only in columns.outputs


def _sets(
    splits: Mapping[str, datasets.Dataset], columns: LabelColumns
) -> tuple[list[str], str, dict[str, list[list[str]]]]:
    """All names, the separator, and the names of the labels of each row, of one column."""
    for split, rows in splits.items():
        refuse_other_types(rows.features[columns.only], columns)
        refuse_missing(missing_sets(rows, columns), split, columns, expected=EACH_ROW.format(columns))
    # The training split, or the first one on which a finished model is judged.
    first = next(iter(splits.values()))
    values, feature = first[columns.only][:], first.features[columns.only]
    if isinstance(feature, LISTS) and (width := _width_of_flags(values, columns.outputs)):
        flagged = {
            split: [_flagged(row, width, split, columns, place) for place, row in enumerate(rows[columns.only][:])]
            for split, rows in splits.items()
        }
        return [str(number) for number in range(width)], columns.separator or SEPARATORS[0], flagged
    separator = columns.separator or SEPARATORS[0]
    if not isinstance(feature, LISTS):
        separator = columns.separator or _separator_in(values) or _most_frequent(values)
    sets = {split: _sets_of_split(rows, split, columns, separator) for split, rows in splits.items()}
    if not isinstance(feature, LISTS):
        _refuse_quotes(next(iter(sets.values())), separator, columns)
    if (numbered := class_feature(feature)) is not None and not columns.outputs:
        return [str(name) for name in numbered.names], separator, sets
    return list(columns.outputs) or in_order({name for row in sets["train"] for name in row}), separator, sets


def _sets_of_split(rows: datasets.Dataset, split: str, columns: LabelColumns, separator: str) -> list[list[str]]:
    """The names of the labels of each row; numbers are read by the names that this split itself has for them."""
    feature, values = rows.features[columns.only], rows[columns.only][:]
    if (numbered := class_feature(feature)) is not None:
        listed = [value if isinstance(value, list) else [value] for value in values]
        return names_of_numbers(listed, numbered, split, columns)
    if isinstance(feature, LISTS):
        return [[_name(value) for value in row if value is not None] for row in values]
    return [parts_of(value, separator) for value in values]


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
    different = set(texts)
    for separator in SEPARATORS:
        if separator == "," and decimal_commas_among(texts):
            continue
        joined = {text for text in different if len(parts_of(text, separator)) > 1}
        if not joined:
            continue
        places: dict[str, int] = Counter(part for text in different for part in set(parts_of(text, separator)))
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


def _width_of_flags(rows: Sequence[Sequence[object]], outputs: Sequence[str]) -> int:
    """The length of lists of 0 and 1 that have a place for every label; 0: lists of labels.

    Args:
        rows: the lists.
        outputs: the names of a finished model; empty: there is none.
    """
    widths = {len(row) for row in rows}
    flags = all(value in (0, 1) and not isinstance(value, str) for row in rows for value in row)
    if outputs and list(outputs) != [str(number) for number in range(len(outputs))]:
        return 0
    if outputs and widths == {len(outputs)} and flags:
        return len(outputs)
    # A list of labels has none of them twice.
    repeats = any(len(set(row)) < len(row) for row in rows)
    return widths.pop() if len(widths) == 1 and flags and repeats else 0


def _flagged(row: Sequence[object], width: int, split: str, columns: LabelColumns, place: int) -> list[str]:
    if len(row) != width or any(value not in (0, 1) for value in row):
        raise user_error(
            expected=f"lists of {width} numbers 0 or 1 in split '{split}', as in training",
            found=f"{list(row)!r:.200} in {columns.at(split, place)}",
            do="correct this list",
        )
    return [str(place) for place, value in enumerate(row) if value]


def _flag(value: object) -> float | None:
    """1 or 0; NaN for a value that is missing; None for any other value."""
    text = "" if value is None or value != value else str(value).strip().lower()
    return float("nan") if not text else 1.0 if text in YES else 0.0 if text in NO else None


def _cells_of_flags(rows: datasets.Dataset, names: Sequence[str], columns: LabelColumns, split: str) -> Cells:
    """Cells of columns of 0 and 1, of which some may be empty, but none of a whole row.

    Args:
        rows: of a split.
        names: of all labels, in their order.
        columns: those of the labels that the data have.
        split: its name.
    """
    refuse_missing(missing_sets(rows, columns), split, columns, expected=EACH_ROW.format(columns))
    cells = np.full((len(rows), len(names)), np.nan, dtype=np.float32)
    for name in columns.names:
        for row, value in enumerate(rows[name][:]):
            flag = _flag(value)
            if flag is None:
                raise user_error(
                    expected=f"0, 1 or nothing in column '{name}', of which each row says whether it has that label",
                    found=f"{value!r} in {columns.at(split, row)}",
                    do="correct this value; for numbers: --problem_type regression",
                )
            cells[row, names.index(name)] = flag
    return cells


def _cells_of_sets(rows: Sequence[Collection[str]], names: Sequence[str]) -> Cells:
    places = {name: place for place, name in enumerate(names)}
    cells = np.zeros((len(rows), len(names)), dtype=np.float32)
    for row, labels in enumerate(rows):
        cells[row, [places[name] for name in labels]] = 1.0
    return cells


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
