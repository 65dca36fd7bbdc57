"""Non-finite steps, full memory and dead loader workers: the run stops with a message that says what to do."""

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hf_transfer.errors import UserError
from hf_transfer.training import guard, loop
from hf_transfer.training.guard import is_out_of_memory
from hf_transfer.training.resuming import LastCheckpoint
from tests.training.resumed_runs import CASES, killed
from tests.training.toy_task import Rows, settings, train_vit

FULL = CASES["full"]
HOST_MEMORY = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"


def message(out: Path, **more: Any) -> list[str]:
    """The three lines of the error that a run ends with."""
    with pytest.raises(UserError) as caught:
        FULL.run(out, **more)
    return str(caught.value).splitlines()


def test_the_sample_with_a_non_finite_output_is_named(tmp_path: Path) -> None:
    """And no other sample of its batch."""
    rows = Rows(24)
    rows.pixels[17, 0, 3, 3] = float("nan")
    expected, found, do = message(tmp_path, rows=rows)
    assert expected == "Expected: a finite loss and a finite gradient"
    assert found.startswith("Found:    a loss of nan and a gradient of norm nan in step ")
    assert "with the samples of training rows 17; the step was not taken" in found
    assert do == "Do this:  look at these samples, lower --learning_rate, or leave out --fp16; then run it again"


def test_the_checkpoint_that_is_kept_is_named(tmp_path: Path) -> None:
    assert killed(FULL, tmp_path, 9) == -9
    original = torch.optim.AdamW.step
    kept = tmp_path / "checkpoints" / "checkpoint-00000008"

    def poison(self: Any, *arguments: Any, **more: Any) -> Any:
        value = original(self, *arguments, **more)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("nan"))
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", poison)
        _, found, _ = message(tmp_path, save_steps=100)
    assert "in step 10 (epoch 2, peak rate 1.0e-03)" in found
    assert found.endswith(f"the step was not taken, {kept} is kept")


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_non_finite_gradient_stops_the_run_although_the_loss_is_finite(
    tmp_path: Path, max_grad_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether gradients are clipped or not; the weights do not change."""
    backward: Any = torch.Tensor.backward

    def overflow(self: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        return backward(self * 1e30 * 1e30, *arguments, **more)

    monkeypatch.setattr(torch.Tensor, "backward", overflow)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("the step was taken"))
    _, found, _ = message(tmp_path, max_grad_norm=max_grad_norm)
    # No output is non-finite, so all four samples of the batch are named.
    assert re.search(r"a loss of 1\.\d+ and a gradient of norm (nan|inf) in step 1 ", found)
    assert re.search(r"training rows \d+, \d+, \d+, \d+; the step was not taken", found)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(HOST_MEMORY), MemoryError("m"), MemoryError()],
)
def test_a_full_memory_is_an_error_that_says_what_to_do(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the batch sizes; the error that Python itself raises has no message."""

    def full(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.Tensor, "backward", full)
    expected, found, do = message(tmp_path)
    assert expected == "Expected: memory for batches of 4 in training and of 16 in evaluation"
    assert found == f"Found:    {str(error) or 'MemoryError'}; no checkpoint had been written"
    assert "halve --per_device_train_batch_size and double --gradient_accumulation_steps" in do


class Killing(Dataset[Any]):
    """A process that reads one of the later samples is killed, as by a system that is out of memory."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Any:
        if position >= 16:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rows[position]


def test_a_killed_loader_worker_is_an_error_that_says_what_to_do_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(output_dir=str(tmp_path), save_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            loop, "remaining_batches",
            lambda loaders, *_: DataLoader(Killing(loaders.train.dataset), 4, num_workers=1, prefetch_factor=1),
        )  # fmt: skip
        with pytest.raises(UserError) as caught:
            train_vit(config)
    expected, found, do = str(caught.value).splitlines()
    assert expected == "Expected: loader workers that run until the end"
    assert re.match(r"Found:    DataLoader worker \(pid\(?s?\)? \d+\) .* is kept$", found), found
    assert do.startswith("Do this:  run it again; if it happens again the host is out of memory")
    assert train_vit(config).resumed


def test_the_report_of_a_worker_s_death_is_awaited_and_names_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of it that cannot be fetched comes first; torch reports once why."""
    reports = ["DataLoader worker (pid 14884) is killed by signal: Killed. "]

    def reported(_: float) -> None:
        if reports:
            raise RuntimeError(reports.pop())

    monkeypatch.setattr("hf_transfer.data.workers.time.sleep", reported)
    fetch = compile(
        "raise ConnectionResetError(104, 'Connection reset by peer')", "multiprocessing/reductions.py", "exec"
    )
    checkpointing: Any = SimpleNamespace(last_checkpoint=lambda: LastCheckpoint("checkpoint-3 is kept", saved=True))
    some: Any = None
    with pytest.raises(UserError) as caught, guard.explained_failures(some, some, checkpointing, some):
        exec(fetch)  # noqa: S102 (an error that passes a file of this name)
    _, found, _ = str(caught.value).splitlines()
    assert found == "Found:    DataLoader worker (pid 14884) is killed by signal: Killed. checkpoint-3 is kept"


def test_any_other_error_is_not_reported_as_full_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(torch.Tensor, "backward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        FULL.run(tmp_path)
    assert not is_out_of_memory(ValueError(HOST_MEMORY))
