"""Folders of a cache: complete or absent, and the ones used last are kept."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.data.cached_folders import note_use, remove_oldest, written_folder
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


def test_a_folder_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), written_folder(tmp_path / NEW, 100) as partial:  # noqa: PT012
        (partial / "file").touch()
        raise OSError("the disk is full")
    assert names(tmp_path) == set()


def test_a_folder_takes_the_place_of_an_earlier_one_and_the_oldest_go(tmp_path: Path) -> None:
    for number in range(3):
        folder_of(tmp_path / name(number), 10, used=1000 + number)
    with written_folder(tmp_path / name(0), 25) as partial:
        (partial / "file").write_bytes(b"1" * 10)
        assert names(tmp_path) >= {name(0), name(1), name(2)}
    assert names(tmp_path) == {name(0), name(2)}
    assert (tmp_path / name(0) / "file").read_bytes() == b"1" * 10


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

    with written_folder(tmp_path / NEW, 100) as partial:
        (partial / "file").write_bytes(b"1" * 10)
        monkeypatch.setattr(shutil, "rmtree", other_writes)
    assert names(tmp_path) == {NEW}
    assert names(tmp_path / NEW) == {"below"}


def test_a_use_that_cannot_be_noted_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that can only be read: what is in it is used all the same."""

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    note_use(tmp_path)
    note_use(tmp_path / "missing")


def test_folders_that_are_not_ours_do_not_count_and_stay(tmp_path: Path) -> None:
    """A person may name a folder as the cache that has others in it; what killed runs have left is ours."""
    folder_of(tmp_path / "photographs", 100, used=1000)
    left = partial_of(tmp_path / name(1))
    folder_of(left, 100, used=1000)
    with written_folder(tmp_path / NEW, 50) as partial:
        (partial / "file").write_bytes(b"1" * 10)
    assert names(tmp_path) == {"photographs", NEW}
