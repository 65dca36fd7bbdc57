"""Loader workers: they end after any error, and what went wrong in them is explained."""

import contextlib
import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

import hf_transfer as ht
from hf_transfer.data.batches import loader_of
from hf_transfer.data.workers import end_workers, explained_worker_failures, worker_failure
from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation.run_folder import locked
from hf_transfer.training import loop
from tests.conftest import REPOSITORY


class Numbers(Dataset[torch.Tensor]):
    """Forty numbers; in a worker something may happen to the twentieth."""

    def __init__(self, happens: Callable[[], object] = int) -> None:
        self._happens = happens

    def __len__(self) -> int:
        return 40

    def __getitem__(self, position: int) -> torch.Tensor:
        if position == 20:
            self._happens()
        return torch.tensor(position)


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert not set(multiprocessing.active_children()) - before


def read(happens: Callable[[], object]) -> None:
    """As in a run, errors are explained around training and around all of it: torch's may come in between."""
    loader = loader_of(Numbers(happens), 4, None, 2, Accelerator())
    try:
        with explained_worker_failures(), explained_worker_failures():
            for _ in loader:
                pass
    finally:
        end_workers(loader.base_dataloader._iterator)


def raises(error: Exception) -> Callable[[], object]:
    def happens() -> None:
        raise error

    return happens


SHARED_MEMORY = (
    RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"),
    RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
    RuntimeError("unable to mmap 999 bytes from file </torch_1_2_3>: Cannot allocate memory (12)"),
)


@pytest.mark.parametrize("error", SHARED_MEMORY)
def test_little_shared_memory_is_explained(error: Exception) -> None:
    """As docker gives to a container: 64 MB."""
    with pytest.raises(UserError) as caught:
        read(raises(error))
    assert "Expected: enough shared memory (/dev/shm)" in str(caught.value)
    assert f"Found:    {error}\n" in str(caught.value)
    assert "Do this:  use fewer --dataloader_num_workers, or 0; in docker add --shm-size=8g" in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_is_killed_is_explained(number: signal.Signals) -> None:
    """SIGBUS is what the system sends if /dev/shm is full; torch does not always see which signal it was."""
    with pytest.raises(UserError) as caught:
        read(lambda: os.kill(os.getpid(), number))
    assert "use fewer --dataloader_num_workers, or 0" in str(caught.value)
    assert "in docker add --shm-size=8g" in str(caught.value)


class EndingIterator:
    """As of a loader; torch learns of a worker's death while it ends the others."""

    def __init__(self, error: RuntimeError) -> None:
        self._error = error
        self._workers = [multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)]
        for worker in self._workers:
            worker.start()

    def _shutdown_workers(self) -> None:
        raise self._error


def test_workers_end_although_one_has_died_meanwhile() -> None:
    """The error on its way says so already."""
    iterator = EndingIterator(RuntimeError("DataLoader worker (pid 14884) is killed by signal: Segmentation fault. "))
    end_workers(iterator)
    assert not any(worker.is_alive() for worker in iterator._workers)


def test_another_error_while_workers_end_is_raised() -> None:
    iterator = EndingIterator(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        end_workers(iterator)
    for worker in iterator._workers:
        worker.kill()
        worker.join()


def test_too_many_open_files_are_explained() -> None:
    with pytest.raises(
        UserError, match="Do this:  use fewer --dataloader_num_workers, or 0, or raise the limit: ulimit"
    ):
        read(raises(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOSYS, errno.EACCES])
def test_workers_that_cannot_start_without_shared_memory_are_explained(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their queues need semaphores, which are there."""

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", refuse)
    # torch's iterator is deleted half made, and would miss what it has not set yet.
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown", True, raising=False)
    loader = loader_of(Numbers(), 4, None, 2, Accelerator())
    with pytest.raises(UserError, match="--shm-size=8g"), explained_worker_failures():
        next(iter(loader))
    gc.collect()


def test_an_error_in_our_words_stays_as_it_was_written() -> None:
    """torch puts a worker's traceback in front of it."""
    written = user_error(expected="a picture", found="none", do="add one")
    with pytest.raises(UserError) as caught:
        read(raises(written))
    assert str(caught.value) == str(written)


@pytest.mark.parametrize("error", [ValueError("unforeseen"), OSError(errno.ENOSPC, "the disk is full"), KeyError("x")])
def test_any_other_error_is_raised_as_it_is(error: Exception) -> None:
    assert worker_failure(error) is None
    with pytest.raises(type(error)), explained_worker_failures():
        raise error


ENDS = """
import sys, time
import torch
from accelerate import Accelerator
from hf_transfer.data.batches import loader_of
from tests.training.test_workers import Numbers

def stuck():
    if sys.argv[1] == "stuck":
        time.sleep(600)

batches = iter(loader_of(Numbers(stuck), 4, None, 2, Accelerator()))
next(batches)
print("working", flush=True)
if sys.argv[1] == "wait":
    time.sleep(600)
raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt}.get(sys.argv[1], ValueError("unforeseen"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"), [("error", 1), ("exit", 3), ("stuck", 1), ("interrupt", -signal.SIGINT), ("wait", -signal.SIGKILL)]
)
def test_a_process_ends_although_its_workers_ignore_signals(how: str, code: int) -> None:
    """With its own exit code; also outside of a run, where nothing has closed the loaders. No worker outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDS, how], cwd=REPOSITORY, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        if how == "wait":
            process.kill()
        assert process.wait(240) == code
        latest = time.monotonic() + 60
        while in_session(process.pid):
            assert time.monotonic() < latest, "workers are left"
            time.sleep(0.1)
    finally:
        if in_session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def in_session(leader: int) -> list[str]:
    """The processes of a session that still run."""
    statuses = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        # Any process of this machine may end before its file is opened, or before it is read.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            statuses.append(path.read_text().rpartition(")")[2].split())
    return [status[1] for status in statuses if int(status[3]) == leader and status[0] != "Z"]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["train_epoch", "predict_split", "remaining_batches"])
def test_a_run_that_fails_in_python_leaves_no_workers_and_no_locked_folder(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next run in the same program works."""

    def run() -> ht.Run:
        return ht.train(
            "sample:digits", model="sample:vit-glyphs", output_dir=tmp_path / "out", cache_dir=str(tmp_path / "cache"),
            strategy="full", num_train_epochs=1, max_train_samples_per_class=2, dataloader_num_workers=1, save_steps=1,
        )  # fmt: skip

    before, work = set(multiprocessing.active_children()), getattr(loop, step)

    def fails(*arguments: Any, **more: Any) -> Any:
        work(*arguments, **more)
        raise ValueError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(loop, step, fails)
        with pytest.raises(ValueError, match="unforeseen") as caught:
            run()
    # While the traceback keeps every frame alive.
    assert caught.value.__traceback__ is not None
    assert not set(multiprocessing.active_children()) - before
    with locked(tmp_path / "out"):
        pass
    assert run().is_finished
