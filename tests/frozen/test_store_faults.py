"""Stores with killed writers, two writers at once, full or read-only disks, and many samples."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.large_store import anonymous_bytes
from hf_transfer.checkpoints.files import can_be_written, free_bytes, in_units
from hf_transfer.errors import UserError
from hf_transfer.frozen import store as store_module
from hf_transfer.frozen.store import Chunk, Column, Store
from tests.forks import forked, forks
from tests.frozen.stored_samples import Samples, chunk_files, samples, temporary_files
from tests.training.memory import in_a_process

pytestmark = pytest.mark.usefixtures("small_chunks")


def write_and_be_killed(given: Samples, folder: Path, writes: int) -> None:
    """Write a store, and be killed when half of file number `writes` is written."""
    files = itertools.count(1)
    write_bytes = Path.write_bytes

    def write_half(path: Path, content: bytes) -> int:
        if next(files) < writes:
            return write_bytes(path, content)
        write_bytes(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")

    Path.write_bytes = write_half  # type: ignore[method-assign, assignment]
    given.write(given.store(folder))


@pytest.mark.parametrize("writes", range(1, 7), ids=lambda writes: f"file_{writes}")
def test_a_killed_process_leaves_nothing_that_is_read(tmp_path: Path, writes: int) -> None:
    given = samples(columns=(Column((1 << 12,), torch.float32),))
    process = forked(write_and_be_killed, given, tmp_path, writes)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = given.store(tmp_path)
    # The first file describes the store; each of the others is a chunk.
    assert [number for number in range(5) if store._path(number).is_file()] == list(range(writes - 2))
    assert all(store.check(number) for number in range(writes - 2))
    assert len(temporary_files(store)) == 1
    given.write(store)
    assert store.complete
    given.assert_read(given.store(tmp_path), range(30))
    store.remove()
    assert list(tmp_path.iterdir()) == []


def write_and_read(given: Samples, folder: Path, start: Any) -> None:
    # OpenMP's threads are not in a forked process, which would wait for them without end.
    torch.set_num_threads(1)
    start.wait()
    for _ in range(30):
        store = given.store(folder)
        given.write(store)
        given.assert_read(store, range(29, -1, -1))
        assert all(store.check(number) for number in range(5))


def test_processes_that_write_at_once_leave_an_undamaged_store(tmp_path: Path) -> None:
    given, start = samples(columns=(Column((1 << 12,), torch.float32),)), forks.Barrier(2)
    processes = [forked(write_and_read, given, tmp_path, start) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    store = given.store(tmp_path)
    assert all(store.check(number) for number in range(5))
    given.assert_read(store, range(30))
    assert temporary_files(store) == []


def test_a_full_disk_is_an_error_that_says_how_much_is_needed(small_disk: Path) -> None:
    """Complete chunks stay, and no unfinished file is left."""
    given = samples(columns=(Column((12_500,), torch.float32),))
    store = given.store(small_disk / "frozen")
    with pytest.raises(UserError) as caught:
        given.write(store)
    assert [path.name for path in chunk_files(store)] == ["000000.safetensors", "000001.safetensors"]
    assert [store.check(number) for number in range(5)] == [True, True, False, False, False]
    assert temporary_files(store) == []
    expected, found, do = str(caught.value).splitlines()
    assert "1.5 MB of disk" in expected
    assert f"{in_units(free_bytes(small_disk))} free in {store.folder}" in found
    # Less than a chunk of 350 kB.
    assert 300_000 < free_bytes(small_disk) < 350_000
    assert "--cache_dir" in do
    assert "--cache_frozen off" in do


def test_on_a_disk_that_is_full_already_nothing_is_left(small_disk: Path) -> None:
    with (small_disk / "filling").open("wb", buffering=0) as filling, contextlib.suppress(OSError):
        while filling.write(b"x" * 4096):
            pass
    given = samples()
    store = given.store(small_disk)
    with pytest.raises(UserError, match=f"Found:    0 B free in {store.folder}"):
        given.write(store)
    assert list(store.folder.iterdir()) == []


def test_a_read_only_disk_is_an_error_that_names_the_folder(small_disk: Path) -> None:
    given = samples()
    written = given.write(given.store(small_disk), range(3))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for store, number in ((written, 3), (given.store(small_disk, model="other"), 0)):
        with pytest.raises(UserError) as caught:
            given.write(store, [number])
        assert str(store.folder) in str(caught.value)
        assert "--cache_dir" in str(caught.value)
        assert "Read-only file system" in str(caught.value)
    assert not can_be_written(small_disk)
    assert not can_be_written(small_disk / "further" / "down")
    given.assert_read(written, [20, 3, 11])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, None])
def test_every_error_of_the_disk_says_what_to_do(number: int | None, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"(?s){tmp_path}.*--cache_dir"),
        store_module.disk_errors_explained(tmp_path, 1),
    ):
        raise OSError(number, "refused") if number else OSError("refused")


def test_a_folder_is_tested_by_writing_and_left_empty(tmp_path: Path) -> None:
    assert can_be_written(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    assert not can_be_written(tmp_path / "file" / "b")
    assert free_bytes(tmp_path / "not" / "there" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (15_360, "15.4 kB"),
        (1_500_000, "1.5 MB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (10**9, "1 GB"),
        (10**16, "1e+04 TB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(size: int, words: str) -> None:
    assert in_units(size) == words


def write_and_read_many(folder: str, count: int) -> None:
    """In a separate process: print anonymous memory after each written chunk, and while batches are read."""
    store = Store(Path(folder), {}, [Column((384,), torch.float32)], count, target=Column((), torch.int64))
    levels = []
    for number in range(len(store.chunks)):
        chunk = Chunk(store.columns)
        for batch in store.batches(number, 1024):
            rows = torch.tensor(batch)[:, None] + torch.arange(384.0)
            chunk.put(batch, [rows, torch.tensor(batch), torch.ones(len(batch), dtype=torch.bool)], None)
        store.write(number, chunk.in_order())
        del chunk
        levels.append(anonymous_bytes())
    generator = np.random.default_rng(0)
    for _ in range(100):
        positions = generator.integers(0, count, 64)
        rows, targets, _ = store.read(positions)
        assert torch.equal(targets, torch.from_numpy(positions))
        assert torch.equal(rows[:, 5], targets + 5.0)
        levels.append(anonymous_bytes())
    assert all(store.check(number) for number in range(len(store.chunks)))
    levels.append(anonymous_bytes())
    print(json.dumps(levels))


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    count = 40_000
    levels = in_a_process(__name__, f"write_and_read_many({str(tmp_path)!r}, {count})")
    assert len(levels) == 20 + 100 + 1
    assert max(levels) < 1.05 * levels[1]
    # All samples together would need much more.
    assert count * 384 * 4 > 0.2 * levels[1]
