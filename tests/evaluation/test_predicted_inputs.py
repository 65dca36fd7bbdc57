"""`hf-transfer predict` takes what training took, answers row by row, and says which rows it could not answer."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

from hf_transfer.command_line import main
from hf_transfer.modalities.modality import save_preprocessing
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.modalities.tokens import TokenPreprocessing
from tests.conftest import exit_code
from tests.data.conftest import noise
from tests.evaluation.conftest import Run
from tests.padded_models import save_images_with_texts
from tests.tiny_text_models import save_text_checkpoint, tiny_tokenizer

TEXTS = ["word5 word12", "word6 word30 word31", "word9", "été; word7"]
Predict = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    """`predict(model, ...)`: the exit code, the lines of JSON, and what is written beside them."""

    def run(*arguments: object) -> tuple[int, list[dict[str, Any]], str]:
        code, out, err = raw(capsys, *arguments)
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


def raw(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = exit_code(lambda: main(["predict", *map(str, arguments)]))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def text_model(folder: Path, **columns: str) -> Path:
    """A model of texts with three classes, as a run saves it that read its data with these columns and settings."""
    save_text_checkpoint(folder, num_labels=3)
    preprocessing = TokenPreprocessing(tiny_tokenizer(), model_limit=40)
    save_preprocessing(preprocessing, TextModality.name, columns, "single_label_classification", folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_model(tmp_path_factory.mktemp("texts") / "out" / "model", text_column_name="text")


def written(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


KINDS = [
    "csv", "tsv", "semicolons", "pipes", "marked", "jsonl", "json", "parquet", "saved", "saved splits", "zip", "gztar",
]  # fmt: skip


def table_of(kind: str, path: Path) -> Path:
    frame = pandas.DataFrame({"text": TEXTS, "label": list("abca")})
    if kind == "parquet":
        frame.to_parquet(path / "t.parquet")
    elif kind == "jsonl":
        frame.to_json(path / "t.jsonl", orient="records", lines=True)
    elif kind == "json":
        frame.to_json(path / "t.json", orient="records")
    elif kind == "saved":
        datasets.Dataset.from_pandas(frame).save_to_disk(path / "saved")
    elif kind == "saved splits":
        parts = {"train": datasets.Dataset.from_pandas(frame[:3]), "test": datasets.Dataset.from_pandas(frame[3:])}
        datasets.DatasetDict(parts).save_to_disk(path / "saved")
    elif kind in ("zip", "gztar"):
        (path / "inside").mkdir()
        frame.to_csv(path / "inside" / "t.csv", index=False)
        shutil.make_archive(str(path / "t"), kind, path / "inside")
        shutil.rmtree(path / "inside")
    else:
        name, sign, encoding = {
            "csv": ("t.csv", ",", "utf-8"), "tsv": ("t.tsv", "\t", "utf-8"), "semicolons": ("t.csv", ";", "utf-8"),
            "marked": ("t.csv", ",", "utf-16"), "pipes": ("t.csv", "|", "utf-8"),
        }[kind]  # fmt: skip
        frame.to_csv(path / name, sep=sign, encoding=encoding, index=False)
    (file,) = path.iterdir()
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_has_the_same_answers_as_the_texts_themselves(
    kind: str, texts: Path, predict: Predict, tmp_path: Path
) -> None:
    code, rows, err = predict(texts, table_of(kind, tmp_path), "--top", 9)
    assert code == 0, err
    _, typed, _ = predict(texts, "--text", *TEXTS, "--top", 9)
    assert [row["row"] for row in rows] == [1, 2, 3, 4]
    assert [one["text"] for one in typed] == TEXTS
    for row, one in zip(rows, typed, strict=True):
        assert row["scores"] == pytest.approx(one["scores"], abs=1e-6)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le"])
def test_a_table_is_read_with_the_encoding_that_is_named_or_that_of_the_training(
    encoding: str, texts: Path, predict: Predict, tmp_path: Path
) -> None:
    """And UTF-8 stays UTF-8, also for a model whose training data had another encoding."""
    other = written(tmp_path / "other.csv", "text\nété\nword9\n", encoding)
    plain = written(tmp_path / "plain.csv", "text\nété\nword9\n")
    code, named, err = predict(texts, other, "--encoding", encoding)
    assert code == 0, err
    trained = text_model(tmp_path / "model", text_column_name="text", encoding=encoding)
    for table in (other, plain):
        code, rows, err = predict(trained, table)
        assert code == 0, err
        assert [row["scores"] for row in rows] == [row["scores"] for row in named]
    code, rows, err = predict(texts, other)
    assert (code, rows) == (2, [])
    assert str(other) in err
    assert "--encoding" in err


def test_a_separator_is_named_or_that_of_the_training(texts: Path, predict: Predict, tmp_path: Path) -> None:
    odd = written(tmp_path / "odd.csv", "text^id\nword9^1\nword5 word6^2\n")
    code, named, err = predict(texts, odd, "--delimiter", "^")
    assert code == 0, err
    trained = text_model(tmp_path / "model", text_column_name="text", delimiter="^")
    usual = written(tmp_path / "usual.csv", "text,id\nword9,1\nword5 word6,2\n")
    for table in (odd, usual):
        code, rows, err = predict(trained, table)
        assert code == 0, err
        assert [row["scores"] for row in rows] == [row["scores"] for row in named]


@pytest.mark.parametrize("length", [131_073, 400_000])
def test_a_very_long_field_is_read(length: int, texts: Path, predict: Predict, tmp_path: Path) -> None:
    code, rows, err = predict(texts, written(tmp_path / "t.csv", f"text\n{'word9 ' * (length // 6 + 1)}\nword9\n"))
    assert (code, len(rows)) == (0, 2), err


def test_a_folder_of_text_files_has_an_answer_for_each(texts: Path, predict: Predict, tmp_path: Path) -> None:
    for name, text in {
        "pos/1.txt": "word5",
        "neg/2.txt": "word6 word7",
        "neg/3.txt": " \n",
        ".hidden/4.txt": "x",
    }.items():
        written(tmp_path / "d" / name, text)
    code, rows, err = predict(texts, tmp_path / "d")
    assert code == 2
    assert [Path(row["path"]).name for row in rows] == ["2.txt", "3.txt", "1.txt"]
    assert rows[1]["error"] == "white space only"
    assert "1 of 3 without an answer" in err
    alone = predict(texts, tmp_path / "d" / "pos" / "1.txt")[1]
    assert alone[0]["scores"] == pytest.approx(rows[2]["scores"], abs=1e-6)


def test_lines_of_standard_input_are_texts(texts: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("word5\n\nword9 word6\n"))
    code, rows, _ = predict(texts.parent, "-")
    assert code == 2
    assert [(row["path"], row["row"], "scores" in row) for row in rows] == [
        ("-", 1, True),
        ("-", 2, False),
        ("-", 3, True),
    ]


@pytest.mark.parametrize(
    ("rows", "faults"),
    [
        ('a,\nb,word9\nc," "\n', {1: "empty", 3: "white space only"}),
        ('a,word9\nb,""\n', {2: "empty"}),
        ('a," \n "\nb,word9\nc,\n', {1: "white space only", 3: "empty"}),
    ],
)
def test_a_row_without_a_text_is_reported_and_has_no_answer(
    rows: str, faults: dict[int, str], texts: Path, predict: Predict, tmp_path: Path
) -> None:
    code, answers, err = predict(texts, written(tmp_path / "t.csv", f"label,text\n{rows}"))
    assert code == 2
    without = {row["row"]: row["error"] for row in answers if "scores" not in row}
    assert without.keys() == faults.keys()
    assert all(
        fault in (expected, "missing") for fault, expected in zip(without.values(), faults.values(), strict=True)
    )
    assert f"{len(faults)} of {len(answers)} without an answer: {tmp_path / 't.csv'}, line " in err


def test_both_texts_of_a_pair_are_needed(predict: Predict, tmp_path: Path) -> None:
    model = text_model(tmp_path / "model", text_column_name="a", text_pair_column_name="b")
    code, rows, _ = predict(model, written(tmp_path / "t.csv", "a,b\nword5,word6\nword5,\n,word6\n"))
    assert (code, ["scores" in row for row in rows]) == (2, [True, False, False])
    code, typed, err = predict(model, "--text", "word5", "--text_pair", "word6")
    assert code == 0, err
    assert typed[0]["scores"] == pytest.approx(rows[0]["scores"], abs=1e-6)
    for wrong in (["--text", "word5"], ["--text", "word5", "word6", "--text_pair", "word7"]):
        code, rows, err = predict(model, *wrong)
        assert (code, rows) == (2, []), err


def pictures_in(folder: Path, count: int = 3) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(noise(12, 10, 3, seed=number)).save(path)
    return paths


def test_a_folder_of_pictures_is_answered_flat_or_by_class(finished_run: Run, predict: Predict, tmp_path: Path) -> None:
    flat = predict(finished_run.out, *pictures_in(tmp_path / "flat"))[1]
    code, rows, err = predict(finished_run.out, tmp_path / "flat")
    assert (code, rows) == (0, flat), err
    pictures_in(tmp_path / "classes" / "a")
    pictures_in(tmp_path / "classes" / "b", 1)
    (tmp_path / "classes" / "b" / "9.png").write_bytes(b"no picture")
    archive = shutil.make_archive(str(tmp_path / "flat"), "zip", tmp_path / "flat")
    assert [row["scores"] for row in predict(finished_run.out, archive)[1]] == [row["scores"] for row in flat]
    code, rows, err = predict(finished_run.out, tmp_path / "classes")
    assert (code, len(rows)) == (2, 5)
    assert [row["scores"] for row in rows[:4]] == [row["scores"] for row in (*flat, flat[0])]
    assert "1 of 5 without an answer" in err


@pytest.mark.parametrize("value", ["pictures/{}.png", "{}.png", "{}"])
@pytest.mark.parametrize("column", ["image", "file_name", "photo"])
def test_a_table_names_pictures_by_path_or_name_with_or_without_suffix(
    value: str, column: str, finished_run: Run, predict: Predict, tmp_path: Path
) -> None:
    paths = pictures_in(tmp_path / "pictures")
    frame = pandas.DataFrame({column: [value.format(number) for number in (2, 0, 7)], "other": "x"})
    frame.to_csv(tmp_path / "t.csv", index=False)
    code, rows, err = predict(finished_run.out, tmp_path / "t.csv", "--image_column_name", column)
    assert code == 2
    assert "line 4" in err
    expected = predict(finished_run.out, paths[2], paths[0])[1]
    assert [row["scores"] for row in rows[:2]] == [row["scores"] for row in expected]
    assert rows[2]["error"] == f"{value.format(7)}: there is no such file"


def test_pictures_in_a_parquet_file_are_read(finished_run: Run, predict: Predict, tmp_path: Path) -> None:
    paths = pictures_in(tmp_path / "pictures")
    images = [{"bytes": path.read_bytes(), "path": None} for path in paths[:2]] + [None]
    pandas.DataFrame({"image": images}).to_parquet(tmp_path / "t.parquet")
    code, rows, _ = predict(finished_run.out, tmp_path / "t.parquet", "--image_column_name", "image")
    expected = predict(finished_run.out, *paths[:2])[1]
    assert code == 2
    assert [row["scores"] for row in rows[:2]] == [row["scores"] for row in expected]
    assert rows[2]["error"] == "missing"


def test_images_with_texts_are_read_from_tables_and_from_the_command(predict: Predict, tmp_path: Path) -> None:
    model = save_images_with_texts(tmp_path / "model", "vit")
    pictures_in(tmp_path / "d")
    table = written(tmp_path / "d" / "metadata.csv", "file_name,text\n0.png,word5\n1.png,\n,word9\n,\n9.png,word5\n")
    code, rows, err = predict(model, tmp_path / "d")
    assert code == 2
    assert [row.get("error") for row in rows] == [
        None, None, None, "neither an image nor a text", "9.png: there is no such file"
    ]  # fmt: skip
    assert f"{table}, line 5 (neither an image nor a text)" in err
    code, typed, err = predict(model, "--image", tmp_path / "d" / "0.png", "--text", "word5")
    assert code == 0, err
    assert typed[0]["scores"] == pytest.approx(rows[0]["scores"], abs=1e-6)
    code, typed, err = predict(model, "--text", "word9", "word5 word6")
    assert code == 0, err
    assert typed[0]["scores"] == pytest.approx(rows[2]["scores"], abs=1e-6)
    assert PairModality.usable in predict(model, "--text", " ")[2]


def test_answers_are_written_as_csv_and_as_text(
    texts: Path, predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the screen or into a file, which appears when it is complete; rows without an answer are in it, too."""
    table = written(tmp_path / "t.csv", 'text\nword5\n""\nword9\n')
    _, rows, _ = predict(texts, table, "--top", 1)
    code, out, _ = raw(capsys, texts, table, "--format", "csv")
    assert code == 2
    read = list(csv.DictReader(io.StringIO(out)))
    assert [(one["path"], one["row"]) for one in read] == [(str(table), str(number)) for number in (1, 2, 3)]
    assert [one["label"] for one in read] == [next(iter(row.get("scores", {"": 0}))) for row in rows]
    assert read[1]["error"] in ("empty", "missing")
    target = tmp_path / "answers.csv"
    code, shown, _ = raw(capsys, texts, table, "--output", target)
    assert (code, shown, target.read_text()) == (2, "", out)
    code, shown, _ = raw(capsys, texts, table, "--format", "text", "--top", 1)
    assert shown.splitlines()[1].startswith(f"{table}, line 3: no answer (")
    assert shown.splitlines()[0].startswith(f"{table}, line 2: {read[0]['label']} 0.")
    code, _, err = raw(capsys, texts, table, "--output", table)
    assert code == 2
    assert f"{table}, with {table} to predict" in err
    assert table.read_text().startswith("text\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "word5", "a.csv"], None), (["a.png"], "tables (.parquet"),
        (["--image", "a.png"], "--text for a model"),
        (["none.csv"], "no such file"), (["--text", "word5", "--encoding", "rot13"], "--encoding: "),
        (["--text", "word5", "--delimiter", "ab"], "--delimiter: "),
    ],
)  # fmt: skip
def test_what_a_model_of_texts_cannot_take_is_refused(
    arguments: list[str], message: str | None, texts: Path, predict: Predict
) -> None:
    """What follows --text is a text, whatever it looks like."""
    code, rows, err = predict(texts, *arguments)
    if message is None:
        assert [row["text"] for row in rows] == ["word5", "a.csv"]
    else:
        assert (code, rows) == (2, [])
        assert message in err


def test_an_output_among_what_is_predicted_is_refused(texts: Path, predict: Predict, tmp_path: Path) -> None:
    """It would replace a table, or be a table of the next command. Elsewhere, the advice works."""
    table = written(tmp_path / "tables" / "a.csv", "text\nword5\n")
    for output in (table, tmp_path / "tables" / "answers.csv", tmp_path / "tables" / "below" / ".." / "b.csv"):
        code, rows, err = predict(texts, tmp_path / "tables", "--output", output)
        assert (code, rows) == (2, [])
        assert f"{output}, with {tmp_path}/tables to predict" in err
    assert "name a file in it" in predict(texts, table, "--output", tmp_path)[2]
    assert predict(texts, tmp_path / "tables", "--output", tmp_path / "answers.csv")[0] == 0
    assert table.read_text() == "text\nword5\n"
    assert "--text_pair has no effect" in predict(texts, table, "--text_pair", "word5")[2]


def test_a_model_of_pictures_takes_no_texts(finished_run: Run, predict: Predict) -> None:
    code, rows, err = predict(finished_run.out, "--text", "word5")
    assert (code, rows) == (2, [])
    assert "files, for a model of images" in err


def test_answers_come_batch_by_batch(finished_run: Run, tmp_path: Path) -> None:
    """The first answer needs no more pictures than the first batch."""
    from hf_transfer.evaluation.predictor import BATCH_SIZE, load

    paths = pictures_in(tmp_path, 1) * BATCH_SIZE + [tmp_path / "later.png"] * 2
    answers = load(finished_run.out).files(paths)
    assert next(answers).fault == ""
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "later.png")
    assert [one.fault for one in answers] == [""] * (BATCH_SIZE + 1)
