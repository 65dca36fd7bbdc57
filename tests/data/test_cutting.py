"""The sentence that says where each split comes from."""

from pathlib import Path

import numpy as np
import pytest

from hf_transfer.data.cutting import where_from
from hf_transfer.data.fates import Source
from hf_transfer.data.origins import Origins
from hf_transfer.settings.data import DataSettings
from hf_transfer.targets.classes import Classes

CLASSES = Classes(("a", "b"))


def source(name: str, splits: tuple[str, ...], *files: str) -> Source:
    origins = Origins(files, np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.int64)) if files else None
    return Source(name, 1, splits, origins)


@pytest.mark.parametrize(
    ("sources", "missing", "sentence"),
    [
        (
            [source("train", ("train",), "{}/train.csv"), source("test", ("test",), "{}/b/test.csv")],
            [], "train from train.csv; test from b/test.csv",
        ),
        (
            [source("train", ("train",), *(f"{{}}/train/cat/{number}.png" for number in range(1_200)))],
            [], "train from 1,200 files in train/cat",
        ),
        (
            [source("training", ("train", "test")), source("dev", ("validation",)), source("extra", ())],
            ["test"],
            "train from split 'training'; validation from split 'dev'; "
            "test from 12.5 % of train, split off by group (patient), content and class",
        ),
    ],
)  # fmt: skip
def test_files_are_named_below_the_folder_of_the_data(
    sources: list[Source], missing: list[str], sentence: str, tmp_path: Path
) -> None:
    """A few files by their names, many by their folder, and without known files the split as the data name it."""
    placed = [
        one if one.origins is None else one._replace(
            origins=Origins(
                tuple(file.format(tmp_path) for file in one.origins.files), one.origins.file_numbers, one.origins.lines
            )
        )
        for one in sources
    ]  # fmt: skip
    settings = DataSettings(dataset_name=str(tmp_path), test_fraction=0.125, group_column_name="patient")
    assert where_from(placed, missing, settings, CLASSES) == f"Splits: {sentence}."


def test_a_table_alone_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "a.csv")
    settings = DataSettings(dataset_name=path)
    assert where_from([source("train", ("train",), path)], [], settings, CLASSES) == "Splits: train from a.csv."


def test_a_sample_is_divided_by_class_alone() -> None:
    settings = DataSettings(dataset_name="sample:digits")
    sentence = where_from([source("train", ("train", "test"))], ["test"], settings, CLASSES)
    assert sentence == "Splits: train from split 'train'; test from 15 % of train, split off by class."
