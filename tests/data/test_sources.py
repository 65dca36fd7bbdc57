"""From a name to checked splits: folders, tables, samples, and a Hub that does not answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_transfer.data import sources
from hf_transfer.data.checked import load_splits
from hf_transfer.data.pictures import decode
from hf_transfer.data.rows import encoded_image
from hf_transfer.data.splits import Split, Splits
from hf_transfer.modalities.image import ImageModality
from tests.data.conftest import Settings, noise, same, user_error_with

Table = Callable[..., datasets.Dataset]


def sizes(splits: Splits) -> dict[str, int]:
    return {name: len(split) for name, split in splits.items()}


def classes_by_path(split: Split, names: list[str]) -> dict[str, str]:
    rows = zip(split.rows.tolist(), split.targets.tolist(), strict=True)
    return {encoded_image(split, row)["path"]: names[label] for row, label in rows}


def write_pictures(folder: Path, *names: str, seed: int = 0) -> None:
    for name, pixels in zip(names, noise(len(names), 8, 8, 3, seed=seed), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def test_class_folders_name_the_classes_of_their_pictures(settings: Settings, tmp_path: Path) -> None:
    """The class of each picture is the name of its folder, in whichever split it lands."""
    write_pictures(tmp_path, *(f"{label}/{number}.png" for label in ("dog", "cat") for number in range(20)))
    splits = load_splits(settings(dataset_name=str(tmp_path)), ImageModality())
    assert splits.target.names == ["cat", "dog"]
    seen: dict[str, str] = {}
    for split in (splits.train, splits.validation, splits.test):
        seen |= classes_by_path(split, splits.target.names)
    assert seen == {str(path): path.parent.name for path in tmp_path.rglob("*.png")}


def test_missing_splits_are_split_off_training_by_class_and_noted(settings: Settings, picture_folder: Any) -> None:
    """40 pictures: 15 % of each class of 20 is 3 for test; 15 % of the 17 left, rounded, is 3 for validation."""
    folder = picture_folder(cat=20, dog=20)
    splits = load_splits(settings(dataset_name=str(folder)), ImageModality())
    assert sizes(splits) == {"train": 28, "validation": 6, "test": 6}
    assert splits.describe() == [
        "28 train, 6 validation, 6 test images of 2 classes.",
        f"Splits: train from 40 files in {folder}; validation from 15 % of train, split off by content and class; "
        "test from 15 % of train, split off by content and class.",
        "Classes: cat, dog (names of folders).",
    ]
    rows = np.concatenate([split.rows for _, split in splits.items()])
    assert sorted(rows.tolist()) == list(range(40))


def test_the_new_split_depends_on_the_split_seed_and_not_on_the_seed_of_the_run(
    settings: Settings, picture_folder: Any
) -> None:
    """Runs that vary --seed must share one test split."""
    folder = str(picture_folder(cat=20, dog=20))
    rows = [
        load_splits(settings(dataset_name=folder, **seeds), ImageModality()).test.rows.tolist()
        for seeds in ({"seed": 0}, {"seed": 1}, {"split_seed": 1})
    ]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "dev"])
def test_split_folders_are_taken_as_they_are(validation: str, settings: Settings, tmp_path: Path) -> None:
    counts = {"train": 4, validation: 3, "test": 2}
    for seed, (folder, count) in enumerate(counts.items()):
        write_pictures(tmp_path / folder, *(f"{c}/{i}.png" for c in "ab" for i in range(count)), seed=seed)
    splits = load_splits(settings(dataset_name=str(tmp_path)), ImageModality())
    assert sizes(splits) == {"train": 8, "validation": 6, "test": 4}
    assert splits.notes == []
    for (_, split), folder in zip(splits.items(), counts, strict=True):
        named = classes_by_path(split, splits.target.names)
        assert named == {str(path): path.parent.name for path in (tmp_path / folder).rglob("*.png")}


def test_only_the_split_that_is_missing_is_split_off(settings: Settings, tmp_path: Path) -> None:
    for seed, folder in enumerate(("train", "test")):
        write_pictures(tmp_path / folder, *(f"{c}/{i}.png" for c in "ab" for i in range(10)), seed=seed)
    splits = load_splits(settings(dataset_name=str(tmp_path)), ImageModality())
    assert sizes(splits) == {"train": 17, "validation": 3, "test": 20}
    assert splits.describe()[1] == (
        "Splits: train from 20 files in train; validation from 15 % of train, split off by content and class; "
        "test from 20 files in test."
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("label_column", [None, "kind"])
def test_a_metadata_file_names_the_classes(
    kind: str, label_column: str | None, settings: Settings, tmp_path: Path
) -> None:
    names = [f"{number}.png" for number in range(12)]
    write_pictures(tmp_path, *names)
    kinds = {name: "cat" if number % 3 else "dog" for number, name in enumerate(names)}
    column = label_column or "label"
    lines = (
        [f"file_name,{column}", *(f"{name},{value}" for name, value in kinds.items())]
        if kind == "csv"
        else [json.dumps({"file_name": name, column: value}) for name, value in kinds.items()]
    )
    (tmp_path / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    splits = load_splits(settings(dataset_name=str(tmp_path), label_column_name=label_column), ImageModality())
    assert splits.target.names == ["cat", "dog"]
    for split in (splits.train, splits.validation, splits.test):
        for path, label in classes_by_path(split, splits.target.names).items():
            assert kinds[Path(path).name] == label


def test_a_metadata_file_in_each_split_folder_is_read(settings: Settings, tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "validation", "test")):
        write_pictures(tmp_path / split, *(f"{i}.png" for i in range(4)), seed=seed)
        rows = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(4))
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    splits = load_splits(settings(dataset_name=str(tmp_path)), ImageModality())
    assert sizes(splits) == {"train": 4, "validation": 4, "test": 4}
    assert splits.test.targets.tolist() == [0, 1, 0, 1]


def test_a_parquet_file_with_embedded_pictures_keeps_names_and_pixels(
    settings: Settings, picture_table: Table, tmp_path: Path
) -> None:
    """A class that no row has keeps its place in the names."""
    feature = datasets.ClassLabel(names=["zebra", "ant", "unused"])
    picture_table([0, 1] * 10, feature).to_parquet(tmp_path / "data.parquet")
    splits = load_splits(settings(dataset_name=str(tmp_path / "data.parquet")), ImageModality())
    assert splits.target.names == ["zebra", "ant", "unused"]
    assert sum(sizes(splits).values()) == 20
    pixels = noise(20, 8, 8, 3)
    for split in (splits.train, splits.validation, splits.test):
        for row, label in zip(split.rows.tolist(), split.targets.tolist(), strict=True):
            assert label == row % 2
            assert same(decode(encoded_image(split, row)), pixels[row])


@pytest.mark.parametrize("below", [".", "data"])
def test_a_folder_of_parquet_files_has_its_own_splits(
    below: str, settings: Settings, picture_table: Table, tmp_path: Path
) -> None:
    (tmp_path / below).mkdir(exist_ok=True)
    for seed, (name, count) in enumerate({"train": 8, "validation": 4, "test": 6}.items()):
        path = tmp_path / below / f"{name}-00000-of-00001.parquet"
        picture_table([0, 1] * (count // 2), seed=seed).to_parquet(path)
    splits = load_splits(settings(dataset_name=str(tmp_path)), ImageModality())
    assert sizes(splits) == {"train": 8, "validation": 4, "test": 6}
    assert splits.notes == []


def test_the_image_and_label_columns_are_found_by_type_or_named(
    settings: Settings, picture_table: Table, tmp_path: Path
) -> None:
    path = tmp_path / "data.parquet"
    picture_table([0, 1] * 6, column="photo", label_column="species").to_parquet(path)
    chosen = load_splits(settings(dataset_name=str(path)), ImageModality())
    named = load_splits(
        settings(dataset_name=str(path), image_column_name="photo", label_column_name="species"), ImageModality()
    )
    assert sizes(chosen) == sizes(named)
    assert encoded_image(chosen.train, 0) == encoded_image(named.train, 0)
    assert chosen.train.dataset.column_names == ["image"]


@pytest.mark.parametrize("setting", ["image_column_name", "label_column_name"])
def test_a_wrong_column_name_is_answered_with_the_columns_there_are(
    setting: str, settings: Settings, picture_table: Table, tmp_path: Path
) -> None:
    picture_table([0, 1] * 6).to_parquet(tmp_path / "data.parquet")
    with user_error_with(
        expected=f"the column for --{setting}",
        found="no column 'nope'; there are image, label",
        do=f"set --{setting} to one of these",
    ):
        load_splits(settings(dataset_name=str(tmp_path / "data.parquet"), **{setting: "nope"}), ImageModality())


def test_a_label_column_that_cannot_be_guessed_is_asked_for(
    settings: Settings, picture_table: Table, tmp_path: Path
) -> None:
    picture_table([0, 1] * 6, datasets.Value("int64"), label_column="species").to_parquet(tmp_path / "a.parquet")
    with user_error_with(expected="--label_column_name", found="the columns image, species", do="--label_column_name"):
        load_splits(settings(dataset_name=str(tmp_path / "a.parquet")), ImageModality())


def test_a_column_of_numbers_is_no_image_column(settings: Settings, picture_table: Table, tmp_path: Path) -> None:
    picture_table([0, 1] * 6).to_parquet(tmp_path / "a.parquet")
    with user_error_with(
        expected="images or paths to images in column 'label'", found="ClassLabel", do="--image_column_name"
    ):
        load_splits(settings(dataset_name=str(tmp_path / "a.parquet"), image_column_name="label"), ImageModality())


def test_data_without_a_training_split_are_refused_with_the_splits_there_are(
    settings: Settings, picture_table: Table, tmp_path: Path
) -> None:
    picture_table([0, 1] * 6).to_parquet(tmp_path / "test.parquet")
    with user_error_with(
        expected="a training split, named train or training", found="the splits test", do="rename the split"
    ):
        load_splits(settings(dataset_name=str(tmp_path)), ImageModality())


def test_splits_that_are_not_used_are_noted(
    settings: Settings, picture_table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some data sets bring an `unsupervised` or `extra` part."""
    loaded = datasets.DatasetDict({"train": picture_table([0, 1] * 10), "extra": picture_table([0, 1], seed=9)})
    monkeypatch.setattr(sources, "_load_from_hub", lambda _: sources.Loaded(loaded))
    splits = load_splits(settings(dataset_name="somebody/pictures"), ImageModality())
    assert splits.notes[0] == "Splits not used: extra."


def test_exact_copies_across_splits_are_counted_and_reported(
    settings: Settings, picture_table: Table, tmp_path: Path
) -> None:
    """All pictures of the same size in bytes would still differ in content: the hash decides."""
    train, other = picture_table([0, 1] * 5), picture_table([0, 1] * 3, seed=5)
    train.to_parquet(tmp_path / "train.parquet")
    datasets.concatenate_datasets([other, train.select([3, 7, 7])]).to_parquet(tmp_path / "validation.parquet")
    picture_table([0, 1] * 3, seed=6).to_parquet(tmp_path / "test.parquet")
    splits = load_splits(settings(dataset_name=str(tmp_path)), ImageModality())
    assert splits.copies == {"validation": 3, "test": 0}
    assert splits.describe()[-1] == "Exact copies of training images: 3 in validation."


def test_at_most_so_many_training_samples_of_each_class_are_kept(settings: Settings) -> None:
    """Validation and test stay whole."""
    whole = load_splits(settings(), ImageModality())
    few = load_splits(settings(max_train_samples_per_class=7), ImageModality())
    assert np.bincount(few.train.targets).tolist() == [7] * 10
    assert set(few.train.rows.tolist()) <= set(whole.train.rows.tolist())
    assert few.test.rows.tolist() == whole.test.rows.tolist()
    assert few.validation.rows.tolist() == whole.validation.rows.tolist()


@pytest.mark.parametrize("name", ["./nothing-here", "/nothing/here", "~/nothing/here", "nothing.parquet", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(name: str, settings: Settings) -> None:
    with user_error_with(
        expected="a data set: a folder or file here, a Hub id, or sample:NAME",
        found="no folder or file",
        do="correct --dataset_name",
    ):
        load_splits(settings(dataset_name=name), ImageModality())


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAINING", "EVAL"), ("train_images", "test_images")])
def test_split_folders_of_other_names_are_splits(names: tuple[str, str], settings: Settings, tmp_path: Path) -> None:
    """In any case, and with the same words beside the split."""
    folders = [f"{split}/{label}" for split in names for label in "ab"]
    write_pictures(tmp_path, *(f"{folder}/{number}.png" for folder in folders for number in range(5)))
    splits = load_splits(settings(dataset_name=str(tmp_path)), ImageModality())
    assert sizes(splits) == {"train": 8, "validation": 2, "test": 10}
    assert splits.target.names == ["a", "b"]


def test_a_folder_without_images_or_tables_says_what_it_looked_for(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("x")
    with user_error_with(
        expected=".pnm, .ppm", found="1 files, and none of these kinds", do="put each class in a folder of its own"
    ):
        load_splits(settings(dataset_name=str(tmp_path / "data")), ImageModality())


def test_tables_of_two_kinds_or_an_unknown_kind_are_refused(settings: Settings, tmp_path: Path) -> None:
    for names, found in ((("a.csv", "b.parquet"), ".csv, .parquet in"), (("a.txt",), ".txt in")):
        folder = tmp_path / found[1:4]
        folder.mkdir()
        for name in names:
            (folder / name).write_text("image,label\n")
        source = folder if len(names) > 1 else folder / names[0]
        with user_error_with(expected="files of one kind among .parquet, .csv", found=found, do="name one of them"):
            load_splits(settings(dataset_name=str(source)), ImageModality())


def test_a_file_that_is_no_parquet_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with user_error_with(expected=f"can be read at {tmp_path / 'a.parquet'}", found="Parquet", do="fix or remove"):
        load_splits(settings(dataset_name=str(tmp_path / "a.parquet")), ImageModality())
