"""Free disk space, folders that can be written to, and sizes as text."""

import shutil
import tempfile
from pathlib import Path

# Of the name of a checkpoint.
PREFIX = "checkpoint-"
UNITS = ("B", "kB", "MB", "GB", "TB")


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def can_be_written(folder: Path) -> bool:
    """Whether files can be written to a folder; a missing folder is created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def in_units(size: float) -> str:
    """A number of bytes in a readable unit."""
    power = 0
    # A number that would be rounded to 1000 gets the next unit.
    while size >= 999.5 and power < len(UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.3g} {UNITS[power]}"
