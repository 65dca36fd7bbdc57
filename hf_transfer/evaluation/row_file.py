"""`OUT/data.json`: every row of the data as they were read, with its file, line, split and fate."""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_transfer.data.complete_files import put
from hf_transfer.data.fates import ITS_OWN, Accounted
from hf_transfer.errors import user_error

ROW_FILE = "data.json"
PACKED_ROW_FILE = "data.json.gz"
# A longer file is packed.
LARGEST_BYTES = 1_000_000
FORMAT = 1
# The letter of the first fate; the next fate has the next sign of Unicode.
FIRST_LETTER = ord("A")


class Row(NamedTuple):
    """A row as it was read.

    Attributes:
        source: the split in the data set.
        number: its number there, from 0.
        file: that it is in; None: not known.
        line: at which it starts; None: the file has no lines, or is not known.
        split: that it belongs to; None: to none.
        fate: used, masked, dropped or unused.
        reason: why it is not used; None: it is.
    """

    source: str
    number: int
    file: str | None
    line: int | None
    split: str | None
    fate: str
    reason: str | None


def write_rows(folder: Path, rows: Sequence[Accounted]) -> Path:
    """Write the file, completely or not at all, and remove that of an earlier run.

    Args:
        folder: of the run.
        rows: by split as it was read.

    Returns:
        The path: `data.json`, or `data.json.gz` if it would be longer than `LARGEST_BYTES`.
    """
    content = json.dumps(
        {"format": FORMAT, "rows": sum(len(one.numbers) for one in rows), "sources": [_source(one) for one in rows]},
        separators=(",", ":"),
    ).encode()  # fmt: skip
    packed = len(content) > LARGEST_BYTES
    path, other = (folder / name for name in ((PACKED_ROW_FILE, ROW_FILE) if packed else (ROW_FILE, PACKED_ROW_FILE)))
    # Without a time: the same rows give the same file.
    put(path, gzip.compress(content, mtime=0) if packed else content)
    other.unlink(missing_ok=True)
    return path


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows in the file of a run, in the order in which they were read.

    Raises:
        UserError: the folder has no such file.
    """
    packed, plain = folder / PACKED_ROW_FILE, folder / ROW_FILE
    if packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    elif plain.is_file():
        content = plain.read_bytes()
    else:
        raise user_error(
            expected=f"{ROW_FILE} or {PACKED_ROW_FILE} in {folder}",
            found="neither",
            do="name the --output_dir of a run that has begun to train",
        )
    for source in json.loads(content)["sources"]:
        yield from _rows(source)


def _source(rows: Accounted) -> dict[str, Any]:
    fates = [fate._asdict() for fate in rows.fates]
    written: dict[str, Any] = {
        "name": rows.name,
        "rows": len(rows.numbers),
        "fates": {chr(FIRST_LETTER + number): fate for number, fate in enumerate(fates)},
        "fate_of_each_row": (rows.numbers.astype("<u4") + FIRST_LETTER).tobytes().decode("utf-32-le"),
        "reasons": {str(row): rows.reasons[row] for row in sorted(rows.reasons)},
    }
    if rows.origins is not None:
        files = list(rows.origins.files)
        folder = os.path.commonpath([Path(file).parent for file in files]) if files else ""
        written |= {
            "folder": folder,
            "files": [os.path.relpath(file, folder) if folder else file for file in files],
            "file_of_each_row": _runs(rows.origins.file_numbers),
            "line_of_each_row": _runs(rows.origins.lines),
        }
    return written


def _rows(source: dict[str, Any]) -> Iterator[Row]:
    files = [str(Path(source["folder"], file)) for file in source.get("files", [])]
    numbers, lines = (_of_runs(source.get(name, [])) for name in ("file_of_each_row", "line_of_each_row"))
    for number, letter in enumerate(source["fate_of_each_row"]):
        fate = source["fates"][letter]
        reason = source["reasons"][str(number)] if fate["reason"] == ITS_OWN else fate["reason"]
        file, line = next(numbers, None), next(lines, None)
        yield Row(
            source["name"], number, None if file is None else files[file], line or None, fate["split"], fate["name"],
            reason,
        )  # fmt: skip


def _runs(numbers: npt.NDArray[Any]) -> list[list[int]]:
    """Numbers as runs of [first, step, count]: 2, 3, 4, 9, 9 are [2, 1, 3] and [9, 0, 2]."""
    values, runs, start = numbers.astype(np.int64), [], 0
    steps = np.diff(values)
    # Where a step differs from the one before it.
    turns = np.flatnonzero(np.diff(steps)) + 1
    while start < len(values):
        place = int(np.searchsorted(turns, start, side="right"))
        end = min(int(turns[place]) if place < len(turns) else len(values) - 1, len(values) - 1)
        step = int(steps[start]) if start < len(steps) else 0
        runs.append([int(values[start]), step, end - start + 1])
        start = end + 1
    return runs


def _of_runs(runs: list[list[int]]) -> Iterator[int]:
    return chain.from_iterable((first + step * place for place in range(count)) for first, step, count in runs)
