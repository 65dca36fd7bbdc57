"""Children that are forked: they share the modules that a test has imported, and so need no seconds to start."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any

import torch

forks = multiprocessing.get_context("fork")


def forked(target: Callable[..., object], *arguments: Any) -> ForkProcess:
    """A process, not started yet, that calls `target` and computes with one thread."""
    return forks.Process(target=_with_one_thread, args=(target, *arguments))


def _with_one_thread(target: Callable[..., object], *arguments: Any) -> None:
    # A fork has no copies of its parent's OpenMP threads, and would wait for them forever.
    torch.set_num_threads(1)
    target(*arguments)
