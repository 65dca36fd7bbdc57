"""`--strategy deep_probe` as a user runs it: files, a pipeline without us, predictions, evaluation, the demo."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from classifier import Classifier, Sample
from explanation import Explainer
from hf_transfer.evaluation.predictor import load, modality_of
from hf_transfer.hub.space import assemble_space
from hf_transfer.modalities.table import modality_named
from hf_transfer.run import Run
from hf_transfer.whole_run import run_all_steps
from pictures import decode
from tests.data.conftest import text_rows, write_table
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

WITHOUT_US = """
import json, sys
sys.modules["hf_transfer"] = None
from transformers import pipeline
classify = pipeline(sys.argv[1], sys.argv[2], device="cpu", trust_remote_code=True)
print("ANSWERS", json.dumps([classify(one, top_k=2) for one in json.loads(sys.argv[3])]))
"""
TASKS = {"vision": "image-classification", "text": "text-classification"}
Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path, picture_folder: Callable[..., Path]) -> Start:
    """Runs all steps of a recipe: `start("vision", taps=["head"])`."""
    models = {"vision": save_checkpoint(tmp_path / "vit"), "text": save_text_checkpoint(tmp_path / "bert")}
    sizes = {"train": 24, "validation": 9, "test": 9}
    for seed, (split, count) in enumerate(sizes.items()):
        picture_folder(name=f"pictures/{split}", cat=count, dog=count)
        write_table(tmp_path / f"texts/{split}.csv", text_rows(2 * count, seed=seed))
    data = {"vision": tmp_path / "pictures", "text": tmp_path / "texts"}

    def run(recipe: str, **more: Any) -> Run:
        settings = {
            "model_name_or_path": str(models[recipe]), "dataset_name": str(data[recipe]), "strategy": "deep_probe",
            "output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache"),
        }  # fmt: skip
        return run_all_steps(modality_named(recipe).config.of(**(settings | more)))

    return run


def samples_of(recipe: str, folder: Path) -> list[str]:
    if recipe == "vision":
        return [str(path) for path in sorted((folder / "pictures").rglob("*.png"))[::8]]
    return [row["text"] for row in text_rows(6, seed=7)]


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("recipe", TASKS)
def test_a_pipeline_the_command_and_the_demo_give_the_same_answers(recipe: str, start: Start, tmp_path: Path) -> None:
    """The pipeline runs where hf_transfer cannot be imported."""
    start(recipe)
    out, samples = tmp_path / "out", samples_of(recipe, tmp_path)
    command = [sys.executable, "-c", WITHOUT_US, TASKS[recipe], str(out / "model"), json.dumps(samples)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    in_pipeline = [
        {row["label"]: row["score"] for row in rows} for rows in json.loads(done.stdout.partition("ANSWERS")[2])
    ]
    predictor = load(out)
    assert predictor.modality.name == {"vision": "image"}.get(recipe, recipe)
    predicted = predictor(samples)
    demo = Classifier(assemble_space(out, tmp_path / "space") / "model", trust_remote_code=True)
    for sample, answer, expected in zip(samples, in_pipeline, predicted, strict=True):
        given = Sample(decode(sample)) if recipe == "vision" else Sample(texts=(sample,))
        shown = dict(zip(demo.labels, demo.scores([given])[0], strict=True))
        assert answer == pytest.approx(expected, abs=1e-5)
        assert shown == pytest.approx(expected, abs=1e-5)
        assert Explainer(demo).answer(given).scores == pytest.approx(list(shown.values()), abs=1e-5)


@pytest.mark.parametrize("recipe", TASKS)
def test_the_finished_model_is_judged_again_with_the_same_figures(recipe: str, start: Start, tmp_path: Path) -> None:
    first = start(recipe)
    again = run_all_steps(
        first.config.of(
            model_name_or_path=str(tmp_path / "out/model"), dataset_name=first.config.data.dataset_name,
            output_dir=str(tmp_path / "judged"), evaluate_only=True,
        )
    )  # fmt: skip
    for split, metrics in again.metrics.items():
        assert metrics == pytest.approx(first.metrics[split])


def test_the_same_command_gives_the_same_bytes_and_a_finished_run_shows_its_table(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("text")
    start("text", output_dir=str(tmp_path / "other"))
    assert digest(tmp_path / "out") == digest(tmp_path / "other")
    capsys.readouterr()
    assert start("text").metrics["test"]
    assert "nothing was trained now" in capsys.readouterr().out


def test_the_report_and_the_card_say_what_the_head_reads(start: Start, tmp_path: Path) -> None:
    """The card also names the modelling file."""
    run = start("text", taps=["mean_2", "first_3"])
    assert run.results is not None
    sentence = "the head reads mean_2 + first_3."
    assert any(sentence in note for note in run.results.notes)
    config = json.loads((tmp_path / "out/model/config.json").read_text())
    assert config["taps"] == [["mean", 2], ["first", 3]]
    assert run.results.parameters["trainable"] == 2 * (2 * 24 + 1)
    card = (tmp_path / "out/model/README.md").read_text()
    assert "its code is in `modeling_deep_probe.py`" in card
    assert "trust_remote_code=True" in card
    assert "which is read at several depths" in card


@pytest.mark.parametrize("recipe", TASKS)
def test_without_its_preprocessing_file_a_model_is_still_known_by_its_backbone(
    recipe: str, start: Start, tmp_path: Path
) -> None:
    start(recipe)
    (tmp_path / "out/model/preprocessing.json").unlink()
    assert modality_of(str(tmp_path / "out/model")).config.recipe == recipe


def test_copies_and_groups_of_a_run_share_a_fold(start: Start, tmp_path: Path) -> None:
    """A wrong label of a copy does not help to choose the depth, nor does another row of a group."""
    rows = [row | {"who": f"p{number // 3}"} for number, row in enumerate(text_rows(48))]
    # A copy of the first row, in a group of its own.
    rows.append(rows[0] | {"who": "other"})
    for split, part in {"train": rows, "validation": rows[:6], "test": rows[:6]}.items():
        write_table(tmp_path / f"grouped/{split}.csv", part)
    run = start("text", dataset_name=str(tmp_path / "grouped"), group_column_name="who")
    folds = run.loaders.folds(run.splits.train.counted, 5)
    assert folds is not None
    (of_rows,) = folds.of_rows
    groups = [of_rows[first : first + 3].tolist() for first in range(0, 48, 3)]
    assert all(len(set(group)) == 1 for group in groups)
    assert of_rows[48] == of_rows[0]
    assert len(set(of_rows.tolist())) == 5
