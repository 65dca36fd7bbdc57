"""Quotes in delimited text that do not enclose whole fields, and lines that two of them join to one field."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_transfer.data.field_types import all_numbers
from hf_transfer.data.read_data import Lines
from hf_transfer.errors import UserError, user_error

LINE_END = re.compile(r"\r\n|\r|\n")


class QuoteError(UserError):
    """Quotes that do not enclose whole fields; `line` is that of the first one."""

    def __init__(self, *, expected: str, found: str, do: str, line: int) -> None:
        super().__init__(str(user_error(expected=expected, found=found, do=do)), found=found)
        self.line = line


def quote_error(file: Path, start: int, end: int) -> QuoteError:
    """The error on a quote at the beginning of a field.

    Args:
        file: of the table.
        start: the line of the row.
        end: the line in which another quote ends the field; 0: none does.
    """
    do = f'in line {start} enclose that field in quotes, and double those in it: "5" pipe becomes """5"" pipe"'
    if start == end:
        problem = f"line {start}: a field that begins with a quote, and goes on after the next one"
    elif end:
        problem = f"line {start}: a quote that is closed only in line {end}, so that these lines are one field"
        do += "; if that is right, save the table as JSON or Parquet"
    else:
        problem = f"line {start}: a quote that is never closed"
    expected = f"in {file} fields that have no quote at their beginning, or are enclosed in quotes"
    return QuoteError(expected=expected, found=problem, do=do, line=start)


class Spanning(NamedTuple):
    """A row of several lines."""

    fields: list[str]
    start: int
    end: int

    def as_lines(self, delimiter: str) -> list[list[str]]:
        """The fields that its lines would have if quotes were text."""
        lines: list[list[str]] = [[]]
        for field in self.fields:
            first, *others = LINE_END.split(field)
            lines[-1] += first.split(delimiter)
            lines += [other.split(delimiter) for other in others]
        return lines


def refuse_swallowed_lines(
    file: Path, spanning: Sequence[Spanning], columns: Sequence[pa.ChunkedArray], starts: Lines, delimiter: str
) -> None:
    """Refuse a row of several lines each of which could be a row by its number of fields and the values in a column.

    Two stray quotes join all lines between them to one field, and the file is still valid. Lines of a text with
    breaks hardly ever end with the separator and one of the labels.
    """
    if len(columns) < 2:
        return
    known: dict[int, Any] = {}
    within_line = pa.array(~np.isin(starts, [row.start for row in spanning]))
    for row in spanning:
        lines = row.as_lines(delimiter)
        if {len(line) for line in lines} != {len(columns)}:
            continue
        for place, column in enumerate(columns):
            if place not in known:
                known[place] = _few_values(column.filter(within_line))
            values = pa.array([line[place] for line in lines], pa.large_string())
            if pc.all(pc.is_in(values, known[place])).as_py() or (all_numbers(values) and all_numbers(known[place])):
                raise quote_error(file, row.start, row.end)


def _few_values(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column if they are those of labels or numbers; none where texts differ from row to row."""
    values = pc.unique(column)
    return values if 2 * len(values) <= len(column) or all_numbers(values) else values[:0]
