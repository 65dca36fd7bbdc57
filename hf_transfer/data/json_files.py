"""JSON files: lines of objects, a list of objects, and the other forms that pandas writes."""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from hf_transfer.data import columns, encodings
from hf_transfer.data.read_data import Lines, ReadTable
from hf_transfer.errors import UserError, some, user_error

Row = Mapping[str, Any]
FORMS = "a list of objects, an object of lists, or lines with an object each"
DECODER = json.JSONDecoder()
# Arrow takes no larger number; lines that do not fit are read by the standard library.
LARGEST_BLOCK = (1 << 31) - 1
SPACE = re.compile(r"[ \t\r\n]+")


def read_json(file: Path, encoding: str) -> ReadTable:
    """All rows of a JSON file: lines with an object each, a list of objects, an object of lists, or a form of pandas.

    Args:
        file: of JSON or JSON lines.
        encoding: of the file, unless the mark at its beginning says another.

    Raises:
        UserError: no JSON, rows that are no objects, values of different types in a column, no rows. File and line
            are named.
    """
    codec, notes = encodings.encoding_of(file, encoding)
    digest = encodings.content_digest(file, codec)
    try:
        table, lines = _quick(file, codec) or _thorough(file, codec)
    except UnicodeError as error:
        raise encodings.undecodable(file, codec) or error from error
    if not len(table):
        raise _no_rows(file)
    return ReadTable(table, lines, notes, f"{digest} {codec}")


def _quick(file: Path, codec: str) -> tuple[pa.Table, Lines] | None:
    """Lines with an object each, read by Arrow; None: they are not, or lines and rows differ in number."""
    numbers, longest = [], 0
    with file.open(encoding=codec) as text:
        for number, line in enumerate(text, start=1):
            if len(line) > longest:
                longest = len(line)
            if not line.isspace():
                numbers.append(number)
                if len(numbers) == 1 and line.lstrip()[0] == "[":
                    return None
    # One object may be a table of its own.
    if codec not in ("utf-8", "utf-8-sig") or len(numbers) < 2:
        return None
    # A sign has up to four bytes.
    options = pyarrow.json.ReadOptions(block_size=min(max(1 << 24, 8 * longest), LARGEST_BLOCK))
    with file.open("rb") as opened:
        opened.seek(len(codecs.BOM_UTF8) if codec == "utf-8-sig" else 0)
        try:
            table = pyarrow.json.read_json(opened, read_options=options)
        except pa.ArrowInvalid:
            return None
    # Arrow makes dates of some texts, and another text of each date.
    changed = any(pa.types.is_temporal(kind) for kind in table.schema.types)
    return None if changed or len(table) != len(numbers) else (table, np.asarray(numbers, dtype=np.int64))


def _thorough(file: Path, codec: str) -> tuple[pa.Table, Lines]:
    """Any of the forms, read by the standard library, which names the line of a fault."""
    text = file.read_bytes().decode(codec)
    try:
        if text.lstrip()[:1] == "[":
            values, lines = _elements(text)
        else:
            values, lines = _one_after_another(text)
    except json.JSONDecodeError as error:
        # A sign that is missing at the end of a line is noticed at the beginning of the next one.
        until = len(text[: error.pos].rstrip())
        is_late = error.msg.startswith("Expecting '") and "\n" in text[until : error.pos]
        fault = json.JSONDecodeError(error.msg, text, until) if is_late else error
        raise user_error(
            expected=f"JSON in {file}: {FORMS}",
            found=f"line {fault.lineno}, column {fault.colno}: {fault.msg}",
            do="correct this line",
        ) from error
    if not values:
        raise _no_rows(file)
    if len(values) == 1 and text.lstrip()[:1] == "{":
        rows = _rows_of_object(file, values[0])
        values, lines = rows, lines if rows[:1] == values else [0] * len(rows)
    return _table(file, values, np.asarray(lines, dtype=np.int64))


def _elements(text: str) -> tuple[list[Any], list[int]]:
    """The elements of a list, and the lines at which they start."""
    places = _Places(text)
    values: list[Any] = []
    lines: list[int] = []
    place = places.skip(text.index("[") + 1)
    while text[place : place + 1] != "]":
        if values:
            place = places.skip(places.expect(",", place))
        lines.append(places.line(place))
        value, place = DECODER.raw_decode(text, place)
        values.append(value)
        place = places.skip(place)
        if place >= len(text):
            places.expect("]", place)
    if places.skip(place + 1) < len(text):
        raise json.JSONDecodeError("Something after the end of the list", text, places.skip(place + 1))
    return values, lines


def _one_after_another(text: str) -> tuple[list[Any], list[int]]:
    """Values that follow each other, as in JSON lines, and the lines at which they start."""
    places = _Places(text)
    place = places.skip(0)
    values, lines = [], []
    while place < len(text):
        lines.append(places.line(place))
        value, place = DECODER.raw_decode(text, place)
        values.append(value)
        place = places.skip(place)
    return values, lines


class _Places:
    """Places in a text, in ascending order, and their lines."""

    def __init__(self, text: str) -> None:
        self._text, self._line, self._until = text, 1, 0

    def skip(self, place: int) -> int:
        """The next place that is no white space."""
        match = SPACE.match(self._text, place)
        return match.end() if match else place

    def line(self, place: int) -> int:
        """The line of a place, from 1."""
        self._line += self._text.count("\n", self._until, place)
        self._until = place
        return self._line

    def expect(self, sign: str, place: int) -> int:
        """The place after a sign, which must be there."""
        if self._text[place : place + 1] != sign:
            raise json.JSONDecodeError(f"Expecting {sign!r}", self._text, place)
        return place + 1


def _rows_of_object(file: Path, value: Mapping[str, Any]) -> list[Any]:
    """The rows of a table that is one object, in one of the forms of `pandas.DataFrame.to_json`, or of one row."""
    parts = list(value.values())
    schema, names, data = (value.get(name) for name in ("schema", "columns", "data"))
    rows = data if isinstance(data, list) else []
    if rows and isinstance(schema, dict) and all(isinstance(row, dict) for row in rows):
        index = schema.get("primaryKey", [])
        return [{name: cell for name, cell in row.items() if name not in index} for row in rows]
    if rows and isinstance(names, list) and all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return [dict(zip(names, row, strict=True)) for row in rows]
    if len(parts) > 1 and all(isinstance(part, list) for part in parts) and len(set(map(len, parts))) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
    if parts and all(isinstance(part, dict) for part in parts):
        return _rows_of_objects(file, value)
    tables = [part for part in parts if isinstance(part, list) and part and isinstance(part[0], dict)]
    if len(tables) == 1:
        return list(tables[0])
    if any(not isinstance(part, list | dict) for part in parts):
        return [value]
    raise user_error(
        expected=f"{FORMS} in {file}",
        found=f"one object of {some(list(value))}, with lists of different lengths" if parts else "an empty object",
        do="write it with pandas as frame.to_json(FILE, orient='records')",
    )


def _rows_of_objects(file: Path, value: Mapping[str, Row]) -> list[Row]:
    """The rows of an object of objects: of columns by the index of each row, or of rows by their index."""
    inner = list(dict.fromkeys(name for part in value.values() for name in part))
    outer_is_index, inner_is_index = (all(map(str.isdigit, names)) for names in (value, inner))
    if outer_is_index == inner_is_index:
        inner_is_index, outer_is_index = (any(map(columns.is_usual, names)) for names in (value, inner))
    if outer_is_index == inner_is_index:
        raise user_error(
            expected=f"in {file} rows that are numbered, and columns that have names",
            found=f"an object of {some(list(value))}, each with {some(inner)}",
            do="write it with pandas as frame.to_json(FILE, orient='records')",
        )
    if outer_is_index:
        return list(value.values())
    return [{name: column.get(row) for name, column in value.items()} for row in inner]


def _table(file: Path, rows: Sequence[Any], lines: Lines) -> tuple[pa.Table, Lines]:
    """The columns of rows; a row that lacks one has no value there."""
    for row, line in zip(rows, lines.tolist(), strict=True):
        if not isinstance(row, dict):
            raise user_error(
                expected=f"{FORMS} in {file}",
                found=f"{f'line {line}' if line else 'one'}: {json.dumps(row)[:80]}, which is no object",
                do='write each row as an object, such as {"text": "...", "label": "..."}',
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names}), lines


def _column(values: Sequence[Any]) -> pa.Array:
    """The values of a column; those of different types stay JSON."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        texts = pa.array([None if value is None else json.dumps(value) for value in values], pa.large_string())
        return pa.ExtensionArray.from_storage(pa.json_(pa.large_string()), texts)


def _no_rows(file: Path) -> UserError:
    return user_error(expected=f"rows in {file}", found="no rows", do="add rows, or remove this file")
