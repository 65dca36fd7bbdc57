"""Processes that train, two of them together: started as a user starts them, or forked from this one.

What this process has imported, forks need not import again, which takes longer than most of what they do.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState
from tqdm import tqdm

from tests.conftest import REPOSITORY

forks = multiprocessing.get_context("fork")
LONGEST_SECONDS = 240.0


@dataclass(frozen=True)
class Ended:
    """How processes ended.

    Attributes:
        returncode: 0 if all of them ended well.
        said: what they said, all together.
    """

    returncode: int
    said: str


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def be_rank(rank: int, processes: int, port: int) -> None:
    """Make this process one of several, as torchrun would have started it; alone it stays as it is."""
    # A lock that forks have in common stays locked for all of them if one is killed while it holds it.
    tqdm.set_lock(threading.RLock())
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_PORT": str(port),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "1",
        }  # fmt: skip


def quietly(work: Callable[[], object], log: Path) -> None:
    """Do some work as the whole of a fork, with whatever is said in a file; its handlers of exits are not ours."""
    file = log.open("a", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    # Those of this process may be a test's own.
    sys.stdout = sys.stderr = file
    code = 0
    try:
        work()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(processes: Sequence[Any], seconds: float) -> int:
    """The worst exit code; one that fails takes the others with it, as with torchrun."""
    deadline = time.monotonic() + seconds
    while any(process.is_alive() for process in processes):
        if time.monotonic() > deadline or any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
        time.sleep(0.005)
    codes = [process.exitcode or 0 for process in processes]
    return min(codes) or max(codes)


def torchrun(*command: str) -> Ended:
    """The command in two processes, each with one thread, on a port that is free."""
    surroundings = {
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2", *command],
        cwd=REPOSITORY,
        env={**os.environ, **surroundings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout)


def two_forks(script: Path | str, *arguments: str) -> Ended:
    """Run a script of this repository in two processes."""
    return _forked(2, script, arguments)


def one_fork(script: Path | str, *arguments: str) -> Ended:
    """Run a script of this repository in a process of its own."""
    return _forked(1, script, arguments)


def _forked(count: int, script: Path | str, arguments: Sequence[str]) -> Ended:
    port = free_port()

    def work(rank: int) -> None:
        be_rank(rank, count, port)
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        processes = [forks.Process(target=quietly, args=(partial(work, rank), log)) for rank in range(count)]
        for process in processes:
            process.start()
        code = wait_for(processes, LONGEST_SECONDS)
        return Ended(code, log.read_text(encoding="utf-8", errors="replace"))
