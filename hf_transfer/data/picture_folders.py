"""Folders of pictures, whose classes are named by folders or by tables, and tables that name pictures."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets

from hf_transfer.data import columns, tables
from hf_transfer.data.class_folders import PICTURES, arrange, notes_on_unread
from hf_transfer.data.files import Tree
from hf_transfer.data.folders import FolderData, read_pictures
from hf_transfer.data.picture_tables import (
    AS_WRITTEN,
    METADATA,
    PATH_NAME,
    PictureFinder,
    path_column,
    tables_in,
    with_pictures,
)  # fmt: skip
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.errors import some, user_error
from hf_transfer.settings.data import DataSettings


def read(
    folder: Path, tree: Tree, settings: DataSettings, text_columns: Sequence[str], image_column: str | None
) -> FolderData:
    """A folder of pictures: by class, or with tables that name them.

    Tables are read if they are called `metadata`, if the label column that the settings name is in them, or if the
    folders are no classes; otherwise the folders name the classes.

    Args:
        folder: the folder.
        tree: what lies below it.
        settings: how tables are read.
        text_columns: columns whose values are text also where they look like numbers.
        image_column: the column that names pictures, if the settings name it.
    """
    split_of, notes = tables_in(folder, tree)
    metadata = any(table.stem == METADATA for table in split_of)
    labels = {settings.label_column_name, *settings.label_column_names} - {None, *columns.LABEL_NAMES}
    if not split_of or not (metadata or labels or not arrange(folder, tree, PICTURES).names_classes()):
        data = read_pictures(folder, tree)
        return data._replace(notes=[*data.notes, *notes, *_not_used(list(split_of))])
    rows = {table: read_table(table, settings, text_columns) for table in split_of}
    finder = PictureFinder(folder, tree)
    naming = _with_pictures(rows, finder, settings, image_column)
    if not naming:
        data = read_pictures(folder, tree)
        return data._replace(notes=[*data.notes, *notes, *_not_used(list(split_of))])
    chosen = _without_copies(naming, split_of)
    notes += _not_used([table for table in split_of if table not in chosen])
    named = {file for table in chosen for file in naming[table].files}
    unnamed = [file for file in tree.files if file.suffix.lower() in SUFFIXES and file.resolve() not in named]
    if unnamed:
        notes.append(f"Not used, since no table names them: {len(unnamed)} images, such as {unnamed[0]}.")
    splits = splits_of(folder, {table: split_of[table] for table in chosen})
    pictures = {table: naming[table].rows for table in chosen}
    refuse_other_columns(pictures, splits, labels_in(settings))
    return FolderData(joined(pictures, splits), {}, notes + notes_on_unread(tree, PICTURES))


class _Naming(NamedTuple):
    """A table with pictures in the place of their names, and these pictures."""

    rows: datasets.Dataset
    files: set[Path]


def _with_pictures(
    rows: Mapping[Path, datasets.Dataset], finder: PictureFinder, settings: DataSettings, image_column: str | None
) -> dict[Path, _Naming]:
    """The tables that name pictures."""
    naming = {}
    for table, data in rows.items():
        if (column := path_column({table: data}, finder, image_column, labels_in(settings))) is not None:
            name = image_column or ("image" if column == PATH_NAME else column)
            pictures, files = with_pictures({table: data}, column, finder, name=name, all_exist=False)
            naming[table] = _Naming(pictures[table], files)
    return naming


def _without_copies(naming: Mapping[Path, _Naming], split_of: Mapping[Path, str | None]) -> list[Path]:
    """The tables without those that name no split, and no picture that tables of splits do not name."""
    of_splits = {file for table, one in naming.items() if split_of[table] for file in one.files}
    return [table for table, one in naming.items() if split_of[table] or not one.files <= of_splits]


def read_table_of_pictures(
    table: Path, settings: DataSettings, text_columns: Sequence[str], image_column: str | None
) -> FolderData:
    """One table that the user has named; if it names pictures, these may lie anywhere.

    Args:
        table: the file.
        settings: how it is read.
        text_columns: columns whose values are text also where they look like numbers.
        image_column: the column that names pictures, if the settings name it.
    """
    data = tables.load_tables(table, [table], settings, [*text_columns, *AS_WRITTEN])
    rows = {table: data["train"]}
    finder = PictureFinder(table.parent, anywhere=True)
    if (column := path_column(rows, finder, image_column, labels_in(settings))) is not None:
        name = image_column or ("image" if column == PATH_NAME else column)
        rows, _ = with_pictures(rows, column, finder, name=name, all_exist=False)
    return FolderData(datasets.DatasetDict({**data, "train": rows[table]}), {}, [])


def read_table(table: Path, settings: DataSettings, text_columns: Sequence[str]) -> datasets.Dataset:
    """The rows of a table; names of pictures that look like numbers are read as they are written."""
    return tables.load_tables(table, [table], settings, [*text_columns, *AS_WRITTEN])["train"]


def labels_in(settings: DataSettings) -> list[str]:
    """The columns of labels, as far as the settings or their usual names tell."""
    return [*filter(None, (settings.label_column_name, *settings.label_column_names)), *columns.LABEL_NAMES]


def splits_of(folder: Path, split_of: Mapping[Path, str | None]) -> dict[Path, str]:
    """The split of each table: train, if none names one.

    Raises:
        UserError: some name their split and others do not.
    """
    unknown = [str(table.relative_to(folder)) for table, split in split_of.items() if split is None]
    if 0 < len(unknown) < len(split_of):
        raise user_error(
            expected=f"tables in {folder} that all name their split, as train.csv or test/metadata.csv do",
            found=f"{some(unknown)}, beside others that do",
            do="rename these or move them elsewhere",
        )
    return {table: split or "train" for table, split in split_of.items()}


def joined(rows: Mapping[Path, datasets.Dataset], split_of: Mapping[Path, str]) -> datasets.DatasetDict:
    """The rows of tables by split."""
    parts = defaultdict(list)
    for table, data in rows.items():
        parts[split_of[table]].append(data)
    return datasets.DatasetDict({name: datasets.concatenate_datasets(part) for name, part in parts.items()})


def refuse_other_columns(
    rows: Mapping[Path, datasets.Dataset], split_of: Mapping[Path, str], labels: Sequence[str]
) -> None:
    """Refuse tables with different columns: where a table lacks a column, all its values would count as missing.

    Args:
        rows: the tables.
        split_of: of each its split.
        labels: columns that a table of the test split may lack.
    """
    first = min(rows, key=lambda table: split_of[table] != "train")
    wanted = set(rows[first].column_names)
    for table, data in rows.items():
        different = sorted(wanted ^ set(data.column_names))
        if different and not (split_of[table] == "test" and set(different) <= wanted & set(labels)):
            raise user_error(
                expected=f"the same columns in {table} and in {first}",
                found=f"{', '.join(different)} in only one of them",
                do="give all tables the same columns",
            )


def _not_used(paths: Sequence[Path]) -> list[str]:
    return (
        [f"Not used, since folders or other tables name the classes: {some(list(map(str, paths)))}."] if paths else []
    )
