"""Precision, trackers, gradient checkpointing: what a user switches on, and what this machine does not have."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from hf_transfer.config import UserError
from hf_transfer.training.loop import start_accelerator
from tests.tiny_models import state
from tests.training.toy_task import settings, train_vit


def test_training_runs_in_bfloat16_and_keeps_its_weights_in_single_precision() -> None:
    plain = train_vit(settings())
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = train_vit(settings(bf16=True))
    assert {value.dtype for value in mixed.model.state_dict().values()} == {torch.float32}
    losses = [[row["train_loss"] for row in fitted.history] for fitted in (plain, mixed)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what a machine without a GPU lacks")
def test_float16_without_a_gpu_is_refused() -> None:
    with (
        pytest.raises(UserError, match=r"a GPU for --fp16\nFound:    none\nDo this:  use --bf16"),
        start_accelerator(settings(fp16=True)),
    ):
        pass


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"\nFound:    .*notebook.*\nDo this:  .*--report_to"),
        start_accelerator(settings(report_to=["notebook"], output_dir=str(tmp_path))),
    ):
        pass


def test_tensorboard_gets_the_figures_of_the_history(tmp_path: Path) -> None:
    fitted = train_vit(settings(report_to=["tensorboard"], output_dir=str(tmp_path)))
    (events,) = tmp_path.rglob("events.out.tfevents*")
    written = EventAccumulator(str(events.parent)).Reload()
    for name in ("accuracy", "loss", "train_loss", "f1_macro"):
        found = written.Scalars(name)
        assert [event.step for event in found] == [0, 1]
        assert [event.value for event in found] == pytest.approx([row[name] for row in fitted.history])


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    train_vit(settings(output_dir=str(tmp_path / "out"), num_train_epochs=1))
    assert not any(tmp_path.iterdir())


def test_tracking_does_not_change_the_result(tmp_path: Path) -> None:
    plain = state(train_vit(settings()).model)
    tracked = state(train_vit(settings(report_to=["tensorboard"], output_dir=str(tmp_path))).model)
    assert all(torch.equal(tracked[name], value) for name, value in plain.items())
