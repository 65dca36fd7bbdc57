"""Folders of a cache: each is complete or absent, only its user can read it, and the ones used last are kept."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

# Room that stays free on the disk.
ROOM_LEFT = 1 << 30


@contextmanager
def written_folder(folder: Path, limit: int) -> Iterator[Path]:
    """A new folder to write into, which then takes its name; those beside it that were used the longest ago may go.

    Args:
        folder: to be written; one that is there already is replaced.
        limit: bytes that the folders beside it may take, with itself.

    Raises:
        OSError: it cannot be written to.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        # What is in it can be private.
        partial.mkdir(mode=0o700)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    remove_oldest(folder.parent, limit)


def refuse_full_disk(folder: Path) -> None:
    """Refuse to write more into a folder whose disk is almost full.

    Raises:
        OSError: less than `ROOM_LEFT` is free.
    """
    if shutil.disk_usage(folder).free < ROOM_LEFT:
        raise OSError(ENOSPC, os.strerror(ENOSPC), str(folder))


def note_use(folder: Path) -> None:
    """Note that a folder was used now, with all that is in it."""
    for path in (folder, *folder.iterdir()):
        os.utime(path)


def remove_oldest(folder: Path, limit: int) -> None:
    """Remove subfolders, the one first that was used the longest ago, until what is left has at most `limit` bytes.

    The one that was used last stays, whatever its size is.
    """
    subfolders = [path for path in folder.iterdir() if path.is_dir()]
    kept = 0
    for path in sorted(subfolders, key=lambda one: one.stat().st_mtime_ns, reverse=True):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if kept and kept + size > limit:
            shutil.rmtree(path, ignore_errors=True)
        else:
            kept += size
