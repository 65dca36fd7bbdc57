"""Bad data through the recipe as a user runs it: refused with a message, before anything is loaded or written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Finished, Recipe
from tests.data.conftest import assert_refused, encoded, noise, png_by_hand, raw_bytes

Refused = Callable[..., Finished]
Folder = Callable[..., Path]


@pytest.fixture
def refused(vision: Recipe, tmp_path: Path, no_weights: None) -> Refused:
    """Runs the recipe, which must end with code 2 and a message of three parts, before any model is loaded."""

    def run(*, expected: str, found: str, do: str, **settings: object) -> Finished:
        finished = vision(**settings)
        assert_refused(finished, expected, found, do)
        assert not (tmp_path / "out").exists()
        return finished

    return run


def test_the_fixture_of_these_tests_notices_that_a_model_is_loaded(refused: Refused, vision: Recipe) -> None:
    """With good data the weights are loaded: the fixture replaces the right function."""
    with pytest.raises(AssertionError, match="model weights were loaded"):
        vision(dataset_name="sample:digits")


@pytest.mark.parametrize("name", ["./no-such-folder", "no-such-file.parquet", "/no/such/folder"])
def test_a_path_that_does_not_exist(name: str, refused: Refused) -> None:
    refused(dataset_name=name, expected="a data set: a folder or file here", found=Path(name).name, do="--dataset_name")


def test_a_hub_id_that_cannot_be_reached(refused: Refused) -> None:
    refused(
        dataset_name="nobody/nothing",
        expected="the dataset nobody/nothing on the Hub or in the local cache",
        found="no answer from",
        do="connect to the network, or point --dataset_name at a local folder",
    )


def test_a_sample_that_does_not_exist(refused: Refused) -> None:
    refused(dataset_name="sample:digit", expected="sample:glyphs", found="sample:digit", do="use sample:digits")


def test_a_folder_without_images(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "a.txt").write_text("no image")
    refused(
        dataset_name=tmp_path / "data",
        expected="images (.apng",
        found="1 files, and none of these kinds",
        do="for images put each class in a folder of its own",
    )


def test_a_picture_beside_the_class_folders(refused: Refused, picture_folder: Folder) -> None:
    """It would be a picture without a class."""
    folder = picture_folder(cat=6, dog=6)
    (folder / "stray.png").write_bytes((folder / "cat" / "000.png").read_bytes())
    refused(
        dataset_name=folder,
        expected="a label for each sample",
        found="beside the class folders",
        do="put images of each class in a folder of their own",
    )


def test_one_class_only(refused: Refused, picture_folder: Folder) -> None:
    folder = picture_folder(cat=6)
    rows = "".join(f"cat/{number:03}.png,cat\n" for number in range(6))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")
    refused(
        dataset_name=folder, expected="at least 2 classes", found="only 1 class, 'cat', in 6 rows", do="another class"
    )


def test_pictures_in_one_folder_have_no_labels(refused: Refused, picture_folder: Folder) -> None:
    folder = picture_folder(cat=6)
    refused(
        dataset_name=folder / "cat",
        expected="a label for each sample, of at least 2 classes",
        found=f"samples without labels: images in one folder, {folder}/cat",
        do="put images of each class in a folder of their own, as in FOLDER/cat/1.jpg; or add a table train.csv",
    )


def test_a_single_class_folder(refused: Refused, picture_folder: Folder) -> None:
    refused(
        dataset_name=picture_folder(cat=6), expected="at least 2 classes", found="only 1 class, 'cat', in 6 rows",
        do="another class",
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_with_too_few_images_for_three_splits(count: int, refused: Refused, picture_folder: Folder) -> None:
    refused(
        dataset_name=picture_folder(cat=6, rare=count),
        expected="at least 3 training samples of each class, to cut 2 more split(s) from them",
        found=f"too few of 'rare' ({count})",
        do="add samples of these classes",
    )


WHOLE = encoded(Image.fromarray(noise(64, 64, 3)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (WHOLE[: len(WHOLE) // 2], "damaged: image file is truncated"),
        (WHOLE[:500] + bytes(500) + WHOLE[1000:], "damaged: "),
        (b"a text with another name", "24 bytes that are not a JPEG, PNG"),
        (png_by_hand(20_000, 20_000), "it declares far too many pixels, and the limit is 50,000,000"),
        (png_by_hand(9_000, 9_000), "it declares 9000 x 9000 pixels, and the limit is 50,000,000"),
    ],
    ids=["empty", "truncated", "corrupt", "text", "bomb", "81 MP"],
)
def test_an_image_that_cannot_be_read_is_named_by_its_path(
    content: bytes, reason: str, refused: Refused, picture_folder: Folder
) -> None:
    """Whichever split it is in."""
    folder = picture_folder(cat=8, dog=8)
    bad = folder / "dog" / "003.png"
    bad.write_bytes(content)
    refused(
        dataset_name=folder,
        max_train_samples_per_class=None,
        expected="images that can be read in split",
        found=f"1 that cannot be read: {bad} ({reason}",
        do="fix or remove them",
    )


def test_too_many_unreadable_images_to_skip(refused: Refused, picture_folder: Folder) -> None:
    folder = picture_folder(cat=8, dog=8)
    (folder / "dog" / "003.png").write_bytes(b"")
    refused(
        dataset_name=folder,
        max_train_samples_per_class=None,
        on_bad_sample="skip",
        expected="at most 1% bad samples",
        found="003.png (the file is empty)",
        do="fix or remove these samples",
    )


def test_a_picture_that_metadata_name_and_that_does_not_exist(refused: Refused, picture_folder: Folder) -> None:
    folder = picture_folder(cat=6, dog=6)
    rows = "".join(f"{label}/{number:03}.png,{label}\n" for label in ("cat", "dog") for number in range(6))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}cat/gone.png,cat\n")
    refused(
        dataset_name=folder, max_train_samples_per_class=None, expected="images that can be read",
        found=f"{folder}/cat/gone.png in {folder}/metadata.csv, line 14 (there is no such file)", do="fix or remove",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_missing_label_in_a_metadata_file(kind: str, refused: Refused, picture_folder: Folder) -> None:
    folder = picture_folder(cat=6, dog=6)
    rows: list[tuple[str, str | None]] = [(f"{c}/{n:03}.png", c) for c in ("cat", "dog") for n in range(6)]
    rows[4] = (rows[4][0], None)
    lines = ["file_name,label", *(f"{name},{label or ''}" for name, label in rows)]
    if kind == "jsonl":
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    (folder / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    refused(
        dataset_name=folder,
        expected="a label in every row of column 'label'",
        found=f"metadata.{kind}, line {6 if kind == 'csv' else 5}",
        do="fill in or remove these rows",
    )


def test_a_class_folder_that_only_the_test_split_has(refused: Refused, picture_folder: Folder) -> None:
    picture_folder(name="data/train", cat=4, dog=4)
    folder = picture_folder(name="data/test", cat=2, bird=2).parent
    refused(
        dataset_name=folder,
        expected="in column 'label' of split 'test' only classes that training has (cat, dog)",
        found=f"'bird' in 2 rows, first in {folder}/test/bird/000.png",
        do="add training samples with these labels, or rename or remove them",
    )


@pytest.mark.parametrize("setting", ["image_column_name", "label_column_name"])
def test_a_column_that_does_not_exist(setting: str, refused: Refused, picture_folder: Folder) -> None:
    refused(
        dataset_name=picture_folder(cat=6, dog=6),
        expected=f"the column for --{setting}",
        found="no column 'species'; there are image, label",
        do=f"set --{setting} to one of these",
        **{setting: "species"},
    )


@pytest.mark.parametrize(
    ("labels", "feature", "expected", "found"),
    [
        ([[0, 1]] * 12, datasets.List(datasets.Value("int64")), "a label that some samples have", "labels that all"),
        ([0.5] * 12, datasets.Value("float32"), "different numbers in column 'label'", "0.5 in each training row"),
        ([-1] * 12, datasets.ClassLabel(names=["a", "b"]), "a labelled split 'train'", "empty, or -1"),
        ([None] * 12, datasets.ClassLabel(names=["a", "b"]), "a labelled split 'train'", "of its 12 rows"),
    ],
    ids=["always the same labels", "a constant", "withheld", "no labels"],
)
def test_a_table_of_which_nothing_can_be_learned(
    labels: list[Any], feature: Any, expected: str, found: str, refused: Refused, tmp_path: Path, picture_table: Any
) -> None:
    picture_table(labels, feature).to_parquet(tmp_path / "data.parquet")
    refused(
        dataset_name=tmp_path / "data.parquet", max_train_samples_per_class=None, expected=expected, found=found, do=""
    )


def test_a_row_without_an_image(refused: Refused, tmp_path: Path) -> None:
    pictures: list[Any] = [raw_bytes(encoded(Image.fromarray(picture))) for picture in noise(12, 8, 8, 3)]
    pictures[7] = None
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": pictures, "label": np.arange(12) % 2}, features=features)
    table.to_parquet(tmp_path / "data.parquet")
    refused(
        dataset_name=tmp_path / "data.parquet", max_train_samples_per_class=None, expected="images that can be read",
        found=f"1 that cannot be read: {tmp_path}/data.parquet, row 8 (there is no such file)", do="fix or remove",
    )  # fmt: skip


def test_a_file_that_is_no_table(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"nothing of the kind")
    refused(dataset_name=tmp_path / "data.parquet", expected="can be read at", found="Parquet", do="fix or remove")
