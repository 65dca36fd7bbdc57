"""Files that only their owner can read, and that are complete or absent."""

import os
import uuid
from pathlib import Path


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can look into; folders above it are made as usual."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def put_private(path: Path, content: bytes) -> None:
    """Write a file through a temporary one, which is renamed: another process never reads half of it."""
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
