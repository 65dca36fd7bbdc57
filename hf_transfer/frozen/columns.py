"""Columns of the same samples, each in a store of its own: what one run has stored serves others with other columns."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from hf_transfer.frozen.store import COUNTED, TARGETS, Column, Store


class ColumnStores:
    """Stores with one column each, which are written and read as one.

    Whichever columns a run needs, those that an earlier run has stored are used. The chunks of all stores hold the same
    samples, so that one pass computes the missing chunks of several columns.

    Args:
        stores: of the same samples, with one column each and a fixed number of samples in a chunk.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        first = stores[0]
        self.stores, self.samples, self.chunks = stores, first.samples, first.chunks
        self.columns: dict[str, Column] = {str(place): store.columns["0"] for place, store in enumerate(stores)}
        self.columns |= {name: first.columns[name] for name in (TARGETS, COUNTED)}

    @property
    def missing_bytes(self) -> int:
        """Size on disk of the stores that are not complete."""
        return sum(store.bytes for store in self.stores if not store.complete)

    @property
    def was_begun(self) -> bool:
        """Whether something of a column is on disk."""
        return any(store.folder.exists() for store in self.stores)

    def batches(self, number: int, size: int) -> list[list[int]]:
        """See `Store.batches`."""
        return self.stores[0].batches(number, size)

    def sweep(self) -> None:
        """See `Store.sweep`."""
        for store in self.stores:
            store.sweep()

    def check(self, number: int) -> bool:
        """Whether a chunk of all columns is there and undamaged; damaged ones are deleted."""
        return not self._lacking(number)

    def missing(self, numbers: Iterable[int]) -> dict[tuple[int, ...], list[int]]:
        """Which of these chunks are to be computed, by the positions of the columns that lack them."""
        chunks: dict[tuple[int, ...], list[int]] = {}
        for number in numbers:
            if columns := self._lacking(number):
                chunks.setdefault(columns, []).append(number)
        return chunks

    def of(self, columns: Sequence[int]) -> "ColumnStores":
        """The stores of these columns alone, in this order."""
        return ColumnStores([self.stores[place] for place in columns])

    def write(self, number: int, tensors: Sequence[Tensor]) -> None:
        """Write a chunk of all columns: see `Store.write`."""
        *columns, targets, counted = tensors
        for store, column in zip(self.stores, columns, strict=True):
            store.write(number, [column, targets, counted])

    def _lacking(self, number: int) -> tuple[int, ...]:
        return tuple(place for place, store in enumerate(self.stores) if not store.check(number))

    def chunk(self, number: int) -> list[Tensor]:
        """See `Store.chunk`."""
        chunks = [store.chunk(number) for store in self.stores]
        return [*(column for column, *_ in chunks), *chunks[0][1:]]
