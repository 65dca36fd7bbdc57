"""Pictures classified with a finished model: from Python, and by `hf-transfer predict`."""

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

from hf_transfer.command_line import main
from hf_transfer.config import UserError
from hf_transfer.evaluation import predict
from hf_transfer.evaluation.predict import classify_images
from tests.evaluation.conftest import CLASSES, Run


def pictures(run: Run) -> list[Path]:
    return sorted(run.data.glob("test/*/*.png"))


def test_answers_are_those_of_a_transformers_pipeline(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across the border of a batch, in the order asked for, most probable first.

    Mutation: hf_transfer/evaluation/predict.py: "samples[start : start + BATCH_SIZE]" -> "samples[:BATCH_SIZE]"
    """
    monkeypatch.setattr(predict, "BATCH_SIZE", 4)
    paths = pictures(finished_run)[::2]
    assert len(paths) == 11
    classify = pipeline("image-classification", str(finished_run.out / "model"), device="cpu")
    answers = classify_images(str(finished_run.out / "model"), paths, top=2)
    assert [answer.path for answer in answers] == paths
    for answer in answers:
        with Image.open(answer.path) as picture:
            expected = classify(picture, top_k=2)
        assert [name for name, _ in answer.scores] == [row["label"] for row in expected]
        assert [share for _, share in answer.scores] == pytest.approx([row["score"] for row in expected], abs=1e-5)
        assert answer.scores[0][1] >= answer.scores[1][1]


def test_the_probabilities_of_all_labels_sum_to_one(finished_run: Run) -> None:
    """More labels than the model has are not asked of it.

    Mutation: hf_transfer/evaluation/predict.py: "min(top, logits.shape[-1])" -> "top"
    """
    (answer,) = classify_images(str(finished_run.out / "model"), pictures(finished_run)[:1], top=99)
    assert {name for name, _ in answer.scores} == set(CLASSES)
    assert sum(share for _, share in answer.scores) == pytest.approx(1, abs=1e-5)


def test_all_bad_paths_are_named_at_once(finished_run: Run, tmp_path: Path) -> None:
    """And the good ones are not.

    Mutation: hf_transfer/evaluation/predict.py: "    if problems:" -> "    if False:"
    """
    (tmp_path / "text.png").write_text("no picture")
    good = pictures(finished_run)[0]
    with pytest.raises(UserError) as error:
        classify_images(str(finished_run.out / "model"), [tmp_path / "none.png", good, tmp_path / "text.png", tmp_path])
    message = str(error.value)
    assert message.startswith("Expected: readable pictures\nFound:    ")
    assert message.endswith("\nDo this:  correct or leave out these paths")
    for path in (tmp_path / "none.png", tmp_path / "text.png"):
        assert f"{path} (" in message
    assert str(good) not in message


def said_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    capsys.readouterr()
    try:
        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_a_line_of_json_for_each_picture(
    finished_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many labels as were asked for.

    Mutation: hf_transfer/command_line.py: "arguments.files, arguments.top" -> "arguments.files, 3"
    """
    paths = pictures(finished_run)[:3]
    model = str(finished_run.out / "model")
    code, out, _ = said_by(["predict", model, *map(str, paths), "--top", "2"], capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["path"] for row in rows]) == (0, list(map(str, paths)))
    for row, answer in zip(rows, classify_images(model, paths, top=2), strict=True):
        assert row == {"path": str(answer.path), "scores": dict(answer.scores)}
        assert len(row["scores"]) == 2


@pytest.mark.parametrize(
    ("change", "expected", "found"),
    [
        (["--top", "0"], "--top of at least 1", "0"),
        (["--top", "x"], "usage: hf-transfer predict", "argument --top: invalid int value: 'x'"),
        (["--topp", "1"], "usage: hf-transfer", "unrecognized arguments: --topp 1"),
        (["missing.png"], "readable pictures", "missing.png ("),
    ],
)
def test_the_commands_mistakes_end_with_code_2(
    finished_run: Run, capsys: pytest.CaptureFixture[str], change: list[str], expected: str, found: str
) -> None:
    """In the words of every other mistake.

    Mutation: hf_transfer/command_line.py: "        exit_with(error)" -> "        raise"
    """
    picture = str(pictures(finished_run)[0])
    code, out, err = said_by(["predict", str(finished_run.out / "model"), picture, *change], capsys)
    assert (code, out) == (2, "")
    assert f"Expected: {expected}" in err
    assert f"Found:    {found}" in err


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("/no/such/model", "no folder /no/such/model"),
        ("sample:none", "sample:none"),
        ("no such model", "no such folder here, and no name that the Hub allows"),
    ],
)
def test_a_model_that_is_not_there_is_a_users_mistake(
    finished_run: Run, capsys: pytest.CaptureFixture[str], model: str, found: str
) -> None:
    """Also a name that the Hub would refuse to look up.

    Mutation: hf_transfer/data/hub_access.py: "    except HFValidationError:" -> "    except EOFError:"
    """
    code, out, err = said_by(["predict", model, str(pictures(finished_run)[0])], capsys)
    assert (code, out) == (2, "")
    assert found in err
    assert err.startswith("\nerror:\nExpected: ")


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said_by([], capsys)
    assert code == 2
    assert "Found:    the following arguments are required: command" in err
