"""From a name to checked splits of pairs: images and texts stay together, and either may be missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_transfer.data import sources
from hf_transfer.data.checked import load_splits
from hf_transfer.data.pictures import content
from hf_transfer.data.rows import encoded_image, is_given, texts_of
from hf_transfer.data.splits import Splits
from hf_transfer.modalities.pair import PairModality
from tests.data.conftest import PairSettings, encoded, noise, pair_rows, raw_bytes, write_pictures, write_table

Known = tuple[bytes | None, str | None, str]
KINDS = ["csv", "tsv", "json", "jsonl", "parquet"]


def pairs_of(splits: Splits, *names: str) -> list[Known]:
    """Contents of the image, text and class of every row, sorted; of all splits unless some are named."""
    known: list[Known] = []
    for name, split in splits.items():
        for row, (text,), label in zip(split.rows.tolist(), texts_of(split), split.targets.tolist(), strict=True):
            if not names or name in names:
                raw = encoded_image(split, row)
                image = None if raw["bytes"] is None and raw["path"] is None else content(raw)
                known.append((image, text, splits.target.names[label]))
    return sorted(known, key=repr)


def written(folder: Path, rows: list[dict[str, Any]], column: str = "file_name") -> list[Known]:
    """The rows of a table in a folder, read without our library."""
    pairs = [((folder / row[column]).read_bytes() if row[column] else None, row["text"], row["label"]) for row in rows]
    return sorted(pairs, key=repr)


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_beside_the_pictures_give_pairs_that_stay_together(
    kind: str, pair_settings: PairSettings, tmp_path: Path
) -> None:
    """In whichever split they land: 15 % of each class of 20 for test, 15 % of the 17 left for validation."""
    rows = pair_rows(40, name="below/{}.png")
    folder = write_pictures(tmp_path / "data", rows)
    write_table(folder / f"metadata.{kind}", rows)
    splits = load_splits(pair_settings(dataset_name=str(folder)), PairModality())
    assert pairs_of(splits) == written(folder, rows)
    assert splits.describe() == [
        "28 train, 6 validation, 6 test pairs of 2 classes.",
        f"Splits: train from metadata.{kind}; validation from 15 % of train, split off by content and class; "
        "test from 15 % of train, split off by content and class.",
        "Classes: a, b (values of column 'label').",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", ["photo", "image"])
def test_paths_in_a_table_are_relative_to_the_tables_folder(
    kind: str, column: str, pair_settings: PairSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not to the working folder; the column is found by its values."""
    rows = pair_rows(name="pictures/{}.PNG", column=column)
    folder = write_pictures(tmp_path / "data", rows, column=column)
    (folder / "stray.png").write_bytes(b"of no table: the folder is not what was named")
    monkeypatch.chdir(tmp_path)
    splits = load_splits(pair_settings(dataset_name=str(write_table(folder / f"a.{kind}", rows))), PairModality())
    assert pairs_of(splits) == written(folder, rows, column)


def test_each_split_folder_has_its_metadata_and_its_pictures(pair_settings: PairSettings, tmp_path: Path) -> None:
    """The same name means another picture in another folder."""
    parts = {"train": 8, "val": 6, "test": 4}
    for seed, (name, count) in enumerate(parts.items()):
        write_table(tmp_path / "data" / name / "metadata.csv", pair_rows(count))
        write_pictures(tmp_path / "data" / name, pair_rows(count), seed=seed)
    splits = load_splits(pair_settings(dataset_name=str(tmp_path / "data")), PairModality())
    for name, ours in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert pairs_of(splits, ours) == written(tmp_path / "data" / name, pair_rows(parts[name]))
    assert splits.notes == []


def test_tables_whose_names_begin_with_a_split_are_that_split(pair_settings: PairSettings, tmp_path: Path) -> None:
    """Several of one split are put together, in the order of their names."""
    rows = pair_rows(24)
    folder = write_pictures(tmp_path / "data", rows)
    parts = {"train-1.csv": rows[:8], "train-2.csv": rows[8:12], "test.csv": rows[12:18], "valid.csv": rows[18:]}
    for name, part in parts.items():
        write_table(folder / name, part)
    splits = load_splits(pair_settings(dataset_name=str(folder)), PairModality())
    assert pairs_of(splits, "train") == written(folder, rows[:12])
    assert pairs_of(splits, "test") == written(folder, rows[12:18])
    assert pairs_of(splits, "validation") == written(folder, rows[18:])


def embedded(rows: list[dict[str, Any]], *, column: str = "image", seed: int = 0) -> datasets.Dataset:
    """A table of pairs with their pictures in it; None stays None."""
    pictures = [encoded(Image.fromarray(pixels)) for pixels in noise(len(rows), 8, 8, 3, seed=seed)]
    features = {"text": datasets.Value("string"), "label": datasets.Value("string"), column: datasets.Image()}
    values = [
        {"text": row["text"], "label": row["label"], column: row["file_name"] and raw_bytes(picture)}
        for row, picture in zip(rows, pictures, strict=True)
    ]
    return datasets.Dataset.from_list(values, features=datasets.Features(features))


def test_a_parquet_file_with_embedded_pictures_gives_pairs(pair_settings: PairSettings, tmp_path: Path) -> None:
    rows = pair_rows() + [{"file_name": None, "text": "alone", "label": "a"}] * 2
    embedded(rows, column="picture").to_parquet(tmp_path / "a.parquet")
    splits = load_splits(pair_settings(dataset_name=str(tmp_path / "a.parquet")), PairModality())
    pictures = [encoded(Image.fromarray(pixels)) for pixels in noise(26, 8, 8, 3)]
    expected = [
        (row["file_name"] and picture, row["text"], row["label"]) for row, picture in zip(rows, pictures, strict=True)
    ]
    assert pairs_of(splits) == sorted(expected, key=repr)


def test_embedded_pictures_are_taken_though_their_former_names_stand_beside_them(
    pair_settings: PairSettings, tmp_path: Path
) -> None:
    """The names lead to no files any more."""
    rows = pair_rows()
    names = [row["file_name"] for row in rows]
    embedded(rows).add_column("file_name", names).to_parquet(tmp_path / "a.parquet")
    splits = load_splits(pair_settings(dataset_name=str(tmp_path / "a.parquet")), PairModality())
    assert all(image for image, _, _ in pairs_of(splits))
    assert splits.notes[0] == "Columns of text that are not used: file_name."


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[datasets.Dataset], None]:
    """What the Hub is to give for any name: a data set with a training split."""

    def gives(data: datasets.Dataset) -> None:
        monkeypatch.setattr(
            sources, "_load_from_hub", lambda settings: sources.Loaded(datasets.DatasetDict(train=data))
        )

    return gives


def test_a_data_set_on_the_hub_gives_pairs(
    hub: Callable[[datasets.Dataset], None], pair_settings: PairSettings
) -> None:
    rows = pair_rows()
    hub(embedded(rows))
    splits = load_splits(pair_settings(dataset_name="somebody/pairs"), PairModality())
    assert [(text, label) for _, text, label in pairs_of(splits)] == [
        (text, label)
        for _, text, label in sorted(
            (
                (encoded(Image.fromarray(pixels)), row["text"], row["label"])
                for row, pixels in zip(rows, noise(24, 8, 8, 3), strict=True)
            ),
            key=repr,
        )
    ]


def test_a_picture_that_the_hub_has_put_into_its_cache_is_taken(
    hub: Callable[[datasets.Dataset], None], pair_settings: PairSettings, tmp_path: Path
) -> None:
    """An imagefolder on the Hub becomes links to files in its cache here."""
    rows = pair_rows()
    blobs = write_pictures(tmp_path / "hf_datasets" / "blobs", rows)
    for row in rows:
        (tmp_path / "hf_datasets" / row["file_name"]).symlink_to(blobs / row["file_name"])
    paths = [str(tmp_path / "hf_datasets" / row["file_name"]) for row in rows]
    hub(datasets.Dataset.from_list(rows).add_column("image", paths).cast_column("image", datasets.Image()))
    splits = load_splits(pair_settings(dataset_name="somebody/pairs", text_column_name="text"), PairModality())
    assert pairs_of(splits) == written(blobs, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_without_an_image_or_a_text_are_kept_and_counted(
    kind: str, pair_settings: PairSettings, tmp_path: Path
) -> None:
    """Empty, missing, or of white space: all are the same. Test rows are their own, so the counts are known."""
    rows = pair_rows(30)
    # Of the training rows, which are all but the last ten.
    for number in (3, 7):
        rows[number]["file_name"] = None if kind != "csv" or number == 3 else " "
    for number, text in ((4, ""), (5, " \t"), (8, None)):
        rows[number]["text"] = text
    rows[25]["text"] = None
    folder = write_pictures(tmp_path / "data", [row for row in rows if (row["file_name"] or "").strip()])
    for name, part in (("train", rows[:20]), ("test", rows[20:])):
        write_table(folder / f"{name}.{kind}", part)
    splits = load_splits(pair_settings(dataset_name=str(folder), validation_fraction=0.1), PairModality())
    expected = [
        row | {key: row[key] if (row[key] or "").strip() else None for key in ("file_name", "text")} for row in rows
    ]
    assert pairs_of(splits, "train", "validation") == written(folder, expected[:20])
    assert pairs_of(splits, "test") == written(folder, expected[20:])
    lacking = {
        name: (int((~is_given(split, "image")).sum()), int((~is_given(split, "text")).sum()))
        for name, split in splits.items()
    }
    assert [sum(counts) for counts in zip(lacking["train"], lacking["validation"], strict=True)] == [2, 3]
    assert lacking["test"] == (0, 1)
    note = next(note for note in splits.notes if note.startswith("Pairs without a text: "))
    assert f"{lacking['train'][1]} of 18 in train" in note
    assert note.endswith("1 of 10 in test.")
    assert any(note.startswith("Pairs without an image: ") and "test" not in note for note in splits.notes)


def test_an_empty_column_of_one_split_is_all_missing(pair_settings: PairSettings, tmp_path: Path) -> None:
    """Such a column has no type in a table, or one of numbers."""
    rows = pair_rows(24)
    folder = write_pictures(tmp_path / "data", rows[:12])
    write_table(folder / "train.csv", rows[:12])
    write_table(folder / "validation.csv", [row | {"file_name": None} for row in rows[12:18]])
    write_table(folder / "test.csv", [row | {"text": None} for row in rows[6:12]])
    splits = load_splits(pair_settings(dataset_name=str(folder)), PairModality())
    assert not is_given(splits.validation, "image").any()
    assert not is_given(splits.test, "text").any()
    assert is_given(splits.test, "image").all()


def test_words_that_pandas_takes_for_nothing_are_texts(pair_settings: PairSettings, tmp_path: Path) -> None:
    rows = [
        row | {"text": text}
        for row, text in zip(pair_rows(6), ["NA", "null", "None", "nan", "n/a", "NULL"], strict=True)
    ]
    folder = write_pictures(tmp_path / "data", rows)
    write_table(folder / "metadata.csv", rows)
    splits = load_splits(pair_settings(dataset_name=str(folder)), PairModality())
    assert sorted(text for _, text, _ in pairs_of(splits) if text) == sorted(row["text"] for row in rows)


def test_a_table_in_another_encoding_is_read_with_its_encoding(pair_settings: PairSettings, tmp_path: Path) -> None:
    rows = [row | {"text": f"{row['text']} ä"} for row in pair_rows(12)]
    folder = write_pictures(tmp_path / "data", rows)
    write_table(folder / "metadata.csv", rows, encoding="latin-1")
    splits = load_splits(pair_settings(dataset_name=str(folder), encoding="latin-1"), PairModality())
    assert pairs_of(splits) == written(folder, rows)


def test_columns_are_those_that_are_named(pair_settings: PairSettings, tmp_path: Path) -> None:
    """Among several of each kind."""
    rows = [
        {
            "file_name": f"first/{n}.png",
            "other": f"second/{n}.png",
            "text": f"a{n}",
            "more": f"b{n}",
            "kind": "xy"[n % 2],
        }
        for n in range(12)
    ]
    folder = write_pictures(write_pictures(tmp_path / "data", rows), rows, column="other", seed=1)
    named = {"image_column_name": "other", "text_column_name": "more", "label_column_name": "kind"}
    table = write_table(folder / "a.csv", rows)
    splits = load_splits(pair_settings(dataset_name=str(table), **named), PairModality())
    expected = [{"file_name": row["other"], "text": row["more"], "label": row["kind"]} for row in rows]
    assert pairs_of(splits) == written(folder, expected)
    assert "Columns of text that are not used: file_name, text." in splits.notes


def test_a_copy_is_one_that_agrees_in_image_and_text(pair_settings: PairSettings, tmp_path: Path) -> None:
    """Of the test rows: both alike, another text, another picture, no picture and a known text, nothing known."""
    train = [*pair_rows(12), {"file_name": None, "text": "alone", "label": "a"}]
    folder = write_pictures(tmp_path / "data", train)
    new = write_pictures(tmp_path / "data", [{"file_name": "new.png"}], seed=9) / "new.png"
    assert new.is_file()
    test = [
        {"file_name": "0.png", "text": train[0]["text"], "label": "a"},
        {"file_name": "1.png", "text": "another", "label": "b"},
        {"file_name": "new.png", "text": train[2]["text"], "label": "a"},
        {"file_name": None, "text": "alone", "label": "a"},
        {"file_name": None, "text": train[3]["text"], "label": "b"},
        {"file_name": "3.png", "text": None, "label": "b"},
    ]
    for name, rows in (("train", train), ("test", test), ("validation", pair_rows(4))):
        write_table(folder / f"{name}.jsonl", rows)
    splits = load_splits(pair_settings(dataset_name=str(folder)), PairModality())
    assert splits.copies == {"validation": 4, "test": 2}
    assert splits.describe()[-1] == "Exact copies of training pairs: 4 in validation, 2 in test."


def test_splits_are_divided_and_reduced_as_in_the_other_recipes(pair_settings: PairSettings, tmp_path: Path) -> None:
    rows = pair_rows(40)
    folder = write_pictures(tmp_path / "data", rows)
    write_table(folder / "metadata.csv", rows)
    splits = load_splits(pair_settings(dataset_name=str(folder), max_train_samples_per_class=3), PairModality())
    assert np.bincount(splits.train.targets).tolist() == [3, 3]
    assert not set(splits.train.rows) & (set(splits.validation.rows) | set(splits.test.rows))
