"""The tokens of many texts: made once, kept on disk by content, and mapped into memory."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute

from hf_transfer.data.cached_folders import NewFolder, ensure_written, refuse_full_disk
from hf_transfer.data.rows import blocks_of_texts, joined_bytes, texts_in
from hf_transfer.data.splits import Split
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.versions import versions

# Change this with the files.
FORMAT = 1
CONTENTS = "contents.json"
# The tokens of fewer texts are made in a second or two.
FEWEST_STORED = 10_000
# Bytes that the tokens of all texts may take on the disk.
LARGEST_FOLDER = 20 << 30
BYTES_HASHED_AT_ONCE = 1 << 24
OF_TEXTS = {"lengths": np.int64, "lost": np.int64, "emptied": np.bool_}
Columns = dict[str, npt.NDArray[Any]]


class Tokens:
    """The tokens of texts, one text after the other: in memory, or on disk and mapped.

    Args:
        of_texts: the first three attributes, by name.
        flat: see there.
        folder: that they are mapped from; None: they are in memory.

    Attributes:
        lengths: tokens of each text after truncation [texts].
        lost: tokens of each text that were cut off [texts].
        emptied: whether no word is left of a text, or of one of the texts of a pair [texts].
        flat: by model input, its values, int32 [tokens of all texts].
    """

    def __init__(self, of_texts: Columns, flat: Columns, folder: Path | None = None) -> None:
        self.lengths, self.lost, self.emptied = of_texts["lengths"], of_texts["lost"], of_texts["emptied"]
        self.flat, self._folder, self._ends = flat, folder, self.lengths.cumsum()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files itself."""
        if self._folder is not None:
            return mapped, (self._folder,)
        return Tokens, ({"lengths": self.lengths, "lost": self.lost, "emptied": self.emptied}, self.flat)

    def of(self, position: int) -> dict[str, list[int]]:
        """The model inputs of a text, which are not padded."""
        end = self._ends[position]
        begin = end - self.lengths[position]
        return {name: values[begin:end].tolist() for name, values in self.flat.items()}

    def fingerprint(self, begin: str) -> str:
        """A hash of all tokens; `begin` is hashed before them."""
        digest = hashlib.sha256(begin.encode() + self.lengths.tobytes())
        for name, values in sorted(self.flat.items()):
            digest.update(name.encode())
            # In parts, since a part of a mapped file, or of one value that stands for all, is copied.
            for start in range(0, len(values), BYTES_HASHED_AT_ONCE // values.itemsize):
                part = values[start : start + BYTES_HASHED_AT_ONCE // values.itemsize]
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def tokens_of_split(split: Split, preprocessing: TokenPreprocessing, cache: Path | None = None) -> Tokens:
    """The tokens of the texts of a split; those of many texts are made once for all runs, and then mapped.

    Args:
        split: its texts; a missing text is empty.
        preprocessing: the tokenizer.
        cache: the folder of caches; None: tokens stay in memory. They also do if that folder cannot be written to, or
            its disk is almost full.
    """
    if cache is None or len(split) < FEWEST_STORED:
        return _in_memory(split, preprocessing)
    folder = cache / "tokens" / _key(split, preprocessing)
    try:
        ensure_written(folder, LARGEST_FOLDER, partial(_write, split=split, preprocessing=preprocessing))
        return mapped(folder)
    except OSError:
        return _in_memory(split, preprocessing)


def mapped(folder: Path) -> Tokens:
    """Tokens in a folder that is complete, mapped into memory.

    Raises:
        OSError: they are not there.
    """
    contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    of_texts = {name: np.load(folder / f"{name}.npy") for name in OF_TEXTS}
    count = int(of_texts["lengths"].sum())
    flat = {
        name: np.memmap(folder / name, np.int32, "r", shape=(count,)) if value is None else _repeated(value, count)
        for name, value in contents["inputs"].items()
    }
    return Tokens(of_texts, flat, folder)


def _repeated(value: int, count: int) -> npt.NDArray[np.int32]:
    """An array of one value, which takes the memory of that value."""
    return np.broadcast_to(np.int32(value), (count,))


def _blocks(split: Split, preprocessing: TokenPreprocessing) -> Iterator[tuple[Columns, Columns]]:
    """What `Tokens` has of some texts, and of their tokens, block by block."""
    for block in blocks_of_texts(split):
        texts = [tuple(text or "" for text in texts) for texts in texts_in(block)]
        encoded, lost = preprocessing.encode(texts)
        lengths = [len(text["input_ids"]) for text in encoded]
        values = (lengths, lost, preprocessing.emptied(texts, encoded))
        # Lists of Python numbers take ten times the memory of arrays.
        yield (
            {name: np.asarray(one, kind) for (name, kind), one in zip(OF_TEXTS.items(), values, strict=True)},
            {
                name: np.fromiter(chain.from_iterable(text[name] for text in encoded), np.int32, sum(lengths))
                for name in encoded[0]
            },
        )


def _in_memory(split: Split, preprocessing: TokenPreprocessing) -> Tokens:
    blocks = list(_blocks(split, preprocessing))
    if not blocks:
        return Tokens({name: np.empty(0, kind) for name, kind in OF_TEXTS.items()}, {})
    of_texts, flat = (
        {name: np.concatenate([columns[name] for columns in part]) for name in part[0]}
        for part in zip(*blocks, strict=True)
    )
    return Tokens(of_texts, flat)


class _Input:
    """One model input of all texts, on its way to the disk: nothing is written while all its values are the same."""

    def __init__(self, folder: NewFolder, name: str) -> None:
        self._folder, self._name = folder, name
        # The value of all so far; None: there are several, and the file is needed.
        self.value: int | None = None
        self._count = 0

    def add(self, values: npt.NDArray[np.int32]) -> None:
        """Add the values of some texts, which have at least one."""
        if not self._count:
            self.value = int(values[0])
        if self.value is not None and (values != self.value).any():
            for start in range(0, self._count, len(values)):
                self._write(_repeated(self.value, min(len(values), self._count - start)))
            self.value = None
        if self.value is None:
            self._write(values)
        self._count += len(values)

    def _write(self, values: npt.NDArray[np.int32]) -> None:
        self._folder.file(self._name).write(np.ascontiguousarray(values).data)


def _write(folder: NewFolder, split: Split, preprocessing: TokenPreprocessing) -> None:
    parts: list[Columns] = []
    inputs: dict[str, _Input] = {}
    for of_texts, flat in _blocks(split, preprocessing):
        refuse_full_disk(folder.path)
        parts.append(of_texts)
        for name, values in flat.items():
            inputs.setdefault(name, _Input(folder, name)).add(values)
    for name in OF_TEXTS:
        np.save(folder.file(f"{name}.npy"), np.concatenate([part[name] for part in parts]))
    contents = {"inputs": {name: one.value for name, one in inputs.items()}}
    folder.file(CONTENTS).write(json.dumps(contents).encode())


def _key(split: Split, preprocessing: TokenPreprocessing) -> str:
    """A hash of everything that tokens depend on: the texts, the tokenizer and its settings, and versions."""
    lengths, contents = hashlib.sha256(), hashlib.sha256()
    for block in blocks_of_texts(split):
        for name, column in zip(block.column_names, block.columns, strict=True):
            texts = pyarrow.compute.fill_null(column.combine_chunks(), "")
            lengths.update(name.encode() + pyarrow.compute.binary_length(texts).to_numpy().tobytes())
            contents.update(joined_bytes(texts))
    material = {
        "format": FORMAT, "lengths": lengths.hexdigest(), "texts": contents.hexdigest(),
        "tokenizer": preprocessing.fingerprint(), "versions": versions(),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()
