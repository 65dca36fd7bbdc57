"""Rows without a label, and splits of which no row has one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hf_transfer.errors import UserError, user_error
from hf_transfer.targets.distinct import distinct, has_single_values
from hf_transfer.targets.label_columns import LabelColumns

if TYPE_CHECKING:
    import datasets

# What stands in every row of a split whose labels are withheld, as in many public test splits.
WITHHELD = (-1, "-1")


def missing_labels(rows: datasets.Dataset, columns: LabelColumns) -> npt.NDArray[np.bool_]:
    """Whether each row has no label: no value in any of the columns, or an empty text [rows].

    Class numbers of -1 are no labels either, as `datasets.ClassLabel` has it.
    """
    missing = np.ones(len(rows), dtype=bool)
    for name in (name for name in columns.names if name in rows.column_names):
        is_missing = partial(_is_missing, numbered=class_feature(rows.features[name]) is not None)
        if has_single_values(rows.features[name]):
            missing &= distinct(rows, name).each(is_missing)
        else:
            missing &= np.fromiter(map(is_missing, rows[name][:]), bool, len(rows))
    return missing


def has_no_labels(rows: datasets.Dataset, columns: LabelColumns, known: Collection[object]) -> bool:
    """Whether no row of a split has a label: all are missing, empty lists, or -1.

    Args:
        rows: of the split.
        columns: of the labels.
        known: labels of training or of a finished model: -1 may be one of them.
    """
    if missing_labels(rows, columns).all():
        return True
    parts = [part for name in columns.names if name in rows.column_names for part in labels_in(rows, name)]
    return all(part in WITHHELD for part in parts) and not any(one in WITHHELD for one in known)


def labels_in(rows: datasets.Dataset, column: str) -> Iterator[Any]:
    """All different values of a column, or all values in its lists, that are not missing."""
    for value in distinct(rows, column).values if has_single_values(rows.features[column]) else rows[column][:]:
        parts = value if isinstance(value, list | tuple | np.ndarray) else [value]
        yield from (part for part in parts if part is not None and part == part)


def class_feature(feature: Any) -> datasets.ClassLabel | None:
    """The names of class numbers in a column, or in its lists; None: it has no class numbers."""
    import datasets

    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return inner if isinstance(inner, datasets.ClassLabel) else None


def refuse_missing(
    missing: npt.NDArray[np.bool_], split: str, columns: LabelColumns, *, expected: str, otherwise: str = ""
) -> None:
    """Refuse rows without a label.

    Args:
        missing: whether each row has none [rows].
        split: of the rows.
        columns: of the labels.
        expected: what each row should have ("a label in every row of column 'label'").
        otherwise: what else can be done about it than to fill in or to drop the rows; empty: nothing.

    Raises:
        UserError: a row has none.
    """
    if missing.any():
        raise _without_label(np.flatnonzero(missing).tolist(), split, columns, expected, otherwise)


def _without_label(rows: Sequence[int], split: str, columns: LabelColumns, expected: str, otherwise: str) -> UserError:
    do = "fill in or remove these rows, or drop them with --on_missing_label drop"
    return user_error(
        expected=expected,
        found=f"none in {len(rows)} rows of split '{split}', first in {columns.where(split, rows)}",
        do=f"{do}; {otherwise}" if otherwise else do,
    )


def _is_missing(value: Any, numbered: bool) -> bool:
    if isinstance(value, list | tuple | np.ndarray):
        # An empty list says that a sample has no label, which is something to learn.
        return len(value) > 0 and all(_is_missing(one, numbered) for one in value)
    if value is None or value != value or (numbered and value == -1):
        return True
    return isinstance(value, str) and value == ""
