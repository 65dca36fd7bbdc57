"""An interrupted run resumes to the same weights, to the bit, or is refused with the reason."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hf_transfer.checkpoints.checkpoint import STATE, Checkpoints
from hf_transfer.errors import UserError, user_error
from hf_transfer.frozen.prefix import FrozenPrefix
from hf_transfer.training import loop
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.resuming import Checkpointing, LastCheckpoint, RunState, checkpoints_of
from tests.training.resumed_runs import CASES, STEPS, killed, run_to_the_end, weights
from tests.training.toy_task import tiny

FULL = CASES["full"]


@pytest.mark.parametrize("name", list(CASES))
def test_a_run_that_is_killed_twice_ends_with_the_same_weights(
    name: str, tmp_path: Path, uninterrupted: Callable[[str], bytes]
) -> None:
    """Once in the middle of each epoch."""
    case = CASES[name]
    assert killed(case, tmp_path, 4) == -9
    assert not (tmp_path / "weights.safetensors").exists()
    assert killed(case, tmp_path, 4) == -9
    assert run_to_the_end(case, tmp_path) == 0
    assert weights(tmp_path) == uninterrupted(name)


@pytest.mark.slow
@hypothesis_settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    name=st.sampled_from(list(CASES)),
    every=st.integers(1, 5),
    kills=st.lists(st.integers(1, STEPS), min_size=1, max_size=3),
)
def test_a_run_can_be_killed_anywhere_and_any_number_of_times(
    name: str, every: int, kills: list[int], tmp_path_factory: pytest.TempPathFactory,
    uninterrupted: Callable[[str], bytes],
) -> None:  # fmt: skip
    """And no more is lost than the steps between two checkpoints."""
    out = tmp_path_factory.mktemp("killed")
    reached = 0
    for step in kills:
        code = killed(CASES[name], out, step, written=False, save_steps=every)
        newest, notes = Checkpoints(out / "checkpoints").newest()
        assert notes == []
        saved = newest.step if newest else 0
        if code == 0:
            break
        # The last checkpoint may not have been written completely.
        assert saved >= reached + step - 1 - 2 * every
        reached = saved
    assert run_to_the_end(CASES[name], out, save_steps=every) == 0
    assert weights(out) == uninterrupted(name)
    shutil.rmtree(out)


def test_without_checkpoints_nothing_is_written_and_the_run_does_not_resume(tmp_path: Path) -> None:
    assert killed(FULL, tmp_path, 9) == -9
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "before")
    assert FULL.run(tmp_path, save_steps=0).resumed == []
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(
        path.name for path in (tmp_path / "before").iterdir()
    )


def test_by_default_a_checkpoint_is_due_after_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before."""
    FULL.run(tmp_path, save_steps=None)
    assert Checkpoints(tmp_path / "checkpoints").folders() == []
    monkeypatch.setattr("hf_transfer.training.resuming.SECONDS_BETWEEN", 0.0)
    FULL.run(tmp_path, save_steps=None)
    assert Checkpoints(tmp_path / "checkpoints").folders() != []


def test_with_save_steps_training_waits_until_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no more than so many steps can be lost."""
    written, save = Checkpoints.save, Checkpointing.save

    def slowly(checkpoints: Checkpoints, *contents: Any) -> Any:
        time.sleep(0.2)
        return written(checkpoints, *contents)

    def checked(checkpointing: Checkpointing, state: RunState) -> None:
        save(checkpointing, state)
        newest = Checkpoints(tmp_path / "checkpoints").folders()[-1]
        assert newest.name == f"checkpoint-{state.position.steps:08d}"

    monkeypatch.setattr(Checkpoints, "save", slowly)
    monkeypatch.setattr(Checkpointing, "save", checked)
    assert FULL.run(tmp_path, save_steps=5).history


def test_an_error_that_comes_while_a_checkpoint_is_written_waits_for_it_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's on the death of a loader worker, which it raises wherever the main thread is."""
    save, wait, waiting, ended = Checkpoints.save, Checkpointing.wait, threading.Event(), list[bool]()

    def noted(checkpointing: Checkpointing) -> None:
        if checkpointing._writer is not None:
            waiting.set()
        wait(checkpointing)

    def dies(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 14884) is killed by signal: Killed. ")

    def slowly(*arguments: Any) -> Any:
        assert waiting.wait(240)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.5)
        saved = save(*arguments)
        ended.append(True)
        return saved

    monkeypatch.setattr(Checkpoints, "save", slowly)
    monkeypatch.setattr(Checkpointing, "wait", noted)
    before = signal.signal(signal.SIGUSR2, dies)
    try:
        with pytest.raises(UserError) as caught:
            FULL.run(tmp_path, save_steps=5)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert ended == [True]
    assert f"Killed. {tmp_path / 'checkpoints/checkpoint-00000005'} is kept" in str(caught.value)


def test_a_checkpoint_is_due_earlier_by_the_time_that_writing_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six seconds are expected for the first; with slow writing, half of the interval is left for training."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    config = FULL.config(tmp_path, save_steps=None)
    model, _, _ = tiny("vit")
    with start_accelerator(config) as accelerator:
        checkpoints = checkpoints_of(config)
        checkpointing = Checkpointing(model, set(), dict, checkpoints, config.checkpoints, accelerator)

        assert checkpointing.last_checkpoint() == LastCheckpoint("no checkpoint had been written", saved=False)

        def first_due() -> float:
            for now[0] in range(120):
                if checkpointing.due(1):
                    return now[0]
            return now[0]

        assert first_due() == 54
        for writing, due in ((20.0, 40), (50.0, 30), (0.0, 60)):
            monkeypatch.setattr(checkpoints, "save", lambda *_, writing=writing: now.append(now.pop() + writing))
            checkpointing._write(1, {}, {})
            assert first_due() == due


def test_a_run_resumes_from_a_named_checkpoint(tmp_path: Path, uninterrupted: Callable[[str], bytes]) -> None:
    """Also from another folder, which is not changed."""
    (tmp_path / "a").mkdir()
    assert killed(FULL, tmp_path / "a", 9) == -9
    earlier = tmp_path / "a" / "checkpoints" / "checkpoint-00000006"
    (tmp_path / "b").mkdir()
    assert FULL.run(tmp_path / "b", resume_from_checkpoint=str(earlier)).resumed == [6]
    assert weights(tmp_path / "b") == uninterrupted("full")
    # In its own folder the later checkpoints do not belong to the run that starts from the earlier one.
    assert FULL.run(tmp_path / "a", resume_from_checkpoint=str(earlier)).resumed == [6]
    assert weights(tmp_path / "a") == uninterrupted("full")


def test_a_named_checkpoint_that_is_refused_does_not_change_the_run(tmp_path: Path) -> None:
    assert killed(FULL, tmp_path, 9) == -9
    with pytest.raises(UserError):
        FULL.run(tmp_path, learning_rate=0.5, resume_from_checkpoint=str(tmp_path / "checkpoints/checkpoint-00000006"))
    assert FULL.run(tmp_path).resumed == [8]


def test_a_run_that_started_from_a_named_checkpoint_resumes_from_its_newest_one(
    tmp_path: Path, uninterrupted: Callable[[str], bytes]
) -> None:
    """If its command is repeated, as schedulers do."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert killed(FULL, tmp_path / "a", 5) == -9
    named: dict[str, Any] = {"resume_from_checkpoint": str(tmp_path / "a/checkpoints/checkpoint-00000004")}
    assert killed(FULL, tmp_path / "b", 5, **named) == -9
    assert FULL.run(tmp_path / "b", **named).resumed == [4, 8]
    assert weights(tmp_path / "b") == uninterrupted("full")


@pytest.mark.parametrize("step", [6, 12])
def test_a_run_that_resumes_at_the_end_of_an_epoch_reports_the_rate_of_its_last_step(step: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rates = [row["learning_rate"] for row in FULL.run(tmp_path / "a").history]
    assert min(rates) > 0
    checkpoint = tmp_path / "a/checkpoints" / f"checkpoint-{step:08d}"
    if not checkpoint.is_dir():
        FULL.run(tmp_path / "b", save_total_limit=9)
        checkpoint = tmp_path / "b/checkpoints" / f"checkpoint-{step:08d}"
    (tmp_path / "c").mkdir()
    result = FULL.run(tmp_path / "c", resume_from_checkpoint=str(checkpoint))
    assert [row["learning_rate"] for row in result.history] == rates


def test_a_named_checkpoint_that_is_damaged_is_refused(tmp_path: Path) -> None:
    assert killed(FULL, tmp_path, 9) == -9
    broken = tmp_path / "checkpoints" / "checkpoint-00000008"
    (broken / STATE).write_text("{}")
    with pytest.raises(UserError) as caught:
        FULL.run(tmp_path, resume_from_checkpoint=str(broken))
    expected, found, do = str(caught.value).splitlines()
    assert expected == f"Expected: an intact checkpoint in --resume_from_checkpoint {broken}"
    assert found.startswith(f"Found:    {STATE} has 2 bytes instead of ")
    assert "resume from the newest intact one in --output_dir" in do
    assert broken.is_dir()


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uninterrupted: Callable[[str], bytes]
) -> None:
    assert killed(FULL, tmp_path, 9) == -9
    path = tmp_path / "checkpoints" / "checkpoint-00000008" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert FULL.run(tmp_path).resumed == [6]
    assert "Checkpoint checkpoint-00000008 is damaged (model.safetensors has " in capsys.readouterr().out
    assert weights(tmp_path) == uninterrupted("full")


def test_settings_of_speed_may_change_when_a_run_resumes(tmp_path: Path, uninterrupted: Callable[[str], bytes]) -> None:
    assert killed(FULL, tmp_path, 9) == -9
    FULL.run(tmp_path, save_steps=5, save_total_limit=4, dataloader_num_workers=2)
    assert weights(tmp_path) == uninterrupted("full")


def test_a_resumed_run_keeps_its_decision_about_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASES["partial"], more={"cache_frozen": "auto"})
    for verdict in (True, False):
        out = tmp_path / str(verdict)
        out.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(FrozenPrefix, "_estimate", lambda *_, verdict=verdict: (verdict, "measured"))
            assert killed(case, out, 9) == -9
            patch.setattr(FrozenPrefix, "_estimate", lambda *_, verdict=verdict: (not verdict, "measured anew"))
            result = case.run(out)
        used = "used for" if verdict else "not used for"
        assert any(f"Frozen store: {used} " in note and "as when the run began" in note for note in result.notes)


def test_a_run_from_a_named_checkpoint_keeps_its_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASES["partial"], more={"cache_frozen": "auto"})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(FrozenPrefix, "_estimate", lambda *_: (True, "measured"))
    assert killed(case, tmp_path / "a", 9) == -9
    monkeypatch.setattr(FrozenPrefix, "_estimate", lambda *_: (False, "measured anew"))
    result = case.run(tmp_path / "b", resume_from_checkpoint=str(tmp_path / "a/checkpoints/checkpoint-00000008"))
    assert any("as when the run began" in note for note in result.notes)


def test_a_resumed_run_must_not_switch_the_store(tmp_path: Path) -> None:
    """Stored activations may be rounded."""
    case = CASES["partial"]
    assert killed(case, tmp_path, 9) == -9
    with pytest.raises(UserError) as caught:
        case.run(tmp_path, cache_frozen="off")
    expected, found, do = str(caught.value).splitlines()
    assert expected == "Expected: --cache_frozen on or auto, as when the run began"
    assert found == "Found:    --cache_frozen off"
    assert do == "Do this:  leave it as it was, or add --allow_mismatch: results may then differ in rounding"
    assert case.run(tmp_path, cache_frozen="off", allow_mismatch=True).resumed == [8]


def test_an_error_is_not_hidden_by_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def full(*_: Any) -> None:
        raise user_error(expected="room", found="none", do="make some")

    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError("too little")

    monkeypatch.setattr(Checkpoints, "save", full)
    monkeypatch.setattr(loop, "predict_split", broken)
    monkeypatch.setattr(Checkpointing, "due", lambda _, steps: steps == 6)
    with pytest.raises(UserError) as caught:
        FULL.run(tmp_path, save_steps=None)
    assert (
        "Found:    too little; no checkpoint had been written (the last one could not be written: Expected: room"
        in str(caught.value)
    )


def test_a_disk_without_room_stops_the_run_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_transfer.checkpoints.checkpoint.free_bytes", lambda _: 10_000)
    monkeypatch.setattr(loop, "run_stage", lambda *_: pytest.fail("it started"))
    with pytest.raises(UserError, match="Found:    10 kB free"):
        FULL.run(tmp_path)


def test_the_state_of_a_checkpoint_is_readable_json(tmp_path: Path) -> None:
    """With everything that is not a tensor."""
    assert killed(FULL, tmp_path, 9) == -9
    (_, folder) = Checkpoints(tmp_path / "checkpoints").folders()
    state = json.loads((folder / STATE).read_text())
    assert state["position"]["steps"] == 8
    assert state["position"]["batches"] == 2
    assert state["run"]["settings"]["learning_rate"] == 0.001
    assert {path.stem for path in folder.glob("*.safetensors")} == {
        "model", "optimizer", "average", "start", "random", "best-0",
    }  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_a_state_that_was_saved_at_the_end_leaves_nothing_to_train(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run that is given it takes no step, and was not interrupted."""
    whole = CASES[name].run(tmp_path / "a", save_steps=None, save_at_end=True)
    *_, checkpoint = sorted((tmp_path / "a/checkpoints").glob("checkpoint-*"))
    (tmp_path / "b").mkdir()
    capsys.readouterr()
    again = CASES[name].run(tmp_path / "b", resume_from_checkpoint=str(checkpoint))
    assert weights(tmp_path / "b") == weights(tmp_path / "a")
    assert (again.history, again.seconds, again.soup) == (whole.history, whole.seconds, whole.soup)
    assert again.resumed == []
    shown = capsys.readouterr().out
    assert "Training is complete: " in shown
    assert "Resuming" not in shown


def test_a_run_that_was_interrupted_after_its_training_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FULL.run(tmp_path, save_steps=None, save_at_end=True)
    assert FULL.run(tmp_path, save_steps=None).resumed == [12]
    assert "Resuming after 12 steps, in epoch 3." in capsys.readouterr().out
