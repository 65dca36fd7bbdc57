"""Columns of the same samples, each in a store of its own: what one run has stored serves others with other columns."""

from collections.abc import Sequence

from torch import Tensor

from hf_transfer.frozen.store import COUNTED, TARGETS, Column, Store


class ColumnStores:
    """Stores with one column each, which are written and read as one.

    Whichever columns a run needs, those that an earlier run has stored are used. The chunks of all stores hold the same
    samples, so that one pass computes the missing chunks of all columns.

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
        checked = [store.check(number) for store in self.stores]
        return all(checked)

    def write(self, number: int, tensors: Sequence[Tensor]) -> None:
        """Write a chunk of the columns that lack it: see `Store.write`."""
        *columns, targets, counted = tensors
        for store, column in zip(self.stores, columns, strict=True):
            if not store.has(number):
                store.write(number, [column, targets, counted])

    def chunk(self, number: int) -> list[Tensor]:
        """See `Store.chunk`."""
        chunks = [store.chunk(number) for store in self.stores]
        return [*(column for column, *_ in chunks), *chunks[0][1:]]
