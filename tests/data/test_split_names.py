"""Names of files and folders say the split, in any case; where several files become training, a sentence says which."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_transfer.data.checked import load_splits
from hf_transfer.data.split_names import split_of
from hf_transfer.data.splits import Splits
from hf_transfer.modalities.text import TextModality
from tests.data.conftest import TextSettings, text_rows, user_error_with, write_table

Read = Callable[..., Splits]


@pytest.fixture
def read(text_settings: TextSettings) -> Read:
    return lambda path, **settings: load_splits(text_settings(dataset_name=str(path), **settings), TextModality())


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Train.csv", "train"), ("TRAIN.CSV", "train"), ("my_train.csv", "train"), ("trainData.csv", "train"),
        ("train-00000-of-00002.parquet", "train"), ("reviews.training.jsonl", "train"), ("X_train2.csv", "train"),
        ("Test.csv", "test"), ("data_TEST.csv", "test"), ("TestSet.csv", "test"), ("tst.csv", "test"),
        ("eval.json", "test"), ("my-dev.csv", "validation"), ("Val_1.csv", "validation"), ("VALID.csv", "validation"),
        ("train/a.csv", "train"), ("Test/part/b.csv", "test"), ("parts/validation/1.csv", "validation"),
        ("contest.csv", None), ("training_camp_reviews/a.csv", "train"), ("constrained.csv", None),
        ("latest/developers.csv", None), ("a.csv", None),
    ],
)  # fmt: skip
def test_a_file_belongs_to_the_split_that_its_name_or_its_folder_says(name: str, split: str | None) -> None:
    assert split_of(Path(name)) == split


@pytest.mark.parametrize("name", ["train_test.csv", "dev_train.jsonl", "val-test/a.csv"])
def test_a_name_that_says_two_splits_is_refused(name: str) -> None:
    with user_error_with(expected="one split each", found=name, do="rename it"):
        split_of(Path(name))


@pytest.mark.parametrize(
    "names",
    [
        ("Train.csv", "Test.csv"), ("TRAIN.jsonl", "TEST.jsonl"), ("my_train.tsv", "my_test.tsv"),
        ("Train/a.parquet", "Test/a.parquet"), ("trn.json", "tst.json"),
    ],
)  # fmt: skip
def test_test_rows_are_never_trained_on(names: tuple[str, str], read: Read, tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        write_table(tmp_path / "data" / name, text_rows(20, seed=seed))
    splits = read(tmp_path / "data")
    assert set(splits.test.dataset["text"]) == {row["text"] for row in text_rows(20, seed=1)}
    assert not {row["text"] for row in text_rows(20, seed=1)} & set(splits.train.dataset["text"])
    assert f"Splits: train from {names[0]};" in splits.where_from
    assert splits.where_from.endswith(f"test from {names[1]}.")


def test_several_files_that_become_training_are_counted(read: Read, tmp_path: Path) -> None:
    for number in range(7):
        write_table(tmp_path / "data" / f"part{number}.csv", text_rows(10, seed=number))
    splits = read(tmp_path / "data")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 70
    assert splits.where_from.startswith(f"Splits: train from 7 files in {tmp_path}/data; validation from 15 %")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_has_one_type_in_all_files(kind: str, read: Read, tmp_path: Path) -> None:
    """Numbers in one file and words in another, in a column that nothing uses."""
    train = [row | {"note": n if kind == "csv" else None} for n, row in enumerate(text_rows(20))]
    test = [row | {"note": "a word"} for row in text_rows(20, seed=1)]
    write_table(tmp_path / "data" / "train" / f"1.{kind}", train)
    write_table(tmp_path / "data" / "train" / f"2.{kind}", test)
    assert len(read(tmp_path / "data").train.dataset) == 40
