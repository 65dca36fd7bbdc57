"""The text recipe with a prefix before every text: the results are those of texts that begin with it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hf_transfer as ht
from hf_transfer.command_line import main
from tests.conftest import Finished, exit_code
from tests.data.conftest import run_text, text_rows, write_table
from tests.models.test_sentence_encoders import save_sentence_encoder
from tests.recipes.test_text import WITHOUT_US, results_of, weights_digest
from tests.tiny_text_models import save_text_checkpoint

PREFIX = "word3 word4 "
SPLITS = {"train": 24, "validation": 13, "test": 15}


def table(folder: Path, prefix: str = "") -> Path:
    """Tables whose texts begin with the prefix; the first word behind it tells the label."""
    for seed, (name, count) in enumerate(SPLITS.items()):
        rows = text_rows(count, seed=seed)
        write_table(folder / f"{name}.csv", [row | {"text": prefix + row["text"]} for row in rows])
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny sentence encoder that names the prefix as its default prompt."""
    folder = save_sentence_encoder(tmp_path / "encoder")
    prompts = {"prompts": {"query": PREFIX}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
    return folder


def run(capsys: pytest.CaptureFixture[str], *flags: str, **settings: object) -> Finished:
    trains = {} if "--evaluate_only" in flags else {"strategy": "linear_probe"}
    return run_text(capsys, trains | settings, *flags)


def test_a_prefix_is_as_good_as_texts_that_begin_with_it(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights and answers: of the command, of Python, and where the model is judged or trained once more."""
    data, written = table(tmp_path / "data"), table(tmp_path / "written", PREFIX)
    texts = [row["text"] for row in text_rows(9, seed=7)]
    first = run(capsys, model_name_or_path=encoder, dataset_name=data, output_dir=tmp_path / "first")
    second = run(
        capsys, "--text_prefix=", model_name_or_path=encoder, dataset_name=written, output_dir=tmp_path / "second"
    )
    assert (first.code, second.code) == (0, 0), first.err + second.err
    sentence = f"{PREFIX!r} is put before each text, as config_sentence_transformers.json of the model says"
    assert (sentence in first.out, sentence in second.out) == (True, False)
    assert weights_digest(tmp_path / "first") == weights_digest(tmp_path / "second")
    assert results_of(tmp_path / "first")["metrics"] == results_of(tmp_path / "second")["metrics"]

    answers, expected = (
        ht.load(tmp_path / "first")(texts),
        ht.load(tmp_path / "second")([PREFIX + one for one in texts]),
    )
    assert answers == expected
    shown = [
        shown_answers(capsys, tmp_path / "first", data / "test.csv"),
        shown_answers(capsys, tmp_path / "second", written / "test.csv"),
    ]
    assert shown[0] == shown[1] != ""

    model = tmp_path / "first" / "model"
    judged = run(
        capsys, "--evaluate_only", model_name_or_path=model, dataset_name=data,
        output_dir=tmp_path / "judged",
    )  # fmt: skip
    assert judged.code == 0, judged.err
    assert results_of(tmp_path / "judged")["metrics"]["test"] == pytest.approx(
        results_of(tmp_path / "first")["metrics"]["test"]
    )
    again = run(capsys, model_name_or_path=model, dataset_name=data, output_dir=tmp_path / "again")
    assert f"{PREFIX!r} is put before each text, as in the training of the model." in again.out
    assert results_of(tmp_path / "again")["metrics"] == results_of(tmp_path / "first")["metrics"]


def shown_answers(capsys: pytest.CaptureFixture[str], model: Path, table: Path) -> str:
    """What `hf-transfer predict` prints, without the texts."""
    assert exit_code(lambda: main(["predict", str(model), str(table), "--format", "jsonl"])) == 0
    rows: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return json.dumps([{name: value for name, value in row.items() if name not in ("path", "text")} for row in rows])


@pytest.mark.slow
def test_stored_activations_are_not_those_of_another_prefix(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table(tmp_path / "data")
    digests = []
    for name, prefix, cache in (("a", "", "one"), ("b", PREFIX, "one"), ("c", PREFIX, "other")):
        run(
            capsys, f"--text_prefix={prefix}", model_name_or_path=encoder, dataset_name=data, cache_frozen="on",
            cache_dir=tmp_path / cache, output_dir=tmp_path / name,
        )  # fmt: skip
        digests.append(weights_digest(tmp_path / name))
    assert digests[0] != digests[1] == digests[2]


@pytest.mark.slow
def test_a_pipeline_without_us_puts_the_prefix_before_each_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of transformers' own class, which needs no code of ours."""
    texts = [row["text"] for row in text_rows(40, seed=7)]
    settings = {"model_name_or_path": save_text_checkpoint(tmp_path / "bert"), "dataset_name": table(tmp_path / "data")}
    assert run(capsys, f"--text_prefix={PREFIX}", **settings, output_dir=tmp_path / "out").code == 0
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(tmp_path / "out" / "model"), json.dumps(texts)],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    labels = [max(answer, key=answer.__getitem__) for answer in ht.load(tmp_path / "out")(texts)]
    assert json.loads(done.stdout.split("LABELS", 1)[1]) == labels


def test_a_finished_model_keeps_its_prefix(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = run(
        capsys, "--evaluate_only", f"--text_prefix={PREFIX}", model_name_or_path=encoder,
        dataset_name=table(tmp_path / "data"), output_dir=tmp_path / "out",
    )  # fmt: skip
    assert refused.code == 2
    assert "--text_prefix" in refused.err


def test_a_default_prompt_that_does_not_exist_is_refused(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (encoder / "config_sentence_transformers.json").write_text('{"default_prompt_name": "q"}', encoding="utf-8")
    settings = {"dataset_name": table(tmp_path / "data"), "output_dir": tmp_path / "out"}
    refused = run(capsys, model_name_or_path=encoder, **settings)
    assert refused.code == 2
    assert "default_prompt_name one of their names" in refused.err
    assert "default_prompt_name 'q', and prompts none" in refused.err
    assert not (tmp_path / "out").exists()
