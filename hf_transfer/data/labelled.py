"""Which rows have labels: splits with them, rows without one, and splits of which no row has one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from hf_transfer.data.columns import PICTURE_NAMES
from hf_transfer.data.origins import Origins
from hf_transfer.data.splits import UNLABELLED, Rows, Split, Unlabelled
from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings
from hf_transfer.settings.output import PREDICTIONS_FILE
from hf_transfer.targets.distinct import TEXT_TYPES
from hf_transfer.targets.missing_labels import class_feature, has_no_labels, labels_in
from hf_transfer.targets.target import LabelColumns, Target, Values

if TYPE_CHECKING:
    import datasets

ROWS_LOOKED_AT_FIRST = 100


class Labelled(NamedTuple):
    """The labels of a data set.

    Attributes:
        target: what is predicted.
        splits: the rows with a label, of each split that has some.
        unlabelled: a split of which no row has a label; None: there is none.
        dropped: the rows that were dropped since they have no label, by split.
        names: sentences on the names of the classes, and where they are from.
        notes: sentences on rows and splits without labels.
    """

    target: Target
    splits: dict[str, Split]
    unlabelled: Unlabelled | None
    dropped: dict[str, Rows]
    names: list[str]
    notes: list[str]

    def as_read(self, data: Mapping[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
        """The rows of `data` that a run uses, by the names of the splits that it makes of them."""
        unlabelled = {} if self.unlabelled is None else {UNLABELLED: data[self.unlabelled.name]}
        return {name: data[name] for name in self.splits} | unlabelled


def read_labelled(
    data: Mapping[str, datasets.Dataset], samples: Mapping[str, datasets.Dataset], kind: type[Target],
    columns: LabelColumns, settings: DataSettings, origins: Mapping[str, Origins] | None = None,
    unread: Collection[str] = (),
) -> Labelled:  # fmt: skip
    """Read the labels of all splits.

    Args:
        data: all columns of each split; the first split has labels.
        samples: the columns of the samples alone.
        kind: of target.
        columns: of the labels.
        settings: what happens to rows without a label.
        origins: the file and line of each row, of the splits for which they are known.
        unread: splits that are only asked whether they have labels: if they have, they become splits without rows.

    Raises:
        UserError: rows without a label that are not to be dropped, or labels that are no such target.
    """
    first = next(iter(data.values()))
    known = columns.outputs or [one for name in columns.names for one in set(labels_in(first, name))]
    _refuse_none(first, next(iter(data)), columns)
    withheld = [name for name, rows in data.items() if rows is not first and has_no_labels(rows, columns, known)]
    data = {name: rows.select([]) if name in unread and name not in withheld else rows for name, rows in data.items()}
    kept: dict[str, Rows] = {}
    dropped: dict[str, Rows] = {}
    for name in (name for name in data if name not in withheld):
        # Where rows are an error, the target itself refuses them.
        drops = settings.on_missing_label == "drop"
        missing = kind.missing(data[name], columns) if drops else np.zeros(len(data[name]), dtype=bool)
        kept[name], dropped[name] = np.flatnonzero(~missing), np.flatnonzero(missing)
    columns = columns._replace(row_names=_row_names(kept, data, origins or {}))
    chosen = {
        name: _chosen(data[name], rows, columns) if len(dropped[name]) else data[name] for name, rows in kept.items()
    }
    target, values = kind.read(chosen, columns)
    counts = [f"{len(rows):,} in {name}" for name, rows in dropped.items() if len(rows)]
    names = target.describe_names(_source(chosen, columns, origins or {}))
    notes = [f"Rows without a label, dropped: {', '.join(counts)}."] if counts else []
    unlabelled = _unlabelled(withheld, data, samples, values, columns, origins or {})
    notes += _notes_on_withheld(withheld, data, unlabelled)
    splits = {
        name: Split(samples[name], rows, values[name], origins=(origins or {}).get(name)) for name, rows in kept.items()
    }
    dropped = {name: rows for name, rows in dropped.items() if len(rows)}
    return Labelled(target, splits, unlabelled, dropped, names, notes)


def _chosen(data: datasets.Dataset, rows: Rows, columns: LabelColumns) -> datasets.Dataset:
    """The labels of some rows, in memory: `datasets` would look them up row by row, whenever they are read."""
    import datasets

    labels = data.select_columns([name for name in columns.names if name in data.column_names])
    chosen = np.isin(np.arange(len(data)), rows, assume_unique=True)
    # `take` would join the parts of a column, and an Arrow array of `string` holds two gigabytes at most.
    table = labels.with_format("arrow")[:].filter(pa.array(chosen))
    return datasets.Dataset(table, datasets.DatasetInfo(features=labels.features), fingerprint="labels")


def _refuse_none(rows: datasets.Dataset, split: str, columns: LabelColumns) -> None:
    if has_no_labels(rows, columns, columns.outputs):
        raise user_error(
            expected=f"a labelled split '{split}'",
            found=f"no label in {columns} of its {len(rows):,} rows: all are empty, or -1",
            do="name another --label_column_name; to predict samples without labels: hf-transfer predict",
        )


def _row_names(
    kept: Mapping[str, Rows], data: Mapping[str, datasets.Dataset], origins: Mapping[str, Origins]
) -> dict[str, Callable[[int], str]]:
    """What a row that was kept is called, by its position among those that were."""

    def name(rows: Rows, origin: Origins | None, position: int) -> str:
        row = int(rows[position])
        return f"row {row}" if origin is None else origin.describe(row)

    moved = {split: rows for split, rows in kept.items() if split in origins or len(rows) < len(data[split])}
    return {split: partial(name, rows, origins.get(split)) for split, rows in moved.items()}


def _unlabelled(
    withheld: list[str], data: Mapping[str, datasets.Dataset], samples: Mapping[str, datasets.Dataset],
    values: Mapping[str, Values], columns: LabelColumns, origins: Mapping[str, Origins],
) -> Unlabelled | None:  # fmt: skip
    """The split to predict: test, if it has no labels; its rows have a value that no sample has."""
    import datasets

    name = next((name for name in ("test", *withheld) if name in withheld and len(data[name])), None)
    if name is None:
        return None
    like, rows = next(iter(values.values())), np.arange(len(data[name]))
    # As class numbers cannot be NaN; any figure computed from these values fails.
    nothing = np.nan if np.issubdtype(like.dtype, np.floating) else -1
    targets = np.full((len(rows), *like.shape[1:]), nothing, dtype=like.dtype)
    keys = [key for key in data[name].column_names if key not in columns.names and _tells_rows_apart(data[name], key)]
    of_pictures = next((key for key, kind in data[name].features.items() if isinstance(kind, datasets.Image)), "")
    names = {key: of_pictures if key == PICTURE_NAMES else key for key in keys}
    split = Split(samples[name], rows, targets, origins=origins.get(name))
    return Unlabelled(name, split, {names[key]: data[name][key][:] for key in keys}, columns)


def _tells_rows_apart(rows: datasets.Dataset, column: str) -> bool:
    """Whether a column has numbers or short texts, another one in every row, as identifiers do."""
    import datasets

    feature = rows.features[column]
    if not isinstance(feature, datasets.Value) or not feature.dtype.startswith(("int", "uint", *TEXT_TYPES)):
        return False
    # A few first: all values of a column of long texts would fill the memory.
    return all(_are_identifiers(rows[column][:count]) for count in (ROWS_LOOKED_AT_FIRST, None))


def _are_identifiers(values: Sequence[Any]) -> bool:
    is_short = all(not isinstance(value, str) or not any(sign.isspace() for sign in value) for value in values)
    return is_short and None not in values and len(set(values)) == len(values)


def _notes_on_withheld(
    withheld: list[str], data: Mapping[str, datasets.Dataset], unlabelled: Unlabelled | None
) -> list[str]:
    notes = []
    for name in withheld:
        what = f"Split {name} has no labels ({len(data[name]):,} rows)"
        is_predicted = unlabelled is not None and unlabelled.name == name
        notes.append(f"{what}: its predictions are in {PREDICTIONS_FILE}." if is_predicted else f"{what}: not used.")
    return notes


def _source(splits: Mapping[str, datasets.Dataset], columns: LabelColumns, origins: Mapping[str, Origins]) -> str:
    """Where the names of the outputs are from."""
    name, rows = next(iter(splits.items()))
    if len(columns.names) > 1:
        source = "names of columns"
    elif (feature := class_feature(rows.features[columns.only])) is None:
        source = f"values of {columns}"
    elif _are_folders(rows, feature, columns.only, origins.get(name)):
        source = "names of folders"
    else:
        source = f"names of the feature '{columns.only}'"
    return f"those of the model, matched with {source}" if columns.outputs else source


def _are_folders(rows: datasets.Dataset, feature: datasets.ClassLabel, column: str, origins: Origins | None) -> bool:
    """Whether the first sample is a file in a folder that is named like its class."""
    number = rows[column][0] if len(rows) else None
    return origins is not None and isinstance(number, int) and feature.names[number] in Path(origins.of(0)[0]).parts
