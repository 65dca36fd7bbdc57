"""Folders of a cache: each is complete or absent, only its user can read it, and the ones used last are kept.

Each file is hashed as it is written. A folder whose files have other hashes, as after a loss of power or on a disk that
fails, is as if it were absent.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from hf_transfer.data.complete_files import HASH, PARTIAL, partial_of, take_name

# The names of folders of a cache, and of what killed processes have left of them: others are not ours.
NAMES = (HASH, f".{HASH}{PARTIAL}")
# Room that stays free on the disk.
ROOM_LEFT = 1 << 30
HASHES = "hashes.json"
LOCKS = "locks"
# So many signs of a folder's name are in that of its lock: there are few locks, however many folders there are.
SIGNS_OF_A_LOCK = 2


class HashedFile:
    """A file that is hashed as it is written, for its writer and for `np.save`.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, content: Any) -> None:
        """Write bytes, or the values of an array."""
        self._digest.update(content)
        self._file.write(content)

    def close(self) -> str:
        """Close the file; its hash."""
        self._file.close()
        return self._digest.hexdigest()


class NewFolder:
    """A folder that is being written.

    Args:
        path: of the folder; nothing is in it yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, HashedFile] = {}

    def file(self, name: str) -> HashedFile:
        """The file of that name, which is made at the first call."""
        if name not in self._files:
            self._files[name] = HashedFile(self.path / name)
        return self._files[name]

    def close(self) -> dict[str, str]:
        """Close all files; their hashes, by name."""
        return {name: file.close() for name, file in self._files.items()}


def ensure_written(folder: Path, limit: int, write: Callable[[NewFolder], None]) -> None:
    """Make sure that a folder is complete: where it is not, one of the processes that need it writes it.

    Args:
        folder: that is read afterwards, whose name is a hash of 64 digits.
        limit: bytes that the folders beside it may take, with itself; those that were used the longest ago are removed.
        write: writes its files.

    Raises:
        OSError: it cannot be written.
    """
    if is_whole(folder):
        note_use(folder)
        return
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _waited_for(folder):
        # Another process may have written it in the meantime.
        if not is_whole(folder):
            _write(folder, write)
    remove_oldest((path for name in NAMES for path in folder.parent.glob(name)), limit)


def is_whole(folder: Path) -> bool:
    """Whether all files of a folder are there, and as they were written."""
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        if hashes.keys() != {path.name for path in folder.iterdir()} - {HASHES}:
            return False
        return all(_hash_of(folder / name) == expected for name, expected in hashes.items())
    except (OSError, ValueError, AttributeError):
        # No JSON, or another value than an object.
        return False


def _hash_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(folder: Path, write: Callable[[NewFolder], None]) -> None:
    partial = partial_of(folder)
    try:
        # What is in it can be private.
        partial.mkdir(mode=0o700)
        new = NewFolder(partial)
        try:
            write(new)
        finally:
            hashes = new.close()
        (partial / HASHES).write_text(json.dumps(hashes), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        take_name(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _waited_for(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that processes which need the same do not all make it."""
    kind = folder.parent
    path = kind.with_name(LOCKS) / f"{kind.name}-{folder.name[:SIGNS_OF_A_LOCK]}"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        # Some network disks have no locks: then each process writes a folder of its own, and the last one stays.
        yield
        return
    try:
        # Nobody else writes this one: what is left of it is of a process that was killed.
        for rest in kind.glob(f".{folder.name}-*"):
            shutil.rmtree(rest, ignore_errors=True)
        yield
    finally:
        lock.release()


def refuse_full_disk(folder: Path) -> None:
    """Refuse to write more into a folder whose disk is almost full.

    Raises:
        OSError: less than `ROOM_LEFT` is free.
    """
    if shutil.disk_usage(folder).free < ROOM_LEFT:
        raise OSError(ENOSPC, os.strerror(ENOSPC), str(folder))


def listed(folder: Path, pattern: str) -> list[Path]:
    """What is in a folder of a cache, in a fixed order; nothing if another process deletes the folder meanwhile.

    Args:
        folder: may be missing.
        pattern: for the names, as for `Path.glob`.
    """
    try:
        return sorted(folder.glob(pattern))
    except FileNotFoundError:
        # Python 3.11 looks whether there is a folder, and then reads it.
        return []


def note_use(path: Path) -> None:
    """Note that a file, or a folder with all that is in it, was used now, where a cache can be written to."""
    with suppress(OSError):
        for one in (path, *(path.iterdir() if path.is_dir() else ())):
            os.utime(one)


def remove_oldest(paths: Iterable[Path], limit: int) -> None:
    """Remove files and folders, the one first that was used the longest ago, until the others fit into the limit.

    The one that was used last stays, whatever its size is. Other processes may remove some at the same time.

    Args:
        paths: files and folders of a cache.
        limit: bytes that those that stay may take together.
    """
    kept = 0
    for _, size, path in sorted(filter(None, map(_last_use_and_size, paths)), reverse=True):
        if not kept or kept + size <= limit:
            kept += size
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _last_use_and_size(path: Path) -> tuple[int, int, Path] | None:
    """In nanoseconds, and in bytes; None if it cannot be seen, since it has been removed."""
    try:
        size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        return path.stat().st_mtime_ns, size, path
    except OSError:
        return None
