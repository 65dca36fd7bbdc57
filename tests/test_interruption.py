"""How an interrupted command ends, and two commands that need the same folder."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.advice.auto import decided
from hf_transfer.errors import UserError
from hf_transfer.evaluation.run_folder import LOCK_FILE, locked
from hf_transfer.interruption import Interrupted, ending_at_once, ending_when_asked, same_command
from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import VisionConfig
from tests.conftest import REPOSITORY

# A prediction that never ends, with Python's own handler of Ctrl-C, which a shell's background jobs lack.
PREDICT = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)
import hf_transfer.evaluation.predictor as predictor
from hf_transfer.command_line import main

def endless(model, paths, *, of_texts):
    print("ready", flush=True)
    while True:
        # A pause would miss a signal that comes just before it.
        time.sleep(0.05)

predictor.predictor_for = endless
main(["predict", "runs/first", "one.png"])
"""
REQUIRED = ["--model_name_or_path=m", "--dataset_name=d", "--output_dir=o"]


def test_ctrl_c_ends_a_command_without_a_traceback() -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", PREDICT], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=240)
    assert (command.returncode, err) == (130, "\nInterrupted.\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_recipe_wherever_it_is(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example while data are read; it prints the command that resumes the run."""
    monkeypatch.setattr(sys, "argv", ["recipes/vision.py", "--output_dir", "my runs"])
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(SystemExit) as ended:
        run_recipe(lambda _: signal.raise_signal(number), VisionConfig, REQUIRED)
    assert ended.value.code == code
    _, interrupted, to_resume, _ = capsys.readouterr().err.split("\n", 3)
    assert interrupted == f"Interrupted by {number.name}."
    assert to_resume == "To resume:   python recipes/vision.py --output_dir 'my runs'"
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_the_message_says_what_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def leave(_: Any) -> None:
        raise Interrupted(signal.SIGTERM, "out/checkpoint-00000008 is kept")

    with pytest.raises(SystemExit):
        run_recipe(leave, VisionConfig, REQUIRED)
    assert "Interrupted by SIGTERM. out/checkpoint-00000008 is kept\n" in capsys.readouterr().err


@pytest.mark.parametrize(("saved", "more"), [(True, "--allow_mismatch"), (False, "--no_resume --allow_mismatch")])
def test_the_command_that_resumes_does_not_remove_what_was_saved(
    saved: bool, more: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/vision.py", "--no_resume", "--allow_mismatch"])

    def leave(_: Any) -> None:
        raise Interrupted(signal.SIGTERM, "o/checkpoint-00000008 is kept", saved=saved)

    with pytest.raises(SystemExit):
        run_recipe(leave, VisionConfig, [*REQUIRED, "--strategy", "full"])
    assert f"To resume:   python recipes/vision.py {more}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("reads", "more"), [(True, " --overwrite_output_dir"), (False, "")])
def test_a_choice_that_had_not_begun_starts_over_when_it_is_resumed(
    reads: bool, more: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While data are read, nothing has replaced the earlier run; later, the strategies that were tried are kept."""
    monkeypatch.setattr(sys, "argv", ["recipes/vision.py", "--overwrite_output_dir"])
    monkeypatch.setattr("hf_transfer.modalities.opening.open_data", lambda *_: signal.raise_signal(signal.SIGTERM))

    def choose(config: Any) -> None:
        if reads:
            decided(config)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        run_recipe(choose, VisionConfig, [*REQUIRED, "--output_dir", str(tmp_path)])
    assert f"To resume:   python recipes/vision.py{more}\n" in capsys.readouterr().err


def test_settings_are_left_out_with_their_values() -> None:
    words = ["r.py", "--a", "x", "--b=1", "--a=2", "--config", "c.yaml", "--a", "--seed", "3"]
    assert same_command(words, without={"a"}).endswith("r.py --b=1 --config c.yaml --seed 3")
    hyphens = ["r.py", "--start-over", "--seed", "3"]
    assert same_command(hyphens, without={"start_over"}).endswith("r.py --seed 3")


def test_only_the_main_process_prints_the_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        run_recipe(lambda _: signal.raise_signal(signal.SIGTERM), VisionConfig, REQUIRED)
    assert capsys.readouterr().err == ""


def test_a_recorded_signal_does_not_end_the_block() -> None:
    with contextlib.suppress(ZeroDivisionError), ending_when_asked() as request:
        assert request.number == 0
        signal.raise_signal(signal.SIGTERM)
        assert request.number == signal.SIGTERM
        # Schedulers send it again.
        signal.raise_signal(signal.SIGTERM)
        # Without an error, it would be raised again at the end.
        raise ZeroDivisionError


def test_a_recorded_signal_is_raised_again_at_the_end() -> None:
    done = []

    def work() -> None:
        with ending_at_once():
            with ending_when_asked():
                signal.raise_signal(signal.SIGUSR1)
                done.append("all of it")
            done.append("more")

    with pytest.raises(Interrupted) as caught:
        work()
    assert caught.value.number == signal.SIGUSR1
    assert done == ["all of it"]


def test_another_thread_leaves_signals_alone() -> None:
    """Python lets only the main one handle them."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with ending_when_asked(), ending_at_once():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


@pytest.mark.parametrize(
    ("surroundings", "expected"),
    [
        ({}, "python recipes/text.py --seed 1"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch recipes/text.py --seed 1"),
        (
            {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc_per_node 2 recipes/text.py --seed 1",
        ),
    ],
)
def test_the_same_command_includes_its_launcher(
    surroundings: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert same_command(["recipes/text.py", "--seed", "1"]) == expected


HOLD = """
import sys, time
from pathlib import Path
from hf_transfer.evaluation.run_folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """Until the first has ended, however it did."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError) as caught, locked(tmp_path):
            pass
        expected, found, do = str(caught.value).splitlines()
        assert expected == "Expected: an --output_dir that no other run is writing into"
        assert found == f"Found:    {tmp_path}, in use by process {holder.pid} on {os.uname().nodename}"
        assert do == "Do this:  wait for it to end, or name another folder"
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
        # Another run in this process does not share it either.
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_on_a_disk_without_locks_a_run_trains_with_a_warning(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        assert f"{tmp_path} cannot be locked ([Errno {code}]" in capsys.readouterr().out


RECORDED = """
import sys, time
import torch
from torch.utils.data import Dataset
from hf_transfer.data.batches import loader_of
from accelerate import Accelerator
from hf_transfer.interruption import ending_when_asked

class Slow(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, position):
        time.sleep(0.05)
        return torch.tensor(position)

with ending_when_asked() as request:
    seen = 0
    for batch in loader_of(Slow(), 4, None, 1, Accelerator()):
        print("batch", flush=True)
        seen += len(batch)
    print("seen", seen, "asked", request.number, flush=True)
    raise SystemExit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_whole_group_does_not_end_the_workers(number: signal.Signals) -> None:
    """Schedulers send it to all processes of a job."""
    job = subprocess.Popen(
        [sys.executable, "-c", RECORDED],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True,
    )  # fmt: skip
    assert job.stdout is not None
    assert job.stdout.readline() == "batch\n"
    os.killpg(job.pid, number)
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert f"seen 40 asked {int(number)}" in out
