"""Folders of pictures, whose classes are named by folders or by tables, and tables that name pictures."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hf_transfer.data import columns
from hf_transfer.data.class_folders import PICTURES, Arrangement, arrange, notes_on_unread
from hf_transfer.data.files import Tree
from hf_transfer.data.folders import read_pictures
from hf_transfer.data.picture_tables import (
    AS_WRITTEN,
    METADATA,
    TRIED,
    PictureFinder,
    path_column,
    real,
    splits_named,
    tables_in,
    with_pictures,
)  # fmt: skip
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.data.read_data import ReadSplits
from hf_transfer.data.tables import TABLE_BUILDERS, Table, load_tables, read_each, with_all_columns
from hf_transfer.data.tables import joined as joined_tables
from hf_transfer.errors import UserError, some, user_error
from hf_transfer.settings.data import DataSettings


def read(
    folder: Path, tree: Tree, settings: DataSettings, text_columns: Sequence[str], image_column: str | None
) -> ReadSplits:
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
    tables, notes = tables_in(tree)
    metadata = any(table.stem == METADATA for table in tables)
    labels = set(labels_in(settings)) - set(columns.LABEL_NAMES)
    arranged = arrange(folder, tree, PICTURES)
    finder = PictureFinder(folder, tree)
    if not tables or not (metadata or labels or not arranged.names_classes()):
        _refuse_other_labels(tables, arranged, finder, settings)
        data = read_pictures(folder, tree)
        return data._replace(notes=[*data.notes, *notes, *_not_used(tables)])
    split_of = splits_named(folder, tables)
    read = read_tables(tables, settings, text_columns, folder)
    chosen_columns = {
        table: path_column({table: rows.data}, finder, image_column, labels_in(settings))
        for table, rows in read.items()
    }
    path_columns = {table: column for table, column in chosen_columns.items() if column is not None}
    if not path_columns:
        data = read_pictures(folder, tree)
        return data._replace(notes=[*data.notes, *notes, *_not_used(tables)])
    name = _one_name(set(path_columns.values()), image_column)
    naming = {table: _with_pictures(table, read[table], column, finder, name) for table, column in path_columns.items()}
    chosen = _without_copies(naming, split_of)
    notes += _not_used([table for table in split_of if table not in chosen])
    named = {file for table in chosen for file in naming[table].files}
    unnamed = [file for file in tree.files if file.suffix.lower() in SUFFIXES and real(file) not in named]
    if unnamed:
        notes.append(f"Not used, since no table names them: {len(unnamed)} images, such as {unnamed[0]}.")
    whole = joined({table: naming[table].rows for table in chosen}, splits_of(folder, split_of, chosen), settings)
    return ReadSplits(whole.data, whole.origins, [*whole.notes, *notes, *notes_on_unread(tree, PICTURES)])


def _refuse_other_labels(
    paths: Sequence[Path], arranged: Arrangement, finder: PictureFinder, settings: DataSettings
) -> None:
    """Refuse tables with other labels of the same pictures than the folders that they lie in."""
    if not paths:
        return
    class_of = {
        real(file): name for part in arranged.parts.values() for name, files in part.classes.items() for file in files
    }
    for table in paths:
        try:
            data = read_tables([table], settings, (), finder.root)[table].data
        except UserError:
            # It is not used, which a note says.
            continue
        column = path_column({table: data}, finder, None, ())
        for label in columns.by_name(data.column_names, columns.LABEL)[:1] if column else []:
            for value, name in zip(data[label][:TRIED], data[column][:TRIED], strict=True):
                pictures = finder.candidates(str(name), table)
                # One of several of the same name may be another.
                folder = class_of.get(real(pictures[0])) if len(pictures) == 1 else None
                if value is not None and folder not in (None, str(value)):
                    raise user_error(
                        expected=f"one source of labels in {finder.root}: folders, or a table",
                        found=f"{pictures[0]}, which has the label {value!r} in {table.name} and is in folder {folder}",
                        do=f"name the table, --dataset_name {table}, or move it elsewhere",
                    )


class _Naming(NamedTuple):
    """A table with pictures in the place of their names, and these pictures."""

    rows: Table
    files: set[Path]


def _one_name(path_columns: Collection[str], wanted: str | None) -> str:
    """What the column with the pictures is called in all tables: as set, or as it is in the tables if that is one."""
    return wanted or (next(iter(path_columns)) if len(path_columns) == 1 else columns.IMAGE_NAMES[0])


def _with_pictures(table: Path, rows: Table, column: str, finder: PictureFinder, name: str) -> _Naming:
    pictures, files = with_pictures({table: rows}, column, finder, name=name, all_exist=False)
    return _Naming(rows._replace(data=pictures[table]), files)


def _without_copies(naming: Mapping[Path, _Naming], split_of: Mapping[Path, str | None]) -> list[Path]:
    """The tables without those that name no split, and no picture that tables of splits do not name."""
    of_splits = {file for table, one in naming.items() if split_of[table] for file in one.files}
    return [table for table, one in naming.items() if split_of[table] or not one.files <= of_splits]


def read_table_of_pictures(
    table: Path, settings: DataSettings, text_columns: Sequence[str], image_column: str | None
) -> ReadSplits:
    """One table that the user has named; if it names pictures, these may lie anywhere.

    Args:
        table: the file.
        settings: how it is read.
        text_columns: columns whose values are text also where they look like numbers.
        image_column: the column that names pictures, if the settings name it.
    """
    import datasets

    whole = load_tables(table, [table], settings, [*text_columns, *AS_WRITTEN])
    data = whole.data["train"]
    finder = PictureFinder(table.parent, anywhere=True)
    column = path_column({table: data}, finder, image_column, labels_in(settings))
    if column is None:
        return whole
    read = Table(data, whole.origins["train"].lines, whole.notes)
    naming = _with_pictures(table, read, column, finder, image_column or column)
    return whole._replace(data=datasets.DatasetDict(train=naming.rows.data), notes=naming.rows.notes)


def read_tables(
    paths: Sequence[Path], settings: DataSettings, text_columns: Sequence[str], source: Path
) -> dict[Path, Table]:
    """The rows of tables, also of several kinds; names of pictures that look like numbers are read as written."""
    kinds = defaultdict(list)
    for path in paths:
        kinds[TABLE_BUILDERS[path.suffix.lower()]].append(path)
    read = [read_each(files, settings, [*text_columns, *AS_WRITTEN], source) for files in kinds.values()]
    rows = {table: one for part in read for table, one in part.items()}
    return {path: rows[path] for path in paths}


def labels_in(settings: DataSettings) -> list[str]:
    """The columns of labels that the settings name."""
    return [*filter(None, (settings.label_column_name, *settings.label_column_names))]


def splits_of(folder: Path, split_of: Mapping[Path, str | None], chosen: Sequence[Path]) -> dict[Path, str]:
    """The split of each chosen table: train, if none names one.

    Raises:
        UserError: some name their split and others do not.
    """
    unknown = [str(table.relative_to(folder)) for table in chosen if split_of[table] is None]
    if 0 < len(unknown) < len(chosen):
        raise user_error(
            expected=f"tables in {folder} that all name their split, as train.csv or test/metadata.csv do",
            found=f"{some(unknown)}, beside others that do",
            do="rename these, move them elsewhere, or name one table in --dataset_name",
        )
    return {table: split_of[table] or "train" for table in chosen}


def joined(rows: Mapping[Path, Table], split_of: Mapping[Path, str], settings: DataSettings) -> ReadSplits:
    """The rows of tables by split; a test split without labels has missing ones.

    Raises:
        UserError: tables with other columns: the values of those that they lack would count as missing.
    """
    first = min(rows, key=lambda table: split_of[table] != "train")
    wanted = set(rows[first].data.column_names)
    for table, one in rows.items():
        different = sorted(wanted ^ set(one.data.column_names))
        labels = {name for name in wanted if name in labels_in(settings) or columns.may_be(columns.LABEL, name)}
        if different and not (split_of[table] == "test" and set(different) <= labels):
            raise user_error(
                expected=f"the same columns in {table} and in {first}",
                found=f"{', '.join(different)} in only one of them",
                do="give all tables the same columns",
            )
    splits: dict[str, dict[Path, Table]] = defaultdict(dict)
    for table, one in rows.items():
        splits[split_of[table]][table] = one
    whole = joined_tables(splits, [note for one in rows.values() for note in one.notes])
    return whole._replace(data=with_all_columns(whole.data))


def _not_used(paths: Sequence[Path]) -> list[str]:
    return (
        [f"Not used, since folders or other tables name the classes: {some(list(map(str, paths)))}."] if paths else []
    )
