"""Two processes on one CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from hf_transfer.training.loop import _refuse_drift, start_accelerator
from tests.training.launched import Ended, torchrun, two_forks
from tests.training.two_processes import EPOCHS, augmented_pixels, settings

DRIFT = "The processes hold different weights after training: please report this as a bug."


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `two_processes.py` has left its findings."""
    folder = tmp_path_factory.mktemp("two")
    ended = two_forks(Path(__file__).with_name("two_processes.py"), str(folder))
    assert ended.returncode == 0, ended.said[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["standard", "trivial"])
def test_augmented_pixels_are_the_same_to_the_bit_on_one_and_two_processes(
    script: Path, tmp_path: Path, kind: str
) -> None:
    """Each process sees other batches: the draws hang on seed, epoch and row alone."""
    together = {n: v for n, v in load_file(script / "augmented.safetensors").items() if n.startswith(kind)}
    with start_accelerator(settings(tmp_path, kind)) as accelerator:
        assert accelerator.num_processes == 1
        alone = augmented_pixels(accelerator, settings(tmp_path, kind))
    assert len(alone) == len(EPOCHS) * 3 * 10
    assert together.keys() == {f"{kind}/{name}" for name in alone}
    for name, image in alone.items():
        assert torch.equal(together[f"{kind}/{name}"], image), name
    rows = {name.split("/")[1] for name in alone}
    assert sum(torch.equal(alone[f"0/{row}"], alone[f"3/{row}"]) for row in rows) <= 3


def test_processes_with_other_weights_are_stopped(script: Path) -> None:
    found = json.loads((script / "drift.json").read_text())
    assert found == {"processes": 2, "0.0": "equal", "1e-06": DRIFT}


@pytest.mark.parametrize(("shift", "stops"), [(0.0, False), (1e-6, True)])
def test_drift_is_told_from_what_was_gathered(shift: float, stops: bool) -> None:

    def gather(own: Tensor) -> Tensor:
        other = own.clone()
        other[0, 0] += shift
        return torch.cat([own, other])

    processes: Any = SimpleNamespace(num_processes=2, gather=gather, device=torch.device("cpu"))
    if not stops:
        _refuse_drift(processes, nn.Linear(3, 2))
        return
    with pytest.raises(RuntimeError, match=DRIFT):
        _refuse_drift(processes, nn.Linear(3, 2))


@pytest.mark.parametrize(("strategy", "start"), [("scratch", two_forks), ("linear_probe", torchrun)])
def test_the_vision_recipe_runs_on_two_processes(tmp_path: Path, strategy: str, start: Callable[..., Ended]) -> None:
    """One set of files, each sample counted once (the loop asserts it), equal weights (the loop refuses others)."""
    out = tmp_path / "out"
    flags = {
        "model_name_or_path": "sample:vit-glyphs",
        "dataset_name": "sample:digits",
        "strategy": strategy,
        "max_train_samples_per_class": 3,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "output_dir": out,
        "cache_dir": tmp_path / "cache",
    }
    ended = start("recipes/vision.py", *(f"--{name}={value}" for name, value in flags.items()))
    assert ended.returncode == 0, ended.said[-3000:]
    assert sorted(path.name for path in out.iterdir()) == [
        ".card", ".lock", "checkpoints", "config.yaml", "confusion.png", "curves.png", "model", "report.md",
        "results.json",
    ]  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    epochs = 1 if strategy == "linear_probe" else 2  # the probe is solved, at a stroke
    assert (results["processes"], results["strategy"], len(results["history"])) == (2, strategy, epochs)
    assert results["samples"]["train"] == 30
    seen = [row["samples_per_second"] * row["seconds"] for row in results["history"]]
    # 30 samples, filled up to whole batches on both processes; or, solved, as they are and in four views.
    assert seen == pytest.approx([30 * 5] if epochs == 1 else [32, 32])
    assert ended.said.count("macro F1") == 1
    assert AutoModelForImageClassification.from_pretrained(out / "model").config.num_labels == 10
