"""Tables of all kinds as every recipe reads them: rows, their files and lines, indices of pandas, types of columns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest

from hf_transfer.data import columns, large_groups, tables
from hf_transfer.data.checked import load_splits
from hf_transfer.data.large_groups import ParquetInParts
from hf_transfer.data.rows import texts_of
from hf_transfer.data.sample_columns import read_data
from hf_transfer.data.sources import Loaded
from hf_transfer.data.splits import Split
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.data import DataSettings
from tests.data.conftest import (
    PairSettings,
    Settings,
    TextSettings,
    pair_rows,
    text_rows,
    user_error_with,
    write_pictures,
    write_table,
)

Read = Callable[..., Loaded]


@pytest.fixture
def read(text_settings: TextSettings) -> Read:
    """A data set as it was read for texts."""

    def run(path: Path, **settings: Any) -> Loaded:
        config = text_settings(dataset_name=str(path), **settings)
        return read_data(config, TextModality(), None)

    return run


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_each_row_has_its_file_and_the_line_at_which_an_editor_shows_it(kind: str, read: Read, tmp_path: Path) -> None:
    first, second = text_rows(5), [row | {"text": f"{row['text']}\nand more"} for row in text_rows(4, seed=1)]
    write_table(tmp_path / "data" / f"train_1.{kind}", first)
    write_table(tmp_path / "data" / f"train_2.{kind}", second)
    write_table(tmp_path / "data" / f"test.{kind}", second)
    loaded = read(tmp_path / "data")
    train = loaded.origins["train"]
    assert train.files == tuple(str(tmp_path / "data" / f"train_{number}.{kind}") for number in (1, 2))
    for row, text in enumerate(loaded.data["train"]["text"]):
        file, line = train.of(row)
        if kind == "parquet":
            assert line is None
            continue
        assert line is not None
        start = Path(file).read_text().split("\n")[line - 1]
        assert text.split("\n")[0] in start
    assert train.file_numbers.tolist() == [0] * 5 + [1] * 4
    assert len(loaded.origins["test"].lines) == len(loaded.data["test"]) == 4
    if kind == "csv":
        assert train.describe(6) == f"{tmp_path / 'data' / 'train_2.csv'}, line 4"


def indexed(rows: list[dict[str, Any]], folder: Path, kind: str) -> Path:
    """A shuffled frame, saved with its index as pandas or `datasets` does."""
    frame = pandas.DataFrame(rows).sample(frac=1, random_state=0)
    path = folder / f"a.{kind.split()[-1]}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv":
        frame.to_csv(path)
    elif kind == "twice csv":
        frame.to_csv(path)
        pandas.read_csv(path).to_csv(path)
    elif kind == "datasets csv":
        datasets.Dataset.from_pandas(frame).to_csv(path)
    else:
        datasets.Dataset.from_pandas(frame).to_json(path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "twice csv", "datasets csv", "jsonl"])
def test_the_index_of_a_frame_is_no_column_for_texts(kind: str, read: Read, tmp_path: Path) -> None:
    loaded = read(indexed(text_rows(12), tmp_path, kind)).data["train"]
    assert loaded.column_names == ["text", "label"]
    assert {row["text"] for row in text_rows(12)} == set(loaded["text"])


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_the_index_of_a_frame_is_no_column_for_pictures_and_pairs(
    kind: str, settings: Settings, pair_settings: PairSettings, tmp_path: Path
) -> None:
    rows = pair_rows(20)
    write_pictures(tmp_path, rows)
    path = indexed(rows, tmp_path, kind)
    pairs = load_splits(pair_settings(dataset_name=str(path)), PairModality())
    assert pairs.columns["text_column_name"] == "text"
    absolute = indexed([row | {"image": str(tmp_path / row["file_name"])} for row in rows], tmp_path, kind)
    images = load_splits(settings(dataset_name=str(absolute)), ImageModality())
    assert images.columns["image_column_name"] == "image"
    assert len(images.train) + len(images.validation) + len(images.test) == 20


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_pairs_and_pictures_are_read_with_every_separator(
    delimiter: str, settings: Settings, pair_settings: PairSettings, tmp_path: Path
) -> None:
    rows = pair_rows(20)
    write_pictures(tmp_path, rows)
    path = tmp_path / "a.csv"
    pandas.DataFrame(rows).to_csv(path, sep=delimiter, index=False)
    seen = load_splits(pair_settings(dataset_name=str(path)), PairModality())
    named = load_splits(pair_settings(dataset_name=str(path), delimiter=delimiter), PairModality())
    assert sorted(seen.train.dataset["text"]) == sorted(row["text"] for row in rows)
    assert "a.csv: fields are separated by a" in " ".join(seen.notes)
    assert "separated" not in " ".join(named.notes)
    absolute = pandas.DataFrame([{"image": str(tmp_path / row["file_name"]), "label": row["label"]} for row in rows])
    absolute.to_csv(path, sep=delimiter, index=False)
    assert len(load_splits(settings(dataset_name=str(path)), ImageModality()).train.dataset) == 20


def test_a_delimiter_is_one_sign_or_its_name(text_settings: TextSettings) -> None:
    for bad in ("ab", "a", "7", '"', "commas"):
        with user_error_with(
            expected="--delimiter: one sign, such as ; or ^, or comma", found=bad, do="change --delimiter"
        ):
            text_settings(dataset_name="a.csv", delimiter=bad)


def test_a_split_that_lacks_a_column_has_no_values_there(read: Read, tmp_path: Path) -> None:
    write_table(tmp_path / "data" / "train.csv", text_rows(20))
    write_table(tmp_path / "data" / "test.csv", [{"text": row["text"]} for row in text_rows(6)])
    assert read(tmp_path / "data").data["test"]["label"][:] == [None] * 6


def test_files_of_one_split_have_the_same_columns_and_classes(read: Read, tmp_path: Path) -> None:
    write_table(tmp_path / "a" / "train1.csv", text_rows(20))
    write_table(tmp_path / "a" / "train2.csv", [{"text": row["text"]} for row in text_rows(6)])
    with user_error_with(expected="the same columns in", found="label in only one of them", do="same columns"):
        read(tmp_path / "a")
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"]), start=1):
        (tmp_path / "b").mkdir(exist_ok=True)
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = {"text": [f"w{n}" for n in range(20)], "label": [n % 2 for n in range(20)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "b" / f"train{number}.parquet")
    with user_error_with(expected="the same classes in the same order", found="others", do="names of the classes"):
        read(tmp_path / "b")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "+3"], "int64"), (["1", "", "3"], "int64"), (["1.5", "2", "1e3"], "float64"),
        (["True", "false", "TRUE"], "bool"), (["007", "1", "2"], "large_string"), (["1", "x", "3"], "large_string"),
        (["1,5", "2,5", "3,5"], "large_string"), (["nan", "1", "2"], "large_string"), (["", "", ""], "null"),
        (["9" * 20, "1", "2"], "large_string"), (["9" * 20, "1.5", "2"], "float64"),
    ],
)  # fmt: skip
def test_other_columns_are_numbers_where_all_values_are(
    values: list[str], kind: str, read: Read, tmp_path: Path
) -> None:
    rows = [row | {"amount": value} for row, value in zip(text_rows(3), values, strict=True)]
    loaded = read(write_table(tmp_path / "a.csv", rows)).data["train"]
    assert loaded.features["amount"].dtype == kind
    assert loaded.features["label"].dtype == loaded.features["text"].dtype == "large_string"


def test_names_with_brackets_do_not_match_other_files(read: Read, tmp_path: Path) -> None:
    """`datasets` reads [1] as a pattern."""
    for name in ("part[1].parquet", "part1.parquet"):
        write_table(tmp_path / "data" / name, text_rows(6, seed=len(name)))
    assert len(read(tmp_path / "data").data["train"]) == 12


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_large_groups_of_rows_are_read_in_parts(
    kind: str, settings: Settings, text_settings: TextSettings, picture_table: Callable[..., datasets.Dataset],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Arrow cannot read a group with two gigabytes of embedded pictures at once."""
    path = tmp_path / "a.parquet"
    if kind == "texts":
        write_table(path, text_rows(40))
    else:
        picture_table([0, 1] * 20).to_parquet(path)

    def rows() -> datasets.Dataset:
        if kind == "texts":
            return read_data(text_settings(dataset_name=str(path)), TextModality(), None).data["train"]
        return read_data(settings(dataset_name=str(path)), ImageModality(), None).data["train"]

    whole = rows()
    group = pyarrow.parquet.read_metadata(path).row_group(0)
    monkeypatch.setattr(tables, "LARGEST_GROUP", group.total_byte_size - 1)
    monkeypatch.setattr(large_groups, "BYTES_AT_ONCE", group.total_byte_size // 4)
    with mock.patch.object(ParquetInParts, "_cast_table", side_effect=lambda part: part) as cast:
        in_parts = rows()
    sizes = [len(call.args[0]) for call in cast.call_args_list]
    assert len(sizes) >= 4
    assert sum(sizes) == group.num_rows == 40
    assert in_parts.features == whole.features
    assert in_parts.with_format("arrow")[:] == whole.with_format("arrow")[:]


def test_a_parquet_file_without_rows_says_so(read: Read, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [], "label": []}).to_parquet(tmp_path / "a.parquet")
    with user_error_with(expected=f"rows in {tmp_path / 'a.parquet'}", found="no rows", do="add rows, or remove"):
        read(tmp_path / "a.parquet")


def test_groups_without_rows_do_no_harm(read: Read, tmp_path: Path) -> None:
    """Some programs write one first."""
    table = pyarrow.Table.from_pylist(text_rows(12))
    with pyarrow.parquet.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        writer.write_table(table[:0])
        writer.write_table(table)
    assert len(read(tmp_path / "a.parquet").data["train"]) == 12


def test_texts_of_any_type_of_arrow_are_read(read: Read, tmp_path: Path) -> None:
    rows = text_rows(12)
    texts = pyarrow.array([row["text"] for row in rows])
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        path = tmp_path / f"{kind}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts.cast(kind), "label": texts.cast(kind)}), path)
        train = read(path).data["train"]
        column = columns.text_column(train, None, DataSettings(dataset_name=str(path)))
        columns.refuse_other_values(train, column)
        split = Split(columns.texts(train, [column]), np.arange(12), np.zeros(12, dtype=np.int64))
        assert texts_of(split) == [(row["text"],) for row in rows]
