"""A shelf: pixels of some pictures in one file, and a record of each of them in another."""

import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
    Nothing is ever moved: several processes may write, since all of them write the same.

    Args:
        path: of both files, without suffix.
        shape: of the pixels of a picture.
        dtype: of its values.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        self.path, self._shape, self._dtype = path, tuple(shape), np.dtype(dtype)
        self._bytes_of_one = int(np.prod(self._shape)) * self._dtype.itemsize
        self._checked: set[int] = set()

    @staticmethod
    def make(path: Path, pictures: Identities, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        """Make an empty shelf, unless another process has just made it.

        Args:
            path: see `Shelf`.
            pictures: the identities of those that get a place.
            shape: see `Shelf`.
            dtype: see `Shelf`.

        Raises:
            OSError: it cannot be written.
        """
        descriptor = os.open(path.with_suffix(PIXELS), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # It takes no space yet.
            os.ftruncate(descriptor, len(pictures) * int(np.prod(shape)) * np.dtype(dtype).itemsize)
        finally:
            os.close(descriptor)
        if not Shelf(path, shape, dtype).is_whole:
            records = np.zeros(len(pictures), dtype=RECORD)
            records["picture"] = pictures
            put_private(path.with_suffix(RECORDS), records.tobytes())

    @staticmethod
    def remove(path: Path) -> None:
        """Delete a shelf; a process that has opened it can still read it."""
        for suffix in (RECORDS, PIXELS):
            path.with_suffix(suffix).unlink(missing_ok=True)

    @staticmethod
    def bytes_at(path: Path) -> int:
        """The size of both files of a shelf, once it is full."""
        return sum(file.stat().st_size for suffix in (RECORDS, PIXELS) if (file := path.with_suffix(suffix)).is_file())

    @property
    def is_whole(self) -> bool:
        """Whether both files have the sizes that belong together."""
        try:
            records, pixels = (self.path.with_suffix(suffix).stat().st_size for suffix in (RECORDS, PIXELS))
        except FileNotFoundError:
            return False
        places, rest = divmod(records, RECORD.itemsize)
        return places > 0 and rest == 0 and pixels == places * self._bytes_of_one

    def __len__(self) -> int:
        return len(self.records)

    def read(self, number: int, white: float | None) -> npt.NDArray[Any] | None:
        """The pixels of a place; None if they are not there, or damaged, or made with another white.

        Args:
            number: of the place.
            white: what is white in pictures of more than 8 bits.
        """
        record = self.records[number]
        if not record["check"] or record["white"] not in (0, white):
            return None
        pixels = np.array(self._pixels[number])
        # Another run may replace a picture of more than 8 bits by the same with another white.
        if number not in self._checked or record["white"]:
            if _checksum(record, pixels) != record["check"]:
                return None
            self._checked.add(number)
        return pixels

    def write(self, number: int, content: int, white: float, pixels: npt.NDArray[Any]) -> None:
        """Put the pixels of a picture into its place; see `PixelStore.write`.

        Raises:
            OSError: the disk is full, or the shelf has been deleted.
        """
        assert pixels.shape == self._shape
        pixels = np.ascontiguousarray(pixels, dtype=self._dtype)
        record = np.zeros((), dtype=RECORD)
        record["picture"], record["content"], record["white"] = self.records["picture"][number], content, white
        record["check"] = _checksum(record, pixels)
        # Not through the mapping: on a full disk that would end the process.
        parts: tuple[tuple[str, npt.NDArray[Any]], ...] = ((PIXELS, pixels), (RECORDS, record))
        for suffix, part in parts:
            with self.path.with_suffix(suffix).open("r+b", buffering=0) as file:
                file.seek(number * part.nbytes)
                file.write(part.tobytes())

    @cached_property
    def records(self) -> Records:
        """One for each place."""
        return np.memmap(self.path.with_suffix(RECORDS), dtype=RECORD, mode="r")

    @cached_property
    def _pixels(self) -> npt.NDArray[Any]:
        return np.memmap(self.path.with_suffix(PIXELS), self._dtype, "r", shape=(len(self.records), *self._shape))

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the files itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("records", "_pixels")}


def shelves_in(folder: Path) -> list[Path]:
    """The paths of all shelves in a folder, in a fixed order; none if there is no folder."""
    return sorted(file.with_suffix("") for file in folder.glob(f"*{RECORDS}"))


def last_use(path: Path) -> float:
    """When a shelf was last in use, in seconds since 1970."""
    return path.with_suffix(RECORDS).stat().st_mtime


def note_use(path: Path) -> None:
    """Note that a shelf is in use."""
    os.utime(path.with_suffix(RECORDS))


def _checksum(record: Any, pixels: npt.NDArray[Any]) -> int:
    begin = zlib.crc32(
        np.array([record["picture"], record["content"]], dtype="<u8").tobytes() + record["white"].tobytes()
    )
    return WRITTEN + zlib.crc32(pixels.data, begin)
