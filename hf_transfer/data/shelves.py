"""A shelf: pixels of some pictures in one file, and a record of each of them in another."""

import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_transfer.data.cached_folders import listed
from hf_transfer.data.complete_files import put_private
from hf_transfer.data.identities import Identities

# Increment when the format of these files changes.
FORMAT = 1
# The identity of a picture, the key of its content, what is white in it if it has more than 8 bits, else 0, and a
# checksum of all this with its pixels; 0: they are not there yet.
RECORD = np.dtype([("picture", "<u8"), ("content", "<u8"), ("white", "<f8"), ("check", "<u8")])
Records = npt.NDArray[np.void]
RECORDS, PIXELS = ".records", ".pixels"
# Added to a checksum of 32 bits: it is never 0.
WRITTEN = 1 << 32


class Shelf:
    """Pixels of pictures of one shape, each in its place; both files are mapped into memory.

    Pixels are written before the checksum that makes them count, so that a run that is killed leaves nothing half.
    Nothing is ever moved: several processes may write, since all of them write the same. Another process may delete the
    files at any time. What is mapped then can still be read; what is written then is lost.

    Args:
        path: of both files, without suffix.
        shape: of the pixels of a picture.
        dtype: of its values.

    Raises:
        OSError: there is no such file.
        ValueError: the files do not belong together.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        self.path, self._shape, self._dtype = path, tuple(shape), np.dtype(dtype)
        self._checked: set[int] = set()
        self._length = len(self.records)
        # Mapped now: later they may be gone.
        size, needed = path.with_suffix(PIXELS).stat().st_size, self._length * _bytes_of_one(shape, dtype)
        if size != needed or len(self._pixels) != self._length:
            raise ValueError(f"{size} bytes of pixels in {path}, and not {needed}")
        # What tells these files from others of the same names.
        self._mapped = self._files()

    @staticmethod
    def make(path: Path, pictures: Identities, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        """Make an empty shelf; no other process may make it at the same time.

        Args:
            path: see `Shelf`.
            pictures: the identities of those that get a place.
            shape: see `Shelf`.
            dtype: see `Shelf`.

        Raises:
            OSError: it cannot be written.
        """
        records = np.zeros(len(pictures), dtype=RECORD)
        records["picture"] = pictures
        put_private(path.with_suffix(RECORDS), records.tobytes())
        descriptor = os.open(path.with_suffix(PIXELS), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # It takes no space yet.
            os.ftruncate(descriptor, len(pictures) * _bytes_of_one(shape, dtype))
        finally:
            os.close(descriptor)

    @property
    def is_in_place(self) -> bool:
        """Whether its files are those that are mapped: nobody has deleted them, or made them anew."""
        try:
            return self._files() == self._mapped
        except OSError:
            return False

    def __len__(self) -> int:
        return self._length

    def read(self, number: int, white: float | None, content: int | None = None) -> npt.NDArray[Any] | None:
        """The pixels of a place; None if they are not there, or damaged, or made with another white.

        Args:
            number: of the place.
            white: what is white in pictures of more than 8 bits.
            content: the key of the content that is wanted; None: any.

        Raises:
            OSError: the files have been deleted before they were mapped in this process.
            ValueError: they do not belong together any more.
        """
        # A copy: another run may replace a picture of more than 8 bits by the same with another white.
        record = self.records[number].copy()
        if not record["check"] or record["white"] not in (0, white) or content not in (None, record["content"]):
            return None
        pixels = np.array(self._pixels[number])
        if number not in self._checked or record["white"]:
            if _checksum(record, pixels) != record["check"]:
                return None
            self._checked.add(number)
        return pixels

    def write(self, number: int, content: int, white: float, pixels: npt.NDArray[Any]) -> None:
        """Put the pixels of a picture into its place; see `PixelStore.write`.

        Raises:
            OSError: the disk is full, or the shelf has been deleted.
            ValueError: the files do not belong together any more.
        """
        assert pixels.shape == self._shape
        pixels = np.ascontiguousarray(pixels, dtype=self._dtype)
        record = np.zeros((), dtype=RECORD)
        record["picture"], record["content"], record["white"] = self.records["picture"][number], content, white
        record["check"] = _checksum(record, pixels)
        # Not through the mapping: on a full disk that would end the process.
        parts: tuple[tuple[str, npt.NDArray[Any]], ...] = ((PIXELS, pixels), (RECORDS, record))
        for suffix, part in parts:
            with self.path.with_suffix(suffix).open("r+b") as file:
                file.seek(number * part.nbytes)
                file.write(part.tobytes())

    @cached_property
    def records(self) -> Records:
        """One for each place."""
        return np.memmap(self.path.with_suffix(RECORDS), dtype=RECORD, mode="r")

    @cached_property
    def _pixels(self) -> npt.NDArray[Any]:
        return np.memmap(self.path.with_suffix(PIXELS), self._dtype, "r", shape=(len(self.records), *self._shape))

    def _files(self) -> list[int]:
        return [self.path.with_suffix(suffix).stat().st_ino for suffix in (RECORDS, PIXELS)]

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the files itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("records", "_pixels")}


class Files(NamedTuple):
    """What a shelf takes on the disk; of one that was not made or not deleted completely, one file is there.

    Attributes:
        path: of the shelf.
        last_use: in seconds since 1970.
        bytes: of its files, once it is full.
        unwritten: how many of these take no space on the disk yet.
    """

    path: Path
    last_use: float
    bytes: int
    unwritten: int

    def remove(self) -> None:
        """Delete them; a process that has mapped them can still read them."""
        # What is left by a process that is killed in between is small.
        for suffix in (PIXELS, RECORDS):
            self.path.with_suffix(suffix).unlink(missing_ok=True)


def shelves_in(folder: Path) -> list[Path]:
    """The paths of all shelves in a folder, in a fixed order; none if there is no folder."""
    return [file.with_suffix("") for file in listed(folder, f"*{RECORDS}")]


def files_in(folder: Path) -> list[Files]:
    """What all shelves in a folder take on the disk."""
    statuses: dict[Path, list[os.stat_result]] = {}
    for suffix in (RECORDS, PIXELS):
        for file in listed(folder, f"*{suffix}"):
            # Another process may have deleted it.
            with suppress(OSError):
                status = file.stat()
                statuses.setdefault(file.with_suffix(""), []).append(status)
    return [
        Files(
            path,
            max(status.st_mtime for status in of_files),
            sum(status.st_size for status in of_files),
            # Not each system counts the blocks of a file.
            sum(max(0, status.st_size - 512 * getattr(status, "st_blocks", status.st_size)) for status in of_files),
        )
        for path, of_files in sorted(statuses.items())
    ]


def _bytes_of_one(shape: Sequence[int], dtype: npt.DTypeLike) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _checksum(record: Any, pixels: npt.NDArray[Any]) -> int:
    begin = zlib.crc32(
        np.array([record["picture"], record["content"]], dtype="<u8").tobytes() + record["white"].tobytes()
    )
    return WRITTEN + zlib.crc32(pixels.data, begin)
