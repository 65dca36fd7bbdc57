"""Archives of a folder: unpacked once, into the cache, within limits of size and never outside of it."""

import bz2
import gzip
import hashlib
import io
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from hf_transfer.data.complete_files import take_name
from hf_transfer.data.files import is_hidden
from hf_transfer.errors import user_error

SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
# Texts and tables shrink to a tenth, pictures hardly at all; a bomb to a thousandth.
MAX_RATIO = 100
# Below this size no archive is a burden, whatever its ratio is.
ALWAYS_ALLOWED = 10_000_000
MAX_FILES = 5_000_000
CHUNK = 1 << 20
MAX_HEADER = 1 << 20
# A name in the archive, its size as the archive says, and how to open it; None: it is a link or a device.
Member = tuple[str, int, Callable[[], IO[bytes] | None]]


def is_archive(path: Path) -> bool:
    """Whether a file is an archive of files, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def unpacked(archive: Path, cache: Path) -> Path:
    """The folder with the content of an archive; the same content is unpacked once.

    Args:
        archive: a zip or tar file, compressed or not.
        cache: the folder below which it is unpacked.

    Raises:
        UserError: it is damaged or encrypted, has links or paths that lead out of the folder, unpacks to more than
            `MAX_RATIO` times its size, or does not fit on the disk.
    """
    folder = cache / "archives" / _digest(archive)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed once it is complete: a run that is killed leaves no half of it under this name.
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        with _members(archive) as members:
            _unpack(archive, members, partial)
        take_name(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _digest(archive: Path) -> str:
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    """What is in an archive; errors of its format become those of a user."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield _zip_members(zipped)
        else:
            with _decompressed(archive) as file, tarfile.open(fileobj=_Limited(file), mode="r:") as tarred:
                yield _tar_members(tarred)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise user_error(
            expected=f"a zip or tar archive in {archive} that can be unpacked",
            found=str(error) or type(error).__name__,
            do="fetch it again if it is damaged; or unpack it yourself, and name the folder",
        ) from error


def _decompressed(archive: Path) -> IO[bytes]:
    """A tar file without its compression, which its first bytes tell."""
    with archive.open("rb") as file:
        start = file.read(6)
    openers: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next(
        (opener for magic, opener in openers.items() if start.startswith(magic)), lambda path: path.open("rb")
    )
    return cast("IO[bytes]", opener(archive))


class _Limited(io.BufferedIOBase):
    """A tar file of which no long header is read at once: `tarfile` would take as much memory as it asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            continue
        plain = kind in (0, stat.S_IFREG)
        yield info.filename, info.file_size, (lambda info=info: archive.open(info)) if plain else _nothing  # type: ignore[misc]


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if not info.isdir():
            yield info.name, info.size, (lambda info=info: archive.extractfile(info)) if info.isreg() else _nothing  # type: ignore[misc]


def _nothing() -> None:
    return None


def _unpack(archive: Path, members: Iterator[Member], folder: Path) -> None:
    """Write the files of an archive; what it says of their sizes is not trusted."""
    packed = archive.stat().st_size
    allowed = max(MAX_RATIO * packed, ALWAYS_ALLOWED)
    free = shutil.disk_usage(folder).free
    left = min(allowed, free)
    for count, (name, size, opened) in enumerate(members, start=1):
        path = PurePosixPath(name.replace("\\", "/"))
        if any(map(is_hidden, path.parts)) and ".." not in path.parts:
            continue
        if count > MAX_FILES or size > left:
            raise _too_large(archive, packed, free if free < allowed else allowed, disk=free < allowed)
        source = None if _leaves(path) else opened()
        if source is None:
            raise user_error(
                expected=f"in {archive} files that stay in their folder, and no links",
                found=f"{name!r}",
                do="unpack it yourself, check what comes out, and name the folder",
            )
        target = folder.joinpath(*path.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, target.open("wb") as file:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise _too_large(archive, packed, free if free < allowed else allowed, disk=free < allowed)
                file.write(chunk)


def _leaves(path: PurePosixPath) -> bool:
    return not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def _too_large(archive: Path, packed: int, limit: int, *, disk: bool) -> Exception:
    reason = "the free space of the cache's disk" if disk else f"{MAX_RATIO} times its own size"
    return user_error(
        expected=f"an archive that unpacks to at most {limit:,} bytes, {reason}",
        found=f"more in {archive}, of {packed:,} bytes",
        do="free space, or set --cache_dir, or HF_HOME, to another disk"
        if disk
        else "unpack it yourself, check what comes out, and name the folder",
    )
