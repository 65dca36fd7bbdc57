"""A run that is asked to end keeps what it has, and says so with the right code."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_transfer.interruption import Interrupted
from hf_transfer.training import guard, loop
from hf_transfer.training.checkpoint import Checkpoints
from hf_transfer.training.predictions import predict_split
from hf_transfer.training.resuming import agreed
from tests.training.killed_children import exit_code
from tests.training.resumed_runs import CASES, STEPS, weights

FULL = CASES["full"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_in_training_saves_at_the_next_step(
    number: signal.Signals, tmp_path: Path, uninterrupted: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, signals = torch.optim.AdamW.step, [number]

    def ask(self: Any, *arguments: Any, **more: Any) -> Any:
        if signals:
            signal.raise_signal(signals.pop())
        return step(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", ask)
    with pytest.raises(Interrupted) as caught:
        FULL.run(tmp_path, save_steps=100)
    # Noted in the first step, agreed upon and saved in the second.
    assert caught.value.kept == f"{tmp_path / 'checkpoints' / 'checkpoint-00000002'} is kept"
    assert caught.value.exit_code == (130 if number == signal.SIGINT else 143)
    assert FULL.run(tmp_path).resumed == [2]
    assert weights(tmp_path) == uninterrupted("full")


def test_a_signal_in_evaluation_saves_the_epoch(
    tmp_path: Path, uninterrupted: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is judged; with the weights that learn, and not those that are judged."""
    predict = predict_split

    def asked(*arguments: Any, **more: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return predict(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "predict_split", asked)
        with pytest.raises(Interrupted):
            FULL.run(tmp_path, save_steps=100)
    result = FULL.run(tmp_path)
    assert result.resumed == [STEPS // 2]
    assert len(result.history) == 2
    assert weights(tmp_path) == uninterrupted("full")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:

    def asked_twice() -> None:
        def see(*_: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        guard.Guard.see = see  # type: ignore[method-assign, assignment]
        FULL.run(tmp_path, save_steps=100)

    assert exit_code(asked_twice) == -signal.SIGINT
    assert Checkpoints(tmp_path / "checkpoints").own() == []


def test_all_processes_heed_what_one_was_asked(tmp_path: Path) -> None:
    """And leave with the same code."""
    others = torch.tensor([[0, int(signal.SIGTERM), 0]])
    two = SimpleNamespace(num_processes=2, device="cpu", gather=lambda own: torch.cat([own, others]))
    assert agreed(two, False, 0, True) == [0, signal.SIGTERM, 1]
