"""What the end of an interrupted command looks like, and two commands that want the same folder."""

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

from hf_transfer.config import UserError, VisionConfig
from hf_transfer.evaluation.run_folder import LOCK_FILE, lock
from hf_transfer.interruption import Interrupted, ending_at_once, ending_when_asked, same_command
from hf_transfer.parsing import run
from tests.conftest import REPOSITORY

REQUIRED = ["--model_name_or_path=m", "--dataset_name=d", "--output_dir=o"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_recipe_wherever_it_is(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While data are read, for one; with the command that goes on."""
    monkeypatch.setattr(sys, "argv", ["recipes/vision.py", "--output_dir", "my runs"])
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(SystemExit) as ended:
        run(lambda _: signal.raise_signal(number), VisionConfig, REQUIRED)
    assert ended.value.code == code
    _, interrupted, to_go_on, _ = capsys.readouterr().err.split("\n", 3)
    assert interrupted == f"Interrupted by {number.name}."
    assert to_go_on == "To go on:    python recipes/vision.py --output_dir 'my runs'"
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_what_was_kept_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def leave(_: Any) -> None:
        raise Interrupted(signal.SIGTERM, "out/checkpoint-00000008 is kept")

    with pytest.raises(SystemExit):
        run(leave, VisionConfig, REQUIRED)
    assert "Interrupted by SIGTERM. out/checkpoint-00000008 is kept\n" in capsys.readouterr().err


@pytest.mark.parametrize(("saved", "more"), [(True, "--allow_mismatch"), (False, "--no_resume --allow_mismatch")])
def test_the_command_that_goes_on_does_not_remove_what_was_saved(
    saved: bool, more: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/vision.py", "--no_resume", "--allow_mismatch"])

    def leave(_: Any) -> None:
        raise Interrupted(signal.SIGTERM, "o/checkpoint-00000008 is kept", saved=saved)

    with pytest.raises(SystemExit):
        run(leave, VisionConfig, REQUIRED)
    assert f"To go on:    python recipes/vision.py {more}\n" in capsys.readouterr().err


def test_settings_are_left_out_with_their_values() -> None:
    words = ["r.py", "--a", "x", "--b=1", "--a=2", "--config", "c.yaml", "--a", "--seed", "3"]
    assert same_command(words, without={"a"}).endswith("r.py --b=1 --config c.yaml --seed 3")


def test_only_the_main_process_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        run(lambda _: signal.raise_signal(signal.SIGTERM), VisionConfig, REQUIRED)
    assert capsys.readouterr().err == ""


def test_a_signal_that_is_noted_does_not_end_anything() -> None:
    with contextlib.suppress(ZeroDivisionError), ending_when_asked() as request:
        assert request.number == 0
        signal.raise_signal(signal.SIGTERM)
        assert request.number == signal.SIGTERM
        # Schedulers send it again.
        signal.raise_signal(signal.SIGTERM)
        # Otherwise it would be sent once more at the end.
        raise ZeroDivisionError


def test_a_signal_that_came_too_late_to_be_looked_at_is_not_lost() -> None:
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
def test_the_same_command_names_what_it_was_started_with(
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
from hf_transfer.evaluation.run_folder import lock
lock(Path(sys.argv[1]))
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
        with pytest.raises(UserError) as caught:
            lock(tmp_path)
        expected, found, do = str(caught.value).splitlines()
        assert expected == "Expected: an --output_dir that no other run is writing into"
        assert found == f"Found:    {tmp_path}, in use by process {holder.pid} on {os.uname().nodename}"
        assert do == "Do this:  wait for it to end, or name another folder"
    finally:
        holder.kill()
        holder.wait()
    lock(tmp_path)
    # The lock is the process's own.
    lock(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_no_reason_not_to_train(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock(tmp_path)
    assert f"{tmp_path} cannot be locked ([Errno {code}]" in capsys.readouterr().out


ASKED = """
import sys, time
import torch
from torch.utils.data import Dataset
from hf_transfer.data.inputs import loader_of
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work(number: signal.Signals) -> None:
    """Schedulers send it to all processes of a job."""
    job = subprocess.Popen(
        [sys.executable, "-c", ASKED],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True,
    )  # fmt: skip
    assert job.stdout is not None
    assert job.stdout.readline() == "batch\n"
    os.killpg(job.pid, number)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert f"seen 40 asked {int(number)}" in out
