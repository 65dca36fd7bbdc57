"""The content of a row: its encoded image and its texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from hf_transfer.data.splits import Rows, Split

if TYPE_CHECKING:
    import datasets

TEXT_COLUMNS = ("text", "text_pair")
# So many rows of a data set are in memory at once, however many it has, and so many bytes of their texts: what a
# tokenizer makes of them takes a hundred times as much.
ROWS_OF_A_BLOCK = 10_000
BYTES_OF_A_BLOCK = 1 << 23
LARGEST_GATHERED = 1 << 30


def gathered(data: datasets.Dataset) -> datasets.Dataset:
    """A shuffled or filtered data set, with its rows in their order in memory; one that is large stays as it is.

    `datasets` keeps the numbers of the rows, and looks each of them up whenever many are read.
    """
    import datasets

    # Rows in their order are copied, and a column of them holds two gigabytes at most.
    if data._indices is None or data.data.nbytes > LARGEST_GATHERED or len(data) > data.data.num_rows:
        return data
    table = data.data.table.take(data._indices.table.column(0).combine_chunks())
    return datasets.Dataset(table, data.info, data.split, fingerprint=data._fingerprint)


def encoded_image(split: Split, row: int) -> dict[str, Any]:
    """The encoded image of a row: `{"bytes": ..., "path": ...}`, one of which is None, or both if it has no image."""
    return split.dataset[row]["image"] or {"bytes": None, "path": None}


def encoded_images(split: Split) -> Iterator[pa.StructScalar]:
    """The encoded images of all rows in their order: `as_dict` makes of each what `encoded_image` returns.

    Until then nothing is read: this is four times as fast as row by row, and takes no memory.
    """
    for block, places in _slices(split, ["image"]):
        images = block["image"]
        yield from (images[place] for place in places.tolist())


def as_dict(image: pa.StructScalar) -> dict[str, Any]:
    """An image of `encoded_images` as `encoded_image` returns it."""
    return image.as_py() or {"bytes": None, "path": None}


def _slices(split: Split, columns: Sequence[str]) -> Iterator[tuple[pa.Table, Rows]]:
    """Consecutive rows of the data set, and the places of those among them that belong to the split."""
    chosen = split.dataset.select_columns(list(columns)).with_format("arrow")
    starts = np.arange(0, len(chosen) + ROWS_OF_A_BLOCK, ROWS_OF_A_BLOCK)
    for start, (first, last) in zip(starts, pairwise(np.searchsorted(split.rows, starts)), strict=False):
        if first < last:
            # `datasets` looks rows up one by one if they are given by number, and in a slice all at once.
            yield chosen[int(start) : int(start) + ROWS_OF_A_BLOCK], split.rows[first:last] - start


def blocks_of_texts(split: Split) -> Iterator[pa.Table]:
    """The text of each row, or its pair of texts, block by block, in the order of the rows, as large_string.

    No block is empty, and there is none for samples without texts.
    """
    names = [name for name in TEXT_COLUMNS if name in split.dataset.column_names]
    kind = pa.schema([(name, pa.large_string()) for name in names])
    for block, places in _slices(split, names) if names else ():
        # In this order: `take` joins the parts of a column, and an array of `string` holds two gigabytes at most.
        yield from _of_few_bytes(block.cast(kind), places)


def _of_few_bytes(block: pa.Table, places: Rows) -> Iterator[pa.Table]:
    """The rows of a block at these places, in parts of `BYTES_OF_A_BLOCK`, or a text more."""
    lengths = [pyarrow.compute.fill_null(pyarrow.compute.binary_length(column), 0) for column in block.columns]
    ends = np.sum([column.to_numpy() for column in lengths], axis=0).cumsum()
    borders = np.array([0, *1 + np.flatnonzero(np.diff(ends // BYTES_OF_A_BLOCK)), len(block)])
    chosen = np.split(places, np.searchsorted(places, borders[1:-1]))
    for first, last, some in zip(borders[:-1].tolist(), borders[1:].tolist(), chosen, strict=True):
        if len(some):
            yield block.slice(first, last - first).take(some - first)


def joined_bytes(texts: pa.LargeStringArray) -> memoryview:
    """The bytes of texts, of which none is missing, one after the other; nothing is copied."""
    _, offsets, content = texts.buffers()
    borders = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(content or b"")[borders[0] : borders[-1]] if len(texts) else memoryview(b"")


def texts_in(block: pa.Table) -> list[tuple[str | None, ...]]:
    """The text of each row of a block, or its pair of texts."""
    return list(zip(*(column.to_pylist() for column in block.columns), strict=True))


def texts_of(split: Split) -> list[tuple[str | None, ...]]:
    """The text of each row, or its pair of texts, in the order of the rows."""
    return [texts for block in blocks_of_texts(split) for texts in texts_in(block)]


def is_given(split: Split, column: str) -> npt.NDArray[np.bool_]:
    """Whether each row has a value in the column `image` or `text` [rows]."""
    values = split.dataset.with_format("arrow")[:][column]
    parts = [values]
    if column == "image":
        parts = [pyarrow.compute.struct_field(values, name) for name in ("bytes", "path")]
    given = np.any([pyarrow.compute.is_valid(part).to_numpy() for part in parts], axis=0)
    return np.asarray(given[split.rows], dtype=bool)


def describe_row(split: Split, row: int) -> str:
    """The path of a row's image, and the file and line of the row; its number, if neither is known."""
    path = encoded_image(split, row)["path"] if "image" in split.dataset.column_names else None
    if split.origins is None:
        return str(path) if path else f"row {row}"
    in_file = split.origins.describe(row)
    return f"{path} in {in_file}" if path and split.origins.of(row)[0] != path else in_file
