"""Commands in processes of their own: what they print, their seconds, and their memory."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
        printed: what it wrote, errors included.
        clock: seconds of the clock.
        user: seconds of the processor in user mode, with those of the processes that it has waited for.
        kernel: the same in the kernel.
        peak: the largest resident memory of one of these processes, in bytes.
    """

    printed: str
    clock: float
    user: float
    kernel: float
    peak: int

    @property
    def processor(self) -> float:
        """Seconds of the processor, in user mode and in the kernel."""
        return self.user + self.kernel


def run_alone(
    words: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None, code: int = 0
) -> Ended:
    """Run a command to its end in a process of its own.

    Args:
        words: the command.
        folder: where it runs.
        environment: variables beside those of this process.
        code: the exit code that is expected.

    Raises:
        RuntimeError: it ended with another exit code.
    """
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            words, cwd=folder, env={**os.environ, **(environment or {})}, stdout=output, stderr=output
        )
        _, status, used = os.wait4(child.pid, 0)
        clock = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    if child.returncode != code:
        raise RuntimeError(f"{' '.join(words)} ended with {child.returncode}, not {code}:\n{printed[-2_000:]}")
    return Ended(printed, clock, used.ru_utime, used.ru_stime, used.ru_maxrss * 1024)
