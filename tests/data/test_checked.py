"""From a loaded data set to checked splits: settings that have no effect, data in memory, columns that are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_transfer.data.checked import load_splits
from hf_transfer.data.rows import encoded_image, texts_of
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.text import TextModality
from tests.data.conftest import (
    PairSettings,
    Settings,
    TextSettings,
    encoded,
    noise,
    pair_rows,
    raw_bytes,
    text_rows,
    user_error_with,
    write_pictures,
    write_table,
)

IN_MEMORY = "memory:0123456789abcdef"


def texts(*splits: str) -> datasets.DatasetDict:
    return datasets.DatasetDict({
        name: datasets.Dataset.from_list(text_rows(20, seed=number)) for number, name in enumerate(splits)
    })  # fmt: skip


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_share_of_a_split_that_the_data_have_is_refused(name: str, text_settings: TextSettings) -> None:
    """It would have no effect."""
    data = texts("train", "validation", "test")
    with user_error_with(
        expected=f"--{name}_fraction with data that have no {name} split",
        found=f"a {name} split, with which --{name}_fraction has no effect",
        do=f"leave --{name}_fraction out, or remove that split",
    ):
        load_splits(text_settings(**{f"{name}_fraction": 0.3}), TextModality(), data)


def test_a_share_of_the_split_that_the_data_lack_is_split_off(text_settings: TextSettings) -> None:
    """Of the other one no share may be given."""
    data = texts("train", "test")
    splits = load_splits(text_settings(validation_fraction=0.3), TextModality(), data)
    assert [len(split) for _, split in splits.items()] == [14, 6, 20]
    with user_error_with(expected="no test split", found="no effect", do="leave"):
        load_splits(text_settings(validation_fraction=0.3, test_fraction=0.3), TextModality(), data)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_the_share_is_refused_also_for_files_and_samples(
    name: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    for split in ("train", "dev", "test"):
        write_table(tmp_path / f"{split}.csv", text_rows(20))
    for data in (str(tmp_path), "sample:intents"):
        with user_error_with(expected=f"no {name} split", found="no effect", do="leave"):
            load_splits(text_settings(dataset_name=data, **{f"{name}_fraction": 0.2}), TextModality())


def test_texts_in_memory_are_read_as_those_in_files(text_settings: TextSettings, tmp_path: Path) -> None:
    """Same splits, same values, same columns; the name of the data is not looked up."""
    rows = text_rows(40)
    from_file = load_splits(text_settings(dataset_name=str(write_table(tmp_path / "a.jsonl", rows))), TextModality())
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows))
    in_memory = load_splits(text_settings(dataset_name=IN_MEMORY), TextModality(), data)
    for (_, ours), (_, theirs) in zip(in_memory.items(), from_file.items(), strict=True):
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert ours.targets.tolist() == theirs.targets.tolist()
        assert texts_of(ours) == texts_of(theirs)
    sentences = [
        line.replace("train from a.jsonl", "train from split 'train'").replace("a.jsonl, ", "")
        for line in from_file.describe()
    ]
    assert in_memory.describe() == sentences
    assert in_memory.columns == {"text_column_name": "text", "label_column_name": "label"}
    assert in_memory.commit is None


def test_pictures_in_memory_are_read_whether_embedded_or_by_their_paths(
    settings: Settings, picture_table: Callable[..., datasets.Dataset], tmp_path: Path
) -> None:
    embedded = picture_table(["x", "y"] * 10, datasets.Value("string"), column="photo", label_column="kind")
    rows = [{"file_name": f"{number}.png"} for number in range(20)]
    write_pictures(tmp_path / "data", rows)
    paths = [str(tmp_path / "data" / row["file_name"]) for row in rows]
    by_path = embedded.remove_columns("photo").add_column("photo", paths)
    named = {"image_column_name": "photo", "label_column_name": "kind", "dataset_name": IN_MEMORY}
    for table in (embedded, by_path, by_path.cast_column("photo", datasets.Image())):
        splits = load_splits(settings(**named), ImageModality(), datasets.DatasetDict(train=table))
        assert splits.target.names == ["x", "y"]
        assert splits.columns == {"image_column_name": "photo", "label_column_name": "kind"}
        assert np.abs(np.diff(np.bincount(splits.train.targets))) <= 1


def test_pairs_in_memory_are_read_whether_embedded_or_by_their_paths(
    pair_settings: PairSettings, tmp_path: Path
) -> None:
    """A program names its own files; a data set on the Hub may not name files of this machine."""
    rows = pair_rows(24)
    write_pictures(tmp_path / "data", rows)
    pixels = noise(24, 8, 8, 3)
    paths = [str(tmp_path / "data" / row["file_name"]) for row in rows]
    plain = [{"text": row["text"], "label": row["label"]} for row in rows]
    by_path = [row | {"image": path} for row, path in zip(plain, paths, strict=True)]
    by_bytes: list[dict[str, Any]] = [
        row | {"image": raw_bytes(encoded(Image.fromarray(one)))} for row, one in zip(plain, pixels, strict=True)
    ]
    columns = {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.Value("string")}
    for table in (by_path, by_bytes):
        data = datasets.DatasetDict(train=datasets.Dataset.from_list(table, features=datasets.Features(columns)))
        splits = load_splits(pair_settings(dataset_name=IN_MEMORY), PairModality(), data)
        assert sum(len(split) for _, split in splits.items()) == 24
        assert splits.columns["image_column_name"] == "image"
    assert encoded_image(splits.train, 0)["bytes"] is not None


def test_data_in_memory_without_a_training_split_are_refused(text_settings: TextSettings) -> None:
    with user_error_with(expected="a training split", found="the splits test", do="rename the split"):
        load_splits(text_settings(dataset_name=IN_MEMORY), TextModality(), texts("test"))


def test_all_chosen_columns_are_kept_under_the_settings_that_name_them(
    text_settings: TextSettings, tmp_path: Path
) -> None:
    """They are saved with the model."""
    rows = [{"question": row["text"], "answer": "yes", "kind": row["label"]} for row in text_rows()]
    path = write_table(tmp_path / "a.csv", rows)
    config = text_settings(
        dataset_name=str(path), label_column_name="kind", text_column_name="question", text_pair_column_name="answer"
    )
    assert load_splits(config, TextModality()).columns == {
        "text_column_name": "question", "text_pair_column_name": "answer", "label_column_name": "kind"
    }  # fmt: skip


def test_a_metric_that_the_target_lacks_is_refused_before_samples_are_read(text_settings: TextSettings) -> None:
    with user_error_with(
        expected="for --metric_for_best_model one of accuracy, f1_macro, loss", found="mse", do="use one of these"
    ):
        load_splits(text_settings(metric_for_best_model="mse"), TextModality())


def test_masked_rows_are_counted_for_each_split_and_keep_their_targets(text_settings: TextSettings) -> None:
    rows = text_rows(200)
    rows[7]["text"] = " "
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows), **texts("validation", "test"))
    splits = load_splits(text_settings(dataset_name=IN_MEMORY, on_bad_sample="skip"), TextModality(), data)
    assert splits.train.unreadable == {7: "white space only"}
    assert splits.train.targets.tolist() == [number % 2 for number in range(200)]
    assert np.flatnonzero(~splits.train.counted).tolist() == [7]
    assert splits.validation.counted.all()
    assert "Unreadable texts, masked: 1 in train." in splits.describe()
