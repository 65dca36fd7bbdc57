"""What `hf-transfer rank` has stored serves later runs, whose results do not depend on it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hf_transfer import command_line
from hf_transfer.frozen import store
from hf_transfer.modalities.table import modality_named
from hf_transfer.run import Run
from hf_transfer.whole_run import run_all_steps
from tests.data.conftest import text_rows, write_table
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint


class Task:
    """Data without a validation and a test split, and a model for them.

    Args:
        recipe: vision or text.
        data: the data set.
        model: the folder of the checkpoint.
        layer: the class of one of its layers, through which each sample passes once.
    """

    def __init__(self, recipe: str, data: Path, model: Path, layer: str) -> None:
        self.recipe, self.layer = recipe, layer
        self.settings = {"dataset_name": str(data), "model_name_or_path": str(model)}
        if recipe == "vision":
            self.settings["augmentation"] = "none"

    def rank(self, folder: Path) -> int:
        """Rank the model alone; how many rows it was judged on."""
        command_line.main([
            "rank", "--dataset_name", self.settings["dataset_name"], "--models", self.settings["model_name_or_path"],
            "--cache_dir", str(folder / "cache"), "--output", str(folder / "ranking.json"),
        ])  # fmt: skip
        content: dict[str, Any] = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
        return int(content["rows"])

    def run(self, out: Path, cache: Path, strategy: str, **more: Any) -> tuple[Run, int]:
        """A run of the recipe, and how many samples have passed through the model."""
        config = modality_named(self.recipe).config.of(
            **self.settings, strategy=strategy, output_dir=str(out), cache_dir=str(cache), **more
        )
        with samples_counted(self.layer) as counts:
            run = run_all_steps(config)
        return run, sum(counts)


@contextmanager
def samples_counted(layer: str) -> Iterator[list[int]]:
    counts: list[int] = []

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if type(module).__name__ == layer:
            counts.append(len(arguments[0]))

    handle = register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


@pytest.fixture(params=["vision", "text"])
def task(request: pytest.FixtureRequest, tmp_path: Path, picture_folder: Callable[..., Path]) -> Task:
    if request.param == "vision":
        model = save_checkpoint(tmp_path / "vit")
        return Task("vision", picture_folder(cat=20, dog=20), model, "ViTPatchEmbeddings")
    write_table(tmp_path / "texts/train.csv", text_rows(60))
    return Task("text", tmp_path / "texts", save_text_checkpoint(tmp_path / "bert"), "BertPooler")


def weights(run: Run) -> bytes:
    return (Path(run.config.output.output_dir) / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("strategy", ["linear_probe", "deep_probe"])
def test_after_ranking_no_training_sample_passes_through_the_model_again(
    strategy: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the head alone nor for several depths; the weights are the same to the bit, also of padded texts."""
    monkeypatch.setattr(store, "CHUNK_SAMPLES", 9)
    cold, all_samples = task.run(tmp_path / "cold", tmp_path / "empty", strategy)
    rows = task.rank(tmp_path)
    warm, fewer_samples = task.run(tmp_path / "warm", tmp_path / "cache", strategy)
    assert rows == len(warm.splits.train)
    assert weights(cold) == weights(warm)
    assert cold.metrics == warm.metrics
    assert all_samples - fewer_samples == rows
