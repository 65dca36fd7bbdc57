"""Tables that name pictures: relative to the table, or by their names in a folder beside it, with or without suffix."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hf_transfer.data import columns
from hf_transfer.data.files import Tree, walk
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.data.split_folders import split_words
from hf_transfer.data.split_names import SPLIT_OF, only_split_in, split_of
from hf_transfer.data.tables import TABLE_BUILDERS, Table
from hf_transfer.errors import some, user_error

if TYPE_CHECKING:
    import datasets

METADATA = "metadata"
# The column of an imagefolder's metadata with the paths of images.
PATH_NAME = "file_name"
# As they may be written: these columns are read as text, so that 007 stays 007.
AS_WRITTEN = tuple({
    form
    for name in ("id", "file", "filename", "file_name", "image", "image_id", "img", "img_id", "imageid", "photo")
    for form in (name, name.capitalize(), name.title(), name.upper(), name.replace("id", "ID").replace("_", ""))
})  # fmt: skip
# The values of a column by which it is judged.
TRIED = 50
# Longer names are those of no file.
NAME_LENGTH = 255
Tables: TypeAlias = "Mapping[Path, datasets.Dataset]"


class PictureFinder:
    """Finds the pictures that the values of tables name.

    Args:
        root: the folder of the data.
        tree: what lies below it; None: read when it is needed.
        anywhere: whether pictures may lie outside of the folder, and paths be relative to the working directory: for a
            table that the user has named, not for one in a folder.
    """

    def __init__(self, root: Path, tree: Tree | None = None, *, anywhere: bool = False) -> None:
        self.root, self.anywhere = root, anywhere
        self._tree = tree
        self._by_name: dict[str, list[Path]] | None = None

    def candidates(self, value: str, table: Path) -> list[Path]:
        """The pictures that a value can mean: one, none, or several where it is ambiguous.

        Args:
            value: a path relative to the table, or the end of a path below the folder, with or without suffix.
            table: in which it stands; of pictures with the same name, those in a folder of its split are meant.
        """
        for base in (table.parent, *([Path.cwd()] if self.anywhere else [])):
            if (direct := resolved(base / value)) is not None and direct.is_file():
                return [direct]
        if Path(value).is_absolute():
            return []
        parts = Path(value.replace("\\", "/")).parts
        if not parts or ".." in parts:
            return []
        matches = [path for path in self._named(parts[-1]) if self._ends_with(path, parts)]
        if len(matches) > 1:
            split = only_split_in(table.stem)
            same = [path for path in matches if split in self._splits(path)]
            matches = same or [path for path in matches if not self._splits(path)] or matches
        return matches

    def path(self, value: str, table: Path) -> Path:
        """The only picture that a value can mean; else the path relative to the table.

        Args:
            value: see `candidates`.
            table: in which it stands.
        """
        candidates = self.candidates(value, table)
        return candidates[0] if len(candidates) == 1 else table.parent / value

    def leaves(self, value: str, file: Path | None) -> bool:
        """Whether a value of a table in a folder leads out of this folder, is an absolute path, or an address."""
        if self.anywhere:
            return False
        return (
            "://" in value
            or Path(value).is_absolute()
            or (file is not None and not file.is_relative_to(self.root.resolve()))
        )

    def _named(self, name: str) -> list[Path]:
        if self._by_name is None:
            self._tree = self._tree or walk(self.root)
            index = defaultdict(list)
            for path in self._tree.files:
                if path.suffix.lower() in SUFFIXES:
                    for key in {path.name, path.stem, path.name.lower(), path.stem.lower()}:
                        index[key].append(path)
            self._by_name = dict(index)
        return self._by_name.get(name) or self._by_name.get(name.lower(), [])

    def _ends_with(self, path: Path, parts: Sequence[str]) -> bool:
        return path.parts[-len(parts) : -1] == tuple(parts[:-1])

    def _splits(self, path: Path) -> set[str]:
        folders = path.relative_to(self.root).parts[:-1]
        return {SPLIT_OF[word] for folder in folders for word in split_words(folder)}


def resolved(path: Path) -> Path | None:
    """The path after following links; None if it cannot be a path."""
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        # It is too long, has a null byte, leads through a file, or its links form a loop: there is no such file.
        return None


def real(path: Path) -> Path:
    """The path after following links, as far as they lead somewhere."""
    return Path(os.path.realpath(path))


def splits_named(folder: Path, tables: Sequence[Path]) -> dict[Path, str | None]:
    """The split that the path of each table names; None: it names none."""
    return {table: split_of(table.relative_to(folder)) for table in tables}


def tables_in(tree: Tree) -> tuple[list[Path], list[str]]:
    """The tables below a folder: those named `metadata` if there are any.

    Returns:
        The tables, and a note on examples of answers, such as sample_submission.csv, which are left out.
    """
    tables = [file for file in tree.files if file.suffix.lower() in TABLE_BUILDERS]
    answers = [file for file in tables if "submission" in file.stem.lower()]
    chosen = [file for file in tables if file.stem == METADATA] or [file for file in tables if file not in answers]
    notes = [f"Not used, since they are examples of answers: {some(list(map(str, answers)))}."] if answers else []
    return chosen, notes


def embedded_columns(data: datasets.Dataset) -> list[str]:
    """The columns whose type is that of images, or can be read as images."""
    import datasets

    kinds = data.features.items()
    return [
        name for name, kind in kinds if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "path" in kind)
    ]


def path_column(tables: Tables, finder: PictureFinder, wanted: str | None, others: Sequence[str]) -> str | None:
    """The column that names pictures: as set, or else the one whose values name most.

    Among columns that name equally many, one with a usual name is taken.

    Args:
        tables: with the same columns.
        finder: finds pictures.
        wanted: the column that the settings name.
        others: columns that have another use.

    Returns:
        The column; None if the tables hold the pictures themselves, or if no column, or several, can be meant.
    """
    import datasets

    if any(map(embedded_columns, tables.values())) and wanted is None:
        return None
    for table, data in tables.items():
        names = [name for name, kind in data.features.items() if isinstance(kind, datasets.Value)]
        # A model that was trained on a folder of classes remembers this name.
        if wanted is not None and (wanted in names or wanted != "image" or "image" in data.column_names):
            return wanted if wanted in names else None
        names = [name for name in names if name not in others and not columns.may_be(columns.LABEL, name)]
        usual = sorted((name for name in names if columns.may_be(columns.IMAGE, name)), key=_rank)
        shares = {name: _share(data, name, finder, table) for name in names}
        best = max(shares.values(), default=0.0)
        chosen = [name for name in usual if shares[name] == best and best] or [
            name for name in names if best and shares[name] == best
        ]
        if not best:
            text = [name for name in names if columns.is_text(data.features[name])]
            chosen = [name for name in usual if name in text] or columns.likely_paths(data, names)
        if len(chosen) == 1 or (chosen and chosen[0] in usual):
            return str(chosen[0])
    return None


def _rank(name: str) -> int:
    """The place of a column among those with usual names: `file_name`, as in metadata, comes first."""
    role = columns.IMAGE
    names = [PATH_NAME, *role.names, *role.synonyms, *role.last]
    return [columns.plain(one) for one in names].index(columns.plain(name))


def _share(data: datasets.Dataset, column: str, finder: PictureFinder, table: Path) -> float:
    """The share of a column's first values that name a picture."""
    values = [str(value) for value in data[column][:TRIED] if value is not None and str(value).strip()]
    return sum(bool(finder.candidates(value, table)) for value in values) / max(1, len(values))


def with_pictures(
    tables: Mapping[Path, Table], column: str, finder: PictureFinder, *, name: str, all_exist: bool
) -> tuple[dict[Path, datasets.Dataset], set[Path]]:
    """The tables with pictures in the place of their names, None for rows without one; and all pictures.

    Args:
        tables: with this column.
        column: names pictures; an empty field stands for a row without one.
        finder: finds pictures.
        name: of the column with the pictures.
        all_exist: whether each picture must exist; if not, one of them must.

    Raises:
        UserError: a value leads out of the folder of the data, names several pictures, or names none.
    """
    import datasets

    problems: dict[str, list[str]] = {"outside": [], "missing": [], "several": []}
    changed, named = {}, set()
    for table, (data, lines, _) in tables.items():
        places = [f"line {line}" if line else f"row {row + 1}" for row, line in enumerate(lines)]
        files = [
            _file(str(value), table, places[row], finder, problems)
            if value is not None and str(value).strip()
            else None
            for row, value in enumerate(data[column][:])
        ]
        named |= {file for file in files if file is not None}
        pictures = [None if file is None else {"bytes": None, "path": str(file)} for file in files]
        feature = datasets.Image(decode=not all_exist)
        # The names stay: they may be the identifiers of the rows.
        changed[table] = data.rename_column(column, columns.PICTURE_NAMES).add_column(name, pictures, feature=feature)
    if problems["missing"] and not all_exist and any(file.is_file() for file in named):
        # The check of all pictures names these, or masks them.
        problems["missing"] = []
    _refuse(problems, column, finder)
    return changed, named


def _file(value: str, table: Path, place: str, finder: PictureFinder, problems: Mapping[str, list[str]]) -> Path | None:
    """The picture that a value names, or where it would be; None: it leads out of the folder."""
    where = f"{value} in {table.name}, {place}"
    direct = resolved(table.parent / value)
    if finder.leaves(value, direct):
        problems["outside"].append(where)
        return None
    pictures = finder.candidates(value, table)
    if len(pictures) > 1:
        problems["several"].append(f"{where}: {some([str(path.relative_to(finder.root)) for path in pictures])}")
    if pictures:
        return real(pictures[0])
    problems["missing"].append(where)
    return direct or table.parent / value[:NAME_LENGTH]


def _refuse(problems: Mapping[str, list[str]], column: str, finder: PictureFinder) -> None:
    outside, missing, several = problems["outside"], problems["missing"], problems["several"]
    if outside:
        raise user_error(
            expected=f"paths of images that stay in {finder.root}, relative to their table",
            found=f"{len(outside)} that leave it: {some(outside)}",
            do="copy these images into the folder, and name them from there; or name the table itself",
        )
    if several:
        raise user_error(
            expected=f"one image for each value of column '{column}'",
            found=f"{len(several)} that name several: {some(several)}",
            do="write their paths relative to the table, with the folder and the suffix",
        )
    if missing:
        raise user_error(
            expected=f"files for all images that column '{column}' names",
            found=f"{len(missing)} that do not exist: {some(missing)}",
            do="correct these paths; leave the field empty if there is no image",
        )
