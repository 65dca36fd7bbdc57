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

from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.loop import _refuse_drift
from tests.training.launched import Ended, torchrun, two_forks
from tests.training.two_processes import EPOCHS, augmented_pixels, settings

DRIFT = "The processes hold different weights after training: please report this as a bug."


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the results of `two_processes.py`."""
    folder = tmp_path_factory.mktemp("two")
    ended = two_forks(Path(__file__).with_name("two_processes.py"), str(folder))
    assert ended.returncode == 0, ended.output[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["standard", "trivial"])
def test_augmented_pixels_are_equal_to_the_bit_on_one_and_two_processes(
    script: Path, tmp_path: Path, kind: str
) -> None:
    """Each process has other batches: augmentation depends on seed, epoch and row alone."""
    together = {n: v for n, v in load_file(script / "augmented.safetensors").items() if n.startswith(kind)}
    with start_accelerator(settings(tmp_path, kind)) as accelerator:
        assert accelerator.num_processes == 1
        single = augmented_pixels(accelerator, settings(tmp_path, kind))
    assert len(single) == len(EPOCHS) * 3 * 10
    assert together.keys() == {f"{kind}/{name}" for name in single}
    for name, image in single.items():
        assert torch.equal(together[f"{kind}/{name}"], image), name
    rows = {name.split("/")[1] for name in single}
    assert sum(torch.equal(single[f"0/{row}"], single[f"3/{row}"]) for row in rows) <= 3


def test_processes_with_different_weights_are_stopped(script: Path) -> None:
    messages = json.loads((script / "drift.json").read_text())
    assert messages == {"processes": 2, "0.0": "equal", "1e-06": DRIFT}


@pytest.mark.parametrize(("shift", "stops"), [(0.0, False), (1e-6, True)])
def test_drift_is_found_in_the_gathered_sums(shift: float, stops: bool) -> None:

    def gather(sums: Tensor) -> Tensor:
        other = sums.clone()
        other[0, 0] += shift
        return torch.cat([sums, other])

    processes: Any = SimpleNamespace(num_processes=2, gather=gather, device=torch.device("cpu"))
    if not stops:
        _refuse_drift(processes, nn.Linear(3, 2))
        return
    with pytest.raises(RuntimeError, match=DRIFT):
        _refuse_drift(processes, nn.Linear(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "start"), [("scratch", two_forks), ("linear_probe", torchrun)])
def test_the_vision_recipe_runs_on_two_processes(tmp_path: Path, strategy: str, start: Callable[..., Ended]) -> None:
    """One set of files; that each sample counts once and weights are equal is checked by the loop."""
    out = tmp_path / "out"
    flags = {
        "model_name_or_path": "sample:vit-glyphs",
        "dataset_name": "sample:digits",
        "strategy": strategy,
        "max_train_samples_per_class": 3,
        "output_dir": out,
        "cache_dir": tmp_path / "cache",
    }
    if strategy != "linear_probe":
        flags |= {"num_train_epochs": 2, "per_device_train_batch_size": 4}
    ended = start("recipes/vision.py", *(f"--{name}={value}" for name, value in flags.items()))
    assert ended.returncode == 0, ended.output[-3000:]
    assert sorted(path.name for path in out.iterdir()) == [
        ".card", ".lock", "checkpoints", "config.yaml", "confusion.png", "curves.png", "data.json", "model",
        "report.md", "results.json",
    ]  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    epochs = 1 if strategy == "linear_probe" else 2  # the probe is solved
    assert (results["processes"], results["strategy"], len(results["history"])) == (2, strategy, epochs)
    assert results["samples"]["train"] == 30
    seen = [row["samples_per_second"] * row["seconds"] for row in results["history"]]
    # 30 samples, although batches are filled up on both processes; or, solved, without augmentation and in four views.
    assert seen == pytest.approx([30 * 5] if epochs == 1 else [30, 30])
    lines = [line for line in ended.output.splitlines() if "macro F1" in line and not line.startswith("epoch")]
    assert len(lines) == 1, "the table of results is printed once"
    assert AutoModelForImageClassification.from_pretrained(out / "model").config.num_labels == 10
