"""Where a data set has what is to be predicted."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from hf_transfer.errors import LISTED

# Between the labels of a text: a comma is often a part of a name.
CLEAR_SEPARATORS = (";", "|")
# In this order, where a column has several of them.
SEPARATORS = (*CLEAR_SEPARATORS, ",")


class LabelColumns(NamedTuple):
    """Where a data set has what is to be predicted.

    Attributes:
        names: of its columns.
        separator: between the labels of a text; None: as the target infers it.
        outputs: the names of the outputs of a finished model, in whose order values are read; empty: there is no such
            model, and the training split has the names.
        row_names: of a split: what a row is called in messages, by its position ("train.csv, line 7").
    """

    names: tuple[str, ...]
    separator: str | None = None
    outputs: tuple[str, ...] = ()
    row_names: Mapping[str, Callable[[int], str]] = MappingProxyType({})

    @property
    def only(self) -> str:
        """The one column, for targets that have one."""
        return self.names[0]

    def at(self, split: str, row: int) -> str:
        """A row of a split, for messages."""
        return self.row_names[split](row) if split in self.row_names else f"row {row} of split '{split}'"

    def where(self, split: str, rows: Sequence[int]) -> str:
        """The first of some rows of a split, for messages."""
        if split not in self.row_names:
            return f"rows {list(rows[:LISTED])}, counted from 0"
        return ", ".join(self.row_names[split](row) for row in rows[:LISTED])

    def __str__(self) -> str:
        return f"column{'s' if len(self.names) > 1 else ''} {', '.join(map(repr, self.names))}"
