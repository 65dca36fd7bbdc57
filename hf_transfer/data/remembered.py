"""What checks have shown, in files of a cache: read back where that is possible, and found out again where not."""

import hashlib
from contextlib import suppress
from pathlib import Path

from hf_transfer.data.cached_folders import note_use, remove_oldest
from hf_transfer.data.complete_files import HASH, PARTIAL, private_folder, put_private

# Bytes that all results in a folder may take on the disk.
LARGEST_FOLDER = 1 << 30
# The names of these files, and of what killed processes have left of them: others are not ours.
NAMES = (f"{HASH}.*", f".{HASH}{PARTIAL}")


def recall(path: Path) -> bytes | None:
    """What was remembered in a file; None if it is not there, cannot be read, or is not as `remember` wrote it."""
    try:
        written = path.read_bytes()
    except OSError:
        return None
    content = written[hashlib.sha256().digest_size :]
    if written != _digest(path, content) + content:
        return None
    note_use(path)
    return content


def remember(path: Path, content: bytes) -> None:
    """Remember a result for later runs; a cache that cannot be written to costs them time, and nothing else.

    Args:
        path: of the file, whose name is a hash of all that the result depends on. The results beside it that were used
            the longest ago make room.
        content: the result.
    """
    with suppress(OSError):
        put_private(private_folder(path.parent) / path.name, _digest(path, content) + content)
        remove_oldest((one for name in NAMES for one in path.parent.glob(name)), LARGEST_FOLDER)


def _digest(path: Path, content: bytes) -> bytes:
    """With the name: what was remembered of other pictures does not count under this one."""
    return hashlib.sha256(path.name.encode() + b"\n" + content).digest()
