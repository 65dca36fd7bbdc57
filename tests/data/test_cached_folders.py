"""Folders of a cache: complete or absent, and the ones used last are kept."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import filelock
import numpy as np
import pytest

from hf_transfer.data.cached_folders import NewFolder, ensure_written, is_whole, note_use, remove_oldest


def folder_of(path: Path, size: int, used: float) -> Path:
    """A folder with a file of so many bytes, which was used at a time."""
    (path / "below").mkdir(parents=True)
    (path / "below" / "file").write_bytes(b"0" * size)
    os.utime(path, (used, used))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_used_the_longest_ago_is_removed_first(tmp_path: Path) -> None:
    for number in range(5):
        folder_of(tmp_path / f"of {number}", 10, used=1000 + number)
    remove_oldest(tmp_path, 35)
    assert names(tmp_path) == {"of 2", "of 3", "of 4"}
    note_use(tmp_path / "of 2")
    remove_oldest(tmp_path, 20)
    assert names(tmp_path) == {"of 2", "of 4"}


def test_the_newest_folder_stays_whatever_its_size_is(tmp_path: Path) -> None:
    folder_of(tmp_path / "old", 10, used=1000)
    folder_of(tmp_path / "new", 100, used=2000)
    remove_oldest(tmp_path, 50)
    assert names(tmp_path) == {"new"}


def writing(content: bytes) -> Callable[[NewFolder], None]:
    """Writes a file in two parts, and an array."""

    def write(new: NewFolder) -> None:
        for part in (content[:3], content[3:]):
            new.file("file").write(part)
        np.save(new.file("array.npy"), np.arange(5))

    return write


def failing(_: NewFolder) -> None:
    raise AssertionError("it was written again")


def test_a_folder_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def write(new: NewFolder) -> None:
        new.file("file").write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        ensure_written(tmp_path / "kind" / "new", 100, write)
    assert names(tmp_path / "kind") == set()


def test_a_folder_is_written_once_and_has_the_hashes_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "kind" / "one"
    ensure_written(folder, 100, writing(b"content"))
    ensure_written(folder, 100, failing)
    assert (folder / "file").read_bytes() == b"content"
    assert np.load(folder / "array.npy").tolist() == [0, 1, 2, 3, 4]
    hashes = json.loads((folder / "hashes.json").read_text(encoding="utf-8"))
    assert hashes == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("file", "array.npy")}


@pytest.mark.parametrize("name", ["file", "array.npy", "hashes.json"])
@pytest.mark.parametrize("damage", [lambda content: content[:-1] + b"!", lambda content: content[:-1], lambda _: b"",
                                    lambda _: b"[]", None])  # fmt: skip
def test_a_damaged_folder_is_written_again(name: str, damage: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    """A bit that has changed, a file that was cut or is empty, or is missing."""
    folder = tmp_path / "kind" / "one"
    ensure_written(folder, 1000, writing(b"content"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / name).write_bytes(damage(before[name])) if damage else (folder / name).unlink()
    assert not is_whole(folder)
    ensure_written(folder, 1000, writing(b"content"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert is_whole(folder)


def test_several_that_need_a_folder_at_the_same_time_write_it_once(tmp_path: Path) -> None:
    """As the processes of a run, or two runs that start together."""
    written: list[int] = []

    def write(new: NewFolder) -> None:
        written.append(1)
        time.sleep(0.2)
        writing(b"content")(new)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_written(tmp_path / "kind" / "one", 100, write), range(4)))
    assert len(written) == 1
    assert is_whole(tmp_path / "kind" / "one")


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "kind" / f".{name}-{'0' * 32}").mkdir(parents=True)
    ensure_written(tmp_path / "kind" / "one", 10_000, writing(b"content"))
    assert names(tmp_path / "kind") == {"one", f".two-{'0' * 32}"}


def test_without_locks_folders_are_written_as_well(tmp_path: Path) -> None:
    """Some network disks have none."""
    with mock.patch.object(filelock.FileLock, "acquire", side_effect=OSError("no locks available")):
        ensure_written(tmp_path / "kind" / "one", 100, writing(b"content"))
    assert is_whole(tmp_path / "kind" / "one")


def test_a_cache_that_can_only_be_read_is_read(tmp_path: Path) -> None:
    ensure_written(tmp_path / "kind" / "one", 100, writing(b"content"))
    with mock.patch("os.utime", side_effect=PermissionError("read-only")):
        ensure_written(tmp_path / "kind" / "one", 100, failing)


def test_a_folder_takes_the_place_of_a_damaged_one_and_the_oldest_go(tmp_path: Path) -> None:
    for number in range(3):
        folder_of(tmp_path / "kind" / f"of {number}", 600, used=1000 + number)
    ensure_written(tmp_path / "kind" / "of 0", 1300, writing(b"1" * 10))
    assert names(tmp_path / "kind") == {"of 0", "of 2"}
    assert (tmp_path / "kind" / "of 0" / "file").read_bytes() == b"1" * 10
