"""The recipe for images with texts as a user runs it: files, figures by modality, bad input, and one of both alone."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_transfer.command_line import main as console
from hf_transfer.hub.space import assemble_space
from hf_transfer.look_ahead import look_ahead
from hf_transfer.models.fusion import FusionModel
from hf_transfer.settings.parsing import load_settings, run_recipe
from hf_transfer.settings.run import MultimodalConfig
from tests.conftest import Finished, exit_code, load_recipe
from tests.data.conftest import assert_refused, write_table
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint, tiny_tokenizer
from tests.training.launched import two_forks

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
FILES = [
    ".card", ".lock", "checkpoints", "config.yaml", "confusion.png", "curves.png", "data.json", "model",
    "report.md", "results.json",
]  # fmt: skip
WITHOUT_US = """
import json, sys
sys.modules["hf_transfer"] = None
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print("ANSWERS", json.dumps([model.predict(image=sys.argv[2], text="word6"), model.predict(text="word6")]))
"""


def rows_of(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """The colour and the first word tell the class together; every eighth row lacks one of both."""
    generator, rows = np.random.default_rng(seed), []
    for number in range(count):
        colour, word = list(COLOURS)[number % 2], 5 + number // 2 % 2
        rest = f"word{generator.integers(10, 50)} n{seed}x{number}"
        rows.append(
            {
                "file_name": "" if number % 8 == 7 else f"{number}-{colour}.png",
                "text": "" if number % 8 == 3 else f"word{word} {rest}",
                "label": f"{colour} {word}",
            }
        )
    return rows


def write_split(folder: Path, count: int, *, seed: int) -> None:
    rows = rows_of(count, seed=seed)
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed)
    for row in rows:
        if row["file_name"]:
            pixels = np.asarray(COLOURS[row["label"].split()[0]]) + noise.integers(-20, 20, (12, 12, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / row["file_name"])
    write_table(folder / "metadata.csv", rows)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, two tiny models, and a tiny CLIP."""
    folder = tmp_path_factory.mktemp("given")
    for seed, (name, count) in enumerate({"train": 48, "validation": 16, "test": 24}.items()):
        write_split(folder / "data" / name, count, seed=seed)
    save_checkpoint(folder / "vit")
    save_text_checkpoint(folder / "bert")
    save_dual(folder / "clip", "clip")
    save_dual(folder / "siglip", "siglip")
    return folder


def save_dual(folder: Path, kind: str) -> None:
    sizes = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 24, "image_size": 16, "patch_size": 8, **sizes}
    text = {
        "hidden_size": 24, "vocab_size": 64, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "projection_size": 24, **sizes,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "clip":
            more = {"projection_dim": 12}
            CLIPModel(
                CLIPConfig(vision_config=vision | more, text_config=text | more, projection_dim=12)
            ).save_pretrained(folder)
        else:
            SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}, do_center_crop=False
    ).save_pretrained(folder)


def flags(given: Path, out: Path, **settings: object) -> list[str]:
    towers = {
        "image_model_name_or_path": given / "vit", "text_model_name_or_path": given / "bert",
        "dataset_name": given / "data", "output_dir": out, "num_train_epochs": 2, "per_device_train_batch_size": 8,
        "augmentation": "none", "cache_dir": out.parent / "cache",
    }  # fmt: skip
    if not {"image_strategy", "text_strategy"} <= settings.keys():
        towers["strategy"] = "linear_probe"
    if settings.get("evaluate_only"):
        towers |= dict.fromkeys(("strategy", "num_train_epochs", "per_device_train_batch_size", "augmentation"))
    return [f"--{name}={value}" for name, value in (towers | settings).items() if value is not None]


@pytest.fixture
def recipe(capsys: pytest.CaptureFixture[str], given: Path, tmp_path: Path) -> Any:
    """`recipe(setting=..., ...)`, in this process, with the tiny models and data unless it says otherwise."""

    def start(**settings: object) -> Finished:
        code = exit_code(
            lambda: run_recipe(
                load_recipe("multimodal").main, MultimodalConfig, flags(given, tmp_path / "out", **settings)
            )
        )
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return start


def results_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def answers(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    console(["predict", *map(str, arguments)])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def assert_same_without_us(model: Path, picture: Path, expected: Sequence[Any], scratch: Path) -> None:
    """Where hf_transfer cannot be imported, a model answers alike: to a picture with a text, and to the text."""
    environment = {**os.environ, "HF_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(model), str(picture)],
        cwd=scratch, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    for here, answer in zip(expected, json.loads(ended.stdout.split("ANSWERS", 1)[1]), strict=True):
        for row in answer:
            assert here["scores"][row["label"]] == pytest.approx(row["score"], abs=1e-5)


@pytest.mark.slow
def test_a_run_learns_from_both_and_reports_each_alone(
    recipe: Any, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the same command prints it again, and the model answers: by our command, and where we are not installed."""
    first = recipe(strategy="full", num_train_epochs=14, learning_rate=3e-3)
    assert first.code == 0, first.err
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == FILES
    results = results_of(out)
    test = results["metrics"]["test"]
    assert set(test) == {"both", "image_only", "text_only"}
    assert [test[name]["samples"] for name in test] == [24, 21, 21]
    assert test["both"]["accuracy"] > 0.8
    # Each tells half of the class.
    assert max(test[name]["accuracy"] for name in ("image_only", "text_only")) < 0.7
    assert set(results["metrics"]["validation"]) >= {"accuracy", "f1_macro", "loss"}
    assert any(note.startswith("Image and text together against the") for note in results["notes"])
    report, card = (out / "report.md").read_text(), (out / "model" / "README.md").read_text()
    for text in (report, card):
        assert "| test image&#95;only | 21 of 24 |" in text
    assert 'revision="COMMIT", trust_remote_code=True' in card
    assert "from hf_transfer import FusionModel" in card
    assert "its code is in `fusion.py` and `modeling_pair.py`: read it" in card
    assert "pipeline_tag" not in card
    assert str(given) not in card
    again = recipe(strategy="full", num_train_epochs=14, learning_rate=3e-3)
    assert again.code == 0
    assert "test image_only" in again.out

    picture = given / "data" / "test" / "0-red.png"
    (both,) = answers(capsys, out / "model", "--image", picture, "--text", "word6", "--top", 4)
    assert both["path"] == str(picture)
    (words,) = answers(capsys, out / "model", "--text", "word6", "--top", 4)
    assert_same_without_us(out / "model", picture, (both, words), tmp_path)
    table = given / "data" / "test" / "metadata.csv"
    rows = answers(capsys, out / "model", table, "--top", 1)
    with table.open() as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert [row["row"] for row in rows] == list(range(1, 25))
    right = [next(iter(row["scores"])) == label for row, label in zip(rows, labels, strict=True)]
    assert sum(right) / 24 == pytest.approx(test["both"]["accuracy"])

    finished = {"image_model_name_or_path": None, "text_model_name_or_path": None, "evaluate_only": "true"}
    judged = recipe(**finished, model_name_or_path=out / "model", output_dir=tmp_path / "judged")
    assert judged.code == 0, judged.err
    for name, metrics in results_of(tmp_path / "judged")["metrics"]["test"].items():
        assert metrics == pytest.approx(test[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_dual_encoder_gives_both_towers(kind: str, recipe: Any, given: Path, tmp_path: Path) -> None:
    """Frozen, with what comes out of both stored."""
    dual = {
        "model_name_or_path": given / kind,
        "image_model_name_or_path": None,
        "text_model_name_or_path": None,
    }
    finished = recipe(**dual, cache_frozen="on", fusion="gated")
    assert finished.code == 0, finished.err
    results = results_of(tmp_path / "out")
    assert results["strategy"] == "linear_probe"
    assert results["model_name_or_path"] == str(given / kind)
    model = FusionModel.from_pretrained(tmp_path / "out" / "model")
    before = load_weights(given / kind)
    # As they were pretrained.
    for name, value in model.state_dict().items():
        if name.startswith(("image_tower.", "text_tower.")):
            theirs = name.replace("image_tower.", "vision_model.").replace("text_tower.", "text_model.")
            assert torch.equal(value, before[theirs]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two models", "clip", "siglip"])
def test_a_solved_head_reads_both_towers(
    kind: str, recipe: Any, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It learns from both, answers to each alone, and needs none of our code where it is used."""
    towers = {"image_model_name_or_path": None, "text_model_name_or_path": None}
    settings = {} if kind == "two models" else {"model_name_or_path": given / kind, **towers}
    done = recipe(strategy="deep_probe", num_train_epochs=None, per_device_train_batch_size=None, **settings)
    assert done.code == 0, done.err
    out, results = tmp_path / "out", results_of(tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == FILES
    test = results["metrics"]["test"]
    assert test["both"]["accuracy"] > 0.8
    # Each tells half of the class.
    assert min(test[name]["accuracy"] for name in ("image_only", "text_only")) > 0.3
    assert any(note.startswith("Taps by accuracy on 64 held-out samples: ") for note in results["frozen_store"])
    assert len(results["history"]) == 1
    card = (out / "model/README.md").read_text()
    assert "from hf_transfer import PairProbeModel" in card
    assert "is in `modeling_pair_probe.py` and `modeling_deep_probe.py` and `modeling_pair.py`: read" in card
    picture = given / "data/test/0-red.png"
    (both,) = answers(capsys, out / "model", "--image", picture, "--text", "word6", "--top", 4)
    (words,) = answers(capsys, out / "model", "--text", "word6", "--top", 4)
    assert_same_without_us(out / "model", picture, (both, words), tmp_path)
    finished = {**towers, "evaluate_only": "true", "model_name_or_path": out / "model"}
    judged = recipe(**finished, output_dir=tmp_path / "judged")
    assert judged.code == 0, judged.err
    for name, metrics in results_of(tmp_path / "judged")["metrics"]["test"].items():
        assert metrics == pytest.approx(test[name]), name
    space = assemble_space(out, tmp_path / "space")
    assert sorted(path.name for path in (space / "model").glob("*.py")) == [
        "modeling_deep_probe.py", "modeling_pair.py", "modeling_pair_probe.py",
    ]  # fmt: skip


@pytest.mark.slow
def test_auto_chooses_for_both_towers_together(recipe: Any, tmp_path: Path) -> None:
    """First a solved head on both; the head of a linear probe has several layers, and is trained."""
    done = recipe(strategy="auto", auto_arms="linear_probe", num_train_epochs=1)
    assert done.code == 0, done.err
    results = results_of(tmp_path / "out")
    arms = {arm["name"]: arm for arm in results["auto"]["arms"]}
    assert {name: arm["state"] for name, arm in arms.items()} == {"deep_probe": "trained", "linear_probe": "trained"}
    assert results["strategy"] == results["auto"]["chosen"]
    assert (arms["deep_probe"]["learning_rate"], arms["linear_probe"]["learning_rate"] is None) == (None, False)
    assert results["resumed_at_steps"] == []


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def test_the_costs_of_a_run_are_printed_beforehand(given: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    lines = [flag.removeprefix("--").replace("=", ": ", 1) for flag in flags(given, tmp_path / "out")]
    config.write_text("recipe: multimodal\n" + "\n".join(lines) + "\n")
    sentences = list(look_ahead(load_settings(MultimodalConfig, config)))
    assert sentences[0] == "48 train, 16 validation, 24 test pairs of 4 classes."
    assert any(sentence.startswith("Frozen store:") for sentence in sentences)
    assert not (tmp_path / "out").exists()


def test_two_processes_end_with_one_set_of_files_and_equal_weights(given: Path, tmp_path: Path) -> None:
    """The loop refuses weights that differ; heads of single modalities that count for nothing wait for nobody."""
    more = {"strategy": "lp_ft", "auxiliary_weight": 0, "num_train_epochs": 2}
    ended = two_forks("recipes/multimodal.py", *flags(given, tmp_path / "out", **more))
    assert ended.returncode == 0, ended.output[-3000:]
    results = results_of(tmp_path / "out")
    assert (results["processes"], len(results["history"])) == (2, 3)
    assert results["metrics"]["test"]["text_only"]["samples"] == 21


def test_a_model_that_cannot_be_a_tower_is_refused_by_the_name_of_its_setting(recipe: Any, given: Path) -> None:
    assert_refused(
        recipe(image_model_name_or_path=given / "bert"),
        "a model that transformers can load as a classifier or an encoder of images",
        "a bert model",
        "choose an image model in --image_model_name_or_path",
    )
    assert_refused(
        recipe(model_name_or_path=given / "vit", image_model_name_or_path=None, text_model_name_or_path=None),
        "a model with a tower for images and one for texts (CLIP, SigLIP)",
        "a vit model",
        "name two models, in --image_model_name_or_path and --text_model_name_or_path",
    )


@pytest.mark.parametrize(
    ("setting", "missing", "expected"),
    [
        ("image_model_name_or_path", "preprocessor_config.json", "a complete transformers checkpoint in"),
        ("text_model_name_or_path", "tokenizer.json", "a tokenizer with a vocabulary"),
    ],
)
def test_a_tower_without_its_processor_is_refused(
    setting: str, missing: str, expected: str, recipe: Any, given: Path, tmp_path: Path
) -> None:
    source = given / ("vit" if missing.startswith("pre") else "bert")
    folder = tmp_path / "incomplete"
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in (missing, "tokenizer_config.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    finished = recipe(**{setting: folder})
    assert finished.code == 2, finished.err
    assert expected in finished.err
    assert "Traceback" not in finished.err


def test_predict_takes_one_sample_or_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in ([], [tmp_path / "a.png", "--text", "a"]):
        with pytest.raises(SystemExit) as end:
            console(["predict", "model", *map(str, arguments)])
        assert end.value.code == 2
        assert "files, or samples by --text or --image" in capsys.readouterr().err
