"""Precision and trackers of a run, and several runs in one process."""

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from hf_transfer.errors import UserError
from hf_transfer.training.devices import start_accelerator
from tests.tiny_models import state
from tests.training.launched import two_forks
from tests.training.toy_task import settings, train_vit

SHARED = (AcceleratorState, PartialState, GradientState)


def test_training_runs_in_bfloat16_and_keeps_its_weights_in_single_precision() -> None:
    plain = train_vit(settings())
    mixed = train_vit(settings(bf16=True))
    assert {value.dtype for value in mixed.model.state_dict().values()} == {torch.float32}
    losses = [[row["train_loss"] for row in fitted.history] for fitted in (plain, mixed)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
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


def test_tensorboard_gets_the_metrics_of_the_history(tmp_path: Path) -> None:
    fitted = train_vit(settings(report_to=["tensorboard"], output_dir=str(tmp_path)))
    (events,) = tmp_path.rglob("events.out.tfevents*")
    written = EventAccumulator(str(events.parent)).Reload()
    for name in ("accuracy", "loss", "train_loss", "f1_macro"):
        scalars = written.Scalars(name)
        assert [scalar.step for scalar in scalars] == [0, 1]
        assert [scalar.value for scalar in scalars] == pytest.approx([row[name] for row in fitted.history])


def test_tensorboard_also_gets_the_epochs_of_the_run_whose_checkpoint_is_named(tmp_path: Path) -> None:
    """As of a strategy that was tried, and is then finished by another run."""
    train_vit(settings(output_dir=str(tmp_path / "first"), save_steps=8))
    first, *_ = sorted((tmp_path / "first/checkpoints").glob("checkpoint-*"))
    second = {"report_to": ["tensorboard"], "output_dir": str(tmp_path / "second"), "save_steps": 8}
    fitted = train_vit(settings(resume_from_checkpoint=str(first), **second))
    (events,) = tmp_path.rglob("events.out.tfevents*")
    scalars = EventAccumulator(str(events.parent)).Reload().Scalars("accuracy")
    assert [scalar.step for scalar in scalars] == [0, 1]
    assert [scalar.value for scalar in scalars] == pytest.approx([row["accuracy"] for row in fitted.history])


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    train_vit(settings(output_dir=str(tmp_path / "out"), num_train_epochs=1))
    assert not any(tmp_path.iterdir())


def test_tracking_does_not_change_the_result(tmp_path: Path) -> None:
    plain = state(train_vit(settings()).model)
    tracked = state(train_vit(settings(report_to=["tensorboard"], output_dir=str(tmp_path))).model)
    assert all(torch.equal(tracked[name], value) for name, value in plain.items())


# Several runs in one process


@pytest.fixture
def fresh_process() -> Iterator[None]:
    """Without what other tests or other libraries have set up of accelerate; that comes back afterwards."""
    before = [dict(kind._shared_state) for kind in SHARED]
    for kind in SHARED:
        kind._shared_state.clear()
    yield
    for kind, values in zip(SHARED, before, strict=True):
        kind._shared_state.clear()
        kind._shared_state.update(values)


def shared_state() -> list[dict[str, Any]]:
    return [dict(kind._shared_state) for kind in SHARED]


def failing_run(**more: Any) -> None:
    with start_accelerator(settings(**more)):
        raise KeyError("broken")


@pytest.mark.usefixtures("fresh_process")
def test_a_second_run_may_have_another_precision() -> None:
    """And is the same as if it had been the only one."""
    alone = state(train_vit(settings()).model)
    train_vit(settings(bf16=True, gradient_accumulation_steps=2))
    second = train_vit(settings())
    assert all(torch.equal(value, alone[name]) for name, value in state(second.model).items())


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ({"bf16": True}, KeyError),
        ({"report_to": ["notebook"], "bf16": True}, UserError),
        pytest.param(
            {"fp16": True}, UserError,
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU"),
        ),
    ],
)  # fmt: skip
def test_a_run_that_fails_leaves_nothing_behind(failing: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        failing_run(**failing)
    assert shared_state() == [{}, {}, {}]
    with start_accelerator(settings()) as accelerator:
        assert accelerator.mixed_precision == "no"


@pytest.mark.usefixtures("fresh_process")
def test_the_accelerator_of_the_callers_program_is_kept() -> None:
    """With another precision and another gradient accumulation than those of the run."""
    mine = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
    before = shared_state()
    with start_accelerator(settings(gradient_accumulation_steps=2)) as accelerator:
        assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("no", 1)
        assert accelerator.device == mine.device
    assert shared_state() == before
    assert (mine.mixed_precision, mine.gradient_accumulation_steps) == ("bf16", 3)


def run_with_an_error() -> None:
    with pytest.raises(KeyError):
        failing_run()


def some_random_numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("run", [lambda: train_vit(settings()), run_with_an_error])
def test_the_random_numbers_of_the_callers_program_are_not_disturbed(run: Callable[[], object]) -> None:
    """Although a run sets seeds: else two runs would be followed by the same numbers."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = [some_random_numbers() for _ in range(2)]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert some_random_numbers() == expected[0]
    run()
    assert some_random_numbers() == expected[1]


def test_a_run_works_in_another_thread_than_the_main_one() -> None:
    """As in a notebook or a server, where no signal handler can be set."""
    expected = state(train_vit(settings()).model)
    weights: list[dict[str, torch.Tensor]] = []
    thread = threading.Thread(target=lambda: weights.append(state(train_vit(settings()).model)))
    thread.start()
    thread.join()
    (actual,) = weights
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())


def test_two_runs_follow_each_other_on_two_processes(tmp_path: Path) -> None:
    ended = two_forks(Path(__file__).with_name("several_runs.py"), str(tmp_path))
    assert ended.returncode == 0, ended.output[-3000:]
    assert (tmp_path / "precisions").read_text() == "bf16 no"
