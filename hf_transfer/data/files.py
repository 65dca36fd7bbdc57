"""Files and folders on this machine: checks before and after they are read, and notes on files that are not used."""

import os
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

from hf_transfer.errors import user_error

# As in `datasets.data_files`, whose import would take longer than to show a finished run.
FILES_TO_IGNORE = frozenset({
    "README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json",
})  # fmt: skip
# Beside names that begin with a dot; in lower case.
HIDDEN = frozenset({
    "__macosx", "@eadir", "__pycache__", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "ehthumbs.db", "desktop.ini",
})  # fmt: skip


@dataclass(frozen=True)
class Tree:
    """What lies below a folder.

    Attributes:
        files: all files at any depth that are not hidden, in a fixed order.
        folders: all folders at any depth that are not hidden, in a fixed order.
        hidden: hidden folders, which are not looked into.
        not_followed: links to folders that have been read already, or that lie above.
    """

    files: list[Path]
    folders: list[Path]
    hidden: list[Path]
    not_followed: list[Path]


def walk(folder: Path) -> Tree:
    """What lies below a folder; each folder is read once, however many links lead to it.

    Raises:
        OSError: a folder cannot be read.
    """
    tree = Tree([], [], [], [])
    above = [folder.resolve(), *folder.resolve().parents]
    read = {identity(one) for one in above}
    links = _walk(folder, read, tree)
    while links:
        # After the folders themselves: a link to one of them would be a copy of it.
        link = links.pop(0)
        if identity(link) in read:
            tree.not_followed.append(link)
            continue
        read.add(identity(link))
        tree.folders.append(link)
        links += _walk(link, read, tree)
    for part in (tree.files, tree.folders, tree.hidden, tree.not_followed):
        part.sort()
    return tree


def _walk(folder: Path, read: set[tuple[int, int]], tree: Tree) -> list[Path]:
    """Add what lies below a folder, and return the links to folders below it."""
    links, waiting = [], [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                path = Path(entry.path)
                if not _is_folder(entry):
                    if is_read(entry.name):
                        tree.files.append(path)
                elif is_hidden(entry.name):
                    tree.hidden.append(path)
                elif entry.is_symlink():
                    links.append(path)
                else:
                    read.add(identity(path))
                    tree.folders.append(path)
                    waiting.append(path)
    return links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself.
        return False


def identity(folder: Path) -> tuple[int, int]:
    """What tells a folder from all others, by whatever path it is named."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def is_hidden(name: str) -> bool:
    """Whether programs put a file or folder of this name beside data: hidden files, thumbnails, archives of macOS."""
    return name.startswith(".") or name.lower() in HIDDEN


def is_read(name: str) -> bool:
    """Whether a file of this name is looked at: neither a hidden one, nor one that `datasets` ignores."""
    return not is_hidden(name) and name not in FILES_TO_IGNORE


def files_below(folder: Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """All files at any depth in a fixed order, except for hidden ones and those that `datasets` ignores.

    Args:
        folder: links in it are followed, each folder once.
        suffixes: only files with these, in lower case.
    """
    return [path for path in walk(folder).files if suffixes is None or path.suffix.lower() in suffixes]


def refuse_compressed(files: Iterable[Path]) -> None:
    """Refuse archives and compressed files, whatever their names are: a few bytes can unpack to any amount."""
    for file in files:
        if kind := _compression(file):
            raise user_error(
                expected="data that are not compressed",
                found=f"{file}, which is compressed with {kind}",
                do="unpack it, check what comes out, and move the archive elsewhere",
            )


def _compression(file: Path) -> str | None:
    from datasets.utils.extract import Extractor

    try:
        return Extractor.infer_extractor_format(file) or ("zip" if file.suffix.lower() == ".zip" else None)
    except (EOFError, LZMAError, zlib.error):
        return "a format that cannot be read, or is damaged"
