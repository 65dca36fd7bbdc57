"""Samples with columns of every kind, and how they are written to a store and read from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_transfer.frozen.store import Column, Counts, Store

COLUMNS = (
    Column((3, 2), torch.float32),
    Column((5,), torch.bfloat16, by_token=True),
    Column((), torch.int64),
    Column((4,), torch.float16),
    Column((), torch.int64, by_token=True),
)


class Labels(NamedTuple):
    """What a store keeps of samples beside what is computed."""

    targets: Tensor
    counted: Tensor


@dataclass
class Samples:
    """The content of a store.

    Attributes:
        columns: their shapes and types.
        lengths: tokens of each sample.
        values: for each column, the tensor of each sample.
        labels: targets, and a mask with one sample that does not count.
    """

    columns: Sequence[Column]
    lengths: Counts
    values: list[list[Tensor]]
    labels: Labels

    def store(self, folder: Path, **material: object) -> Store:
        """A store for these samples."""
        return Store(
            folder, {"model": "m", **material}, self.columns, len(self.labels.targets), self.lengths,
            target=Column(self.labels.targets.shape[1:], self.labels.targets.dtype),
        )  # fmt: skip

    def joined(self, positions: Sequence[int] | range) -> list[Tensor]:
        """The columns of some samples as a store returns them."""
        return [
            (torch.cat if column.by_token else torch.stack)([values[position] for position in positions])
            for column, values in zip(self.columns, self.values, strict=True)
        ]

    def labels_of(self, positions: Sequence[int] | range) -> Labels:
        """The labels of some samples."""
        return Labels(*(part[list(positions)] for part in self.labels))

    def write(self, store: Store, numbers: Sequence[int] | range | None = None) -> Store:
        """Write some chunks, or all."""
        for number in range(len(store.chunks)) if numbers is None else numbers:
            positions = store.chunks[number]
            store.write(number, [*self.joined(positions), *self.labels_of(positions)])
        return store

    def assert_read(self, store: Store, positions: Sequence[int] | range) -> None:
        """The store returns what was written, bit for bit and with its type."""
        expected = [*self.joined(positions), *self.labels_of(positions)]
        for tensor, other in zip(store.read(np.asarray(positions)), expected, strict=True):
            assert tensor.dtype == other.dtype
            assert torch.equal(tensor, other)


def samples(count: int = 30, columns: Sequence[Column] = COLUMNS, seed: int = 0) -> Samples:
    """Random samples with class numbers."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (count,), generator=generator)

    def value(column: Column, length: int) -> Tensor:
        shape = (length, *column.shape) if column.by_token else column.shape
        return (torch.randn(shape, generator=generator) * 1000).to(column.dtype)

    values = [[value(column, length) for length in lengths.tolist()] for column in columns]
    labels = Labels(torch.randint(0, 5, (count,), generator=generator), torch.arange(count) != count // 2)
    return Samples(columns, lengths.numpy(), values, labels)


def chunk_files(store: Store) -> list[Path]:
    """The files of its chunks."""
    return sorted(store.folder.glob("*.safetensors"))


def temporary_files(store: Store) -> list[Path]:
    """Unfinished files."""
    return sorted(store.folder.glob(".*"))
