"""The lock of a run's folder: between processes, within one process, after a kill, and with loader workers."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import pytest
from torch.utils.data import DataLoader

from hf_transfer.errors import UserError
from hf_transfer.evaluation.run_folder import locked
from hf_transfer.settings.run import VisionConfig
from hf_transfer.whole_run import run_all_steps
from tests.conftest import Recipe
from tests.forks import forked, forks


def hold(folder: Path, pipe: Any) -> None:
    """Hold the lock of a folder, with two loader workers, until the pipe says so."""
    with locked(folder):
        batches: Any = iter(DataLoader(range(1000), num_workers=2, multiprocessing_context="fork"))  # type: ignore[arg-type]
        next(batches)
        pipe.send([worker.pid for worker in batches._workers])
        pipe.recv()


@contextmanager
def holder(folder: Path) -> Iterator[tuple[Any, Any, list[int]]]:
    """A process that holds the lock of a folder, a pipe to it, and the process ids of its loader workers."""
    ours, theirs = forks.Pipe()
    process = forked(hold, folder, theirs)
    process.start()
    assert ours.poll(240)
    workers = ours.recv()
    try:
        yield process, ours, workers
    finally:
        process.kill()
        process.join()
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def try_to_lock(folder: Path, pipe: Any) -> None:
    try:
        with locked(folder):
            pipe.send("locked")
    except UserError as error:
        pipe.send(str(error))


def answer_of_another_process(folder: Path) -> str:
    """What a process gets that tries to lock the folder."""
    ours, theirs = forks.Pipe()
    process = forked(try_to_lock, folder, theirs)
    process.start()
    process.join()
    return str(ours.recv())


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        # The second, if it ends between opening and reading.
        return False


def test_a_second_process_is_refused_at_once_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, pipe, _):
        with pytest.raises(UserError, match="Expected: an --output_dir that no other run is writing into") as error:
            locked(tmp_path).__enter__()
        assert f"Found:    {tmp_path}, in use by process {process.pid} on " in str(error.value)
        pipe.send("end")
        process.join()
    with locked(tmp_path):
        assert re.fullmatch(f"process {os.getpid()} on .+\n", (tmp_path / ".lock").read_text())
        assert f"in use by process {os.getpid()} on " in answer_of_another_process(tmp_path)
    assert answer_of_another_process(tmp_path) == "locked"


def test_a_killed_process_frees_the_folder_even_if_its_loader_workers_outlive_it(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _, workers):
        # Else they would end after some seconds: they look whether the main process lives.
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        process.kill()
        process.join()
        with locked(tmp_path):
            assert all(map(is_running, workers)), "the workers have ended too early to show anything"


def test_a_worker_that_ends_does_not_free_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        worker = forked(int)
        worker.start()
        worker.join()
        assert f"in use by process {os.getpid()} on " in answer_of_another_process(tmp_path)


def test_one_process_makes_several_runs_in_different_folders_and_one_in_the_same(tmp_path: Path) -> None:
    """Runs may be nested, and end in another order than they began."""
    first, second = (tmp_path / name for name in ("first", "second"))
    first.mkdir()
    second.mkdir()
    one, two = locked(first), locked(second)
    one.__enter__()
    two.__enter__()
    with pytest.raises(UserError, match=f"{first}, in use by process {os.getpid()} on "):
        locked(first).__enter__()
    one.__exit__(None, None, None)
    with locked(first):
        pass
    two.__exit__(None, None, None)


def test_a_run_frees_its_folder_when_it_ends(vision: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when an error ends it."""
    assert vision().code == 0
    with locked(tmp_path / "out"):
        assert vision(overwrite_output_dir=True).code == 2
    config = VisionConfig.of(
        model_name_or_path="sample:vit-glyphs", dataset_name="sample:digits", output_dir=str(tmp_path / "error"),
        strategy="full", max_train_samples_per_class=2, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hf_transfer.training.loop.fit", fails)
    with pytest.raises(MemoryError):
        run_all_steps(config)
    assert (tmp_path / "error/.lock").is_file()
    with locked(tmp_path / "error"):
        pass


def test_a_disk_without_locks_is_no_reason_not_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a file in place of a lock, which would outlive a killed process, is not used."""

    def missing(descriptor: int) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", missing)
    with locked(tmp_path):
        assert "cannot be locked" in capsys.readouterr().out
