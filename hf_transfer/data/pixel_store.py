"""Resized pixels of pictures on disk: an epoch, a run or a strategy that comes later decodes none of them again."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from hf_transfer.data.cached_folders import note_use
from hf_transfer.data.complete_files import private_folder
from hf_transfer.data.identities import NO_PICTURE, Identities
from hf_transfer.data.shelves import FORMAT, RECORD, RECORDS, Records, Shelf, files_in, shelves_in

# No more than this share of the free disk is taken: the run has to save its model, too.
SHARE_OF_FREE_DISK = 0.5
# The names of stores of any format, as glob has them: other folders are not ours.
DIGITS_OF_A_WAY = 32
STORES = "[0-9]*-" + "[0-9a-f]" * DIGITS_OF_A_WAY
# The lock of the folder of all stores, and how long another run may hold it.
LOCK_FILE, LONGEST_WAIT_SECONDS = ".lock", 10.0
NO_PLACE = -1
Places = npt.NDArray[np.int64]


class PixelStore:
    """Resized pixels of pictures, by what the pictures are, for one way of decoding and resizing them.

    A picture is known by its identity, which needs no look into its file, or else by its content: so a file that was
    copied or touched is read again, and not decoded. What is read is compared with a checksum; what does not agree is
    as if it had never been written. Several processes may use a store at the same time, and delete parts of it: a place
    is that of its picture as long as the store is in use, whatever others do, but it may be empty again.

    Args:
        root: the folder of all stores.
        way: a hash of how pictures are decoded and resized.
        shape: of the pixels of a picture.
        dtype: of its values.
        limit: bytes that all stores may take together; the shelves that were used the longest ago are deleted.
    """

    def __init__(self, root: Path, way: str, shape: Sequence[int], dtype: npt.DTypeLike, limit: int) -> None:
        self._root, self._folder, self._limit = root, root / f"{FORMAT}-{way[:DIGITS_OF_A_WAY]}", limit
        self._shape, self._dtype = tuple(shape), np.dtype(dtype)
        self._used: set[Path] = set()
        self._is_full = False
        # Shelves are only added: places stay what they are.
        self._shelves: list[Shelf] = []
        self._starts = np.zeros(1, dtype=np.int64)
        # For each place whether its shelf has been deleted.
        self._is_gone = np.zeros(0, dtype=np.bool_)
        # Made when it is needed: where all pictures are known by their identities, it never is.
        self._by_content: dict[int, int] | None = None
        self._look_for_shelves()

    def reserve(self, pictures: Identities, white: float | None = None) -> None:
        """Make places for those pictures that have none, as many as there is room for.

        Args:
            pictures: their identities; 0 where there is no picture.
            white: see `places`.
        """
        wanted = np.unique(pictures[pictures != NO_PICTURE])
        if not len(self._missing(wanted, white)) or not self._limit:
            return
        # Where nothing can be written, or another run takes too long, this run works without, and the next tries again.
        with suppress(OSError), self._alone():
            # Again: another run may just have made some.
            self._make_shelf(self._missing(wanted, white), white)
            self._look_for_shelves()

    def places(self, pictures: Identities, white: float | None = None) -> Places:
        """The place of each picture, `NO_PLACE` for those without one.

        Args:
            pictures: their identities.
            white: what is white in pictures of more than 8 bits: a place that holds one with another white is none;
                None: any will do.
        """
        records = self._records()
        is_right = (records["check"] == 0) | (records["white"] == 0) | (white is None) | (records["white"] == white)
        order = np.flatnonzero(is_right & ~self._is_gone)
        # Of several places of a picture the first is one that is filled.
        order = order[np.lexsort((records["check"][order] == 0, records["picture"][order]))]
        names = records["picture"][order]
        if not len(names):
            return np.full(len(pictures), NO_PLACE, dtype=np.int64)
        first = np.minimum(np.searchsorted(names, pictures), len(names) - 1)
        return np.where((names[first] == pictures) & (pictures != NO_PICTURE), order[first], NO_PLACE)

    def contents(self, places: Places) -> Identities:
        """The key of the content of each picture of 8 bits that is there; 0 for others [places]."""
        records, keys = self._records(), np.zeros(len(places), dtype=np.uint64)
        given = np.flatnonzero(places != NO_PLACE)
        chosen = records[places[given]]
        keys[given] = np.where((chosen["check"] != 0) & (chosen["white"] == 0), chosen["content"], 0)
        return keys

    def read(self, place: int, white: float | None = None) -> npt.NDArray[Any] | None:
        """The pixels at a place; None if there are none, or if they are damaged.

        Args:
            place: of a picture.
            white: see `places`; here None means that there are no pictures of more than 8 bits.
        """
        return self._read(place, white)

    def is_filled(self, place: int) -> bool:
        """Whether this process finds pixels at a place; what it puts into a deleted shelf it does not find again."""
        if place == NO_PLACE:
            return False
        shelf, number = self._at(place)
        return bool(_records_of(shelf)["check"][number])

    def of_content(self, content: int) -> npt.NDArray[Any] | None:
        """The pixels of any picture of 8 bits with this content; None if there are none."""
        if self._by_content is None:
            records = self._records()
            filled = np.flatnonzero((records["check"] != 0) & (records["white"] == 0))
            self._by_content = dict(zip(records["content"][filled].tolist(), filled.tolist(), strict=True))
        return self._read(self._by_content.get(content, NO_PLACE), content=content)

    def write(self, place: int, content: int, white: float, pixels: npt.NDArray[Any]) -> None:
        """Put the pixels of a picture into its place; where that cannot be done, nothing is put there.

        Args:
            place: of the picture.
            content: the key of its content.
            white: what is white in it, if it has more than 8 bits, else 0.
            pixels: of its shape.
        """
        if place == NO_PLACE or self._is_full:
            return
        shelf, number = self._at(place)
        try:
            shelf.write(number, content, white, pixels)
        except (FileNotFoundError, ValueError, IndexError):
            # Another run has deleted this shelf.
            return
        except OSError:
            # Such as a full disk: decoding goes on without a store.
            self._is_full = True
            return
        if self._by_content is not None and not white:
            self._by_content[content] = place

    def _read(self, place: int, white: float | None = None, content: int | None = None) -> npt.NDArray[Any] | None:
        if place == NO_PLACE:
            return None
        shelf, number = self._at(place)
        try:
            return shelf.read(number, white, content)
        except (OSError, ValueError, IndexError):
            # Another run has deleted it before this process has opened it.
            return None

    def _look_for_shelves(self) -> None:
        """Add the shelves that are new in the folder, and note which have been deleted."""
        present = {shelf.path for shelf in self._shelves if shelf.is_in_place}
        for path in shelves_in(self._folder):
            if path not in present:
                # It may be deleted at this moment, or what was left by a run that was killed.
                with suppress(OSError, ValueError):
                    self._shelves.append(Shelf(path, self._shape, self._dtype))
        lengths = [len(shelf) for shelf in self._shelves]
        self._starts = np.cumsum([0, *lengths])
        self._is_gone = np.repeat([not shelf.is_in_place for shelf in self._shelves], lengths).astype(np.bool_)
        self._by_content = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from making or deleting shelves meanwhile.

        Raises:
            OSError: nothing can be written, or another process takes too long.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(
            self._root / LOCK_FILE, LONGEST_WAIT_SECONDS, mode=0o600, thread_local=False, fallback_to_soft=False
        )
        # Some network disks have no locks: two runs may then take more than the limit for a while.
        with suppress(NotImplementedError):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _make_shelf(self, missing: Identities, white: float | None) -> None:
        """A shelf for pictures without a place, as many as there is room for."""
        bytes_of_one = RECORD.itemsize + int(np.prod(self._shape)) * self._dtype.itemsize
        private_folder(self._folder)
        missing = missing[: self._room(len(missing) * bytes_of_one) // bytes_of_one]
        if len(missing):
            path = self._folder / blake2b(missing.tobytes() + f"{white}".encode(), digest_size=16).hexdigest()
            Shelf.make(path, missing, self._shape, self._dtype)
            self._used.add(path)

    def _records(self) -> Records:
        return np.concatenate([np.empty(0, dtype=RECORD), *map(_records_of, self._shelves)])

    def _at(self, place: int) -> tuple[Shelf, int]:
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._shelves[number], place - int(self._starts[number])

    def _missing(self, pictures: Identities, white: float | None) -> Identities:
        """Those pictures that have no place; the shelves of the others are in use from now on."""
        self._look_for_shelves()
        places = self.places(pictures, white)
        given = places[places != NO_PLACE]
        for number in np.unique(np.searchsorted(self._starts, given, side="right") - 1).tolist():
            path = self._shelves[number].path
            self._used.add(path)
            note_use(path.with_suffix(RECORDS))
        missing: Identities = pictures[places == NO_PLACE]
        return missing

    def _room(self, wanted: int) -> int:
        """How many bytes may be written, once shelves that this run does not use have made room."""
        shelves = [files for folder in self._root.glob(STORES) for files in files_in(folder)]
        total = sum(files.bytes for files in shelves)
        for files in sorted(shelves, key=lambda one: one.last_use):
            if total + wanted <= self._limit:
                break
            if files.path not in self._used:
                files.remove()
                shelves.remove(files)
                total -= files.bytes
        # Places that are not filled yet will take what is free now.
        free = shutil.disk_usage(self._root).free - sum(files.unwritten for files in shelves)
        return max(0, min(self._limit - total, int(SHARE_OF_FREE_DISK * free)))


def _records_of(shelf: Shelf) -> Records:
    """The records of a shelf; empty ones, if it was deleted before this process has opened it."""
    with suppress(OSError, ValueError):
        if len(shelf.records) == len(shelf):
            return shelf.records
    return np.zeros(len(shelf), dtype=RECORD)
