"""Folders of a cache: complete or absent, and the ones used last are kept."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import filelock
import numpy as np
import pytest

from hf_transfer.data.cached_folders import NewFolder, ensure_written, is_whole, note_use, remove_oldest
from hf_transfer.data.complete_files import partial_of


def name(number: int) -> str:
    """As folders of a cache have them: a hash."""
    return f"{number:064x}"


NEW, OLD = name(10), name(11)


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
        folder_of(tmp_path / name(number), 10, used=1000 + number)
    remove_oldest(tmp_path.iterdir(), 35)
    assert names(tmp_path) == {name(2), name(3), name(4)}
    note_use(tmp_path / name(2))
    remove_oldest(tmp_path.iterdir(), 20)
    assert names(tmp_path) == {name(2), name(4)}


def test_the_newest_folder_stays_whatever_its_size_is(tmp_path: Path) -> None:
    folder_of(tmp_path / OLD, 10, used=1000)
    folder_of(tmp_path / NEW, 100, used=2000)
    remove_oldest(tmp_path.iterdir(), 50)
    assert names(tmp_path) == {NEW}


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
        ensure_written(tmp_path / "kind" / NEW, 100, write)
    assert names(tmp_path / "kind") == set()


def test_a_folder_is_written_once_and_has_the_hashes_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "kind" / NEW
    ensure_written(folder, 100, writing(b"content"))
    ensure_written(folder, 100, failing)
    assert (folder / "file").read_bytes() == b"content"
    assert np.load(folder / "array.npy").tolist() == [0, 1, 2, 3, 4]
    hashes = json.loads((folder / "hashes.json").read_text(encoding="utf-8"))
    assert hashes == {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in ("file", "array.npy")}


@pytest.mark.parametrize("file", ["file", "array.npy", "hashes.json"])
@pytest.mark.parametrize("damage", [lambda content: content[:-1] + b"!", lambda content: content[:-1], lambda _: b"",
                                    lambda _: b"[]", None])  # fmt: skip
def test_a_damaged_folder_is_written_again(file: str, damage: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    """A bit that has changed, a file that was cut or is empty, or is missing."""
    folder = tmp_path / "kind" / NEW
    ensure_written(folder, 1000, writing(b"content"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / file).write_bytes(damage(before[file])) if damage else (folder / file).unlink()
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
        list(pool.map(lambda _: ensure_written(tmp_path / "kind" / NEW, 100, write), range(4)))
    assert len(written) == 1
    assert is_whole(tmp_path / "kind" / NEW)


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    for folder in (NEW, OLD):
        (tmp_path / "kind" / f".{folder}-{'0' * 32}").mkdir(parents=True)
    ensure_written(tmp_path / "kind" / NEW, 10_000, writing(b"content"))
    assert names(tmp_path / "kind") == {NEW, f".{OLD}-{'0' * 32}"}


def test_without_locks_folders_are_written_as_well(tmp_path: Path) -> None:
    """Some network disks have none."""
    with mock.patch.object(filelock.FileLock, "acquire", side_effect=OSError("no locks available")):
        ensure_written(tmp_path / "kind" / NEW, 100, writing(b"content"))
    assert is_whole(tmp_path / "kind" / NEW)


def test_a_cache_that_can_only_be_read_is_read(tmp_path: Path) -> None:
    ensure_written(tmp_path / "kind" / NEW, 100, writing(b"content"))
    with mock.patch("os.utime", side_effect=PermissionError("read-only")):
        ensure_written(tmp_path / "kind" / NEW, 100, failing)


def test_a_folder_takes_the_place_of_a_damaged_one_and_the_oldest_go(tmp_path: Path) -> None:
    for number in range(3):
        folder_of(tmp_path / "kind" / name(number), 600, used=1000 + number)
    ensure_written(tmp_path / "kind" / name(0), 1300, writing(b"1" * 10))
    assert names(tmp_path / "kind") == {name(0), name(2)}
    assert (tmp_path / "kind" / name(0) / "file").read_bytes() == b"1" * 10


def test_files_count_with_folders_and_what_another_process_removes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        folder_of(tmp_path / name(number), 10, used=1000 + number)
    (tmp_path / "file").write_bytes(bytes(20))
    os.utime(tmp_path / "file", (2000, 2000))
    original = Path.rglob

    def rglob(path: Path, pattern: str) -> Iterator[Path]:
        if path.name == name(2):
            shutil.rmtree(path)
        return original(path, pattern)

    monkeypatch.setattr(Path, "rglob", rglob)
    remove_oldest(tmp_path.iterdir(), 30)
    assert names(tmp_path) == {"file", name(1)}


def test_a_folder_that_another_process_has_just_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are complete; one of them stays."""
    original = shutil.rmtree

    def other_writes(path: Path, **options: Any) -> None:
        original(path, **options)
        if path.name == NEW:
            folder_of(path, 10, used=1000)

    monkeypatch.setattr(shutil, "rmtree", other_writes)
    ensure_written(tmp_path / "kind" / NEW, 100, writing(b"content"))
    assert names(tmp_path / "kind") == {NEW}
    assert names(tmp_path / "kind" / NEW) == {"below"}


def test_a_use_that_cannot_be_noted_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that can only be read: what is in it is used all the same."""

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    note_use(tmp_path)
    note_use(tmp_path / "missing")


def test_folders_that_are_not_ours_do_not_count_and_stay(tmp_path: Path) -> None:
    """A person may name a folder as the cache that has others in it; what killed runs have left is ours."""
    folder_of(tmp_path / "kind" / "photographs", 100, used=1000)
    left = partial_of(tmp_path / "kind" / name(1))
    folder_of(left, 100, used=1000)
    ensure_written(tmp_path / "kind" / NEW, 50, writing(b"content"))
    assert names(tmp_path / "kind") == {"photographs", NEW}
