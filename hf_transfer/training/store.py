"""Activations on disk: chunks of samples, each whole or not there, mapped into memory to be read in any order."""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
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

from hf_transfer.config import UserError, mistake

# To be raised whenever chunks of an older form must not be read.
FORMAT = 1
CHUNK_BYTES = 16 << 20
# However small they are: an interrupted run loses a chunk that is not whole, and a large model's take long to compute.
CHUNK_SAMPLES = 2_048
LABELS = "labels"
ABANDONED_AFTER_SECONDS = 3_600
UNITS = ("B", "kB", "MB", "GB", "TB")
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """A tensor of every sample.

    Attributes:
        shape: of a sample, or of each of its tokens.
        dtype: as stored.
        by_token: whether a sample has as many as it has tokens.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    by_token: bool = False

    @property
    def bytes(self) -> int:
        """Of a sample, or of a token."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Store:
    """What a frozen prefix made of one view of one split.

    A chunk is written to one side and renamed, so it is whole or absent, whoever else writes it; its digest tells
    whether it still is what was written. Which samples a chunk holds depends on the data alone: what an interrupted
    run has left is completed.

    Args:
        folder: where stores lie, each in a folder that is named by its key.
        material: everything that the content depends on; another value makes another store.
        columns: the tensors of a sample.
        samples: how many there are.
        lengths: tokens of each sample [samples], if some column is by token.
    """

    def __init__(
        self, folder: Path, material: Mapping[str, Any], columns: Sequence[Column], samples: int,
        lengths: Counts | None = None,
    ) -> None:  # fmt: skip
        assert lengths is not None or not any(column.by_token for column in columns)
        self.columns, self.samples = tuple(columns), samples
        self._lengths = lengths if lengths is not None else np.ones(samples, dtype=np.int64)
        self._material = {"format": FORMAT, **material, "columns": [repr(column) for column in columns]}
        text = json.dumps(self._material, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = folder / self.key
        self._open: dict[int, dict[str, Tensor]] = {}

    @cached_property
    def bytes(self) -> int:
        """Size on disk, to within headers."""
        tokens = int(self._lengths.sum())
        each = torch.int64.itemsize + sum(column.bytes for column in self.columns if not column.by_token)
        return each * self.samples + tokens * sum(column.bytes for column in self.columns if column.by_token)

    @cached_property
    def chunks(self) -> list[range]:
        """Positions of the samples in each chunk."""
        length = min(CHUNK_SAMPLES, max(1, CHUNK_BYTES * self.samples // max(1, self.bytes)))
        return [range(start, min(start + length, self.samples)) for start in range(0, self.samples, length)]

    @property
    def complete(self) -> bool:
        """Whether every chunk is there; not whether it is sound."""
        return all(self._path(number).is_file() for number in range(len(self.chunks)))

    def batches(self, number: int, size: int) -> list[list[int]]:
        """Positions of a chunk's samples in batches, texts of like length together."""
        chunk = np.asarray(self.chunks[number])
        order = chunk[np.argsort(-self._lengths[chunk], kind="stable")].tolist()
        return [order[start : start + size] for start in range(0, len(order), size)]

    def empty_chunk(self, number: int) -> "Chunk":
        """Room for what is computed of a chunk."""
        positions = self.chunks[number]
        return Chunk(self.columns, positions, self._lengths[positions.start : positions.stop])

    def first_samples(self, count: int) -> "Store":
        """A store of the first samples alone, to try out what it costs; to be removed."""
        material = {**self._material, "trial": uuid.uuid4().hex}
        return Store(self.folder.parent, material, self.columns, count, self._lengths[:count])

    def sweep(self) -> None:
        """Delete what killed runs have left half written; what is younger may belong to a run that lives."""
        for partial in self.folder.glob(".*"):
            with suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                    partial.unlink()

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def sound(self, number: int) -> bool:
        """Whether a chunk is there and is what was written; one that is damaged is removed."""
        path = self._path(number)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                noted = (file.metadata() or {}).get("digest")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            noted, tensors = None, {}
        if noted == self._digest(number, tensors):
            return True
        with refused_by_disk(self.folder, self.bytes):
            path.unlink(missing_ok=True)
        return False

    def write(self, number: int, tensors: Sequence[Tensor], labels: Tensor) -> None:
        """Write a chunk.

        Args:
            number: which.
            tensors: for each column [samples of the chunk, ...], or [tokens of all of them, ...] one after the other.
            labels: class numbers, or `MASKED` [samples of the chunk].

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        named = {str(place): tensor.contiguous() for place, tensor in enumerate(tensors)}
        named[LABELS] = labels.contiguous()
        whole = safetensors.torch.save(named, metadata={"digest": self._digest(number, named)})
        with refused_by_disk(self.folder, self.bytes):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._describe()
            put(self._path(number), whole)
        self._open.pop(number, None)

    def read(self, positions: Counts) -> tuple[list[Tensor], Tensor]:
        """The columns of some samples, in this order, and their labels; tokens one after the other."""
        joined = [
            self._tokens(str(column), positions) if form.by_token else self._rows(str(column), positions)
            for column, form in enumerate(self.columns)
        ]
        return joined, self._rows(LABELS, positions)

    def _rows(self, name: str, positions: Counts) -> Tensor:
        """A column of some samples; each is copied once."""
        numbers, places = np.divmod(positions, len(self.chunks[0]))
        if (numbers == numbers[0]).all():
            return self._chunk(int(numbers[0]))[name][torch.from_numpy(places)]
        pairs = zip(numbers.tolist(), places.tolist(), strict=True)
        return torch.stack([self._chunk(number)[name][place] for number, place in pairs])

    def _tokens(self, name: str, positions: Counts) -> Tensor:
        """A column of the tokens of some samples, one after the other."""
        length = len(self.chunks[0])
        parts = []
        for position in positions.tolist():
            number = position // length
            start = int(self._starts[position] - self._starts[number * length])
            parts.append(self._chunk(number)[name][start : start + int(self._lengths[position])])
        return torch.cat(parts)

    def chunk(self, number: int) -> tuple[list[Tensor], Tensor]:
        """All columns of a chunk as they lie on disk, and its labels."""
        tensors = self._chunk(number)
        return [tensors[str(column)] for column in range(len(self.columns))], tensors[LABELS]

    @cached_property
    def _starts(self) -> Counts:
        """Where the tokens of each sample begin."""
        return np.concatenate([[0], self._lengths.cumsum()])

    def _chunk(self, number: int) -> dict[str, Tensor]:
        """A chunk, mapped into memory."""
        if number not in self._open:
            self._open[number] = safetensors.torch.load_file(self._path(number))
        return self._open[number]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _digest(self, number: int, tensors: Mapping[str, Tensor]) -> str:
        digest = hashlib.sha256(f"{self.key}/{self.chunks[number]}".encode())
        for name in sorted(tensors):
            digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
            digest.update(raw_bytes(tensors[name]))
        return digest.hexdigest()

    def _describe(self) -> None:
        """Note for people what lies here."""
        note = self.folder / "contents.json"
        if not note.is_file():
            put(note, (json.dumps({**self._material, "bytes": self.bytes}, indent=2) + "\n").encode())


class Chunk:
    """The samples of a chunk as they are computed, in whatever order.

    Attributes:
        tensors: for each column [samples, ...], or [tokens of all samples, ...].
        labels: class numbers, or `MASKED` [samples].
    """

    def __init__(self, columns: Sequence[Column], positions: range, lengths: Counts) -> None:
        ends = lengths.cumsum()
        rows = [int(ends[-1]) if column.by_token else len(positions) for column in columns]
        self.tensors = [
            torch.empty(count, *column.shape, dtype=column.dtype) for count, column in zip(rows, columns, strict=True)
        ]
        self.labels = torch.empty(len(positions), dtype=torch.int64)
        self._columns, self._first, self._missing = columns, positions.start, len(positions)
        self._spans = np.stack([ends - lengths, ends], axis=1)

    @property
    def full(self) -> bool:
        """Whether every sample has come."""
        return self._missing == 0

    def put(self, positions: Sequence[int], tensors: Sequence[Tensor], labels: Tensor, mask: Tensor | None) -> None:
        """Take in a batch.

        Args:
            positions: of its samples.
            tensors: for each column [samples, ...], or [samples, tokens, ...].
            labels: class numbers [samples].
            mask: 1 where there is a token and not padding [samples, tokens].
        """
        places = torch.tensor(positions) - self._first
        self.labels[places] = labels.cpu()
        for column, own, given in zip(self._columns, self.tensors, tensors, strict=True):
            values = _rounded(given.cpu(), column.dtype)
            if not column.by_token:
                own[places] = values
                continue
            assert mask is not None
            present = mask.cpu().bool()
            for place, sample, tokens in zip(places.tolist(), values, present, strict=True):
                start, end = self._spans[place]
                own[start:end] = sample[tokens]
        self._missing -= len(positions)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values.to(dtype)
    if dtype == torch.float16 and not torch.equal(rounded.isfinite(), values.isfinite()):
        raise mistake(
            expected="activations that float16 can hold, up to 65,504",
            found=f"one of {values[values.isfinite()].abs().max().item():,.0f}",
            do="use --cache_dtype bfloat16 or float32",
        )
    return rounded


@contextmanager
def refused_by_disk(folder: Path, needed: int) -> Iterator[None]:
    """Turns what the disk refuses into an error that says what to do; `needed` are the bytes of the whole store."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room(folder, needed) from error
        raise mistake(
            expected=f"a folder for activations that can be written to: {folder}",
            found=os.strerror(error.errno) if error.errno else str(error),
            do="name another with --cache_dir, or switch the store off with --cache_frozen off",
        ) from error


def put(path: Path, whole: bytes) -> None:
    """Write a file that is whole or absent."""
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}")
    try:
        partial.write_bytes(whole)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def raw_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor on the CPU, as something that can be hashed; not a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def free_bytes(folder: Path) -> int:
    """Room on the disk that a folder lies on, or will lie on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def can_be_written(folder: Path) -> bool:
    """Whether files can be put into a folder, which is made if need be."""
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def no_room(folder: Path, needed: int) -> UserError:
    """The error for a store that does not fit."""
    return mistake(
        expected=f"{in_units(needed)} of disk for the activations of the frozen layers",
        found=f"{in_units(free_bytes(folder))} free in {folder}",
        do="name another folder with --cache_dir, lower --cache_views, store half as much with --cache_dtype bfloat16, "
        "or switch the store off with --cache_frozen off",
    )


def in_units(size: float) -> str:
    """Bytes as people say them."""
    power = 0
    # What is rounded to a thousand is one of the next unit.
    while size >= 999.5 and power < len(UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.3g} {UNITS[power]}"
