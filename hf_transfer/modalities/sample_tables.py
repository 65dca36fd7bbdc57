"""Samples to predict: in tables, in folders and archives, in files of text, and in lines of standard input."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_transfer.data import encodings
from hf_transfer.data.archives import is_archive, unpacked
from hf_transfer.data.columns import ColumnError
from hf_transfer.data.files import files_below
from hf_transfer.data.folders import read_saved, saved_folder
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.origins import Origins
from hf_transfer.data.tables import TABLE_BUILDERS, load_tables
from hf_transfer.errors import UserError, user_error
from hf_transfer.modalities.modality import Wanted
from hf_transfer.settings.data import DataSettings

if TYPE_CHECKING:
    import datasets

STANDARD_INPUT = Path("-")
TEXT_SUFFIXES = (".txt",)
ROWS_AT_ONCE = 1_000
UTF_8 = "utf-8"


class SampleTable(NamedTuple):
    """A table of samples.

    Attributes:
        path: of its file.
        data: its rows.
        origins: the line of each row.
    """

    path: Path
    data: datasets.Dataset
    origins: Origins

    def rows(self, columns: Collection[str]) -> Iterator[tuple[int, int | None, dict[str, Any]]]:
        """Of each row its number, counted from 1, its line, and its values in these columns."""
        import datasets

        chosen = self.data.select_columns(list(dict.fromkeys(columns)))
        for name, kind in chosen.features.items():
            if isinstance(kind, datasets.Image):
                chosen = chosen.cast_column(name, datasets.Image(decode=False))
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            block = chosen[start : start + ROWS_AT_ONCE]
            for place, values in enumerate(zip(*block.values(), strict=True), start=start):
                yield place + 1, self.origins.of(place)[1], dict(zip(block, values, strict=True))


def is_table(path: Path) -> bool:
    """Whether a path is a table of samples, by its name, or a folder that `save_to_disk` has written."""
    return path.suffix.lower() in TABLE_BUILDERS or (path.is_dir() and saved_folder(path) is not None)


def table_at(path: Path, wanted: Wanted, saved: Mapping[str, Any]) -> SampleTable:
    """A table, read as the settings say, or else as the training data was.

    Without settings, UTF-8 comes before the encoding of the training data: what is valid UTF-8 is hardly anything else.

    Args:
        path: the table.
        wanted: `encoding` and `delimiter`, if they are set, and columns that are text whatever they look like.
        saved: the same of the training data.

    Raises:
        UserError: it cannot be read.
    """
    named = [wanted.get("encoding")] if wanted.get("encoding") else [UTF_8, saved.get("encoding")]
    delimiters = [wanted.get("delimiter")] if wanted.get("delimiter") else [saved.get("delimiter"), None]
    columns = [
        name
        for known in (wanted, saved)
        for setting, name in known.items()
        if setting.endswith("_column_name") and isinstance(name, str)
    ]
    errors: list[UserError] = []
    for encoding in filter(None, dict.fromkeys(named)):
        for delimiter in dict.fromkeys(delimiters):
            try:
                return _read(
                    path, DataSettings(dataset_name=str(path), encoding=encoding, delimiter=delimiter), columns
                )
            except UserError as error:
                errors.append(error)
    raise errors[0]


def _read(path: Path, settings: DataSettings, text_columns: Sequence[str]) -> SampleTable:
    import datasets

    try:
        if path.is_dir():
            rows = datasets.concatenate_datasets(list(read_saved(path).data.values()))
            without_lines = np.zeros(len(rows), dtype=np.int64)
            return SampleTable(path, rows, Origins((str(path),), without_lines.astype(np.int32), without_lines))
        tables = load_tables(path, [path], settings, text_columns)
        (data,), (origins,) = tables.data.values(), tables.origins.values()
        # Arrow accepts invalid text, and would fail in the middle of the answers.
        data.data.table.validate(full=True)
        return SampleTable(path, data, origins)
    # The errors of Arrow and `datasets` for files that are damaged.
    except (OSError, ValueError, TypeError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        raise user_error(
            expected=f"a table in {path} ({', '.join(TABLE_BUILDERS)})",
            found=(str(error.__cause__ or error) or type(error).__name__).splitlines()[0],
            do="correct the path or the file",
        ) from error


def expanded(paths: Iterable[Path], kinds: Sequence[Collection[str]], *, expected: str) -> list[Path]:
    """The files that are meant: of a folder or an archive all files of the first kind that it has.

    A folder that `save_to_disk` of `datasets` has written stays as it is.

    Args:
        paths: files, archives, folders, or - for standard input.
        kinds: suffixes of files, in lower case.
        expected: what a folder should have, for the message ("pictures").

    Raises:
        UserError: a folder has no such file.
    """
    files: list[Path] = []
    for given in paths:
        path = unpacked(given, cache_folder(None)) if is_archive(given) and given.is_file() else given
        if not path.is_dir():
            files.append(path)
            continue
        if (saved := saved_folder(path)) is not None:
            files.append(saved)
            continue
        visible = files_below(path)
        groups = ([file for file in visible if file.suffix.lower() in suffixes] for suffixes in kinds)
        if not (first := next(filter(None, groups), [])):
            suffixes = sorted(suffix for kind in kinds for suffix in kind)
            raise user_error(
                expected=f"{expected} in {given} ({', '.join(suffixes)})",
                found=f"{len(visible)} files, and none of these" if visible else "an empty folder",
                do="name a folder that has some, or files",
            )
        files += first
    return files


def input_lines() -> Iterator[tuple[int, str]]:
    """The lines of standard input, counted from 1, without their ends."""
    for number, line in enumerate(sys.stdin, start=1):
        yield number, line.rstrip("\r\n")


def file_text(path: Path, wanted: Wanted, saved: Mapping[str, Any]) -> tuple[str, str]:
    """The whole text of a file, and what is wrong with it; its encoding is chosen as in `table_at`."""
    named = [wanted.get("encoding")] if wanted.get("encoding") else [UTF_8, saved.get("encoding")]
    fault = ""
    for encoding in filter(None, dict.fromkeys(named)):
        try:
            return encodings.read_text(path, encoding), ""
        except UserError as error:
            fault = fault or f"no {encoding}: {error.found}; name the encoding in --encoding"
        except OSError as error:
            return "", str(error.strerror or error)
    return "", fault


def chosen_columns(
    existing: Sequence[str], usual: Mapping[str, Sequence[str]], wanted: Wanted, saved: Mapping[str, str]
) -> dict[str, str]:
    """The columns of the samples, by the setting that names each; those that are not found are left out.

    Args:
        existing: the columns of a table.
        usual: by the settings: columns that may be meant, the likeliest first.
        wanted: columns that the settings name; None where they are left open.
        saved: columns of the training data, which come before those with usual names.
    """
    chosen = {}
    for setting, names in usual.items():
        known = (name for name in (saved.get(setting), *names) if name in existing)
        if name := wanted.get(setting) or next(known, None):
            chosen[setting] = name
    return chosen


@contextmanager
def columns_of(path: Path) -> Iterator[None]:
    """Add the table to the message of a column that cannot be chosen."""
    try:
        yield
    except ColumnError as error:
        raise user_error(expected=f"{error.expected} in {path}", found=error.found, do=error.do) from error


def refuse_missing(path: Path, chosen: Collection[str], existing: Sequence[str], *, expected: str, do: str) -> None:
    """Refuse a table without the chosen columns, or of which none was chosen.

    Args:
        path: the table.
        chosen: columns of the samples.
        existing: the columns of the table.
        expected: what its columns should hold.
        do: the settings that name them, in a sentence.
    """
    missing = [name for name in chosen if name not in existing]
    if missing or not chosen:
        raise user_error(
            expected=f"in {path} a column {missing[0] if missing else expected}",
            found=f"the columns {', '.join(existing)}" if existing else "none",
            do=do,
        )
