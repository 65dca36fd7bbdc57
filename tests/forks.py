"""Children that are forked: they share the modules that a test has imported, and so need no seconds to start."""

import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any

import torch
from tqdm import tqdm

forks = multiprocessing.get_context("fork")


def forked(target: Callable[..., object], *arguments: Any) -> ForkProcess:
    """A process, not started yet, that calls `target`, computes with one thread, and shares no lock of tqdm."""
    return forks.Process(target=_on_its_own, args=(target, *arguments))


def _on_its_own(target: Callable[..., object], *arguments: Any) -> None:
    # A fork has no copies of its parent's OpenMP threads, and would wait for them forever.
    torch.set_num_threads(1)
    # tqdm's lock is shared by all forks: one that is killed while it holds the lock would stop the others forever.
    tqdm.set_lock(threading.RLock())
    target(*arguments)
