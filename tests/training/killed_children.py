"""Children that are killed with SIGKILL at a chosen moment: in a step of training, or in an operation on files."""

import multiprocessing
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

# Children share what this process has loaded already, and take no seconds to start.
forks = multiprocessing.get_context("fork")
# What Python reports of operations on files; the writing of a file of tensors is counted apart.
OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def die(*, written: bool = False) -> NoReturn:
    """End as after a loss of power; if asked for, not before a checkpoint has been written that is on its way."""
    for thread in threading.enumerate() if written else ():
        if thread.name == "checkpoint":
            thread.join()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def exit_code(work: Callable[[], object]) -> int:
    """What a child ends with that does some work: -9 if it was killed."""

    def run() -> None:
        work()
        sys.stdout.flush()
        # Neither this process's own handlers nor its threads are the child's business.
        os._exit(0)

    child = forks.Process(target=run)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def killed_in_step(step: int, work: Callable[[], object], *, written: bool = True) -> int:
    """The same; the child is killed in its step of this number, counted from 1, before weights move.

    Args:
        step: which.
        work: what the child does.
        written: let a checkpoint first be written that is on its way to the disk.
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
    """The same; the child is killed before its operation of this number on files in a folder.

    A file of tensors counts twice: before it is written, and when half of it is.
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
                whole = safetensors.torch.save(tensors)
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
                    file.write(whole[: len(whole) // 2])
                die()
            save_file(tensors, path)

        safetensors.torch.save_file = save_or_die  # type: ignore[assignment]
        sys.addaudithook(hook)
        work()

    return exit_code(watched)
