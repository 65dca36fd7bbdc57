"""What a resumed run has beside its weights: the best epoch so far, random numbers, history, a clean folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_transfer.strategies.freezing import FullFineTuning
from hf_transfer.training.resuming import copied
from tests.training.resumed_runs import CASES, Case, killed, weights

FULL = CASES["full"]


def test_an_epoch_that_was_the_best_before_the_kill_is_kept(tmp_path: Path) -> None:
    case = Case("vit", FullFineTuning(), {"learning_rate": 0.3, "num_train_epochs": 3, "metric_for_best_model": "loss"})
    for name in ("whole", "out"):
        (tmp_path / name).mkdir()
    assert case.run(tmp_path / "whole", save_steps=0).best_epoch == 0
    assert killed(case, tmp_path / "out", 11) == -9
    assert case.run(tmp_path / "out").best_epoch == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_random_numbers_of_numpy_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a model or a data set may draw them."""
    take_step = torch.optim.AdamW.step
    drawn: list[float] = []

    def step_and_draw(*arguments: Any, **more: Any) -> Any:
        drawn.append(float(np.random.rand()))
        return take_step(*arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_draw)
    for name in ("whole", "out"):
        (tmp_path / name).mkdir()
    FULL.run(tmp_path / "whole", save_steps=0)
    expected = drawn.copy()
    assert killed(FULL, tmp_path / "out", 9) == -9
    drawn.clear()
    FULL.run(tmp_path / "out")
    assert drawn == expected[8:]


def test_a_partial_checkpoint_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    assert killed(FULL, tmp_path, 5) == -9
    partial = tmp_path / "checkpoints" / ".partial-6-01234567"
    partial.mkdir()
    FULL.run(tmp_path)
    assert not partial.exists()


def test_a_copy_does_not_change_while_it_is_written() -> None:
    weight = torch.ones(3)
    copies = copied({"weight": weight})
    weight.add_(1)
    assert torch.equal(copies["weight"], torch.ones(3))


def test_the_history_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "whole").mkdir()
    expected = FULL.run(tmp_path / "whole", save_steps=0)
    out = tmp_path / "out"
    out.mkdir()
    assert killed(FULL, out, 9) == -9
    result = FULL.run(out)
    assert result.resumed == [8]
    assert "Resuming after 8 steps, in epoch 2." in capsys.readouterr().out
    assert (result.best_epoch, result.soup, result.trainable) == (
        expected.best_epoch, expected.soup, expected.trainable,
    )  # fmt: skip
    timed = {"seconds", "samples_per_second"}
    for row, other in zip(result.history, expected.history, strict=True):
        assert {key: value for key, value in row.items() if key not in timed} == {
            key: value for key, value in other.items() if key not in timed
        }
    assert result.earlier_seconds > 0
