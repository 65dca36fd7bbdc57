"""Folders of pictures with any names: each picture is read with its label, or a message says why it is not."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_transfer.data.checked import load_splits
from hf_transfer.data.rows import encoded_image
from hf_transfer.data.splits import Splits
from hf_transfer.errors import UserError
from hf_transfer.modalities.image import ImageModality
from hf_transfer.settings.run import VisionConfig
from tests.conftest import DRAWN_ONLY
from tests.data.conftest import encoded, noise, user_error_with

PICTURES = [encoded(Image.fromarray(pixels)) for pixels in noise(12, 4, 4, 3)]
# Names that begin like this can be hidden; names of splits and signs of patterns have tests of their own.
SKIPPED = ("__", ".")
SPLIT_WORDS = ("train", "valid", "dev", "val", "test", "eval")
LETTERS = st.characters(codec="utf-8", exclude_characters="/\\\0")
ORDINARY = st.one_of(
    st.sampled_from(["a b", "ü", "e\u0301", "\U0001f600", "a.png", "%20", "~", "$x", "{a}", "'\"", "-x", "a\nb", "#"]),
    st.text(LETTERS, min_size=1, max_size=8),
).filter(
    lambda name: (
        not name.startswith(SKIPPED) and "::" not in name and not any(word in name.lower() for word in SPLIT_WORDS)
    )
)
HOSTILE = st.sampled_from([
    "__x", ".hidden", "a::b", "zip:", "file:", "*", "?", "a[1]", "]", "\\", "..a", "test", "train", "test_1", "dev-1",
    "logs", "data", "a.eval", "Training", "validation set",
])  # fmt: skip
MIXED = ORDINARY | HOSTILE


def write(folder: Path, classes: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """A picture of each name in each class; what is expected: paths with classes."""
    labels = {}
    contents = iter(PICTURES)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for file in files:
            path = folder / name / f"{file}.png"
            path.write_bytes(next(contents))
            labels[str(path)] = name
    return labels


def read(folder: Path) -> Splits:
    config = VisionConfig.of(
        model_name_or_path="m", dataset_name=str(folder), output_dir="o", cache_dir=str(folder.parent / "cache")
    )
    return load_splits(config, ImageModality())


def labels_of(splits: Splits) -> dict[str, str]:
    """What was read: paths with classes."""
    return {
        encoded_image(split, row)["path"]: splits.target.names[label]
        for split in (splits.train, splits.validation, splits.test)
        for row, label in zip(split.rows.tolist(), split.targets.tolist(), strict=True)
    }


@given(st.lists(ORDINARY, min_size=2, max_size=3, unique=True), st.lists(ORDINARY, min_size=3, max_size=4, unique=True))
@settings(max_examples=15, phases=DRAWN_ONLY)
def test_each_picture_has_the_name_of_its_folder_as_its_label(classes: list[str], files: list[str]) -> None:
    with TemporaryDirectory() as made:
        expected = write(Path(made) / "data", classes, files)
        splits = read(Path(made) / "data")
        assert labels_of(splits) == expected
        assert splits.target.names == sorted(classes)
        assert not any("Not used" in note for note in splits.notes)


FEW, SOME = st.lists(MIXED, min_size=2, max_size=3, unique=True), st.lists(MIXED, min_size=3, max_size=4, unique=True)


@given(MIXED, FEW, SOME)
@settings(max_examples=30, phases=DRAWN_ONLY)
def test_misleading_names_are_read_correctly_or_refused_or_noted(
    root: str, classes: list[str], files: list[str]
) -> None:
    """No picture is skipped without a note."""
    with TemporaryDirectory() as made:
        expected = write(Path(made) / root, classes, files)
        try:
            splits = read(Path(made) / root)
        except UserError:
            return
        labels = labels_of(splits)
        assert labels.items() <= expected.items()
        lost = {path for path in expected.keys() - labels.keys() if not Path(path).name.startswith(".")}
        noted = "".join(note for note in splits.notes if note.startswith("Not used, since they are hidden: "))
        assert all(Path(path).parent.name in noted for path in lost)


def test_folders_beside_those_of_splits_are_refused_where_both_have_the_same_classes(tmp_path: Path) -> None:
    """Also where the folder is named by a path of several parts."""
    for split in ("train", "test", "more"):
        write(tmp_path / "data" / split, ["cat", "dog"], ["1", "2", "3"])
    with user_error_with(
        expected=f"a folder for each class in {tmp_path / 'data'}",
        found="the folders more, test, train, which look like splits, and in several of them cat, dog",
        do="name all outer folders train, validation or test",
    ):
        read(tmp_path / "data" / ".." / "data")


def test_a_picture_beside_the_folders_of_splits_is_noted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data" / split, ["cat", "dog"], ["1", "2", "3"])
    (tmp_path / "data" / "preview.png").write_bytes(PICTURES[-1])
    note = f"Not used, since they are in no split: 1 images, such as {tmp_path / 'data/preview.png'}."
    assert note in read(tmp_path / "data").notes


def write_metadata(folder: Path, kind: str, labels: Mapping[str, str]) -> None:
    """Pictures in one folder, and a file that has their labels."""
    folder.mkdir(parents=True)
    rows = [{"file_name": name, "label": label} for name, label in labels.items()]
    for name, content in zip(labels, PICTURES, strict=False):
        (folder / name).write_bytes(content)
    with (folder / f"metadata.{kind}").open("w", encoding="utf-8", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, ["file_name", "label"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


LABELS = st.sampled_from(["01", "1", "1.0", "None", "NA", "nan", "TRUE", "True", "1e3", "10:30", " a", 'a"b', "a,b"])


@given(
    st.sampled_from(["csv", "jsonl"]),
    st.lists(LABELS | st.text(LETTERS, min_size=1, max_size=4), min_size=2, max_size=3, unique=True),
)
@settings(max_examples=15, phases=DRAWN_ONLY)
@example("csv", ["01", "2"])
@example("csv", ["nan", "x"])
def test_labels_of_a_metadata_file_are_read_as_they_are_written(kind: str, labels: list[str]) -> None:
    """The guesses of pandas never become classes of a model."""
    named = {f"{number}.png": labels[number % len(labels)] for number in range(4 * len(labels))}
    with TemporaryDirectory() as made:
        write_metadata(Path(made) / "data", kind, named)
        splits = read(Path(made) / "data")
        assert {Path(path).name: label for path, label in labels_of(splits).items()} == named


@pytest.mark.parametrize("labels", [("01", "1"), ("NA", "b"), ("TRUE", "False")])
def test_labels_that_look_like_other_values_stay_as_they_are_written(labels: tuple[str, str], tmp_path: Path) -> None:
    write_metadata(tmp_path / "data", "csv", {f"{number}.png": labels[number % 2] for number in range(8)})
    assert read(tmp_path / "data").target.names == sorted(labels)


def test_whole_numbers_of_a_metadata_file_are_classes_also_where_a_label_is_missing(tmp_path: Path) -> None:
    """pandas would make 1.0 of 1."""
    labels = {f"{number}.png": str(number % 2) for number in range(8)}
    write_metadata(tmp_path / "whole", "csv", labels)
    assert read(tmp_path / "whole").target.names == ["0", "1"]
    write_metadata(tmp_path / "missing", "csv", labels | {"3.png": ""})
    with user_error_with(expected="a label in every row", found="metadata.csv, line 5", do="fill in"):
        read(tmp_path / "missing")
