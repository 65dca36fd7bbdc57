"""Folders of classes: what is a class, what is a split, and what is not read, for pictures and for texts."""

import shutil
from pathlib import Path

import datasets
import pytest

from hf_transfer.data.files import walk
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.sample_tables import file_text
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.run import TextConfig, VisionConfig
from tests.data.conftest import user_error_with
from tests.data.small_folders import (
    Read,
    Write,
    counts,
    fill,
    read_pictures,
    read_texts,
    total,
    write_picture,
    write_text,
)  # fmt: skip

KINDS: list[tuple[Write, Read]] = [(write_picture, read_pictures), (write_text, read_texts)]
both_kinds = pytest.mark.parametrize(("write", "read"), KINDS, ids=["pictures", "texts"])


@both_kinds
@pytest.mark.parametrize(
    ("folders", "classes", "below"),
    [
        (["oak/camera_1", "oak/camera_2", "elm/camera_1"], {"oak": 10, "elm": 5}, "camera_1, camera_2"),
        (["ill/p1/left", "ill/p1/right", "well/p2/left"], {"ill": 10, "well": 5}, "p1, p2"),
        (["a/2021", "a/2022", "b/2021", "b/2022", "c"], {"a": 10, "b": 10, "c": 5}, "2021, 2022"),
        (["a/new york", "b/bonn"], {"a": 5, "b": 5}, "bonn, new york"),
    ],
)
def test_a_class_is_the_outer_folder_and_folders_below_it_are_named(
    folders: list[str], classes: dict[str, int], below: str, write: Write, read: Read, tmp_path: Path
) -> None:
    splits = read(fill(tmp_path / "data", *folders, write=write))
    assert total(splits) == classes
    note = f"Classes are the folders directly in {tmp_path / 'data'}; the folders below them ({below}) are not."
    assert any(one.startswith(note) for one in splits.notes)


@both_kinds
@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (["day1/oak", "day1/elm", "day2/oak", "day2/elm"], "the folders day1, day2, which look like a series"),
        (["2021-05/x", "2021-05/y", "2021-06/x", "2021-06/y", "2021-07/y"], "which look like a series"),
        (["seg_train/x", "seg_train/y", "seg_test/x", "seg_test/y", "seg_pred"], "which look like splits"),
        (["train/x", "train/y", "test/x", "test/y", "extra/x"], "which look like splits"),
    ],
)
def test_sessions_or_splits_above_classes_are_refused_with_the_choice(
    folders: list[str], found: str, write: Write, read: Read, tmp_path: Path
) -> None:
    with user_error_with(expected="a folder for each class in", found=found, do="is a class: make it an outer folder"):
        read(fill(tmp_path / "data", *folders, write=write))


def test_the_advice_on_sessions_above_classes_works(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "day1/oak", "day1/elm", "day2/oak", "day2/elm")
    for session in ("day1", "day2"):
        for name in ("oak", "elm"):
            (root / name).mkdir(exist_ok=True)
            (root / session / name).rename(root / name / session)
        (root / session).rmdir()
    assert total(read_pictures(root)) == {"oak": 10, "elm": 10}


@both_kinds
@pytest.mark.parametrize(
    "names", [("Train", "VAL", "Test"), ("training", "dev", "testing"), ("TRAIN", "Valid", "eval")]
)
def test_folders_that_are_all_splits_are_splits(
    names: tuple[str, str, str], write: Write, read: Read, tmp_path: Path
) -> None:
    folders = [f"{split}/{name}" for split in names for name in ("x", "y")]
    splits = read(fill(tmp_path / "data", *folders, write=write))
    assert counts(splits) == {split: {"x": 5, "y": 5} for split in ("train", "validation", "test")}


@both_kinds
@pytest.mark.parametrize("names", [("val", "peak"), ("train", "ship", "plane"), ("eval", "Dev_kit", "exam")])
def test_a_class_may_be_called_like_a_split_beside_others(
    names: tuple[str, ...], write: Write, read: Read, tmp_path: Path
) -> None:
    assert total(read(fill(tmp_path / "data", *names, write=write))) == dict.fromkeys(names, 5)


@pytest.mark.parametrize("name", ["dev.png", "test-1.png", "valid_train.png"])
def test_names_of_pictures_say_no_split(name: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "x", "y")
    write_picture(root / "x" / name, 999)
    assert total(read_pictures(root)) == {"x": 6, "y": 5}


@pytest.mark.parametrize("wrapper", ["pets", "archive/pets", "images"])
def test_a_single_folder_above_all_others_is_no_class(wrapper: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "data", f"{wrapper}/x", f"{wrapper}/y")
    splits = read_pictures(root)
    assert total(splits) == {"x": 5, "y": 5}
    assert f"Classes and splits are the folders in {root / wrapper}, the only one in {root}." in splits.notes


def test_splits_below_classes_are_splits(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", *(f"{name}/{split}" for name in "xyz" for split in ("Train", "val", "test")))
    splits = read_pictures(root)
    assert counts(splits) == {split: {"x": 5, "y": 5, "z": 5} for split in ("train", "validation", "test")}
    assert f"Splits are the folders below those of the classes in {root}: train, test, val." in splits.notes


def test_pictures_of_a_split_without_classes_do_not_take_the_labels_of_others(tmp_path: Path) -> None:
    """They have no labels, as the rows of a table whose labels are withheld."""
    loaded = ImageModality().read(
        fill(tmp_path / "data", "train/x", "train/y", "test"),
        VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o"),
    )
    assert loaded.data["train"]["label"][:] == [0] * 5 + [1] * 5
    assert loaded.data["test"]["label"][:] == [None] * 5
    assert any(note.startswith("The split test has no labels: its 5 images") for note in loaded.notes)


@pytest.mark.parametrize("suffix", [".svg", ".CR2", ".jxl"])
def test_pictures_that_are_not_read_are_counted_by_suffix(suffix: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "x", "y")
    for number in range(3):
        (root / "x" / f"a{number}{suffix}").write_bytes(b"any")
    (root / "empty").mkdir()
    notes = read_pictures(root).notes
    assert f"Not used: 3 images of {suffix.lower()}, which are not read, such as {root}/x/a0{suffix}." in notes
    assert f"Not used: empty in {root}, without any images." in notes


@pytest.mark.parametrize("below", ["fox", "train/fox", "fox/day1"])
def test_a_class_of_which_no_picture_is_read_is_named(below: str, tmp_path: Path) -> None:
    top = "train/" if below.startswith("train") else ""
    root = fill(tmp_path / "data", f"{top}x", f"{top}y", below, count=4)
    for picture in (root / below).iterdir():
        picture.rename(picture.with_suffix(".svg"))
    with user_error_with(
        expected="in each class folder in", found="none in fox, but 4 images of .svg", do="convert them"
    ):
        read_pictures(root)


def test_a_folder_of_pictures_that_are_not_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "data" / "x").mkdir(parents=True)
    (tmp_path / "data" / "x" / "1.svg").write_bytes(b"any")
    with user_error_with(expected="images (", found="1 images of .svg, which are not read", do="convert them"):
        read_pictures(tmp_path / "data")


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX/x", "x/@eaDir", ".x", "y/.thumbs"])
def test_hidden_folders_are_not_read(hidden: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "x", "y", hidden)
    for name in ("Thumbs.db", ".DS_Store", "x/._1.png", "desktop.ini"):
        (root / name).write_bytes(b"any")
    splits = read_pictures(root)
    assert total(splits) == {"x": 5, "y": 5}
    is_noted = hidden in (".x", "y/.thumbs")
    assert (f"Not used, since they are hidden: {root / hidden}." in splits.notes) == is_noted


def test_links_to_files_and_folders_are_followed_once_and_loops_are_noted(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "x", "y")
    fill(tmp_path / "elsewhere", "z")
    (root / "x" / "linked.png").symlink_to(tmp_path / "elsewhere" / "z" / "0.png")
    (root / "z").symlink_to(tmp_path / "elsewhere" / "z")
    (root / "y" / "above").symlink_to(root)
    (root / "x" / "root").symlink_to("/")
    (root / "x" / "itself.png").symlink_to(root / "x" / "itself.png")
    (root / "x" / "itself.png").unlink()
    splits = read_pictures(root)
    assert total(splits) == {"x": 6, "y": 5, "z": 5}
    links = f"{root}/x/root, {root}/y/above."
    assert f"Links that were not followed, since they lead to folders that are read already: {links}" in splits.notes


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
    for name in "abcdefgh":
        for other in "abcdefgh":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    tree = walk(tmp_path)
    assert len(tree.folders) == 8
    assert len(tree.not_followed) == 64


@pytest.mark.parametrize("broken", ["gone.png", "itself.png"])
def test_a_link_that_leads_nowhere_is_a_picture_that_cannot_be_read(broken: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "x", "y")
    (root / "x" / broken).symlink_to(root / "x" / ("itself.png" if broken == "itself.png" else "nowhere.png"))
    with user_error_with(expected="images that can be read", found=f"{root}/x/{broken} (", do="fix or remove"):
        read_pictures(root)


def test_the_origin_of_each_row_is_its_file(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/x", "train/y", "test/x", "test/y")
    config = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o")
    loaded = ImageModality().read(root, config)
    for split in ("train", "test"):
        paths = [
            image["path"] for image in loaded.data[split].cast_column("image", datasets.Image(decode=False))["image"]
        ]
        assert [loaded.origins[split].of(row) for row in range(10)] == [(path, None) for path in paths]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_files_of_text_have_the_encoding_that_is_named(encoding: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "x", "y", write=write_text)
    for file in root.rglob("*.txt"):
        file.write_bytes((file.read_text() + " façade").encode(encoding))
    config = TextConfig.of(model_name_or_path="m", dataset_name=str(root), output_dir="o", encoding=encoding)
    texts = TextModality().read(root, config).data["train"]["text"][:]
    assert all(text.endswith(" façade") for text in texts)
    if encoding == "utf-16":
        # The mark at its beginning tells.
        assert all(text.endswith(" façade") for text in read_texts(root).train.dataset["text"])
        return
    with user_error_with(expected="text in utf-8 in", found="line 1: byte 0x", do="--encoding cp1252"):
        read_texts(root)


def test_classes_of_folders_of_text_are_said_to_be_names_of_folders(tmp_path: Path) -> None:
    assert read_texts(fill(tmp_path, "x", "y", write=write_text)).names == ["Classes: x, y (names of folders)."]


def test_the_advice_for_files_of_text_in_one_folder_names_columns_of_a_table_of_texts(tmp_path: Path) -> None:
    """And works: a table comes before files, which a note says."""
    fill(tmp_path, "train", write=write_text)
    with user_error_with(expected="of at least 2 classes", found="in one folder", do="with the columns text and label"):
        read_texts(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{n},{'ab'[n % 2]}\n" for n in range(20)))
    splits = read_texts(tmp_path)
    assert splits.target.names == ["a", "b"]
    assert f"Not used, since tables come before them: 5 files, such as {tmp_path}/train/0.txt." in splits.notes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("info.json", '{"schema": {"primaryKey": ["i"]}, "data": [[1, 2]]}'), ("train_val.csv", "a,b\n1,2\n"),
        ("info.json", '{"columns": ["a", "b"], "data": [1, 2]}'), ("labels.csv", "file_name,label\n0.png,y\n"),
        ("labels.csv", "file_name,label\nx/0.png,\nx/1.png,x\n"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_used_does_not_stop_a_folder_of_pictures(name: str, content: str, tmp_path: Path) -> None:
    """Also if it cannot be read, says two splits, or has names that several pictures have."""
    fill(tmp_path, "x", "y")
    (tmp_path / name).write_text(content)
    splits = read_pictures(tmp_path)
    assert total(splits) == {"x": 5, "y": 5}
    assert f"Not used, since folders or other tables name the classes: {tmp_path / name}." in splits.notes


def test_metadata_beside_another_table_of_texts_are_noted(tmp_path: Path) -> None:
    for name in ("train.csv", "metadata.csv"):
        (tmp_path / name).write_text("text,label\n" + "".join(f"{name}{n},{'ab'[n % 2]}\n" for n in range(20)))
    splits = read_texts(tmp_path)
    assert total(splits) == {"a": 10, "b": 10}
    assert f"Not used, since tables come before them: 1 files, such as {tmp_path}/metadata.csv." in splits.notes


@pytest.mark.parametrize("suffix", ["zip", "tar", "gztar", "bztar"])
def test_an_archive_among_pictures_is_refused_whatever_its_kind(suffix: str, tmp_path: Path) -> None:
    fill(tmp_path / "data", "x", "y")
    archive = shutil.make_archive(str(tmp_path / "data" / "x" / "more"), suffix, tmp_path / "data" / "y")
    with user_error_with(expected="data that are not compressed", found=archive, do="move the archive elsewhere"):
        read_pictures(tmp_path / "data")
    Path(archive).rename(tmp_path / Path(archive).name)
    assert total(read_pictures(tmp_path / "data")) == {"x": 5, "y": 5}


def test_a_saved_data_set_beside_what_macos_leaves_is_read(tmp_path: Path) -> None:
    rows = {"text": [f"t{n}" for n in range(20)], "label": ["a", "b"] * 10}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "data" / "saved")
    (tmp_path / "data" / "__MACOSX").mkdir()
    assert total(read_texts(tmp_path / "data")) == {"a": 10, "b": 10}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_file_of_text_is_the_same_in_training_and_in_prediction(encoding: str, ends: str, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.txt").write_bytes(f"né {name}{number}{ends}and more{ends}".encode(encoding))
    chosen = {"encoding": "cp1252"} if encoding == "cp1252" else {}
    learned = read_texts(tmp_path, **chosen).train.dataset["text"][:]
    asked = [file_text(file, {}, chosen) for file in sorted(tmp_path.rglob("*.txt"))]
    assert sorted(learned) == sorted(text for text, _ in asked)
    assert all("\r" not in text and text.startswith("né ") and not fault for text, fault in asked)
