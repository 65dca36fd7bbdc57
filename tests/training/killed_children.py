"""Children that are killed with SIGKILL at a chosen moment: in a step of training, or in an operation on files."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch

from tests.forks import forked

# The operations on files that Python reports to audit hooks; files of tensors are counted separately.
OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def die(*, written: bool = False) -> NoReturn:
    """End like a process whose machine loses power.

    Args:
        written: wait until a checkpoint is written that is being written now.
    """
    for thread in threading.enumerate() if written else ():
        if thread.name.startswith("checkpoint"):
            thread.join()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def exit_code(work: Callable[[], object]) -> int:
    """The exit code of a child that does some work: -9 if it was killed."""

    def run() -> None:
        # OpenMP's threads are not in a forked process, which would wait for them without end.
        torch.set_num_threads(1)
        work()
        sys.stdout.flush()
        # The child must not run the exit handlers of this process, nor wait for its threads.
        os._exit(0)

    child = forked(run)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def killed_in_step(step: int, work: Callable[[], object], *, written: bool = True) -> int:
    """The exit code of a child that is killed in one of its steps, before weights are updated.

    Args:
        step: number of the step, counted from 1.
        work: what the child does.
        written: wait until a checkpoint is written that is being written then.
    """

    def watched() -> None:
        take_step, steps = torch.optim.AdamW.step, count(1)

        def step_or_die(self: Any, *arguments: Any, **more: Any) -> Any:
            if next(steps) == step:
                die(written=written)
            return take_step(self, *arguments, **more)

        torch.optim.AdamW.step = step_or_die  # type: ignore[method-assign]
        work()

    return exit_code(watched)


def killed_in_operation(operation: int, folder: Path, work: Callable[[], object]) -> int:
    """The exit code of a child that is killed before one of its operations on files in a folder.

    A file of tensors counts twice: before it is written, and when half of it is written.

    Args:
        operation: number of the operation, counted from 1.
        folder: operations elsewhere do not count.
        work: what the child does.
    """

    def watched() -> None:
        operations, save_file = count(1), safetensors.torch.save_file

        def counted() -> None:
            if next(operations) == operation:
                die()

        def hook(event: str, arguments: Any) -> None:
            if event in OPERATIONS and isinstance(arguments[0], str | os.PathLike):
                opened_to_read = event == "open" and isinstance(arguments[1], str) and "r" in arguments[1]
                if str(arguments[0]).startswith(str(folder)) and not opened_to_read:
                    counted()

        def save_or_die(tensors: Any, path: Any) -> None:
            counted()
            if next(operations) == operation:
                content = safetensors.torch.save(tensors)
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
                    file.write(content[: len(content) // 2])
                die()
            save_file(tensors, path)

        safetensors.torch.save_file = save_or_die  # type: ignore[assignment]
        sys.addaudithook(hook)
        work()

    return exit_code(watched)
