"""Delimited text (CSV, TSV and the like): every row of a file arrives, or the line that does not is named.

Quotes are read as RFC 4180 (Y. Shafranovich, IETF, 2005, https://www.rfc-editor.org/rfc/rfc4180) says: a field that
begins with one ends with one, and within it they are doubled. In other fields they are text.
"""

import csv
import gc
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_transfer.data import encodings
from hf_transfer.data.quotes import QuoteError, Spanning, quote_error, refuse_swallowed_lines
from hf_transfer.data.read_data import Lines, ReadTable
from hf_transfer.errors import UserError, some, user_error
from hf_transfer.settings.ranges import DELIMITERS

# The separator that a file's name says; a comma for all others.
USUAL = {".tsv": "\t", ".tab": "\t"}
SAMPLE_SIGNS, SAMPLE_ROWS = 1 << 16, 100
ROWS_AT_ONCE = 5000
NAMES = {sign: word for word, sign in DELIMITERS.items()}
# Longer fields are taken for a quote that is never closed.
LONGEST_FIELD = 1 << 27
# A first line that Excel reads, and writes nowhere else.
STATED = re.compile(r"sep=(.)(\r\n|\r|\n)")
# Signs that names of columns hardly have, and that may be separators.
FOREIGN_SIGNS = re.compile(r"[,;|:\t^~\x01-\x1f]")


@dataclass(frozen=True)
class Layout:
    """How a file of delimited text is read.

    Attributes:
        encoding: a codec's name.
        delimiter: the sign between fields.
        spaced: whether spaces follow the delimiter and belong to no field.
        quoted: whether quotes enclose fields; else they are text as any other sign.
        skipped: lines before the one with the names of the columns.
        notes: sentences on what was decided.
    """

    encoding: str
    delimiter: str
    spaced: bool = False
    quoted: bool = True
    skipped: int = 0
    notes: tuple[str, ...] = ()

    def reader(self, text: Any, *, strict: bool = True) -> Any:
        """A reader of the standard library for lines of text."""
        return csv.reader(
            text, delimiter=self.delimiter, skipinitialspace=self.spaced, strict=strict,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
        )  # fmt: skip


def read_delimited(file: Path, encoding: str, delimiter: str | None = None) -> ReadTable:
    """All rows of a file of delimited text; blank lines are no rows.

    Args:
        file: its first line has the names of the columns.
        encoding: of the file, unless the mark at its beginning says another.
        delimiter: a sign or its name (tab, comma, semicolon, pipe); None: the one that its first lines show.

    Raises:
        UserError: a row with too few or too many fields, a quote that is not closed, columns without names or with
            the same name, bytes that are not valid in the encoding, no columns. File and line are named.
    """
    layout = layout_of(file, encoding, delimiter)
    digest = encodings.content_digest(file, layout.encoding)
    with _decoding(file, layout.encoding), _large_fields(), _without_collection():
        try:
            table, lines, notes = _read(file, layout)
        except QuoteError as error:
            layout = replace(layout, quoted=False)
            if not _is_unquoted(file, layout):
                raise
            table, lines, _ = _read(file, layout)
            notes = [
                f"{file.name}: quotes are read as text, since the one in line {error.line} encloses no whole field."
            ]
    return ReadTable(table, lines, [*layout.notes, *notes], f"{digest} {replace(layout, notes=())}")


def layout_of(file: Path, encoding: str, delimiter: str | None = None) -> Layout:
    """How a file of delimited text is read, by its first lines; see `read_delimited`.

    Raises:
        UserError: it has no text, or only one column, whose name seems to be several.
    """
    codec, notes = encodings.encoding_of(file, encoding)
    with _decoding(file, codec), file.open(encoding=codec, newline="") as opened:
        head = opened.read(SAMPLE_SIGNS)
    if not head.strip():
        raise user_error(expected=f"rows in {file}", found="an empty file", do="name another file, or remove it")
    stated = STATED.match(head)
    head = head[stated.end() :] if stated else head
    usual = USUAL.get(file.suffix.lower(), ",")
    wanted = DELIMITERS.get(delimiter, delimiter) if delimiter else stated and stated[1]
    sign = wanted or _detected(head, usual)
    layout = Layout(codec, sign, skipped=1 if stated else 0)
    rows = layout.reader(io.StringIO(head, newline=""), strict=False)
    names: list[str] = next((row for row in rows if any(field.strip() for field in row)), [])
    if not head.lstrip().startswith('"'):
        _refuse_joined_names(file, names, sign)
    if sign not in (usual, delimiter, DELIMITERS.get(delimiter or "")):
        notes = [*notes, f"{file.name}: fields are separated by {f'a {NAMES[sign]}' if sign in NAMES else repr(sign)}."]
    spaced = sign not in " \t" and len(names) > 1 and all(name.startswith(" ") for name in names[1:])
    return replace(layout, spaced=spaced, notes=tuple(notes))


def _detected(head: str, usual: str) -> str:
    """The separator with which the first rows have the same number of fields, which is at least 2.

    Where rows differ with each of them, it is one that the first line has: which row is wrong is found later.
    """
    counts = {sign: _field_counts(head, sign) for sign in DELIMITERS.values()}
    several = [sign for sign, fields in counts.items() if fields[0] >= 2]
    steady = [sign for sign in several if len(set(counts[sign])) == 1]
    likely = steady or several
    if usual in likely or not likely:
        return usual
    return max(likely, key=lambda sign: (counts[sign].count(counts[sign][0]), counts[sign][0]))


def _field_counts(head: str, sign: str) -> list[int]:
    """How many fields the first rows have with a separator; the last row, which may be cut, is left out."""
    with _large_fields():
        rows = islice(Layout("", sign).reader(io.StringIO(head, newline=""), strict=False), SAMPLE_ROWS + 1)
        counts = [len(row) for row in rows if row]
    return counts[:-1] if len(counts) > 1 and (len(head) >= SAMPLE_SIGNS or len(counts) > SAMPLE_ROWS) else counts


def _refuse_joined_names(file: Path, names: Sequence[str], delimiter: str) -> None:
    if len(names) == 1 and (signs := FOREIGN_SIGNS.findall(names[0])):
        raise user_error(
            expected=f"in the first line of {file} the names of its columns, separated by {delimiter!r}",
            found=f"one column called {names[0]!r}",
            do=f"name the separator: --delimiter {NAMES.get(signs[0], repr(signs[0]))}",
        )


@contextmanager
def _decoding(file: Path, encoding: str) -> Iterator[None]:
    """Bytes that are not valid in the encoding are named by their line."""
    try:
        yield
    except UnicodeError as error:
        raise encodings.undecodable(file, encoding) or error from error


@contextmanager
def _large_fields() -> Iterator[None]:
    """The standard library refuses fields of more than 131,072 signs otherwise."""
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Lists of fields form no cycles; looking for some would take a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def chunks(file: Path, layout: Layout) -> Iterator[tuple[list[list[str]], list[int], list[int]]]:
    """The rows of a file in parts, the first of which begins with the names of the columns.

    Yields:
        rows, the lines at which they start, and the lines at which they end.

    Raises:
        QuoteError: quotes that do not enclose whole fields.
    """
    with file.open(encoding=layout.encoding, newline="") as opened:
        for _ in range(layout.skipped):
            opened.readline()
        reader = layout.reader(opened)
        rows: list[list[str]] = []
        starts: list[int] = []
        ends: list[int] = []
        end, width = 0, 0
        try:
            for row in reader:
                start, end = end + 1, reader.line_num
                if not row or (len(row) == 1 != width and not row[0].strip()):
                    continue
                width = width or len(row)
                rows.append(row)
                starts.append(start + layout.skipped)
                ends.append(end + layout.skipped)
                if len(rows) == ROWS_AT_ONCE:
                    yield rows, starts, ends
                    rows, starts, ends = [], [], []
        except csv.Error as error:
            last = 0 if "end of data" in str(error) else reader.line_num + layout.skipped
            raise quote_error(file, end + 1 + layout.skipped, last) from error
    if rows:
        yield rows, starts, ends


def _is_unquoted(file: Path, layout: Layout) -> bool:
    """Whether all lines have the same number of fields if quotes are text, and none encloses a field."""
    widths = set()
    for rows, _, _ in chunks(file, layout):
        widths |= set(map(len, rows))
        if len(widths) > 1 or any(field[:1] == field[-1:] == '"' for row in rows for field in row):
            return False
    return widths != {1}


def _read(file: Path, layout: Layout) -> tuple[pa.Table, Lines, list[str]]:
    """The table, the line at which each row starts, and notes."""
    names: list[str] = []
    parts: list[list[pa.Array]] = []
    lines, several_lines = [], []
    wrong: list[tuple[int, int]] = []
    for rows, starts, ends in chunks(file, layout):
        if not names:
            names, rows, starts, ends = rows[0], rows[1:], starts[1:], ends[1:]
        if starts != ends:
            spans = zip(rows, starts, ends, strict=True)
            several_lines += [Spanning(row, start, end) for row, start, end in spans if end > start]
        if set(map(len, rows)) - {len(names)}:
            wrong += [(start, len(row)) for row, start in zip(rows, starts, strict=True) if len(row) != len(names)]
        if wrong or not rows:
            continue
        parts.append([_text(column) for column in zip(*rows, strict=True)])
        lines.append(np.asarray(starts, dtype=np.int64))
    for row in several_lines:
        if len(row.fields) != len(names):
            raise quote_error(file, row.start, row.end)
    if wrong:
        raise _wrong_width(file, names, wrong, layout)
    if not parts:
        raise user_error(
            expected=f"rows in {file}",
            found="no rows below the names of the columns",
            do="add rows, or remove this file",
        )
    columns = [pa.chunked_array(column) for column in zip(*parts, strict=True)]
    table = _named(file, names, columns)
    numbers = np.concatenate(lines)
    refuse_swallowed_lines(file, several_lines, columns, numbers, layout.delimiter)
    return table, numbers, _note_on_lines(file, several_lines)


def _text(column: Sequence[str]) -> pa.Array:
    """Texts, null where they are empty."""
    # An array of `string` holds two gigabytes at most.
    texts = pa.array(column, pa.large_string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.large_string()), texts)


def _wrong_width(file: Path, names: Sequence[str], wrong: Sequence[tuple[int, int]], layout: Layout) -> UserError:
    advice = []
    if any(fields > len(names) for _, fields in wrong):
        advice.append(f"enclose fields that hold the separator {layout.delimiter!r} in quotes")
    if any(fields < len(names) for _, fields in wrong):
        advice.append("add the missing fields, which may be empty, or remove these rows")
    return user_error(
        expected=f"as many fields in each row of {file} as in its first line: {len(names)} ({some(names)})",
        found=some([f"line {line}: {fields}" for line, fields in wrong]),
        do=f"{', '.join(advice)}; or name another separator with --delimiter",
    )


def _named(file: Path, names: Sequence[str], columns: Sequence[pa.ChunkedArray]) -> pa.Table:
    """The columns under their names without spaces around them; empty columns without a name are left out."""
    stripped = [name.strip() for name in names]
    if twice := sorted({name for name in stripped if name and stripped.count(name) > 1}):
        raise user_error(
            expected=f"columns of different names in the first line of {file}",
            found=f"{stripped.count(twice[0])} columns called {twice[0]!r}",
            do="rename or remove all but one of them",
        )
    # The first one is the index that pandas writes.
    has_values = [column.null_count < len(column) for column in columns]
    kept = [place for place, name in enumerate(stripped) if name or (place and has_values[place])]
    if unnamed := [place for place in kept if not stripped[place]]:
        raise user_error(
            expected=f"a name for each column in the first line of {file}",
            found=f"none for column {unnamed[0] + 1}, which has values",
            do="name that column in the first line, or remove it",
        )
    if not kept:
        raise user_error(
            expected=f"names of columns in the first line of {file}", found="none", do="write them into that line"
        )
    return pa.table({stripped[place]: columns[place] for place in kept})


def _note_on_lines(file: Path, spanning: Sequence[Spanning]) -> list[str]:
    if not spanning:
        return []
    first = spanning[0]
    return [
        f"{file.name}: rows with line breaks in quotes: {len(spanning):,}, the first in lines {first.start} to "
        f"{first.end}."
    ]
