"""The different values of a column: there are few of them, however many rows it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    import datasets

# Of columns of text, as `datasets` names them.
TEXT_TYPES = ("string", "large_string", "string_view")


class Distinct(NamedTuple):
    """The different values of a column, and which of them each row has.

    Attributes:
        values: as Python has them, None for a missing one, in the order in which they first occur.
        numbers: of each row the position of its value [rows].
    """

    values: list[Any]
    numbers: npt.NDArray[np.int64]

    def each(self, is_such: Callable[[Any], bool]) -> npt.NDArray[np.bool_]:
        """What a function says of the value of each row [rows]."""
        chosen: npt.NDArray[np.bool_] = np.array([is_such(value) for value in self.values], dtype=bool)[self.numbers]
        return chosen


def has_single_values(feature: object) -> bool:
    """Whether a column has one value in each row by its type: a number, a text, a truth value, a class number."""
    import datasets

    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float", *TEXT_TYPES, "bool"))
    )


def distinct(rows: datasets.Dataset, column: str) -> Distinct:
    """The different values of a column that `has_single_values`."""
    values = rows.select_columns([column]).with_format("arrow")[:][column]
    try:
        encoded = values.dictionary_encode(null_encoding="encode").combine_chunks()
        return Distinct(encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64))
    except pa.ArrowNotImplementedError:
        # Half precision, for one.
        in_order = dict.fromkeys(values.to_pylist())
        place = {value: number for number, value in enumerate(in_order)}
        return Distinct(list(in_order), np.array([place[value] for value in values.to_pylist()], dtype=np.int64))
