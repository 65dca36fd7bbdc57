"""Files that are complete or absent, and files and folders that only their owner can read."""

import uuid
from pathlib import Path

# A hash in hexadecimal digits, as glob has it, and what `partial_of` adds to a name: so files of caches are named.
HASH, PARTIAL = "[0-9a-f]" * 64, "-" + "[0-9a-f]" * 32
# Before the mask of the process, as for other new files.
FOR_ALL, FOR_THE_OWNER = 0o666, 0o600


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can look into; folders above it are made as usual."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def put(path: Path, content: bytes, mode: int = FOR_ALL) -> None:
    """Write a file through a temporary one, which is renamed: after a kill it is complete or absent.

    Args:
        path: of the file; one that is there already is replaced.
        content: of the file.
        mode: who may read it.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    partial = partial_of(path)
    try:
        # Private from the beginning.
        partial.touch(mode, exist_ok=False)
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def put_private(path: Path, content: bytes) -> None:
    """The same for a file that only its owner can read."""
    put(path, content, FOR_THE_OWNER)


def partial_of(path: Path) -> Path:
    """A hidden name beside a file or a folder, which no other process uses, to write it under until it is complete."""
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex}")


def take_name(partial: Path, folder: Path) -> None:
    """Rename a folder that is complete, unless another process has just written the same: its folder is as good.

    Raises:
        OSError: it cannot be renamed.
    """
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
