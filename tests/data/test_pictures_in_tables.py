"""Tables that name pictures, as on Kaggle, in the recipes for pictures and for pairs alike."""

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_transfer.data.checked import load_splits
from hf_transfer.data.rows import encoded_image
from hf_transfer.data.splits import Splits
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pair import PairModality
from tests.data.conftest import PairSettings, Settings, user_error_with, write_pictures, write_table
from tests.data.small_folders import fill, read_pictures

COUNT = 24


@pytest.fixture(params=["vision", "multimodal"])
def read(request: pytest.FixtureRequest, settings: Settings, pair_settings: PairSettings) -> Any:
    """`read(path, **settings)` in both recipes."""

    def load(path: Path, **chosen: Any) -> Splits:
        if request.param == "vision":
            return load_splits(settings(dataset_name=str(path), **chosen), ImageModality())
        return load_splits(pair_settings(dataset_name=str(path), **chosen), PairModality())

    return load


def pictures_and_table(root: Path, files: str, values: str, column: str, table: str) -> Path:
    """Pictures, and a table that names them; both have the number of the row in their place."""
    write_pictures(root, [{"file_name": files.format(n)} for n in range(COUNT)])
    rows = [{column: values.format(n), "text": f"word{n}", "label": "ab"[n % 2]} for n in range(COUNT)]
    write_table(root / table, rows)
    return root


def labels_by_number(splits: Splits) -> dict[str, str]:
    """Of each picture its number, which its name ends with, and its label."""
    return {
        Path(encoded_image(split, row)["path"]).stem[-3:].lstrip("_"): splits.target.names[label]
        for _, split in splits.items()
        for row, label in zip(split.rows.tolist(), split.targets.tolist(), strict=True)
    }


WANTED = {f"{number:03}": "ab"[number % 2] for number in range(COUNT)}


@pytest.mark.parametrize(
    ("files", "values", "column", "table"),
    [
        ("images/{:03}.png", "{:03}", "id", "train.csv"),
        ("images/{:03}.jpg", "{:03}.jpg", "filename", "train.csv"),
        ("jpg/{:03}.png", "{:03}.png", "image", "labels.csv"),
        ("a/b/{:03}.png", "b/{:03}", "path", "train.jsonl"),
        ("train_images/{:03}.png", "{:03}", "image_id", "train.tsv"),
        ("images/{:03}.png", "../images/{:03}.png", "Image", "tables/train.csv"),
        ("Images/IMG_{:03}.PNG", "img_{:03}.png", "file", "train.csv"),
        ("images/{:03}.png", "images\\{:03}.png", "file_name", "train.csv"),
        ("images/{:03}.png", "{:03}", "what it shows", "train.csv"),
    ],
)
def test_pictures_are_found_by_path_or_name_with_or_without_suffix(
    files: str, values: str, column: str, table: str, read: Any, tmp_path: Path
) -> None:
    root = pictures_and_table(tmp_path / "data", files, values, column, table)
    assert labels_by_number(read(root)) == WANTED
    assert labels_by_number(read(root / table)) == WANTED


@pytest.mark.parametrize("column", ["image", "picture file", "id"])
def test_the_column_that_names_pictures_can_be_set(column: str, read: Any, tmp_path: Path) -> None:
    root = pictures_and_table(tmp_path / "data", "images/{:03}.png", "{:03}", column, "train.csv")
    splits = read(root, image_column_name=column)
    assert splits.columns["image_column_name"] == column
    assert labels_by_number(splits) == WANTED


def test_absolute_paths_are_read_from_a_table_that_is_named_itself(read: Any, tmp_path: Path) -> None:
    write_pictures(tmp_path / "far", [{"file_name": f"{n:03}.png"} for n in range(COUNT)])
    rows = [
        {"image": str(tmp_path / f"far/{n:03}.png"), "text": f"word{n}", "label": "ab"[n % 2]} for n in range(COUNT)
    ]
    assert labels_by_number(read(write_table(tmp_path / "near" / "train.csv", rows))) == WANTED


def test_pictures_of_the_same_name_are_told_apart_by_the_split_of_the_table(read: Any, tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        write_pictures(tmp_path / "data", [{"file_name": f"{split}/{n:03}.png"} for n in range(COUNT)], seed=seed)
        rows = [{"id": f"{n:03}", "text": f"{split}{n}", "label": "ab"[n % 2]} for n in range(COUNT)]
        write_table(tmp_path / "data" / f"{split}.csv", rows)
    splits = read(tmp_path / "data")
    for name in ("train", "test"):
        part = splits.of(name)
        assert {Path(encoded_image(part, row)["path"]).parent.name for row in part.rows.tolist()} == {name}


def test_a_name_of_several_pictures_is_refused(read: Any, tmp_path: Path) -> None:
    root = pictures_and_table(tmp_path / "data", "images_1/{:03}.png", "{:03}", "id", "train.csv")
    write_pictures(root, [{"file_name": f"images_2/{n:03}.png"} for n in range(3)], seed=1)
    with user_error_with(
        expected="one image for each value of column 'id'",
        found="3 that name several: 000 in train.csv, line 2: images_1/000.png, images_2/000.png",
        do="write their paths relative to the table",
    ):
        read(root)


def test_an_example_of_answers_is_not_used_and_named(read: Any, tmp_path: Path) -> None:
    root = pictures_and_table(tmp_path / "data", "images/{:03}.png", "{:03}", "id", "train.csv")
    write_table(root / "sample_submission.csv", [{"id": "000", "label": "a"}])
    splits = read(root)
    note = f"Not used, since they are examples of answers: {root / 'sample_submission.csv'}."
    assert note in splits.notes
    assert labels_by_number(splits) == WANTED


def test_a_test_table_without_labels_does_not_take_the_labels_of_training(settings: Settings, tmp_path: Path) -> None:
    root = pictures_and_table(tmp_path / "data", "images/{:03}.png", "{:03}", "id", "train.csv")
    write_table(root / "test.csv", [{"id": f"{n:03}", "text": "x"} for n in range(4)])
    loaded = ImageModality().read(root, settings(dataset_name=str(root)))
    assert loaded.data["test"]["label"][:] == [None] * 4
    assert Counter(loaded.data["train"]["label"]) == {"a": 12, "b": 12}
    assert loaded.origins["train"].of(2) == (str(root / "train.csv"), 4)


def test_a_table_that_repeats_the_pictures_of_a_split_is_noted_and_not_used(settings: Settings, tmp_path: Path) -> None:
    root = pictures_and_table(tmp_path / "data", "images/{:03}.png", "{:03}", "id", "train.csv")
    write_table(root / "more.csv", [{"id": f"{n:03}", "other": n} for n in range(5)])
    splits = load_splits(settings(dataset_name=str(root)), ImageModality())
    assert labels_by_number(splits) == WANTED
    assert any("Not used" in note and "more.csv" in note for note in splits.notes)


def test_folders_of_classes_come_before_a_table_unless_its_label_is_named(settings: Settings, tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "cat", "dog", count=6)
    rows = [{"path": f"{name}/{n}.png", "age": "old" if n % 2 else "new"} for name in ("cat", "dog") for n in range(6)]
    write_table(root / "ages.csv", rows)
    by_folder = load_splits(settings(dataset_name=str(root)), ImageModality())
    assert by_folder.target.names == ["cat", "dog"]
    assert any("ages.csv" in note for note in by_folder.notes)
    by_table = load_splits(settings(dataset_name=str(root), label_column_name="age"), ImageModality())
    assert by_table.target.names == ["new", "old"]


@pytest.mark.parametrize("folders", [("left", "right"), ("patient1", "patient2"), ("a b", "c")])
def test_a_table_with_other_labels_than_the_folders_is_refused_with_the_choice(
    folders: tuple[str, str], settings: Settings, tmp_path: Path
) -> None:
    root = fill(tmp_path / "data", *folders, count=6)
    rows = [{"path": f"{name}/{n}.png", "class": "ab"[n % 2]} for name in folders for n in range(6)]
    table = write_table(root / "train.csv", rows)
    with user_error_with(
        expected=f"one source of labels in {root}", found="which has the label 'a' in train.csv and is in folder",
        do=f"name the table, --dataset_name {table}, or move it elsewhere",
    ):  # fmt: skip
        load_splits(settings(dataset_name=str(root)), ImageModality())
    assert load_splits(settings(dataset_name=str(table)), ImageModality()).target.names == ["a", "b"]
    table.rename(tmp_path / "train.csv")
    assert load_splits(settings(dataset_name=str(root)), ImageModality()).target.names == sorted(folders)


def test_pictures_that_no_table_names_are_noted(settings: Settings, tmp_path: Path) -> None:
    root = pictures_and_table(tmp_path / "data", "images/{:03}.png", "{:03}", "id", "train.csv")
    write_pictures(root, [{"file_name": f"images/x{n}.png"} for n in range(3)], seed=7)
    notes = load_splits(settings(dataset_name=str(root)), ImageModality()).notes
    assert f"Not used, since no table names them: 3 images, such as {root}/images/x0.png." in notes


def test_a_table_of_embedded_pictures_is_read_as_before(settings: Settings, picture_table: Any, tmp_path: Path) -> None:
    picture_table([0, 1] * 10).to_parquet(tmp_path / "a.parquet")
    loaded = ImageModality().read(tmp_path / "a.parquet", settings(dataset_name="d"))
    assert isinstance(loaded.data["train"].features["image"], datasets.Image)


@pytest.mark.parametrize("test_columns", [["id"], ["id", "other"]])
@pytest.mark.parametrize("column", ["id", "image"])
def test_a_test_table_of_nothing_but_pictures_is_predicted(
    column: str, test_columns: list[str], tmp_path: Path
) -> None:
    """As on Kaggle: the labels are withheld, and often there is no other column."""
    fill(tmp_path / "images", "train", "test", count=20)
    train = [{column: f"train/{number}.png", "label": "ab"[number % 2]} for number in range(20)]
    test = [{"id": f"test/{number}.png", "other": number} for number in range(6)]
    renamed = [{column if name == "id" else name: row[name] for name in test_columns} for row in test]
    write_table(tmp_path / "train.csv", [row | dict.fromkeys(renamed[0].keys() - {column}, 1) for row in train])
    write_table(tmp_path / "test.csv", renamed)
    splits = read_pictures(tmp_path)
    assert splits.unlabelled is not None
    paths = [encoded_image(splits.unlabelled.split, row)["path"] for row in range(6)]
    assert paths == [str(tmp_path / "images" / "test" / f"{number}.png") for number in range(6)]
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 20
    assert splits.unlabelled.keys[column] == [f"test/{number}.png" for number in range(6)]
