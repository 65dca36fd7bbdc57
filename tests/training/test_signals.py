"""A run that a signal asks to end saves its state and ends with the right exit code."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_transfer.checkpoints.checkpoint import Checkpoints
from hf_transfer.interruption import Interrupted
from hf_transfer.training import guard, loop
from hf_transfer.training.predictions import predict_split
from hf_transfer.training.resuming import largest_of_all
from tests.training.killed_children import exit_code
from tests.training.resumed_runs import CASES, STEPS, weights

FULL = CASES["full"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_in_training_saves_at_the_next_step(
    number: signal.Signals, tmp_path: Path, uninterrupted: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, signals = torch.optim.AdamW.step, [number]

    def step_with_signal(self: Any, *arguments: Any, **more: Any) -> Any:
        if signals:
            signal.raise_signal(signals.pop())
        return step(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_with_signal)
    with pytest.raises(Interrupted) as caught:
        FULL.run(tmp_path, save_steps=100)
    # Noted in the first step; in the second all processes know of it and save.
    assert caught.value.kept == f"{tmp_path / 'checkpoints' / 'checkpoint-00000002'} is kept"
    assert caught.value.exit_code == (130 if number == signal.SIGINT else 143)
    assert FULL.run(tmp_path).resumed == [2]
    assert weights(tmp_path) == uninterrupted("full")


def test_a_signal_in_evaluation_saves_the_epoch(
    tmp_path: Path, uninterrupted: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was before evaluation, with the weights that are trained and not their averages."""
    predict = predict_split

    def predict_with_signal(*arguments: Any, **more: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return predict(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "predict_split", predict_with_signal)
        with pytest.raises(Interrupted):
            FULL.run(tmp_path, save_steps=100)
    result = FULL.run(tmp_path)
    assert result.resumed == [STEPS // 2]
    assert len(result.history) == 2
    assert weights(tmp_path) == uninterrupted("full")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:

    def run_with_two_signals() -> None:
        def record(*_: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        guard.Guard.record = record  # type: ignore[method-assign, assignment]
        FULL.run(tmp_path, save_steps=100)

    assert exit_code(run_with_two_signals) == -signal.SIGINT
    assert Checkpoints(tmp_path / "checkpoints").folders() == []


def test_a_signal_to_one_process_ends_all() -> None:
    """With the same exit code."""
    others = torch.tensor([0, int(signal.SIGTERM), 0])
    reduced = {"max": torch.maximum}
    two = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda numbers, how: reduced[how](numbers, others))
    assert largest_of_all(two, False, 0, True) == [0, signal.SIGTERM, 1]
