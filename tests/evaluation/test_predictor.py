"""Predictions of a finished model for pictures and texts: from Python, and by `hf-transfer predict`."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import pipeline

from hf_transfer.command_line import main
from hf_transfer.errors import UserError
from hf_transfer.evaluation import predictor
from hf_transfer.evaluation.predictor import classify_files, load
from tests.conftest import exit_code
from tests.evaluation.conftest import CLASSES, Run
from tests.tiny_text_models import save_text_checkpoint


def pictures(run: Run) -> list[Path]:
    return sorted(run.data.glob("test/*/*.png"))


def test_answers_are_those_of_a_transformers_pipeline(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across batches, in the order of the samples, most probable first."""
    monkeypatch.setattr(predictor, "BATCH_SIZE", 4)
    paths = pictures(finished_run)[::2]
    assert len(paths) == 11
    classify = pipeline("image-classification", str(finished_run.out / "model"), device="cpu")
    answers = classify_files(finished_run.out / "model", paths, top=2)
    assert [answer.path for answer in answers] == paths
    for answer, path in zip(answers, paths, strict=True):
        with Image.open(path) as picture:
            expected = classify(picture, top_k=2)
        assert [name for name, _ in answer.scores] == [row["label"] for row in expected]
        assert [share for _, share in answer.scores] == pytest.approx([row["score"] for row in expected], abs=1e-5)
        assert answer.scores[0][1] >= answer.scores[1][1]


def test_the_probabilities_of_all_labels_sum_to_one(finished_run: Run) -> None:
    """Also if more labels are asked for than the model has."""
    (answer,) = classify_files(finished_run.out / "model", pictures(finished_run)[:1], top=99)
    assert {name for name, _ in answer.scores} == set(CLASSES)
    assert sum(share for _, share in answer.scores) == pytest.approx(1, abs=1e-5)


def test_python_predicts_paths_and_pictures_with_the_folder_of_a_run_or_of_its_model(finished_run: Run) -> None:
    paths = pictures(finished_run)[:3]
    expected = [dict(answer.scores) for answer in classify_files(finished_run.out / "model", paths, top=2)]
    classify = load(finished_run.out)
    assert (classify.modality.name, classify.target.names) == ("image", list(CLASSES))
    assert classify(paths, top=2) == classify(list(map(str, paths)), top=2) == expected
    assert classify([Image.open(path) for path in paths], top=2) == expected
    assert load(finished_run.out / "model")(paths[:1], top=2) == expected[:1]
    assert classify_files(finished_run.out, paths, top=2) == classify_files(finished_run.out / "model", paths, top=2)
    with pytest.raises(UserError, match="Expected: a readable picture, or its path"):
        classify([finished_run.out / "results.json"])


@pytest.mark.parametrize("sample", ["one.jpg", {"image": "one.jpg"}, Image.new("RGB", (4, 4)), None])
def test_a_single_sample_is_refused_since_its_letters_would_be_taken_for_samples(
    sample: Any, finished_run: Run
) -> None:
    classify = load(finished_run.out)
    for ask in (classify, classify.decide):
        with pytest.raises(UserError, match=r"Expected: a list of samples(.|\n)*a single one(.|\n)*\[sample\]"):
            ask(sample)


def test_a_path_that_is_no_picture_has_a_fault_and_the_others_have_answers(finished_run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    good = pictures(finished_run)[0]
    answers = classify_files(finished_run.out, [tmp_path / "none.png", good, tmp_path / "text.png"])
    assert [bool(answer.scores) for answer in answers] == [False, True, False]
    assert answers[0].fault == "there is no such file"
    assert answers[2].fault.startswith("10 bytes that are not a JPEG")
    assert answers[1].fault == ""


def output_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = exit_code(lambda: main(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_a_line_of_json_for_each_picture(
    finished_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many labels as were asked for."""
    paths = pictures(finished_run)[:3]
    model = str(finished_run.out / "model")
    code, out, _ = output_of(["predict", model, *map(str, paths), "--top", "2"], capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["path"] for row in rows]) == (0, list(map(str, paths)))
    for row, answer in zip(rows, classify_files(model, paths, top=2), strict=True):
        assert row == {"path": str(answer.path), "scores": dict(answer.scores)}
        assert len(row["scores"]) == 2


@pytest.mark.parametrize(
    ("change", "expected", "found"),
    [
        (["--top", "0"], "--top of at least 1", "0"),
        (["--top", "x"], "usage: hf-transfer predict", "argument --top: invalid int value: 'x'"),
        (["--topp", "1"], "usage: hf-transfer", "unrecognized arguments: --topp 1"),
    ],
)
def test_an_error_ends_the_command_with_code_2(
    finished_run: Run, capsys: pytest.CaptureFixture[str], change: list[str], expected: str, found: str
) -> None:
    """In the form of every other error."""
    picture = str(pictures(finished_run)[0])
    code, out, err = output_of(["predict", str(finished_run.out / "model"), picture, *change], capsys)
    assert (code, out) == (2, "")
    assert f"Expected: {expected}" in err
    assert f"Found:    {found}" in err


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("/no/such/model", "no folder /no/such/model"),
        ("sample:none", "sample:none"),
        ("no such model", "no such folder here, and not a name that the Hub allows"),
    ],
)
def test_a_missing_model_is_an_error_of_the_user(
    finished_run: Run, capsys: pytest.CaptureFixture[str], model: str, found: str
) -> None:
    """Also a name that the Hub would refuse to look up."""
    code, out, err = output_of(["predict", model, str(pictures(finished_run)[0])], capsys)
    assert (code, out) == (2, "")
    assert found in err
    assert err.startswith("\nerror:\nExpected: ")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not trained: its predictions are enough."""
    return save_text_checkpoint(tmp_path_factory.mktemp("text") / "model", "bert", num_labels=3)


TEXTS = ["word5 word12", "word6 word30 word31", "word9"]
PAIRS = ["word6", "word11 word12", "word8"]


def written(path: Path, **columns: list[str]) -> Path:
    """A table, with commas or tabs by its name."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_texts_in_a_table_are_predicted_row_by_row(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As by a transformers pipeline; also a text with a comma."""
    texts = [*TEXTS, "word5, word6"]
    tables = [written(tmp_path / name, id=list("abcd"), text=texts), written(tmp_path / f"b{name}", text=texts[:1])]
    code, out, _ = output_of(["predict", str(text_model), *map(str, tables), "--top", "9"], capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["path"], row["row"]) for row in rows] == [
        *((str(tables[0]), number) for number in range(1, 5)), (str(tables[1]), 1),
    ]  # fmt: skip
    classify: Any = pipeline("text-classification", str(text_model), device="cpu", top_k=None)
    for row, expected in zip(rows, classify([*texts, texts[0]]), strict=True):
        assert row["scores"] == pytest.approx({one["label"]: one["score"] for one in expected}, abs=1e-5)


def test_of_long_texts_fewer_go_through_the_model_at_once_with_the_same_answers(
    text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the evaluation of a run: at most 8,192 tokens with padding, here of a tiny model 64."""
    texts = [f"word{number} word{number + 1}" * (1 + number % 3) for number in range(5, 35)]
    classify = load(text_model)
    every: list[int] = []
    classify.model.register_forward_pre_hook(
        lambda _, __, inputs: every.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    together = classify(texts, top=3)
    assert len(every) == 1
    monkeypatch.setattr(predictor, "TOKENS_AT_ONCE", 64)
    bounded = load(text_model)
    bounded.model.register_forward_pre_hook(
        lambda _, __, inputs: every.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    assert every[0] > 64
    for first, second in zip(together, bounded(texts, top=3), strict=True):
        assert first == pytest.approx(second, abs=1e-6)
    assert sum(every[1:]) == every[0]
    assert max(every[1:]) <= 64 + every[0] // len(texts)


def test_pairs_of_texts_are_read_from_two_columns(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(written(tmp_path / "pairs.csv", one=TEXTS, other=PAIRS))
    columns = ["--text_column_name=one", "--text_pair_column_name=other"]
    code, out, _ = output_of(["predict", str(text_model), table, "--top", "9", *columns], capsys)
    assert code == 0
    classify: Any = pipeline("text-classification", str(text_model), device="cpu", top_k=None)
    for line, text, pair in zip(out.splitlines(), TEXTS, PAIRS, strict=True):
        expected = {one["label"]: one["score"] for one in classify({"text": text, "text_pair": pair})}
        assert json.loads(line)["scores"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "flags", "found"),
    [
        (b"a,b\nx,y\n", [], "the columns a, b"),
        (b"a,b\nx,y\n", ["--text_column_name=c"], "the columns a, b"),
        (b"", [], "an empty file"),
        (b"text\n\xe9\n", [], "line 2: byte 0xe9"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, flags: list[str], found: str
) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    code, out, err = output_of(["predict", str(text_model), str(tmp_path / "rows.csv"), *flags], capsys)
    assert (code, out) == (2, "")
    assert f"Found:    {found}" in err
    assert str(tmp_path / "rows.csv") in err


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = output_of([], capsys)
    assert code == 2
    assert "Found:    the following arguments are required: command" in err
