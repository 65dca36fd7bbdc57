"""Resized pixels of pictures on disk: an epoch, a run or a strategy that comes later decodes none of them again."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_transfer.data.complete_files import private_folder
from hf_transfer.data.identities import NO_PICTURE, Identities
from hf_transfer.data.shelves import FORMAT, RECORD, Records, Shelf, last_use, note_use, shelves_in

# No more than this share of the free disk is taken: the run has to save its model, too.
SHARE_OF_FREE_DISK = 0.5
NO_PLACE = -1
Places = npt.NDArray[np.int64]


class PixelStore:
    """Resized pixels of pictures, by what the pictures are, for one way of decoding and resizing them.

    A picture is known by its identity, which needs no look into its file, or else by its content: so a file that was
    copied or touched is read again, and not decoded. What is read is compared with a checksum; what does not agree is
    as if it had never been written. Several processes may use a store at the same time.

    Args:
        root: the folder of all stores.
        way: a hash of how pictures are decoded and resized.
        shape: of the pixels of a picture.
        dtype: of its values.
        limit: bytes that all stores may take together; the shelves that were used the longest ago are deleted.
    """

    def __init__(self, root: Path, way: str, shape: Sequence[int], dtype: npt.DTypeLike, limit: int) -> None:
        self._root, self._folder, self._limit = root, root / f"{FORMAT}-{way[:32]}", limit
        self._shape, self._dtype = tuple(shape), np.dtype(dtype)
        self._used: set[Path] = set()
        self._is_full = False
        # Made when it is needed: where all pictures are known by their identities, it never is.
        self._by_content: dict[int, int] | None = None
        self._open()

    def reserve(self, pictures: Identities, white: float | None = None) -> None:
        """Make places for those pictures that have none, as many as there is room for.

        Args:
            pictures: their identities; 0 where there is no picture.
            white: see `places`.
        """
        wanted = np.unique(pictures[pictures != NO_PICTURE])
        places = self.places(wanted, white)
        self._touch(places[places != NO_PLACE])
        missing = wanted[places == NO_PLACE]
        if not len(missing) or not self._limit:
            return
        bytes_of_one = RECORD.itemsize + int(np.prod(self._shape)) * self._dtype.itemsize
        try:
            private_folder(self._folder)
            missing = missing[: self._room(len(missing) * bytes_of_one) // bytes_of_one]
            if len(missing):
                name = blake2b(missing.tobytes() + f"{white}".encode(), digest_size=16).hexdigest()
                Shelf.make(self._folder / name, missing, self._shape, self._dtype)
                self._used.add(self._folder / name)
                self._open()
        except OSError:
            # The run works without, and the next one tries again.
            self._is_full = True

    def places(self, pictures: Identities, white: float | None = None) -> Places:
        """The place of each picture, `NO_PLACE` for those without one; valid until the next `reserve`.

        Args:
            pictures: their identities.
            white: what is white in pictures of more than 8 bits: a place that holds one with another white is none;
                None: any will do.
        """
        records = self._records()
        is_right = (records["check"] == 0) | (records["white"] == 0) | (white is None) | (records["white"] == white)
        order = np.flatnonzero(is_right)
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
        if place == NO_PLACE:
            return None
        shelf, number = self._at(place)
        return shelf.read(number, white)

    def of_content(self, content: int) -> npt.NDArray[Any] | None:
        """The pixels of any picture of 8 bits with this content; None if there are none."""
        if self._by_content is None:
            records = self._records()
            filled = np.flatnonzero((records["check"] != 0) & (records["white"] == 0))
            self._by_content = dict(zip(records["content"][filled].tolist(), filled.tolist(), strict=True))
        return self.read(self._by_content.get(content, NO_PLACE))

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
        except OSError:
            # A full disk, or another run has made room for itself: decoding goes on without a store.
            self._is_full = True
            return
        if self._by_content is not None and not white:
            self._by_content[content] = place

    def _open(self) -> None:
        self._shelves = [Shelf(path, self._shape, self._dtype) for path in shelves_in(self._folder)]
        self._shelves = [shelf for shelf in self._shelves if shelf.is_whole]
        self._starts = np.cumsum([0, *(len(shelf) for shelf in self._shelves)])
        self._by_content = None

    def _records(self) -> Records:
        return np.concatenate([np.empty(0, dtype=RECORD), *(shelf.records for shelf in self._shelves)])

    def _at(self, place: int) -> tuple[Shelf, int]:
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._shelves[number], place - int(self._starts[number])

    def _touch(self, places: Places) -> None:
        """Note that the shelves of these places are in use."""
        for number in np.unique(np.searchsorted(self._starts, places, side="right") - 1).tolist():
            path = self._shelves[number].path
            self._used.add(path)
            # Another run may have deleted it.
            with suppress(OSError):
                note_use(path)

    def _room(self, wanted: int) -> int:
        """How many bytes may be written, once shelves that this run does not use have made room."""
        sizes = {path: Shelf.bytes_at(path) for folder in self._root.iterdir() for path in shelves_in(folder)}
        for path in sorted(sizes.keys() - self._used, key=last_use):
            if sum(sizes.values()) + wanted <= self._limit:
                break
            Shelf.remove(path)
            del sizes[path]
        free = int(SHARE_OF_FREE_DISK * shutil.disk_usage(self._root).free)
        return max(0, min(self._limit - sum(sizes.values()), free))
