"""Tables of samples for prediction: CSV and TSV files, and which of their columns are used."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_transfer.data.columns import IMAGE_NAMES, TEXT_NAMES
from hf_transfer.errors import user_error
from hf_transfer.modalities.pair_tables import PATH_NAME
from hf_transfer.modalities.tokens import TokenPreprocessing

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
    path: Path, existing: Sequence[str], wanted: Mapping[str, str | None], saved: TokenPreprocessing
) -> tuple[str, str | None]:
    """The column of texts and that of second texts: as set, as in the training of the model, or by a usual name.

    Args:
        path: the table.
        existing: its columns.
        wanted: the settings that name columns, by name; None where they are left open.
        saved: the preprocessing of the model.

    Returns:
        The two columns; the second is None for single texts.

    Raises:
        UserError: there is no such column, or the model was trained on pairs and the table has single texts, or the
            other way round.
    """
    text = wanted.get("text_column_name") or _in_training(saved.columns.get("text_column_name"), existing)
    pair = wanted.get("text_pair_column_name") or _in_training(saved.columns.get("text_pair_column_name"), existing)
    usual = [name for name in TEXT_NAMES if name in existing] or existing[: len(existing) == 1]
    text = text or next(iter(usual), "")
    for name in (text, *([pair] if pair else [])):
        if name not in existing:
            raise user_error(
                expected=f"in {path} a column {name or 'of texts'}",
                found=f"the columns {', '.join(existing)}" if existing else "none",
                do="name it in --text_column_name (and --text_pair_column_name)",
            )
    if saved.pair is not None and saved.pair != (pair is not None):
        raise user_error(
            expected=f"{'pairs of texts' if saved.pair else 'single texts'}, as the model was trained on",
            found=f"{'one column' if saved.pair else 'two columns'} of {path}",
            do="name the second one in --text_pair_column_name" if saved.pair else "leave --text_pair_column_name out",
        )
    return text, pair


def _in_training(name: str | None, existing: Sequence[str]) -> str | None:
    return name if name in existing else None


def pairs_in(
    path: Path, wanted: Mapping[str, str | None], saved: Mapping[str, str]
) -> list[tuple[Path, int, tuple[Path | None, str | None]]]:
    """The images with texts in a table, each with the table and its row, which is counted from 1 below the header.

    Paths of images are relative to the table.

    Args:
        path: the table.
        wanted: the settings that name columns, by name; None where they are left open.
        saved: columns of the training data, by the setting that names each.

    Raises:
        UserError: it has neither a column of images nor one of texts, or lacks a column that the settings name.
    """
    rows, existing = rows_in(path)
    text = wanted.get("text_column_name") or _in_training(saved.get("text_column_name"), existing)
    text = text or next((name for name in TEXT_NAMES if name in existing), None)
    image = wanted.get("image_column_name") or _in_training(saved.get("image_column_name"), existing)
    image = image or next((name for name in (PATH_NAME, *IMAGE_NAMES) if name in existing), None)
    chosen = [name for name in (text, image) if name is not None]
    missing = [name for name in chosen if name not in existing]
    if not chosen or missing:
        raise user_error(
            expected=f"in {path} a column {missing[0] if chosen else 'of texts, or one of paths of images'}",
            found=f"the columns {', '.join(existing)}" if existing else "none",
            do="name them in --text_column_name and --image_column_name",
        )
    pairs = []
    for number, row in enumerate(rows, start=1):
        file, words = (row[name] if name else "" for name in (image, text))
        pairs.append((path, number, (path.parent / file if file else None, words or None)))
    return pairs
