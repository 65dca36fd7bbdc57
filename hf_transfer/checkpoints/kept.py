"""What earlier runs keep on disk for later ones: listed and deleted."""

import re
import shutil
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from errno import EISDIR, ENOENT, ENOTEMPTY
from pathlib import Path
from typing import NamedTuple

from hf_transfer.checkpoints.files import in_units
from hf_transfer.data.cached_folders import listed
from hf_transfer.data.complete_files import HASH, PARTIAL
from hf_transfer.errors import user_error

SECONDS_OF_A_DAY = 86_400
# Enough of the name of a store to tell it from all others.
SHOWN_SIGNS = 14


# The names of what a run that was killed has left of any of them.
UNFINISHED = rf"\.{HASH}{PARTIAL}"
# Another process has just deleted a part of a folder, written into it, or made it again: so often it is deleted again.
OF_OTHERS = (ENOENT, ENOTEMPTY, EISDIR)
ATTEMPTS = 20


class Kind(NamedTuple):
    """Stores of one kind, in a folder of their own.

    Attributes:
        what: they hold, for people.
        name: the form of their names. What has another name is not ours, and is never deleted.
        together: whether all of them count as one.
    """

    what: str
    name: str
    together: bool = False


# By the name of their folder.
KINDS = {
    # Of archives also what a run that was killed has left of one.
    "archives": Kind("unpacked archives", r"[0-9a-f]{32}(\.\w+)?"),
    "backbones": Kind("converted sample backbones", r"[0-9a-f]{64}"),
    "cuts": Kind("which rows were split off", r"[0-9a-f]{64}"),
    "frozen": Kind("outputs of frozen layers", r"[0-9a-f]{64}"),
    "pixels": Kind("resized pictures", r"\d+-[0-9a-f]{32}"),
    "tokens": Kind("tokens of texts", r"[0-9a-f]{64}"),
    "verified": Kind("results of checks of pictures", r"[0-9a-f]{64}\.(json|keys|copies|contents)", together=True),
}


class Kept(NamedTuple):
    """A store.

    Attributes:
        name: its kind and, after a slash, its own name.
        what: it holds, for people.
        paths: its files and folders.
        bytes: that it takes on the disk.
        last_use: in seconds since 1970.
    """

    name: str
    what: str
    paths: tuple[Path, ...]
    bytes: int
    last_use: float


def kept_in(cache: Path, older_than: float = 0.0) -> list[Kept]:
    """The stores in a folder of caches, by kind, those that were used last first.

    Args:
        cache: the folder.
        older_than: leave out those that have been used within so many days.
    """
    stores = []
    for folder, kind in KINDS.items():
        # A link leads to files that may be somebody else's.
        written = [
            path
            for path in listed(cache / folder, "*")
            if re.fullmatch(f"{kind.name}|{UNFINISHED}", path.name) and not path.is_symlink()
        ]
        each = [(f"{folder}/{path.name}", [path]) for path in written]
        groups = [(folder, written)] if kind.together and written else each
        kept = [_kept(name, kind.what, paths) for name, paths in groups]
        stores += sorted((one for one in kept if one is not None), key=lambda one: -one.last_use)
    latest = time.time() - older_than * SECONDS_OF_A_DAY
    return [one for one in stores if older_than == 0 or one.last_use < latest]


def named(stores: Sequence[Kept], names: Sequence[str], cache: Path) -> list[Kept]:
    """Those stores that a person names: by their kind, or the beginning of their name; all, if there are no names.

    Of a kind there may be none.

    Raises:
        UserError: nothing has such a name.
    """
    for name in names:
        if name not in KINDS and not any(_is_named(one, name) for one in stores):
            kinds = sorted({one.name.partition("/")[0] for one in stores})
            raise user_error(
                expected="names of what is kept, as hf-transfer cache lists them",
                found=f"{name}, with {', '.join(kinds) or 'nothing'} in {cache}",
                do="correct the name, or leave all names out",
            )
    return [one for one in stores if not names or any(_is_named(one, name) for name in names)]


def delete(stores: Sequence[Kept]) -> None:
    """Delete stores, which runs may be using, and other commands be deleting.

    Raises:
        UserError: one of them cannot be deleted.
    """
    try:
        for path in (path for one in stores for path in one.paths):
            _delete(path)
    except OSError as error:
        raise user_error(
            expected="stores that can be deleted",
            found=f"{error.strerror}: {error.filename}",
            do="delete it as a user who has the right to",
        ) from error


def table_of(stores: Sequence[Kept]) -> list[str]:
    """A line for each store: size, time of last use, name and content."""
    width = max((len(_shown(one)) for one in stores), default=0)
    return [
        f"{in_units(one.bytes):>8}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(one.last_use))}  "
        f"{_shown(one):{width}}  {one.what}"
        for one in stores
    ]


def _delete(path: Path) -> None:
    for attempt in range(ATTEMPTS):
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            if attempt == ATTEMPTS - 1 or error.errno not in OF_OTHERS:
                raise
        else:
            return


def _kept(name: str, what: str, paths: Sequence[Path]) -> Kept | None:
    """A store; None if nothing of it is left."""
    statuses = []
    for path in paths:
        # What another process deletes meanwhile does not count.
        with suppress(FileNotFoundError):
            statuses += [file.lstat() for file in (path, *path.rglob("*"))]
    files = [one for one in statuses if stat.S_ISREG(one.st_mode)]
    # A file may be longer than what is written of it so far; not each system counts blocks.
    size = sum(getattr(one, "st_blocks", -(-one.st_size // 512)) * 512 for one in files)
    last_use = max((max(one.st_mtime, one.st_atime) for one in files or statuses), default=None)
    return None if last_use is None else Kept(name, what, tuple(paths), size, last_use)


def _is_named(one: Kept, name: str) -> bool:
    kind = one.name.partition("/")[0]
    return name in (kind, one.name) or ("/" in name.rstrip("/") and one.name.startswith(name))


def _shown(one: Kept) -> str:
    kind, slash, name = one.name.partition("/")
    return kind + slash + name[:SHOWN_SIGNS]
