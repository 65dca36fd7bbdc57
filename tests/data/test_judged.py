"""The samples on which a finished model is judged: all that there are, matched by name."""

from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from hf_transfer.data.judged import load_judged
from hf_transfer.data.splits import Splits
from hf_transfer.modalities.text import TextModality
from tests.data.conftest import TextSettings, user_error_with
from tests.data.test_labelled import IN_MEMORY, classes, named, texts

NAMES = ("owl", "ant", "bee")


def model(*names: str, problem_type: str | None = None) -> Any:
    """The configuration of a model with these outputs."""
    return SimpleNamespace(id2label=dict(enumerate(names)), problem_type=problem_type)


def judged(settings: TextSettings, data: dict[str, datasets.Dataset], config: Any = None, **chosen: Any) -> Splits:
    named = settings(dataset_name=IN_MEMORY, evaluate_only=True, **chosen)
    return load_judged(named, TextModality(), config or model(*NAMES), datasets.DatasetDict(data))


@pytest.mark.parametrize("name", ["train", "validation", "test", "dev", "training"])
def test_the_only_split_is_judged_whole(name: str, text_settings: TextSettings) -> None:
    splits = judged(text_settings, {name: texts(["ant", "bee", "owl"] * 100)})
    assert [(split, len(rows)) for split, rows in splits.items()] == [("test", 300)]
    assert splits.test.rows.tolist() == list(range(300))
    assert any(note.startswith("Judged: all 300 rows of split ") for note in splits.notes)


def test_test_and_validation_are_judged_whole_and_training_is_not(text_settings: TextSettings) -> None:
    counts = {"train": 30, "validation": 12, "test": 21}
    data = {name: texts(["ant", "bee", "owl"] * (count // 3), seed=count) for name, count in counts.items()}
    splits = judged(text_settings, data)
    assert {name: len(split) for name, split in splits.items()} == counts
    assert splits.judged() == ["validation", "test"]
    assert (
        "Judged: all 21 rows of split test and all 12 rows of split validation; split train serves the baseline alone."
        in splits.notes
    )


def test_without_a_test_split_validation_is_judged_in_its_place(text_settings: TextSettings) -> None:
    splits = judged(text_settings, {"train": texts(["ant", "bee"] * 9), "validation": texts(["bee", "owl"] * 4)})
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "test": 8}
    assert any("in the place of test" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (texts(["bee", "ant", "bee"]), ["bee", "ant", "bee"]),
        (texts([0, 1, 0], named("bee", "ant")), ["bee", "ant", "bee"]),
        (texts([2, 3, 2], named("a", "b", "bee", "owl")), ["bee", "owl", "bee"]),
        (texts(["ant"]), ["ant"]),
    ],
    ids=["some of the classes", "another order", "more names than rows have", "one class"],
)
def test_classes_are_matched_with_those_of_the_model_by_name(
    rows: datasets.Dataset, expected: list[str], text_settings: TextSettings
) -> None:
    splits = judged(text_settings, {"test": rows})
    assert splits.target.names == list(NAMES)
    assert classes(splits, "test") == expected
    assert splits.describe()[1].startswith("Classes: owl, ant, bee (those of the model, matched with ")
    assert "In test no sample has the class" in " ".join(splits.notes)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (texts(["bee", "cow", "cow"]), "'cow' in 2 rows, first in row 1 of split 'test'"),
        (texts([0, 1], named("bee", "cow")), "'cow' in 1 rows, first in row 1 of split 'test'"),
        (texts(["bee", "Owl"]), "'Owl' in 1 rows, first in row 1 of split 'test', and 'owl' is among them"),
        (texts([0, 1]), "'0' in 1 rows, first in row 0 of split 'test'"),
    ],
)
def test_a_class_that_the_model_does_not_have_is_named(
    rows: datasets.Dataset, found: str, text_settings: TextSettings
) -> None:
    with user_error_with(
        expected="only classes that the model has (owl, ant, bee)", found=found, do="name the folder OUT/model of a run"
    ):
        judged(text_settings, {"test": rows})


@pytest.mark.parametrize(
    ("labels", "cells"),
    [
        ([["bee"], [], ["ant", "owl"]], [[0, 0, 1], [0, 0, 0], [1, 1, 0]]),
        (["bee", "", "ant;owl"], [[0, 0, 1], [0, 0, 0], [1, 1, 0]]),
        ([["ant"], ["ant"]], [[0, 1, 0], [0, 1, 0]]),
    ],
)
def test_labels_are_matched_by_name(labels: list[Any], cells: Any, text_settings: TextSettings) -> None:
    config = model(*NAMES, problem_type="multi_label_classification")
    splits = judged(text_settings, {"test": texts(labels)}, config, label_separator=";")
    assert splits.test.targets.tolist() == cells


@pytest.mark.parametrize("present", [["bee", "owl"], ["bee"]])
def test_of_labels_whose_columns_the_data_lack_nothing_is_known(
    present: list[str], text_settings: TextSettings
) -> None:
    rows = texts([0, 1, 1]).remove_columns("label")
    for name in present:
        rows = rows.add_column(name, [0, 1, 1])
    config = model(*NAMES, problem_type="multi_label_classification")
    splits = judged(text_settings, {"test": rows}, config, label_column_names=["ant", "bee", "owl"])
    known = [name in present for name in NAMES]
    assert (~np.isnan(splits.test.targets)).all(0).tolist() == known
    assert any(note.startswith("Not judged, since the data have no such column: ant") for note in splits.notes)


def test_numbers_are_matched_by_name(text_settings: TextSettings) -> None:
    rows = texts([0, 1, 2]).rename_column("label", "width").add_column("height", [5, 6, 7])
    config = model("height", "width", problem_type="regression")
    splits = judged(text_settings, {"test": rows}, config, label_column_names=["width", "height"])
    assert splits.test.targets.tolist() == [[5, 0], [6, 1], [7, 2]]


def test_rows_and_splits_without_labels_are_dropped_and_predicted_here_too(text_settings: TextSettings) -> None:
    data = {"validation": texts(["ant", None, "bee"]), "test": texts([None] * 4)}
    splits = judged(text_settings, data, on_missing_label="drop")
    assert splits.test.rows.tolist() == [0, 2]
    assert splits.unlabelled is not None
    assert len(splits.unlabelled.split) == 4


def test_data_without_any_label_cannot_be_judged(text_settings: TextSettings) -> None:
    with user_error_with(expected="a labelled split 'test'", found="no label in", do="hf-transfer predict"):
        judged(text_settings, {"test": texts([None] * 4)})


def test_splits_of_other_names_are_refused(text_settings: TextSettings) -> None:
    with user_error_with(expected="a split named train, validation, test", found="the splits extra", do="rename"):
        judged(text_settings, {"extra": texts(["ant"])})
