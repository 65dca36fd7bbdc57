"""Steps as on a GPU, where the host reads one step later whether a step was finite: here with the kernels of CPUs.

The optimizer itself leaves out a step that is not finite. What is kept, and what the user reads, is the same as where
it is read at once.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_transfer.errors import UserError
from hf_transfer.interruption import Interrupted
from hf_transfer.strategies.freezing import FullFineTuning
from hf_transfer.training import guard
from hf_transfer.training.devices import start_accelerator
from tests.training.launched import two_forks
from tests.training.resumed_runs import CASES, weights
from tests.training.toy_task import Rows, fit_loaders, loaders_of, settings, vit

FULL = CASES["full"]
# Large enough that the gradients overflow in float32 until the scaler has halved it a few times.
LARGE_SCALE = 2.0**127


@pytest.fixture
def read_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "reads_at_once", lambda _: False)


def rows_with_a_bad_one() -> Rows:
    rows = Rows(24)
    rows.pixels[17, 0, 3, 3] = float("nan")
    return rows


def last_states(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Weights and moments after each step of the optimizer, filled while a run trains."""
    states: list[dict[str, Tensor]] = []
    take_step = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **more: Any) -> Any:
        result = take_step(self, *arguments, **more)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        named = {f"weight {number}": value.detach().clone() for number, value in enumerate(parameters)}
        for number, parameter in enumerate(parameters):
            named |= {f"{name} {number}": value.clone() for name, value in self.state[parameter].items()}
        states.append(named)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return states


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.0}])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_moments(
    tmp_path: Path, more: dict[str, Any], read_late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = last_states(monkeypatch)
    with pytest.raises(UserError, match="the step was not taken") as caught:
        FULL.run(tmp_path, rows=rows_with_a_bad_one(), ema_decay=0.0, l2_sp=0.0, **more)
    number = int(str(caught.value).partition(" in step ")[2].split()[0])
    assert len(states) == number
    before, after = states[-2], states[-1]
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("save_steps", [0, 1, 2])
def test_the_message_and_the_kept_checkpoint_are_those_of_reading_at_once(
    tmp_path: Path, save_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step, the same samples; and no checkpoint has been written after that step."""
    messages = []
    for late in (False, True):
        monkeypatch.setattr(guard, "reads_at_once", lambda _, late=late: not late)
        with pytest.raises(UserError) as caught:
            FULL.run(tmp_path / str(late), rows=rows_with_a_bad_one(), save_steps=save_steps)
        messages.append(str(caught.value).replace(str(tmp_path / str(late)), ""))
    assert messages[0] == messages[1]
    assert "with the samples of training rows 17; the step was not taken" in messages[0]


@pytest.mark.parametrize("name", ["full", "gradual", "accumulated"])
def test_a_run_has_the_same_bytes_as_with_reading_at_once(
    tmp_path: Path, name: str, uninterrupted: Callable[[str], bytes], read_late: None
) -> None:
    CASES[name].run(tmp_path)
    assert weights(tmp_path) == uninterrupted(name)


def test_a_signal_saves_one_step_later_and_the_run_resumes_to_the_same_bytes(
    tmp_path: Path, uninterrupted: Callable[[str], bytes], read_late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, signals = guard.Guard.record, [signal.SIGTERM]

    def record_with_signal(self: Any, *arguments: Any) -> None:
        if signals:
            signal.raise_signal(signals.pop())
        record(self, *arguments)

    monkeypatch.setattr(guard.Guard, "record", record_with_signal)
    with pytest.raises(Interrupted):
        FULL.run(tmp_path, save_steps=100)
    assert FULL.run(tmp_path).resumed == [2]
    assert weights(tmp_path) == uninterrupted("full")


def test_a_due_checkpoint_waits_until_its_step_is_known_to_be_finite(tmp_path: Path, read_late: None) -> None:
    """The checkpoint after the bad step would be due: the last one is that of the step before."""
    with pytest.raises(UserError) as caught:
        FULL.run(tmp_path, rows=rows_with_a_bad_one(), save_steps=1)
    number = int(str(caught.value).partition(" in step ")[2].split()[0])
    newest = sorted((tmp_path / "checkpoints").glob("checkpoint-*"))[-1]
    assert newest.name == f"checkpoint-{number - 1:08d}"
    assert all(value.isfinite().all() for file in newest.glob("*.safetensors") for value in load_file(file).values())


def scaled_run(rows: Rows) -> tuple[Any, torch.amp.GradScaler]:
    """A run with the scaler of float16, whose gradients stay float32."""
    model, groups = vit()
    with start_accelerator(settings()) as accelerator:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=LARGE_SCALE)
        loaders = loaders_of(accelerator, rows, Rows(10, seed=1), 4)
        return fit_loaders(model, FullFineTuning(), groups, loaders, settings(), accelerator), accelerator.scaler


@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_overflows_with_the_scaler_is_left_out_and_the_run_goes_on(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "reads_at_once", lambda _: not late)
    states = last_states(monkeypatch)
    fitted, scaler = scaled_run(Rows(24))
    steps = [states[number]["step 0"].item() for number in range(len(states))]
    left_out = sum(before == after for before, after in zip([0.0, *steps], steps, strict=False))
    assert 0 < left_out < len(steps) == 12
    assert steps[-1] == 12 - left_out
    assert scaler.get_scale() == LARGE_SCALE / 2**left_out
    assert all(torch.equal(states[0][name], states[left_out - 1][name]) for name in states[0])
    assert all(value.isfinite().all() for value in fitted.model.state_dict().values())


def test_with_the_scaler_a_loss_that_is_not_finite_ends_the_run(
    read_late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = last_states(monkeypatch)
    with pytest.raises(UserError, match=r"a loss of nan .* training rows 17; the step was not taken"):
        scaled_run(rows_with_a_bad_one())
    assert all(torch.equal(states[-1][name], value) for name, value in states[-2].items())


def test_the_numbers_of_the_progress_bar_are_there_without_a_read_of_their_own(
    tmp_path: Path, read_late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss that is shown is that of the step before."""
    losses: list[float] = []
    shown: list[float] = []
    record, check = guard.Guard.record, guard.Guard.check

    def note_loss(self: Any, loss: Tensor, *arguments: Any) -> None:
        losses.append(loss.item())
        record(self, loss, *arguments)

    def note_shown(self: Any, *arguments: Any) -> Any:
        result = check(self, *arguments)
        shown.append(self.loss)
        return result

    monkeypatch.setattr(guard.Guard, "record", note_loss)
    monkeypatch.setattr(guard.Guard, "check", note_shown)
    FULL.run(tmp_path, save_steps=0, num_train_epochs=1)
    assert shown[1:] == losses[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_bad_sample_of_one_process_is_left_out_by_all(
    tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whole models (DDP) and with sharded ones (FSDP)."""
    if sharded:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "2")
    ended = two_forks(Path(__file__).with_name("late_steps.py"), str(tmp_path))
    assert ended.returncode == 0, ended.output[-3000:]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for result in results:
        assert result["sharded"] == sharded
        assert "with the samples of training rows 17; the step was not taken" in result["error"]
        assert result["unchanged"]
        assert result["finite"]


def test_the_loop_hands_the_decision_to_the_optimizer_only_where_it_is_read_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs the optimizer's kernel has nothing to check."""
    marked = []
    check = guard.Guard.check

    def note(self: Any, *arguments: Any) -> Any:
        marked.append(check(self, *arguments))
        return marked[-1]

    monkeypatch.setattr(guard.Guard, "check", note)
    FULL.run(tmp_path, save_steps=0, num_train_epochs=1)
    assert marked == [None] * 6
