"""Tables on this machine: CSV, JSON and Parquet. Each row of a file arrives, and its line is known."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from hf_transfer.data import columns, files
from hf_transfer.data.delimited import read_delimited
from hf_transfer.data.field_types import infer_types
from hf_transfer.data.json_files import read_json
from hf_transfer.data.origins import Origins
from hf_transfer.data.read_data import Lines, ReadSplits, ReadTable
from hf_transfer.data.split_names import files_by_split, notes_on_unused
from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings

if TYPE_CHECKING:
    import datasets

TABLE_BUILDERS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json",
}  # fmt: skip


# Of a larger group of rows, Arrow cannot read nested columns, such as those of pictures, at once.
LARGEST_GROUP = 1 << 30


class Table(NamedTuple):
    """The rows of one file.

    Attributes:
        data: its columns.
        lines: at which each row starts; 0: the file has no lines [rows].
        notes: sentences on how it was read.
    """

    data: datasets.Dataset
    lines: Lines
    notes: list[str]


def load_tables(
    source: Path, tables: Sequence[Path], settings: DataSettings, text_columns: Sequence[str]
) -> ReadSplits:
    """A table, or a folder of tables of one kind; names of files and folders say the splits.

    Args:
        source: the file or folder.
        tables: the files.
        settings: encoding and delimiter.
        text_columns: columns whose values are text also where they look like numbers.

    Raises:
        UserError: files of several kinds, or a file that cannot be read; see `read_delimited` and `read_json`.
    """
    splits, unused = files_by_split(source, tables) if source.is_dir() else ({"train": list(tables)}, [])
    chosen = [file for split_files in splits.values() for file in split_files]
    read = read_each(chosen, settings, text_columns, source)
    notes = notes_on_unused(unused) + [note for table in read.values() for note in table.notes]
    whole = joined({split: {file: read[file] for file in split_files} for split, split_files in splits.items()}, notes)
    return whole._replace(data=with_all_columns(whole.data))


def joined(splits: Mapping[str, Mapping[Path, Table]], notes: Sequence[str] = ()) -> ReadSplits:
    """The rows of the files of each split, one file after the other.

    Raises:
        UserError: the files of a split have different columns.
    """
    import datasets

    data, origins = datasets.DatasetDict(), {}
    for split, tables in splits.items():
        refuse_other_columns({file: table.data for file, table in tables.items()})
        data[split] = datasets.concatenate_datasets(_of_the_same_types(tables))
        lengths = [len(table.lines) for table in tables.values()]
        origins[split] = Origins(
            tuple(map(str, tables)),
            np.repeat(np.arange(len(tables), dtype=np.int32), lengths),
            np.concatenate([table.lines for table in tables.values()]),
        )
    return ReadSplits(data, origins, list(notes))


def with_all_columns(data: datasets.DatasetDict) -> datasets.DatasetDict:
    """Splits with the columns of training; those that a split lacks have no values there, as labels withheld."""
    for split, rows in data.items():
        for name, feature in data.get("train", rows).features.items():
            if name not in rows.column_names:
                rows = rows.add_column(name, [None] * len(rows), feature=feature)
        data[split] = rows
    return data


def _of_the_same_types(tables: Mapping[Path, Table]) -> list[datasets.Dataset]:
    """The rows of each file, with the types of the first one that has values.

    Raises:
        UserError: class numbers stand for other names in another file.
    """
    import datasets

    # The type of a column without values.
    features, none = datasets.Features(), datasets.Value("null")
    for file, table in tables.items():
        for name, feature in table.data.features.items():
            earlier = features.setdefault(name, feature)
            if earlier == none:
                features[name] = feature
            elif feature not in (earlier, none) and isinstance(feature, datasets.ClassLabel):
                raise user_error(
                    expected=f"in column {name!r} of {file} the same classes in the same order as in files before it",
                    found="others",
                    do="write the names of the classes in place of their numbers, or give all files the same names",
                )
    return [table.data if table.data.features == features else table.data.cast(features) for table in tables.values()]


def refuse_other_columns(tables: Mapping[Path, datasets.Dataset]) -> None:
    """Refuse tables with different columns: where a table lacks a column, all its values would count as missing."""
    first, *others = tables
    wanted = set(tables[first].column_names)
    for table in others:
        if different := sorted(wanted ^ set(tables[table].column_names)):
            raise user_error(
                expected=f"the same columns in {table} and in {first}",
                found=f"{', '.join(different)} in only one of them",
                do="give all tables the same columns",
            )


def read_each(
    tables: Sequence[Path], settings: DataSettings, text_columns: Sequence[str], source: Path
) -> dict[Path, Table]:
    """The rows of each of several tables of one kind; a column has the same type in all of them.

    Args:
        tables: the files.
        settings: encoding and delimiter.
        text_columns: columns whose values are text also where they look like numbers.
        source: the file or folder, for messages.
    """
    kinds = {TABLE_BUILDERS.get(file.suffix.lower()) for file in tables}
    kind = kinds.pop()
    if kinds or kind is None:
        raise user_error(
            expected=f"files of one kind among {', '.join(TABLE_BUILDERS)}",
            found=f"{', '.join(sorted({file.suffix or file.name for file in tables}))} in {source}",
            do="name one of them, or a folder that has one kind",
        )
    files.refuse_compressed(tables)
    if kind == "parquet":
        return {file: _parquet(file) for file in tables}
    if kind == "csv":
        return _delimited(tables, settings, text_columns)
    read = [read_json(file, settings.encoding) for file in tables]
    return dict(zip(tables, _of_one_schema(tables, read, ""), strict=True))


def _delimited(tables: Sequence[Path], settings: DataSettings, text_columns: Sequence[str]) -> dict[Path, Table]:
    read = [read_delimited(file, settings.encoding, settings.delimiter) for file in tables]
    # Labels and texts are as they are written: 007, None and 1.0 are names.
    typed = infer_types([one.table for one in read], lambda name: name in text_columns or columns.stays_text(name))
    read = [one._replace(table=table) for one, table in zip(read, typed, strict=True)]
    return dict(zip(tables, _of_one_schema(tables, read, "csv"), strict=True))


def _of_one_schema(tables: Sequence[Path], read: Sequence[ReadTable], kind: str) -> list[Table]:
    """The tables, in which a column has one type.

    Raises:
        UserError: it has types that have nothing in common.
    """
    import datasets

    parts = [columns.without_indices(one.table) for one in read]
    try:
        schema = pa.unify_schemas([part.schema for part in parts], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise user_error(
            expected=f"values of one type in each column of {', '.join(map(str, tables))}",
            found=str(error).splitlines()[0],
            do="write all values of this column in the same way in all files",
        ) from error
    result = []
    for one, part in zip(read, parts, strict=True):
        common = pa.schema([schema.field(name) for name in part.column_names])
        digest = hashlib.sha256(f"{kind} {one.digest} {common}".encode()).hexdigest()[:32]
        result.append(Table(datasets.Dataset(part.cast(common), fingerprint=digest), one.lines, one.notes))
    return result


def _parquet(file: Path) -> Table:
    import datasets

    # `datasets` reads names as patterns.
    pattern = glob.escape(str(file.absolute()))
    if _has_unusual_groups(file):
        from hf_transfer.data.large_groups import read_in_parts

        loaded = read_in_parts(pattern)
    else:
        loaded = datasets.load_dataset("parquet", data_files={"train": [pattern]})["train"]
    indices = [name for name in loaded.column_names if columns.is_index(name)]
    return Table(loaded.remove_columns(indices), np.zeros(len(loaded), dtype=np.int64), [])


def _has_unusual_groups(file: Path) -> bool:
    """Whether `datasets` could not read the groups of rows of a Parquet file: one is too large, or the first is empty.

    Raises:
        UserError: it has no rows.
    """
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(file)
    except (pa.ArrowException, OSError):
        # Reading it will say what is wrong.
        return False
    if not metadata.num_rows:
        raise user_error(expected=f"rows in {file}", found="no rows", do="add rows, or remove this file")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return not groups[0].num_rows or any(group.total_byte_size > LARGEST_GROUP for group in groups)
