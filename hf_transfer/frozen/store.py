"""Stored activations: chunks of samples on disk, each complete or absent, mapped into memory and read in any order."""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_transfer.checkpoints.files import free_bytes, in_units
from hf_transfer.data.cached_folders import listed
from hf_transfer.data.complete_files import private_folder, put_private
from hf_transfer.errors import UserError, user_error

# Increment when the chunk format changes.
FORMAT = 2
CHUNK_BYTES = 16 << 20
# A second limit, for small samples: an interrupted run loses its unfinished chunk, which may take long to compute.
CHUNK_SAMPLES = 2_048
TARGETS, COUNTED = "targets", "counted"
ABANDONED_AFTER_SECONDS = 3_600
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """A tensor that is stored for every sample.

    Attributes:
        shape: of a sample, or of each of its tokens.
        dtype: as stored.
        by_token: whether each token of a sample has a tensor of this shape.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    by_token: bool = False

    @property
    def bytes(self) -> int:
        """Size of a sample, or of a token."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Store:
    """Stored activations of one view of one split.

    A chunk is written to a temporary file, which is then renamed: it is complete or absent, also when several processes
    write it. A digest in the chunk detects damage. Which samples a chunk holds depends on the data alone, so that a
    later run completes what an interrupted run has left.

    The last two of its columns are the targets of the samples, and whether they count: False for masked samples.

    Args:
        folder: the folder of all stores; each has a subfolder that is named by its key.
        material: everything that the content depends on; another value makes another store.
        columns: the tensors of a sample.
        samples: the number of samples.
        lengths: tokens of each sample [samples], needed if a column is by token.
        target: the column of the true values, of any type.
        same_chunks: whether the samples of a chunk do not depend on the columns, for small columns; otherwise a chunk
            of wide columns holds fewer.
    """

    def __init__(
        self, folder: Path, material: Mapping[str, Any], columns: Sequence[Column], samples: int,
        lengths: Counts | None = None, *, target: Column, same_chunks: bool = False,
    ) -> None:  # fmt: skip
        assert lengths is not None or not any(column.by_token for column in columns)
        self.samples, self._computed, self._target = samples, columns, target
        self._same_chunks = same_chunks
        self.columns = {str(place): column for place, column in enumerate(columns)}
        self.columns |= {TARGETS: target, COUNTED: Column((), torch.bool)}
        self._lengths = lengths if lengths is not None else np.ones(samples, dtype=np.int64)
        self._material = {"format": FORMAT, **material, "columns": [repr(column) for column in columns]}
        text = json.dumps(self._material, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = folder / self.key
        self._open: dict[int, dict[str, Tensor]] = {}

    @cached_property
    def bytes(self) -> int:
        """Size on disk, without the headers of the chunks."""
        tokens = int(self._lengths.sum())
        return sum(column.bytes * (tokens if column.by_token else self.samples) for column in self.columns.values())

    @cached_property
    def chunks(self) -> list[range]:
        """Positions of the samples in each chunk."""
        length = CHUNK_SAMPLES
        if not self._same_chunks:
            length = min(length, max(1, CHUNK_BYTES * self.samples // max(1, self.bytes)))
        return [range(start, min(start + length, self.samples)) for start in range(0, self.samples, length)]

    @property
    def complete(self) -> bool:
        """Whether every chunk is there, damaged or not."""
        return all(self.has(number) for number in range(len(self.chunks)))

    def has(self, number: int) -> bool:
        """Whether a chunk is there, damaged or not."""
        return self._path(number).is_file()

    def batches(self, number: int, size: int) -> list[list[int]]:
        """Positions of a chunk's samples in batches, texts of similar length together."""
        chunk = np.asarray(self.chunks[number])
        order = chunk[np.argsort(-self._lengths[chunk], kind="stable")].tolist()
        return [order[start : start + size] for start in range(0, len(order), size)]

    def first_samples(self, count: int) -> "Store":
        """A temporary store of the first samples, to measure costs; the caller removes it."""
        material, lengths = {**self._material, "trial": uuid.uuid4().hex}, self._lengths[:count]
        return Store(self.folder.parent, material, self._computed, count, lengths, target=self._target)

    def sweep(self) -> None:
        """Delete the unfinished files of killed runs. A recent one may belong to a run that is still writing it."""
        for partial in listed(self.folder, ".*"):
            with suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                    partial.unlink()

    def remove(self) -> None:
        """Delete the store."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def check(self, number: int) -> bool:
        """Whether a chunk is there and undamaged; a damaged one is deleted."""
        path = self._path(number)
        if not self.has(number):
            return False
        try:
            with safe_open(path, framework="pt") as file:
                digest = (file.metadata() or {}).get("digest")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            digest, tensors = None, {}
        if digest == digest_of(tensors, f"{self.key}/{self.chunks[number]}"):
            return True
        with disk_errors_explained(self.folder, self.bytes):
            path.unlink(missing_ok=True)
        return False

    def missing(self, numbers: Iterable[int]) -> dict[tuple[int, ...], list[int]]:
        """Which of these chunks are to be computed, by the positions of the columns that they lack: here always all."""
        chunks = [number for number in numbers if not self.check(number)]
        return {tuple(range(len(self._computed))): chunks} if chunks else {}

    def of(self, columns: Sequence[int]) -> "Store":
        """The store of these columns: see `missing`."""
        assert len(columns) == len(self._computed), "a chunk is written with all of its columns"
        return self

    def write(self, number: int, tensors: Sequence[Tensor]) -> None:
        """Write a chunk.

        Args:
            number: of the chunk.
            tensors: for each column [samples of the chunk, ...], or [tokens of all its samples, ...].

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        positions = self.chunks[number]
        tokens = int(self._lengths[positions.start : positions.stop].sum())
        rows = [tokens if column.by_token else len(positions) for column in self.columns.values()]
        assert [len(tensor) for tensor in tensors] == rows, "samples or tokens are missing, or are too many"
        named = {name: tensor.contiguous() for name, tensor in zip(self.columns, tensors, strict=True)}
        digest = digest_of(named, f"{self.key}/{self.chunks[number]}")
        content = safetensors.torch.save(named, metadata={"digest": digest})
        with disk_errors_explained(self.folder, self.bytes):
            # Activations tell much of a private picture or text.
            private_folder(self.folder)
            # For people.
            note = self.folder / "contents.json"
            if not note.is_file():
                put_private(note, (json.dumps({**self._material, "bytes": self.bytes}, indent=2) + "\n").encode())
            put_private(self._path(number), content)
        self._open.pop(number, None)

    def read(self, positions: Counts) -> list[Tensor]:
        """The columns of some samples, in this order; the tokens of all samples are concatenated."""
        return [
            self._tokens(name, positions) if column.by_token else self._rows(name, positions)
            for name, column in self.columns.items()
        ]

    def _rows(self, name: str, positions: Counts) -> Tensor:
        """A column of some samples."""
        numbers, places = np.divmod(positions, len(self.chunks[0]))
        if (numbers == numbers[0]).all():
            return self._chunk(int(numbers[0]))[name][torch.from_numpy(places)]
        # Each sample is copied once, from the mapped file.
        pairs = zip(numbers.tolist(), places.tolist(), strict=True)
        return torch.stack([self._chunk(number)[name][place] for number, place in pairs])

    def _tokens(self, name: str, positions: Counts) -> Tensor:
        """A column of the tokens of some samples, concatenated."""
        length = len(self.chunks[0])
        parts = []
        for position in positions.tolist():
            number = position // length
            start = int(self._starts[position] - self._starts[number * length])
            parts.append(self._chunk(number)[name][start : start + int(self._lengths[position])])
        return torch.cat(parts)

    def chunk(self, number: int) -> list[Tensor]:
        """All columns of a chunk, in the order on disk."""
        tensors = self._chunk(number)
        return [tensors[name] for name in self.columns]

    @cached_property
    def _starts(self) -> Counts:
        """The number of tokens before each sample."""
        return np.concatenate([[0], self._lengths.cumsum()])

    def _chunk(self, number: int) -> dict[str, Tensor]:
        """A chunk, mapped into memory."""
        if number not in self._open:
            self._open[number] = safetensors.torch.load_file(self._path(number))
        return self._open[number]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


class Chunk:
    """The samples of a chunk, which are computed batch by batch in any order.

    Args:
        columns: of its store.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns.values()
        self._samples: dict[int, Sequence[Tensor]] = {}

    def put(self, positions: Sequence[int], tensors: Sequence[Tensor], mask: Tensor | None) -> None:
        """Put in a batch.

        Args:
            positions: of its samples.
            tensors: for each column [samples, ...], or [samples, tokens, ...].
            mask: 1 for tokens and 0 for padding [samples, tokens].
        """
        parts: list[Iterable[Tensor]] = []
        for column, computed in zip(self._columns, tensors, strict=True):
            values = _rounded(computed.cpu(), column.dtype)
            if column.by_token:
                assert mask is not None
                parts.append(sample[tokens] for sample, tokens in zip(values, mask.cpu().bool(), strict=True))
            else:
                parts.append(values)
        self._samples.update(zip(positions, zip(*parts, strict=True), strict=True))

    def in_order(self) -> list[Tensor]:
        """For each column the tensors of all samples [samples, ...], or [tokens of all samples, ...]."""
        parts = zip(*(self._samples[position] for position in sorted(self._samples)), strict=True)
        return [
            torch.cat(part) if column.by_token else torch.stack(part)
            for column, part in zip(self._columns, parts, strict=True)
        ]


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    # A copy: what is shared with the process of a loader, such as targets, keeps a file open for each batch.
    rounded = values.to(dtype, copy=True)
    if dtype == torch.float16 and not torch.equal(rounded.isfinite(), values.isfinite()):
        raise user_error(
            expected="activations that float16 can hold, up to 65,504",
            found=f"one of {values[values.isfinite()].abs().max().item():,.0f}",
            do="use --cache_dtype bfloat16 or float32",
        )
    return rounded


@contextmanager
def disk_errors_explained(folder: Path, needed: int) -> Iterator[None]:
    """Turn errors of the disk into a `UserError` that says what to do; `needed`: bytes of the complete store."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room(folder, needed) from error
        raise user_error(
            expected=f"a folder for activations that can be written to: {folder}",
            found=os.strerror(error.errno) if error.errno else str(error),
            do="name another folder with --cache_dir, or switch the store off with --cache_frozen off",
        ) from error


def digest_of(tensors: Mapping[str, Tensor], begin: str = "") -> str:
    """A hash of tensors with their names, shapes and types; `begin` is hashed before them."""
    digest = hashlib.sha256(begin.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def no_room(folder: Path, needed: int) -> UserError:
    """The error for a store that does not fit."""
    return user_error(
        expected=f"{in_units(needed)} of disk for the activations of the frozen layers",
        found=f"{in_units(free_bytes(folder))} free in {folder}",
        do="name another folder with --cache_dir, lower --cache_views, store half as much with --cache_dtype bfloat16, "
        "or switch the store off with --cache_frozen off",
    )
