"""Bad pairs of image and text are refused with a message, before anything slow begins."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest

from hf_transfer.data import sources
from hf_transfer.data.checked import load_splits
from hf_transfer.modalities.pair import PairModality
from tests.data.conftest import PairSettings, pair_rows, user_error_with, write_pictures, write_table

Refused = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty-four whole pairs, without a table."""
    return write_pictures(tmp_path / "data", pair_rows())


@pytest.fixture
def refused(pair_settings: PairSettings) -> Refused:
    """`refused(folder or file, expected=..., found=..., do=..., **settings)`."""

    def check(name: Path | str, *, expected: str, found: str, do: str, **chosen: Any) -> None:
        with user_error_with(expected=expected, found=found, do=do):
            load_splits(pair_settings(dataset_name=str(name), **chosen), PairModality())

    return check


def with_rows(folder: Path, rows: list[dict[str, Any]], name: str = "metadata.csv") -> Path:
    write_table(folder / name, rows)
    return folder


def test_a_row_with_neither_image_nor_text_is_named_by_its_number(folder: Path, refused: Refused) -> None:
    """One of the two is enough."""
    rows = [*pair_rows(), {"file_name": "", "text": " ", "label": "a"}, {"file_name": "", "text": "", "label": "b"}]
    refused(
        with_rows(folder, rows),
        max_train_samples_per_class=None,
        expected="rows with an image that can be read, a text, or both in split '",
        found="(neither an image nor a text)",
        do="fix or remove them",
    )
    (folder / "metadata.csv").unlink()
    rows[3]["text"] = ""
    write_table(folder / "test.csv", pair_rows())
    write_table(folder / "validation.csv", pair_rows())
    refused(
        with_rows(folder, rows, "train.csv"),
        expected="in split 'train'",
        found=f"line 26 (neither an image nor a text); {folder}/train.csv, line 27 (neither an image nor a text)",
        do="fix or remove them",
    )


def test_rows_with_neither_are_masked_on_demand_up_to_one_percent(
    pair_settings: PairSettings, refused: Refused, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "data", pair_rows(100))
    rows = pair_rows(100)
    for name in ("validation", "test"):
        write_table(folder / f"{name}.csv", rows[:4])
    with_rows(folder, [*rows[:99], {"file_name": "", "text": "", "label": "b"}, rows[99]], "train.csv")
    splits = load_splits(pair_settings(dataset_name=str(folder), on_bad_sample="skip"), PairModality())
    assert splits.train.unreadable == {99: "neither an image nor a text"}
    assert "Unreadable pairs, masked: 1 in train." in splits.describe()
    (folder / "98.png").write_bytes(b"")
    refused(
        folder, on_bad_sample="skip", expected="at most 1% bad samples in split 'train'",
        found="2 of 101: ", do="fix or remove these samples",
    )  # fmt: skip


def test_an_image_that_cannot_be_read_is_named_though_its_text_is_good(folder: Path, refused: Refused) -> None:
    (folder / "5.png").write_bytes(b"only words")
    refused(
        with_rows(folder, pair_rows()),
        expected="rows with an image that can be read",
        found=f"1 others: {folder}/5.png in {folder}/metadata.csv, line 7 (10 bytes that are not a JPEG",
        do="fix or remove",
    )


@pytest.mark.parametrize(
    "name", ["../secret.png", "/{}/secret.png", "below/../../secret.png", "link.png", "linked/secret.png"]
)
def test_an_image_path_that_leaves_the_folder_is_refused(name: str, folder: Path, refused: Refused) -> None:
    """From the root, upwards, or through a link, though the file is there and is a picture."""
    outside = write_pictures(folder.parent, [{"file_name": "secret.png"}])
    (folder / "below").mkdir()
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    bad = {"file_name": name.format(str(outside).strip("/")), "text": "x", "label": "a"}
    refused(
        with_rows(folder, [*pair_rows(), bad]),
        expected=f"paths of images that stay in {folder}, relative to their table",
        found=f"1 that leave it: {bad['file_name']} in metadata.csv, line 26",
        do="copy these images into the folder",
    )


def test_an_absolute_path_into_the_folder_is_refused_too(folder: Path, refused: Refused) -> None:
    """It would lead nowhere on another machine."""
    rows = [row | {"file_name": str(folder / row["file_name"])} for row in pair_rows()]
    refused(with_rows(folder, rows), expected="relative to their table", found="24 that leave it", do="name them")


def test_links_and_dots_that_stay_in_the_folder_are_accepted(folder: Path, pair_settings: PairSettings) -> None:
    (folder / "tables").mkdir()
    (folder / "again.png").symlink_to(folder / "0.png")
    rows = [row | {"file_name": f"../{row['file_name']}"} for row in pair_rows()]
    rows.append({"file_name": "../again.png", "text": "more", "label": "a"})
    with_rows(folder / "tables", rows)
    splits = load_splits(pair_settings(dataset_name=str(folder)), PairModality())
    assert sum(len(split) for _, split in splits.items()) == 25


def test_missing_files_that_metadata_name_are_listed_and_counted(folder: Path, refused: Refused) -> None:
    """The first five with their rows; also names that cannot be files, and folders."""
    (folder / "a_folder").mkdir()
    names = ["a_folder", "gone.png", "0.png/below.png", "x" * 300, "two.png", "three.png", "four.png"]
    rows = [*pair_rows(), *({"file_name": name, "text": "x", "label": "a"} for name in names)]
    listed = [f"{name} in metadata.csv, line {26 + number}" for number, name in enumerate(names[:5])]
    refused(
        with_rows(folder, rows),
        expected="files for all images that column 'file_name' names",
        found=f"7 that do not exist: {', '.join(listed)} and 2 more",
        do="leave the field empty if there is no image",
    )


def test_files_that_no_row_names_are_listed_and_counted(folder: Path, refused: Refused) -> None:
    """Except for hidden files, and files that are not images."""
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs" / "1.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    refused(
        with_rows(folder, pair_rows()[7:]),
        expected=f"for each image below {folder} a row that names it",
        found="7 of 24 that no row names: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more",
        do="add rows for them, or move them elsewhere",
    )


def test_class_folders_alone_have_no_texts(refused: Refused, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", pair_rows(name="cat/{}.png"))
    refused(
        folder,
        expected="tables (",
        found="none",
        do="a metadata.csv beside the images, with the columns file_name, text",
    )


def test_tables_of_which_only_some_name_their_split_are_refused(folder: Path, refused: Refused) -> None:
    """The others would be trained on, or left out, without a message."""
    with_rows(folder, pair_rows()[:12], "train.csv")
    with_rows(folder, pair_rows()[12:], "more.csv")
    refused(folder, expected="that all name their split", found="more.csv, beside others", do="rename these")


def test_a_table_that_lacks_a_column_is_refused(folder: Path, refused: Refused) -> None:
    """Its rows would count as missing."""
    with_rows(folder, pair_rows()[:12], "train.csv")
    with_rows(folder, [{"file_name": r["file_name"], "label": r["label"]} for r in pair_rows()[12:]], "test.csv")
    refused(folder, expected="the same columns in", found="text in only one of them", do="give all tables the same")


@pytest.mark.parametrize(("column", "what", "other"), [("file_name", "image", "text"), ("text", "text", "vision")])
def test_training_rows_that_all_lack_one_of_the_two_are_refused(
    column: str, what: str, other: str, folder: Path, refused: Refused
) -> None:
    rows = [row | {column: None} for row in pair_rows()]
    with_rows(folder, pair_rows(), "test.jsonl")
    refused(
        with_rows(folder, rows, "train.jsonl"),
        **{f"{what}_column_name": column},
        expected=f"training rows with a value in column '{column}'",
        found="no value in any of ",
        do=f"name the right column in --{what}_column_name, or use recipes/{other}.py",
    )


def test_one_column_cannot_be_both(folder: Path, refused: Refused) -> None:
    refused(
        with_rows(folder, pair_rows()),
        text_column_name="file_name",
        expected="two columns for --image_column_name and --text_column_name",
        found="'file_name' for both",
        do="name the other column",
    )


def test_a_text_column_of_numbers_is_refused(folder: Path, refused: Refused) -> None:
    rows = [row | {"text": number} for number, row in enumerate(pair_rows())]
    (folder / "metadata.csv").unlink(missing_ok=True)
    refused(
        with_rows(folder, rows, "metadata.jsonl"),
        expected="text in column 'text'",
        found="values of type int64",
        do="--text_column",
    )


@pytest.mark.parametrize("setting", ["image_column_name", "text_column_name", "label_column_name"])
def test_a_column_that_does_not_exist(setting: str, folder: Path, refused: Refused) -> None:
    refused(
        with_rows(folder, pair_rows()),
        **{setting: "nowhere"},
        expected=f"the column for --{setting}",
        found="no column 'nowhere'; there are ",
        do=f"set --{setting} to one of these",
    )


def test_no_column_of_paths_is_chosen_among_several(folder: Path, refused: Refused) -> None:
    rows = [{"left": r["file_name"], "right": r["file_name"], "text": "x", "label": r["label"]} for r in pair_rows()]
    refused(
        with_rows(folder, rows), expected="the column for --image_column_name", found="left, right", do="set --image"
    )


def paths_of(folder: Path) -> datasets.Dataset:
    """A table with paths into a folder instead of embedded pictures."""
    rows = pair_rows()
    paths = [{"bytes": None, "path": str(folder / row["file_name"])} for row in rows]
    data = datasets.Dataset.from_list(rows).remove_columns("file_name")
    return data.add_column("image", paths, feature=datasets.Image(decode=False))


@pytest.mark.parametrize("declared", [True, False])
def test_an_embedded_image_cannot_be_a_path(declared: bool, folder: Path, refused: Refused, tmp_path: Path) -> None:
    """It would read any file of this machine, whether or not the table declares the column as images."""
    data = paths_of(folder)
    named = data.features.arrow_schema.metadata if declared else None
    pyarrow.parquet.write_table(data.data.table.replace_schema_metadata(named), tmp_path / "a.parquet")
    refused(
        tmp_path / "a.parquet",
        expected="embedded images in column 'image'",
        found=f"in row 0 the path {folder}/0.png",
        do="embed the images with their bytes",
    )


@pytest.mark.parametrize("as_text", [False, True])
def test_a_data_set_of_the_hub_cannot_name_files_here(
    as_text: bool, folder: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as an image nor as a text that names one."""
    data = paths_of(folder)
    if as_text:
        texts = [os.fspath(folder / row["file_name"]) for row in pair_rows()]
        data = data.remove_columns("image").add_column("image", texts)
    monkeypatch.setattr(sources, "_load_from_hub", lambda settings: sources.Loaded(datasets.DatasetDict(train=data)))
    refused(
        "somebody/pairs", expected="embedded images in column 'image'", found=f"in row 0 the path {folder}/0.png",
        do="embed the images with their bytes",
    )  # fmt: skip
