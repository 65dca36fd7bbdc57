"""The largest batches that fit into memory, with as many samples in a step as before."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_transfer.errors import UserError
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.choice import Prepared
from hf_transfer.strategies.freezing import FullFineTuning, LinearProbe, Strategy
from hf_transfer.training.batch_size import divisors, find_batch_sizes
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.loop import fit
from tests.conftest import REPOSITORY
from tests.data.conftest import text_rows, write_table
from tests.tiny_text_models import save_text_checkpoint
from tests.training.launched import two_forks
from tests.training.limited_memory import save_wide
from tests.training.toy_task import loaders_of, rows_for, settings, text_settings, tiny
from tests.training.trials import Trial, refusing

MIB = 2**20


def find_sizes(
    name: str, tmp_path: Path, *, room: int, evaluation: int = 64, strategy: Strategy | None = None, **more: Any
) -> tuple[RunConfig, str, Prepared, list[Trial]]:
    """The settings and the note for a tiny model with room for so many samples, the model, and what was tried."""
    make = text_settings if name == "bert" else settings
    config = make(output_dir=str(tmp_path), auto_batch_size=True, **more)
    model, groups, _ = tiny(name)
    prepared = Prepared(model, groups, [], {"": []})
    tried = refusing(model, train=room, evaluation=evaluation)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows_for(name, 40), rows_for(name, 10, seed=1), 4)
        chosen, note = find_batch_sizes(prepared, strategy or FullFineTuning(), loaders, config, accelerator)
    return chosen, note, prepared, tried


@pytest.mark.parametrize(
    ("room", "size", "steps"), [(24, 24, 1), (23, 12, 2), (11, 8, 3), (7, 6, 4), (5, 4, 6), (1, 1, 24)]
)
def test_the_largest_batch_that_fits_is_used_and_a_step_has_as_many_samples(
    tmp_path: Path, room: int, size: int, steps: int
) -> None:
    chosen, note, _, _ = find_sizes(
        "vit", tmp_path, room=room, per_device_train_batch_size=8, gradient_accumulation_steps=3
    )
    assert (chosen.training.per_device_train_batch_size, chosen.training.gradient_accumulation_steps) == (size, steps)
    assert note == f"Batches that fit: {size} samples in training, {steps} for a step of 24; 16 in evaluation."


def test_evaluation_has_its_own_size_and_all_splits_are_tried(tmp_path: Path) -> None:
    chosen, _, _, tried = find_sizes("bert", tmp_path, room=4, evaluation=20, per_device_eval_batch_size=32)
    assert chosen.training.per_device_eval_batch_size == 16
    assert [trial.size for trial in tried if not trial.training] == [32, 16, 16, 16]
    assert not any(trial.gradients for trial in tried if not trial.training)


def test_the_longest_texts_are_tried(tmp_path: Path) -> None:
    *_, tried = find_sizes("bert", tmp_path, room=4, per_device_train_batch_size=4)
    (step,) = [trial for trial in tried if trial.training]
    assert step.lengths == sorted(rows_for("bert", 40).lengths.tolist())[-4:][::-1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["vit", "resnet_basic", "bert"])
@pytest.mark.parametrize("strategy", [FullFineTuning(), LinearProbe()])
def test_the_model_and_the_random_numbers_do_not_change(tmp_path: Path, name: str, strategy: Strategy) -> None:
    untouched, _, _ = tiny(name)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    _, _, prepared, _ = find_sizes(name, tmp_path, room=2, strategy=strategy)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in untouched.state_dict().items():
        assert torch.equal(prepared.model.state_dict()[key], value), key
    assert all(parameter.requires_grad and parameter.grad is None for parameter in prepared.model.parameters())
    assert all(
        type(module) is type(other) for module, other in zip(prepared.model.modules(), untouched.modules(), strict=True)
    )
    assert [module.training for module in prepared.model.modules()] == [m.training for m in untouched.modules()]


@pytest.mark.parametrize(
    ("more", "copies"), [({}, 5), ({"ema_decay": 0.9, "l2_sp": 0.1}, 7), ({"save_steps": None}, 10)]
)
def test_memory_that_training_needs_beside_activations_is_reserved_in_a_trial(
    tmp_path: Path, more: dict[str, Any], copies: int
) -> None:
    """Gradients, two moments, the best epoch and the next one; and the copy from which a checkpoint is written."""
    reserved: list[int] = []
    real = torch.zeros_like

    def counted(tensor: Tensor, **more: Any) -> Tensor:
        reserved.append(tensor.numel())
        return real(tensor, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_transfer.training.batch_size.torch.zeros_like", counted)
        _, _, prepared, _ = find_sizes("vit", tmp_path, room=4, **more)
    assert sum(reserved) == copies * sum(parameter.numel() for parameter in prepared.model.parameters())


def test_a_resumed_run_keeps_its_batches_although_there_is_more_room(tmp_path: Path) -> None:
    first, _, _, _ = find_sizes("vit", tmp_path, room=2, save_steps=1)
    resumed, note, _, tried = find_sizes("vit", tmp_path, room=64, save_steps=1)
    assert first == resumed
    assert note.endswith("16 in evaluation, as when the run began.")
    assert not tried


@pytest.mark.parametrize("save_steps", [None, 0])
def test_a_run_that_begins_from_another_ones_checkpoint_has_its_batches(tmp_path: Path, save_steps: int | None) -> None:
    """Otherwise it would be another run, with other rounding."""
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "state.json").write_text(json.dumps({"remembered": {"batch sizes": [4, 2]}}))
    more: dict[str, Any] = {"save_steps": save_steps, "resume_from_checkpoint": str(checkpoint)}
    chosen, note, _, tried = find_sizes("vit", tmp_path / "out", room=8, per_device_train_batch_size=8, **more)
    assert (chosen.training.per_device_train_batch_size, chosen.training.per_device_eval_batch_size) == (4, 2)
    assert note.endswith(", as when the run began.")
    assert tried == []


def test_a_run_without_checkpoints_remembers_nothing(tmp_path: Path) -> None:
    find_sizes("vit", tmp_path, room=2, save_steps=0)
    assert not list(tmp_path.iterdir())


def test_if_not_even_one_sample_fits_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        find_sizes("vit", tmp_path, room=0)
    assert str(raised.value).splitlines() == [
        "Expected: memory for a step on one sample",
        "Found:    too little on cpu",
        "Do this:  choose a smaller model, shorter inputs, --gradient_checkpointing or --bf16",
    ]


def test_other_errors_of_a_trial_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        find_sizes("vit", tmp_path, room=-1)


def test_smaller_batches_give_the_same_losses(tmp_path: Path) -> None:
    """For a model without dropout and BatchNorm, up to rounding."""
    ends = []
    for room in (8, 2):
        chosen, _, prepared, _ = find_sizes(
            "vit", tmp_path, room=room, per_device_train_batch_size=8, augmentation="none", num_train_epochs=2
        )
        prepared.model.forward = type(prepared.model).forward.__get__(prepared.model)
        with start_accelerator(chosen) as accelerator:
            size = chosen.training.train_batch_size(40)
            loaders = loaders_of(accelerator, rows_for("vit", 40), rows_for("vit", 10, seed=1), size)
            fitted = fit(prepared.model, FullFineTuning(), prepared.groups, loaders, chosen, accelerator)
        ends.append([row["train_loss"] for row in fitted.history])
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_divisors_run_from_the_number_down_to_one() -> None:
    assert divisors(12) == [12, 6, 4, 3, 2, 1]
    assert divisors(1) == [1]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Long texts, and a model with large activations."""
    folder = tmp_path_factory.mktemp("task")
    for seed, (name, count) in enumerate({"train": 32, "validation": 8, "test": 8}.items()):
        rows = [{**row, "text": " ".join([row["text"]] * 30)} for row in text_rows(count, seed=seed)]
        write_table(folder / "data" / f"{name}.csv", rows)
    return folder / "data", save_wide(folder / "model")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit needs Linux")
def test_under_a_real_limit_a_recipe_finds_its_batches_and_trains(task: tuple[Path, Path], tmp_path: Path) -> None:
    data, checkpoint = task
    allowed = str(500 * MIB)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.training.limited_memory", str(data), str(checkpoint), str(out), allowed]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    ((size, steps),) = re.findall(r"Batches that fit: (\d+) samples in training, (\d+) for a step of 16", ended.stdout)
    assert 1 <= int(size) < 16
    assert int(size) * int(steps) == 16
    assert json.loads((out / "results.json").read_text())["metrics"]["test"]["accuracy"] >= 0


def test_two_processes_agree_on_what_fits_on_both(task: tuple[Path, Path], tmp_path: Path) -> None:
    save_text_checkpoint(tmp_path / "small", "bert")
    arguments = (str(task[0]), str(tmp_path / "small"), str(tmp_path / "out"), "0")
    ended = two_forks("tests/training/limited_memory.py", *arguments)
    assert ended.returncode == 0, ended.output
    assert "Batches that fit: 4 samples in training, 4 for a step of 16; 64 in evaluation." in ended.output
