"""Samples of every form that a store takes, and how they go in and come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_transfer.training.store import Column, Counts, Store

# `MASKED`, without the seconds that importing it takes.
NO_LABEL = -100
COLUMNS = (
    Column((3, 2), torch.float32),
    Column((5,), torch.bfloat16, by_token=True),
    Column((), torch.int64),
    Column((4,), torch.float16),
    Column((), torch.int64, by_token=True),
)


@dataclass
class Samples:
    """What goes into a store.

    Attributes:
        columns: their forms.
        lengths: tokens of each sample.
        values: for each column, of each sample.
        labels: one of them masked.
    """

    columns: Sequence[Column]
    lengths: Counts
    values: list[list[Tensor]]
    labels: Tensor

    def store(self, folder: Path, **material: object) -> Store:
        return Store(folder, {"model": "m", **material}, self.columns, len(self.labels), self.lengths)

    def joined(self, positions: Sequence[int] | range) -> list[Tensor]:
        """The columns of some samples as a store gives them."""
        return [
            (torch.cat if column.by_token else torch.stack)([values[position] for position in positions])
            for column, values in zip(self.columns, self.values, strict=True)
        ]

    def write(self, store: Store, numbers: Sequence[int] | range | None = None) -> Store:
        for number in range(len(store.chunks)) if numbers is None else numbers:
            positions = store.chunks[number]
            store.write(number, self.joined(positions), self.labels[positions.start : positions.stop])
        return store

    def agrees(self, store: Store, positions: Sequence[int]) -> None:
        """What is read is what was written, to the bit and in its type."""
        tensors, labels = store.read(np.asarray(positions))
        assert labels.tolist() == self.labels[list(positions)].tolist()
        for column, found, expected in zip(self.columns, tensors, self.joined(positions), strict=True):
            assert found.dtype == column.dtype
            assert torch.equal(found, expected)


def samples(count: int = 30, columns: Sequence[Column] = COLUMNS, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (count,), generator=generator)

    def value(column: Column, length: int) -> Tensor:
        shape = (length, *column.shape) if column.by_token else column.shape
        return (torch.randn(shape, generator=generator) * 1000).to(column.dtype)

    values = [[value(column, length) for length in lengths.tolist()] for column in columns]
    labels = torch.randint(0, 5, (count,), generator=generator)
    labels[count // 2] = NO_LABEL
    return Samples(columns, lengths.numpy(), values, labels)


def chunk_files(store: Store) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def temporary_files(store: Store) -> list[Path]:
    return sorted(store.folder.glob(".*"))
