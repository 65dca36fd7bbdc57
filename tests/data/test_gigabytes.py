"""Columns of more than two gigabytes: an Arrow array of `string` or `binary` holds less, so they cannot be joined."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from hf_transfer.data.identities import identities_of
from hf_transfer.data.labelled import read_labelled
from hf_transfer.data.rows import blocks_of_texts, is_given
from hf_transfer.data.splits import Split
from hf_transfer.settings.data import DataSettings
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.target import LabelColumns

LENGTH, TIMES = 50_000_000, 22
TWO_GIGABYTES = (1 << 31) - 1


def repeated(values: Sequence[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """The same rows many times over: they are in memory once."""
    column = pa.chunked_array([pa.array(values, kind)] * TIMES)
    assert column.nbytes > TWO_GIGABYTES
    return column


def split_of(dataset: datasets.Dataset, rows: Any) -> Split:
    return Split(dataset, rows, np.zeros(len(rows), dtype=np.int64))


@pytest.fixture(scope="module")
def texts() -> datasets.Dataset:
    return datasets.Dataset(
        pa.table({"text": repeated(["x" * LENGTH, "y" * LENGTH], pa.string())}), fingerprint="texts"
    )


@pytest.fixture(scope="module")
def pictures() -> datasets.Dataset:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = repeated([{"bytes": sign * LENGTH, "path": None} for sign in (b"x", b"yy")], kind)
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset(
        pa.table({"image": column}), datasets.DatasetInfo(features=features), fingerprint="pictures"
    )


def test_texts_come_block_by_block(texts: datasets.Dataset) -> None:
    split = split_of(texts, np.array([1, 2, 23, len(texts) - 2]))
    begins = [block["text"].combine_chunks()[0].as_buffer()[:3].to_pybytes() for block in blocks_of_texts(split)]
    assert begins == [b"yyy", b"xxx", b"yyy", b"xxx"]


def test_pictures_have_the_identities_that_they_have_in_a_smaller_split(pictures: datasets.Dataset) -> None:
    rows = np.arange(1, len(pictures))
    whole = split_of(pictures, rows)
    assert is_given(whole, "image").all()
    parts = [identities_of(split_of(pictures, part)) for part in np.array_split(rows, 8)]
    assert identities_of(whole).tolist() == np.concatenate(parts).tolist()
    assert len(set(identities_of(whole).tolist())) == len(rows)


@pytest.mark.slow
def test_rows_without_a_label_are_dropped() -> None:
    """By hand: of three rows, the second has none."""
    labels = repeated(["a" * LENGTH, None, "b" * LENGTH], pa.string())
    numbers = pa.array(range(len(labels)))
    data = {"train": datasets.Dataset(pa.table({"label": labels, "text": numbers}), fingerprint="labels")}
    columns, settings = LabelColumns(("label",)), DataSettings(dataset_name="memory", on_missing_label="drop")
    split = read_labelled(data, {"train": data["train"].select_columns(["text"])}, Classes, columns, settings).splits
    assert split["train"].rows.tolist() == [row for row in range(len(labels)) if row % 3 != 1]
    assert split["train"].targets.tolist() == [0, 1] * TIMES
