"""The text recipe with a sentence encoder whose files name vectors of one length: a solved head reads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import hf_transfer as ht
from tests.conftest import Finished
from tests.data.conftest import run_text, text_rows, write_table
from tests.models.test_sentence_encoders import OF_LENGTH, save_sentence_encoder
from tests.recipes.test_text import results_of
from tests.tiny_text_models import tiny_tokenizer

TEXTS = [row["text"] for row in text_rows(9, seed=7)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Tables whose first word tells the label."""
    for seed, (name, count) in enumerate({"train": 24, "validation": 13, "test": 15}.items()):
        write_table(tmp_path / "data" / f"{name}.csv", text_rows(count, seed=seed))
    return tmp_path / "data"


def run(capsys: pytest.CaptureFixture[str], *flags: str, **settings: Any) -> Finished:
    finished = run_text(capsys, settings, *flags)
    assert finished.code == 0, finished.err
    return finished


def unit_vectors(encoder: Path) -> torch.Tensor:
    """The mean of all tokens by transformers alone, each text by itself, divided by its length [texts, width]."""
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), tiny_tokenizer()
    with torch.no_grad():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    return torch.stack([mean / mean.square().sum().sqrt() for mean in means])


def test_a_probe_answers_by_vectors_of_one_length(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, out = save_sentence_encoder(tmp_path / "encoder"), tmp_path / "out"
    shown = run(capsys, model_name_or_path=encoder, dataset_name=data, output_dir=out, strategy="linear_probe").out
    assert OF_LENGTH in shown
    head = load_file(out / "model" / "model.safetensors")
    vectors = unit_vectors(encoder) * 24**0.5
    expected = (vectors @ head["classifier.weight"].T + head["classifier.bias"]).softmax(1)
    labels = results_of(out)["labels"]
    answers = [[scores[label] for label in labels] for scores in ht.load(out)(TEXTS, top=len(labels))]
    torch.testing.assert_close(torch.tensor(answers), expected, rtol=1e-4, atol=1e-5)

    # It is judged, and learns on, as it was trained.
    run(capsys, "--evaluate_only", model_name_or_path=out / "model", dataset_name=data, output_dir=tmp_path / "judged")
    judged, trained = (results_of(tmp_path / name)["metrics"]["test"] for name in ("judged", "out"))
    assert judged == pytest.approx(trained)


@pytest.mark.parametrize(("strategy", "is_scaled"), [("deep_probe", True), ("full", False)])
def test_only_solved_heads_read_vectors_of_one_length(
    strategy: str, is_scaled: bool, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = save_sentence_encoder(tmp_path / "encoder")
    more: dict[str, Any] = {"taps": "head"} if strategy == "deep_probe" else {"num_train_epochs": 1}
    shown = run(
        capsys, model_name_or_path=encoder, dataset_name=data, output_dir=tmp_path / "out", strategy=strategy, **more
    ).out
    assert (OF_LENGTH in shown) is is_scaled
    config = ht.load(tmp_path / "out").model.config
    assert getattr(config, "backbone_config", config).normalized is is_scaled
