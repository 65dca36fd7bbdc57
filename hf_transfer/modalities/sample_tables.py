"""Tables of samples for prediction: CSV and TSV files, and which of their columns are used."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hf_transfer.errors import user_error
from hf_transfer.modalities.modality import Wanted

TABLES = {".csv": ",", ".tsv": "\t"}


def is_table(path: Path) -> bool:
    """Whether a file is a table of samples, by its name."""
    return path.suffix.lower() in TABLES


def rows_in(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a table, and the names of its columns.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter=TABLES.get(path.suffix.lower(), ","))
            return list(table), list(table.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise user_error(
            expected=f"a table in UTF-8 in {path}", found=str(error), do="correct the path or the file"
        ) from error


def chosen_columns(
    existing: Sequence[str], usual: Mapping[str, Sequence[str]], wanted: Wanted, saved: Mapping[str, str]
) -> dict[str, str]:
    """The columns of the samples, by the setting that names each; those that are not found are left out.

    Args:
        existing: the columns of a table.
        usual: by the settings: usual names of their columns.
        wanted: columns that the settings name; None where they are left open.
        saved: columns of the training data, which come before those with usual names.
    """
    chosen = {}
    for setting, names in usual.items():
        known = (name for name in (saved.get(setting), *names) if name in existing)
        if name := wanted.get(setting) or next(known, None):
            chosen[setting] = name
    return chosen


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
