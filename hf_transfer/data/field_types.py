"""The types of columns of text: numbers and truth values where all fields are such."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

NUMBER = r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$"


def infer_types(tables: Sequence[pa.Table], as_text: Callable[[str], bool]) -> list[pa.Table]:
    """The same tables with numbers and truth values where all values of a column are such, in all tables.

    Args:
        tables: columns of text.
        as_text: whether the column of a name stays text, whatever its values are.
    """
    types: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        parts = [chunk for table in tables if name in table.column_names for chunk in table[name].chunks]
        if not as_text(name):
            types[name] = _type_of(pa.chunked_array(parts, pa.large_string()))
    return [_cast(table, types) for table in tables]


def _type_of(values: pa.ChunkedArray) -> pa.DataType:
    if values.null_count == len(values):
        return pa.null()
    truth = pa.array(["true", "false"], pa.large_string())
    if not values.null_count and pc.all(pc.is_in(pc.utf8_lower(values), truth)).as_py():
        return pa.bool_()
    # 007 is a name.
    if not all_numbers(values) or pc.any(pc.match_substring_regex(values, r"^\s*[-+]?0[0-9]")).as_py():
        return pa.large_string()
    kind = pa.float64() if pc.any(pc.match_substring_regex(values, "[.eE]")).as_py() else pa.int64()
    try:
        _numbers(values, kind)
    except pa.ArrowInvalid:
        # Longer whole numbers are identifiers, whose last digits a float would lose.
        return pa.large_string()
    return kind


def _numbers(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pc.replace_substring_regex(values, r"^\s*\+?|\s+$", "").cast(kind)


def _cast(table: pa.Table, types: dict[str, pa.DataType]) -> pa.Table:
    for place, name in enumerate(table.column_names):
        kind = types.get(name, pa.large_string())
        if kind == pa.null():
            table = table.set_column(place, name, pa.nulls(len(table)))
        elif kind == pa.bool_():
            table = table.set_column(place, name, pc.equal(pc.utf8_lower(table[name]), "true"))
        elif kind != pa.large_string():
            table = table.set_column(place, name, _numbers(table[name], kind))
    return table


def all_numbers(values: Any) -> bool:
    """Whether the texts of an array are numbers; null does not count, and at least one is not null."""
    matches = pc.match_substring_regex(values, NUMBER)
    return len(values) > matches.null_count and bool(pc.all(matches).as_py())
