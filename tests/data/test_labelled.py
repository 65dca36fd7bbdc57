"""Names of classes that differ between splits, rows without a label, and splits without any."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from hf_transfer.data.checked import load_splits
from hf_transfer.data.labelled import read_labelled
from hf_transfer.data.splits import Splits
from hf_transfer.errors import UserError
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.data import DataSettings
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.target import LabelColumns
from tests.data.conftest import (
    PairSettings,
    Settings,
    TextSettings,
    text_rows,
    user_error_with,
    write_pictures,
    write_table,
)

IN_MEMORY = "memory:0123456789abcdef"
NAMES = ("ant", "bee", "cat")


def texts(labels: list[Any], feature: Any = None, *, seed: int = 0) -> datasets.Dataset:
    words = [row["text"] for row in text_rows(len(labels), seed=seed)]
    features = datasets.Features({"text": datasets.Value("string"), "label": feature}) if feature else None
    return datasets.Dataset.from_dict({"text": words, "label": labels}, features)


def of(settings: TextSettings, data: dict[str, datasets.Dataset], **chosen: Any) -> Splits:
    return load_splits(settings(dataset_name=IN_MEMORY, **chosen), TextModality(), datasets.DatasetDict(data))


def classes(splits: Splits, split: str) -> list[str]:
    return [splits.target.shown(value) for value in splits.of(split).targets]


def named(*names: str) -> datasets.ClassLabel:
    return datasets.ClassLabel(names=list(names))


@pytest.mark.parametrize("names", [("cat", "bee"), ("cat", "bee", "ant"), ("owl", "cat", "bee")])
def test_texts_pictures_and_pairs_are_read_by_the_names_of_their_own_split(
    names: tuple[str, ...], text_settings: TextSettings, settings: Settings, pair_settings: PairSettings,
    picture_table: Callable[..., datasets.Dataset],
) -> None:  # fmt: skip
    """The test split has the classes cat and bee in turn, whatever its numbers for them are."""
    train, test = [0, 1, 2] * 8, [names.index(name) for name in ("cat", "bee")] * 3
    of_texts = {"train": texts(train, named(*NAMES)), "test": texts(test, named(*names), seed=1)}
    pictures = {"train": picture_table(train, named(*NAMES)), "test": picture_table(test, named(*names), seed=1)}
    pairs = {
        split: datasets.concatenate_datasets([rows, of_texts[split].select_columns(["text"])], axis=1)
        for split, rows in pictures.items()
    }
    for modality, config, data in (
        (TextModality(), text_settings(dataset_name=IN_MEMORY), of_texts),
        (ImageModality(), settings(dataset_name=IN_MEMORY), pictures),
        (PairModality(), pair_settings(dataset_name=IN_MEMORY), pairs),
    ):
        splits = load_splits(config, modality, datasets.DatasetDict(data))
        assert splits.target.names == list(NAMES)
        assert classes(splits, "test") == ["cat", "bee"] * 3


def test_parquet_files_keep_the_names_that_each_has_for_its_numbers(
    text_settings: TextSettings, tmp_path: Path
) -> None:
    for split, names in (("train", NAMES), ("validation", NAMES[::-1]), ("test", NAMES[1:])):
        labels = [names.index(name) for name in ("bee", "cat")] * 4
        labels += [names.index("ant")] * 4 if "ant" in names else []
        texts(labels, named(*names)).to_parquet(tmp_path / f"{split}.parquet")
    splits = load_splits(text_settings(dataset_name=str(tmp_path)), TextModality())
    assert classes(splits, "train") == classes(splits, "validation") == ["bee", "cat"] * 4 + ["ant"] * 4
    assert classes(splits, "test") == ["bee", "cat"] * 4


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        (["x", "y"] * 10, None, "Classes: x, y (values of column 'label')."),
        ([0, 1] * 10, named("x", "y"), "Classes: x, y (names of the feature 'label')."),
        ([["x"], ["y", "x"]] * 10, None, "Labels: x, y (values of column 'label')."),
        ([f"c{n % 25:02}" for n in range(100)], None, "c18, c19 and 5 more (values of column 'label')."),
    ],
)
def test_the_first_lines_name_the_classes_and_where_they_are_from(
    labels: list[Any], feature: Any, expected: str, text_settings: TextSettings
) -> None:
    (_, _, names, *_) = of(text_settings, {"train": texts(labels, feature)}).describe()
    assert names.endswith(expected)


def test_classes_of_folders_are_said_to_be_names_of_folders(settings: Settings, tmp_path: Path) -> None:
    write_pictures(tmp_path, [{"file_name": f"{name}/{n}.png"} for name in ("red", "blue") for n in range(6)])
    splits = load_splits(settings(dataset_name=str(tmp_path)), ImageModality())
    assert splits.describe()[2] == "Classes: blue, red (names of folders)."


def test_labels_of_several_columns_are_named_by_these(text_settings: TextSettings) -> None:
    rows = texts([0, 1] * 10).rename_column("label", "x").add_column("y", [1, 1, 0, 0] * 5)
    splits = of(text_settings, {"train": rows}, label_column_names=["x", "y"])
    assert splits.describe()[2] == "Labels: x, y (names of columns)."


@pytest.mark.parametrize("joined", [True, False])
def test_where_rows_look_like_joined_labels_an_empty_one_may_have_none(
    joined: bool, text_settings: TextSettings
) -> None:
    """Neither part of the joined text is in another row, so that it is taken for a name of a class."""
    data = {"train": texts([*["red; green" if joined else "red", "blue"] * 8, None, None], None)}
    with pytest.raises(UserError, match="--on_missing_label drop") as caught:
        of(text_settings, data)
    assert ("--problem_type multi_label_classification" in str(caught.value)) == joined


@pytest.mark.parametrize(
    ("labels", "feature", "chosen"),
    [
        ([*["a", "b"] * 8, "", None], None, {}),
        ([*[0, 1] * 8, -1, None], named("a", "b"), {}),
        ([*[["a"], ["b", "a"]] * 8, None, None], None, {}),
        ([*[0.25, 0.75, 1.5, 2.5] * 4, None, float("nan")], None, {"problem_type": "regression"}),
    ],
    ids=["names", "class numbers", "lists", "numbers"],
)
def test_rows_without_a_label_are_dropped_and_counted_in_every_split(
    labels: list[Any], feature: Any, chosen: dict[str, Any], text_settings: TextSettings
) -> None:
    """By default they are an error, which names the setting."""
    data = {name: texts(labels, feature, seed=seed) for seed, name in enumerate(("train", "validation", "test"))}
    data["validation"] = data["validation"].select(range(17))
    with user_error_with(
        expected="in every row of column 'label'", found="none in 2 rows of split 'train', first in rows [16, 17]",
        do="or drop them with --on_missing_label drop",
    ):  # fmt: skip
        of(text_settings, data, **chosen)
    splits = of(text_settings, data, on_missing_label="drop", **chosen)
    assert [split.rows.tolist() for _, split in splits.items()] == [list(range(16))] * 3
    assert {name: rows.tolist() for name, rows in splits.dropped.items()} == {
        "train": [16, 17], "validation": [16], "test": [16, 17]
    }  # fmt: skip
    assert "Rows without a label, dropped: 2 in train, 1 in validation, 2 in test." in splits.describe()


def test_after_rows_were_dropped_a_row_is_still_called_by_its_own_number(text_settings: TextSettings) -> None:
    data = {"train": texts([None, *["a", "b"] * 8]), "test": texts([None, None, "a", "c"])}
    with user_error_with(expected="split 'test'", found="'c' in 1 rows, first in row 3", do="rename"):
        of(text_settings, data, on_missing_label="drop")


@pytest.mark.parametrize(
    ("labels", "feature"), [([-1] * 6, None), ([-1] * 6, named("a", "b")), ([None] * 6, None), ([""] * 6, None)]
)
@pytest.mark.parametrize("on_missing_label", ["error", "drop"])
def test_a_test_split_without_labels_is_predicted_and_another_is_split_off(
    labels: list[Any], feature: Any, on_missing_label: str, text_settings: TextSettings
) -> None:
    train = [0, 1] * 20 if feature else ["a", "b"] * 20
    data = {"train": texts(train, feature), "test": texts(labels, feature, seed=1)}
    splits = of(text_settings, data, on_missing_label=on_missing_label)
    assert splits.unlabelled is not None
    assert (splits.unlabelled.name, splits.unlabelled.split.rows.tolist()) == ("test", list(range(6)))
    assert len(splits.test) == 6
    assert not splits.dropped
    assert splits.describe()[1].endswith("test from 15 % of train, split off by content and class.")
    assert splits.notes[0] == "Split test has no labels (6 rows): its predictions are in predictions.csv."


def test_a_test_table_without_the_column_of_labels_is_predicted(text_settings: TextSettings, tmp_path: Path) -> None:
    """As on Kaggle; also with a column that tells rows apart."""
    write_table(tmp_path / "train.csv", [row | {"id": n} for n, row in enumerate(text_rows(40))])
    write_table(tmp_path / "test.csv", [{"text": row["text"], "id": n + 900} for n, row in enumerate(text_rows(5))])
    splits = load_splits(text_settings(dataset_name=str(tmp_path)), TextModality())
    assert splits.unlabelled is not None
    assert splits.unlabelled.keys == {"id": [900, 901, 902, 903, 904]}
    assert [name for name, _ in splits.items()] == ["train", "validation", "test", "unlabelled"]


def test_pictures_and_pairs_without_labels_are_predicted(
    settings: Settings, pair_settings: PairSettings, picture_table: Callable[..., datasets.Dataset]
) -> None:
    pictures = {"train": picture_table([0, 1] * 10), "test": picture_table([0] * 4, seed=1).remove_columns("label")}
    splits = load_splits(settings(dataset_name=IN_MEMORY), ImageModality(), datasets.DatasetDict(pictures))
    assert splits.unlabelled is not None
    assert len(splits.unlabelled.split) == 4
    pairs = {
        split: rows.add_column("text", [row["text"] for row in text_rows(len(rows))])
        for split, rows in pictures.items()
    }  # fmt: skip
    splits = load_splits(pair_settings(dataset_name=IN_MEMORY), PairModality(), datasets.DatasetDict(pairs))
    assert splits.unlabelled is not None
    assert np.isfinite(splits.test.targets).all()


def test_a_test_split_of_which_minus_one_is_a_class_is_no_split_without_labels(text_settings: TextSettings) -> None:
    splits = of(text_settings, {"train": texts([-1, 1] * 20), "test": texts([-1] * 6)})
    assert splits.unlabelled is None
    assert classes(splits, "test") == ["-1"] * 6


@pytest.mark.parametrize("labels", [[None] * 20, [-1] * 20, [""] * 20])
def test_a_training_split_without_labels_is_refused(labels: list[Any], text_settings: TextSettings) -> None:
    with user_error_with(expected="a labelled split 'train'", found="of its 20 rows", do="hf-transfer predict"):
        of(text_settings, {"train": texts(labels)}, on_missing_label="drop")


def test_similar_names_are_reported_with_their_counts(text_settings: TextSettings) -> None:
    splits = of(text_settings, {"train": texts([*["ham"] * 10, *["Ham"] * 6, *["spam"] * 8])})
    assert any("'Ham' (6 samples) and 'ham' (10 samples)" in note for note in splits.notes)


def test_long_texts_without_labels_are_not_in_memory_all_at_once() -> None:
    """To learn which columns tell rows apart, a few rows of a column of texts are enough."""
    long = [f"{number} " + "word " * 4_000 for number in range(1_000)]
    test = datasets.Dataset.from_dict({"text": long, "id": range(len(long)), "label": [None] * len(long)})
    data = {"train": texts(["a", "b"] * 20), "test": test}
    samples = {name: rows.select_columns(["text"]) for name, rows in data.items()}
    settings = DataSettings(dataset_name=IN_MEMORY)
    tracemalloc.start()
    labelled = read_labelled(data, samples, Classes, LabelColumns(("label",)), settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert labelled.unlabelled is not None
    assert labelled.unlabelled.keys == {"id": list(range(len(long)))}
    assert peak < 0.5 * sum(map(len, long))
