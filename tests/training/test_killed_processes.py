"""Two processes, one of which is killed: both end at once, and the same command resumes to the same weights."""

import re
import time
from pathlib import Path

import pytest

from hf_transfer.checkpoints.checkpoint import Checkpoints
from tests.training.launched import torchrun, two_forks
from tests.training.resumed_runs import CASES, error_message, weights

pytestmark = pytest.mark.slow

# From the death of one process to the end of the command. torchrun looks ten times a second; if the other process did
# not end when it is asked to, it would wait for 30 seconds.
SECONDS_TO_END = 25
SCRIPT = str(Path(__file__).with_name("killed_run.py"))


@pytest.mark.parametrize("process", [1, 0])
def test_torchrun_ends_all_when_one_is_killed_and_names_it(process: int, tmp_path: Path) -> None:
    """The output says which process ended first, and how; also if it is the one that writes."""
    ended = torchrun(SCRIPT, "full", str(tmp_path), str(process), "4")
    assert ended.returncode == 1
    assert time.time() - float((tmp_path / "died").read_text()) < SECONDS_TO_END
    cause = ended.output[ended.output.index("Root Cause") :]
    assert re.search(rf"rank\s+: {process} ", cause)
    assert "exitcode  : -9" in cause


@pytest.mark.parametrize("case", ["full", "gradual"])
def test_a_run_whose_processes_are_killed_resumes_exactly(case: str, tmp_path: Path) -> None:
    """First the process that does not write, then the one that does."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    assert two_forks(SCRIPT, case, str(whole), "0", "0").returncode == 0
    reached = 0
    for process in (1, 0):
        assert two_forks(SCRIPT, case, str(killed), str(process), "4").returncode == -9
        newest, notes = Checkpoints(killed / "checkpoints").newest()
        assert newest is not None
        assert newest.step > reached
        assert notes == []
        reached = newest.step
    assert two_forks(SCRIPT, case, str(killed), "0", "0").returncode == 0
    assert weights(killed) == weights(whole)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    """Each process would have other samples."""
    assert two_forks(SCRIPT, "full", str(tmp_path), "1", "4").returncode != 0
    message = error_message(lambda: CASES["full"].run(tmp_path, allow_mismatch=True))
    assert "another run (there -> here): processes: 2 -> 1" in message
