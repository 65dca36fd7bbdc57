"""Columns are chosen by name in any case and by usual synonyms, where there is no doubt; the choice is noted."""

from pathlib import Path
from typing import Any

import pytest

from hf_transfer.data.checked import load_splits
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.text import TextModality
from tests.data.conftest import (
    PairSettings,
    Settings,
    TextSettings,
    pair_rows,
    text_rows,
    user_error_with,
    write_pictures,
    write_table,
)


def renamed(rows: list[dict[str, Any]], **names: str) -> list[dict[str, Any]]:
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Text", "LABEL"), ("Review", "Sentiment"), ("tweet", "target"), ("message", "Category"), ("SMS", "Class"),
        ("review_text", "y"), ("Comment Text", "class-name"), ("words", "Labels"),
    ],
)  # fmt: skip
def test_texts_and_labels_are_found_by_usual_names(
    text: str, label: str, kind: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    """Beside a column of numbers that has no role."""
    rows = renamed([row | {"length": len(row["text"])} for row in text_rows()], text=text, label=label)
    splits = load_splits(text_settings(dataset_name=str(write_table(tmp_path / f"a.{kind}", rows))), TextModality())
    assert splits.columns["text_column_name"] == text
    assert splits.columns["label_column_name"] == label
    assert f"Column {text!r} is taken for --text_column_name." in splits.notes
    assert f"Column {label!r} is taken for --label_column_name." in splits.notes


def test_plain_names_come_first_and_are_not_noted(text_settings: TextSettings, tmp_path: Path) -> None:
    rows = [row | {"review": "other", "category": "x"} for row in text_rows()]
    splits = load_splits(text_settings(dataset_name=str(write_table(tmp_path / "a.csv", rows))), TextModality())
    assert (splits.columns["text_column_name"], splits.columns["label_column_name"]) == ("text", "label")
    assert not any("is taken for" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ({"text": "review", "label": "label"}, "review and message"),
        ({"text": "Text", "label": "label", "message": "TEXT"}, "Text and TEXT"),
        ({"text": "text", "label": "category", "message": "class"}, "category and class"),
    ],
)
def test_columns_that_both_could_be_it_are_named(
    names: dict[str, str], found: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    rows = renamed([row | {"message": f"{row['text']} m"} for row in text_rows()], **names)
    path = write_table(tmp_path / "a.csv", rows)
    setting = "label_column_name" if "category" in names.values() else "text_column_name"
    with user_error_with(expected=f"the column for --{setting}", found=f"of which {found} could be it", do="set --"):
        load_splits(text_settings(dataset_name=str(path)), TextModality())
    chosen = load_splits(text_settings(dataset_name=str(path), **{setting: found.split()[0]}), TextModality())
    assert chosen.columns[setting] == found.split()[0]


@pytest.mark.parametrize("names", [("a", "b", "c"), ("first", "second", "kind"), ("q", "r", "s")])
def test_missing_texts_and_labels_are_reported_together(
    names: tuple[str, str, str], text_settings: TextSettings, tmp_path: Path
) -> None:
    first, second, label = names
    rows = [{first: row["text"], second: row["text"], label: row["label"]} for row in text_rows()]
    path = write_table(tmp_path / "a.csv", rows)
    with user_error_with(
        expected="the column for --text_column_name, and the column for --label_column_name",
        found=f"the columns {', '.join(names)}",
        do="set --text_column_name to one of these, and set --label_column_name to one of these",
    ):
        load_splits(text_settings(dataset_name=str(path)), TextModality())
    chosen = {"text_column_name": first, "label_column_name": label}
    assert len(load_splits(text_settings(dataset_name=str(path), **chosen), TextModality()).train) == 28


def test_settings_that_name_missing_columns_are_reported_together(text_settings: TextSettings, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", text_rows())
    with user_error_with(
        expected="the column for --text_column_name, and the column for --label_column_name",
        found="no column 'words'; there are text, label; no column 'kind'",
        do="set --text_column_name to one of these, and",
    ):
        config = text_settings(dataset_name=str(path), text_column_name="words", label_column_name="kind")
        load_splits(config, TextModality())


@pytest.mark.parametrize("column", ["Image", "file_name", "FileName", "image_path", "Path", "id", "what"])
def test_a_column_of_paths_is_found(
    column: str, settings: Settings, pair_settings: PairSettings, tmp_path: Path
) -> None:
    """By its name, or else as the only one whose first value ends as the name of a picture does."""
    rows = pair_rows(20)
    write_pictures(tmp_path, rows)
    path = write_table(tmp_path / "a.csv", renamed(rows, file_name=column))
    pairs = load_splits(pair_settings(dataset_name=str(path)), PairModality())
    assert pairs.columns["image_column_name"] == column
    absolute = [{column: str(tmp_path / row["file_name"]), "label": row["label"]} for row in rows]
    path = write_table(tmp_path / "b.csv", absolute)
    images = load_splits(settings(dataset_name=str(path)), ImageModality())
    assert images.columns["image_column_name"] == column
    noted = f"Column {column!r} is taken for --image_column_name."
    assert (noted in images.notes) == (noted in pairs.notes) == (column != "file_name")


@pytest.mark.parametrize("wanted", ["label", " label", "label "])
def test_spaces_around_a_name_do_not_count(wanted: str, text_settings: TextSettings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text , label \n" + "".join(f"{r['text']},{r['label']}\n" for r in text_rows()))
    splits = load_splits(text_settings(dataset_name=str(tmp_path / "a.csv"), label_column_name=wanted), TextModality())
    assert splits.target.names == ["a", "b"]
