"""A run with a model of timm, and what is made of its result: predictions, a card, a Space, a file in ONNX format."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import hf_transfer as ht
from classifier import Classifier, Sample
from hf_transfer.evaluation.predictor import modalities_of_model
from hf_transfer.hub.card import write_card
from hf_transfer.hub.space import assemble_space
from tests.conftest import REPOSITORY, Recipe
from tests.export.exported import exported, predicted, same_answers, served
from tests.hub.card_programs import card_code
from tests.with_timm.tiny_timm import save_timm


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Of a size at which timm and transformers crop other pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (91, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_plain_pipeline_gives_our_answers(finished: Path, picture: Path) -> None:
    scores_here = ht.load(finished)([picture], top=99)[0]
    answers = pipeline("image-classification", str(finished / "model"))(str(picture), top_k=len(scores_here))
    assert {one["label"]: one["score"] for one in answers} == pytest.approx(scores_here, rel=1e-3, abs=1e-12)


def test_the_card_says_that_timm_is_needed(finished: Path) -> None:
    text = write_card(finished, "alice/digits").read_text()
    assert re.search(r"^- timm$", text, re.MULTILINE)
    assert "must be installed: `pip install timm`" in text
    assert "library_name: transformers" in text


def test_the_space_installs_timm_and_gives_our_answers(finished: Path, picture: Path, tmp_path: Path) -> None:
    folder = assemble_space(finished, tmp_path / "space")
    required = (folder / "requirements.txt").read_text().splitlines()
    all_pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = {line for line in all_pins if line.startswith(("timm==", "torchvision=="))}
    assert len(pins) == 2
    assert pins <= set(required)
    demo = Classifier(folder / "model")
    (scores,) = demo.scores([Sample(demo.decode(picture))])
    scores_here = ht.load(finished)([picture], top=99)[0]
    assert dict(zip(demo.labels, scores, strict=True)) == pytest.approx(scores_here, rel=1e-3, abs=1e-12)


@pytest.mark.slow
def test_the_program_in_the_card_of_an_adapter_gives_our_answer(
    vision: Recipe, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a base whose configuration names the number of classes twice, on which transformers alone fails."""
    ended = vision(model_name_or_path=save_timm(tmp_path / "timm", input_size=(3, 64, 64)), strategy="lora")
    assert ended.code == 0, ended.err
    monkeypatch.chdir(picture.parent)
    printed: list[str] = []
    exec(card_code(tmp_path / "out"), {"print": printed.append})  # noqa: S102
    assert printed == [max(ht.load(tmp_path / "out")([picture])[0].items(), key=lambda one: one[1])[0]]


@pytest.mark.slow
def test_an_export_gives_the_same_answer_without_torch_and_timm(
    finished: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = exported(finished, tmp_path / "onnx")
    assert compared["largest_difference"] < 1e-5
    answer = served(tmp_path / "onnx", str(picture), scratch=tmp_path)
    assert same_answers(answer, predicted(finished, [str(picture)], capsys))


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("partial", {"trainable_layers": 1, "cache_frozen": "on"}),
        pytest.param("gradual", {"layer_lr_decay": 0.5}, marks=pytest.mark.slow),
        pytest.param("lora", {}, marks=pytest.mark.slow),
        pytest.param("scratch", {}, marks=pytest.mark.slow),
    ],
)
def test_strategies_train_a_model_of_timm_and_save_what_can_be_loaded(
    strategy: str, more: dict[str, Any], vision: Recipe, picture: Path, tmp_path: Path
) -> None:
    ended = vision(model_name_or_path=save_timm(tmp_path / "timm", input_size=(3, 64, 64)), strategy=strategy, **more)
    assert ended.code == 0, ended.err
    # The figures are those of the model as it was read again from its files.
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["parameters"]["trainable"] <= results["parameters"]["total"]
    assert sum(ht.load(tmp_path / "out")([picture], top=99)[0].values()) == pytest.approx(1)


def test_the_model_alone_says_that_its_samples_are_images(tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    """Although the config.json of timm has no `model_type`."""
    checkpoint = save_timm(tmp_path / "timm", input_size=(3, 64, 64))
    assert "model_type" not in json.loads((checkpoint / "config.json").read_text())
    data = picture_folder(cat=12, dog=12)
    run = ht.train(str(data), model=str(checkpoint), strategy="linear_probe", output_dir=str(tmp_path / "out"))
    assert run.config.recipe == "vision"
    assert run.metrics["test"]["accuracy"] >= 0.5


def test_the_modality_of_a_checkpoint_is_known(tmp_path: Path) -> None:
    assert [one.name for one in modalities_of_model(str(save_timm(tmp_path / "timm")))] == ["image"]
