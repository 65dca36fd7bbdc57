"""One or two processes that run a script: started by torchrun as a user does, or forked from this process.

Forks need not import again what this process has imported, which would take longer than most scripts.
"""

import os
import runpy
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
from tests.forks import forked
from tests.ports import held_port

# So that a test that hangs ends: the longest script takes a minute alone on a machine.
LONGEST_SECONDS = 600.0


@dataclass(frozen=True)
class Ended:
    """How processes ended.

    Attributes:
        returncode: 0 if all of them succeeded.
        output: of all of them, standard output and errors.
    """

    returncode: int
    output: str


def be_rank(rank: int, processes: int, port: int) -> None:
    """Set this fork up like one of several processes that torchrun has started."""
    # The lock of the parent would stay locked in all forks if one of them is killed while it holds it.
    tqdm.set_lock(threading.RLock())
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_PORT": str(port),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "1",
        }  # fmt: skip


def quietly(work: Callable[[], object], log: Path) -> None:
    """Do some work in a fork and end it, with all output in a file, and without the exit handlers of the parent."""
    file = log.open("a", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    # The streams of the parent may be those of pytest.
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
    """The worst exit code; if one process fails the others are killed, as torchrun does."""
    deadline = time.monotonic() + seconds
    while any(process.is_alive() for process in processes):
        if time.monotonic() > deadline or any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
        time.sleep(0.005)
    codes = [process.exitcode or 0 for process in processes]
    return min(codes) or max(codes)


def torchrun(*command: str) -> Ended:
    """Run a command in two processes, each with one thread."""
    environment = {
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2", *command],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
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
    """Run a script of this repository in one separate process."""
    return _forked(1, script, arguments)


def _forked(count: int, script: Path | str, arguments: Sequence[str]) -> Ended:
    def work(rank: int, port: int) -> None:
        be_rank(rank, count, port)
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")

    with tempfile.TemporaryDirectory() as folder, held_port() as port:
        log = Path(folder) / "log"
        processes = [forked(quietly, partial(work, rank, port), log) for rank in range(count)]
        for process in processes:
            process.start()
        code = wait_for(processes, LONGEST_SECONDS)
        return Ended(code, log.read_text(encoding="utf-8", errors="replace"))
