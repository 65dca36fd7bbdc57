"""What the end of an interrupted command looks like, and two commands that want the same folder."""

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
    """While data are read, for one; with the command that goes on.

    Mutation: hf_transfer/parsing.py: "        with ending_at_once():" -> "        if True:"
    """
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


def test_only_the_main_process_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: hf_transfer/parsing.py: "if os.environ.get("RANK", "0") == "0":" -> "if True:" """
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        run(lambda _: signal.raise_signal(signal.SIGTERM), VisionConfig, REQUIRED)
    assert capsys.readouterr().err == ""


def test_a_signal_that_is_noted_does_not_end_anything() -> None:
    with ending_when_asked() as request:
        assert request.number == 0
        signal.raise_signal(signal.SIGTERM)
        assert request.number == signal.SIGTERM
        # Schedulers send it again.
        signal.raise_signal(signal.SIGTERM)


def test_another_thread_leaves_signals_alone() -> None:
    """Python lets only the main one handle them.

    Mutation: hf_transfer/interruption.py: "if threading.current_thread() is not" -> "if None is"
    """
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
    """Until the first has ended, however it did.

    Mutation: hf_transfer/evaluation/run_folder.py: "fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)" -> "pass"
    """
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
    lock(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
