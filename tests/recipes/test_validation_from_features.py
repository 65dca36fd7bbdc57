"""Validation of a solved head is judged on stored features, by the head in its file, unless the saved model differs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_transfer.frozen.stored_outputs import StoredOutputs, outputs_from_store
from hf_transfer.modalities.table import modality_named
from hf_transfer.run import Run, open_run
from hf_transfer.targets.predictions import Predictions
from hf_transfer.training import predictions
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

SIZES = {"train": 24, "validation": 13, "test": 6}
COLUMNS = {"classes": "label", "labels": "tags", "numbers": "size"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures and texts with a class, tags and a size; each model in a folder of its own."""
    folder, generator = tmp_path_factory.mktemp("samples"), np.random.default_rng(0)
    for split, count in SIZES.items():
        rows = []
        (folder / "vision" / split).mkdir(parents=True)
        (folder / "text").mkdir(exist_ok=True)
        for number in range(count):
            noise = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(noise).save(folder / "vision" / split / f"{number}.png")
            words = generator.integers(5, 50, number % 7 + 1)
            rows.append(
                {
                    "file_name": f"{number}.png", "text": " ".join(f"word{word}" for word in words),
                    "label": "ab"[number % 2], "tags": [["x"], ["x", "y"], []][number % 3],
                    "size": 100.0 + 25.0 * generator.normal(),
                }
            )  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "vision" / split / "metadata.jsonl").write_text(lines)
        (folder / "text" / f"{split}.jsonl").write_text(lines)
    save_checkpoint(folder / "model-vision")
    save_text_checkpoint(folder / "model-text")
    return folder


@contextmanager
def solved(
    samples: Path, folder: Path, recipe: str = "vision", target: str = "classes", masked: int | None = None, **more: Any
) -> Iterator[Run]:  # fmt: skip
    """A run whose head was solved, and whose model was loaded again; `masked`: an unreadable row of validation."""
    settings = {
        "model_name_or_path": str(samples / f"model-{recipe}"), "dataset_name": str(samples / recipe),
        "label_column_name": COLUMNS[target], "output_dir": str(folder / "out"), "cache_dir": str(folder / "cache"),
        "strategy": "linear_probe",
    }  # fmt: skip
    config = modality_named(recipe).config.of(**(settings | more))
    with open_run(config) as run:
        splits = run.load_data()
        if masked is not None:
            run.splits = replace(splits, validation=replace(splits.validation, unreadable={masked: "empty"}))
        run.load_model()
        run.choose_what_learns()
        run.train()
        yield run


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that went through a whole model."""
    splits: list[str] = []
    predict_split = predictions.predict_split

    def noted(model: Any, loaders: Any, split: str, *rest: Any, **more: Any) -> Predictions:
        splits.append(split)
        return predict_split(model, loaders, split, *rest, **more)

    monkeypatch.setattr(predictions, "predict_split", noted)
    return splits


def live(run: Run) -> Predictions:
    """Validation through the whole saved model."""
    return predictions.predict_split(run.model, run.loaders, "validation", run.accelerator)


def assert_same(judged: Predictions, expected: Predictions) -> None:
    torch.testing.assert_close(judged.outputs, expected.outputs, rtol=1e-4, atol=1e-4)
    assert np.array_equal(judged.targets, expected.targets, equal_nan=judged.targets.dtype.kind == "f")
    assert judged.targets.dtype == expected.targets.dtype
    assert (judged.index.tolist(), judged.masked) == (expected.index.tolist(), expected.masked)
    assert judged.metrics() == pytest.approx(expected.metrics(), rel=1e-4)


@pytest.mark.parametrize("recipe", ["vision", "text"])
@pytest.mark.parametrize("target", COLUMNS)
def test_validation_is_not_computed_again_and_comes_to_the_same(
    recipe: str, target: str, samples: Path, tmp_path: Path, computed: list[str]
) -> None:
    with solved(samples, tmp_path, recipe, target) as run:
        computed.clear()
        judged = run.evaluate()
        assert computed == ["test"]
        assert_same(judged["validation"], live(run))


def test_masked_samples_do_not_count(samples: Path, tmp_path: Path, computed: list[str]) -> None:
    with solved(samples, tmp_path, masked=5) as run:
        computed.clear()
        judged = run.evaluate()["validation"]
        assert (computed, judged.masked, len(judged)) == (["test"], 1, 12)
        assert_same(judged, live(run))


def test_the_figures_follow_the_head_in_the_file(samples: Path, tmp_path: Path, computed: list[str]) -> None:
    with solved(samples, tmp_path) as run:
        computed.clear()
        before = run.evaluate()["validation"].outputs
        with torch.no_grad():
            run.model.get_parameter("classifier.weight").neg_()
        after = run.evaluate()["validation"]
        assert computed == ["test", "test"]
        assert not torch.allclose(before, after.outputs, atol=1e-3)
        assert_same(after, live(run))


def test_another_backbone_in_the_file_is_computed(samples: Path, tmp_path: Path, computed: list[str]) -> None:
    with solved(samples, tmp_path) as run:
        computed.clear()
        with torch.no_grad():
            next(run.model.parameters()).add_(0.5)
        judged = run.evaluate()["validation"]
        assert computed == ["validation", "test"]
        assert_same(judged, live(run))


def test_features_that_the_whole_model_does_not_confirm_are_not_used(
    samples: Path, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> StoredOutputs | None:
        stored = outputs_from_store(*arguments)
        assert stored is not None
        return stored._replace(outputs=stored.outputs * 1.01)

    monkeypatch.setattr(predictions, "outputs_from_store", wrong)
    with solved(samples, tmp_path) as run:
        computed.clear()
        judged = run.evaluate()["validation"]
        assert computed == ["validation", "test"]
        assert_same(judged, live(run))


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_frozen": "off"}, {"cache_dtype": "bfloat16"}, {"bf16": True},
        {"strategy": "full", "num_train_epochs": 1}, {"strategy": "deep_probe"},
    ],
)  # fmt: skip
def test_rounded_missing_and_other_features_are_not_used(
    settings: dict[str, Any], samples: Path, tmp_path: Path, computed: list[str]
) -> None:
    with solved(samples, tmp_path, **settings) as run:
        computed.clear()
        run.evaluate()
        assert computed == ["validation", "test"]


def test_damaged_features_are_not_used(samples: Path, tmp_path: Path, computed: list[str]) -> None:
    with solved(samples, tmp_path) as run:
        for chunk in (tmp_path / "cache" / "frozen").rglob("*.safetensors"):
            chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
        computed.clear()
        judged = run.evaluate()["validation"]
        assert computed == ["validation", "test"]
        assert_same(judged, live(run))


def test_features_of_one_process_alone_are_not_used(
    samples: Path, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine may have a disk of its own, and all have to do the same."""
    with solved(samples, tmp_path) as run:
        gather = run.accelerator.gather

        def with_another(values: Any) -> Any:
            gathered = gather(values)
            is_flag = isinstance(values, Tensor) and values.dtype == torch.bool
            return torch.cat([gathered, torch.zeros_like(gathered)]) if is_flag else gathered

        monkeypatch.setattr(run.accelerator, "gather", with_another)
        computed.clear()
        run.evaluate()
        assert computed == ["validation", "test"]
