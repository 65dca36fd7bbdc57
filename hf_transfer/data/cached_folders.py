"""Folders of a cache: each is complete or absent, only its user can read it, and the ones used last are kept."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path

from hf_transfer.data.complete_files import HASH, PARTIAL, partial_of, take_name

# The names of folders of a cache, and of what killed processes have left of them: others are not ours.
NAMES = (HASH, f".{HASH}{PARTIAL}")
# Room that stays free on the disk.
ROOM_LEFT = 1 << 30


@contextmanager
def written_folder(folder: Path, limit: int) -> Iterator[Path]:
    """A new folder to write into, which then takes its name; those beside it that were used the longest ago may go.

    Args:
        folder: to be written, whose name is a hash of 64 digits; one that is there already is replaced.
        limit: bytes that the folders beside it may take, with itself.

    Raises:
        OSError: it cannot be written to.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = partial_of(folder)
    try:
        # What is in it can be private.
        partial.mkdir(mode=0o700)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        take_name(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    remove_oldest((path for name in NAMES for path in folder.parent.glob(name)), limit)


def refuse_full_disk(folder: Path) -> None:
    """Refuse to write more into a folder whose disk is almost full.

    Raises:
        OSError: less than `ROOM_LEFT` is free.
    """
    if shutil.disk_usage(folder).free < ROOM_LEFT:
        raise OSError(ENOSPC, os.strerror(ENOSPC), str(folder))


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
