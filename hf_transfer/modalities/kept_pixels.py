"""Pixels of the pictures of a run: each picture is decoded once, and then read from disk."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_transfer.data.groups import key_of
from hf_transfer.data.identities import identities_of
from hf_transfer.data.levels import Levels
from hf_transfer.data.pictures import BadImageError, beyond_white, content, content_size, decode_with_levels, decoders
from hf_transfer.data.pixel_store import PixelStore, Places
from hf_transfer.data.rows import encoded_image
from hf_transfer.data.splits import Split
from hf_transfer.modalities.pixels import PixelPreprocessing

# Below the folder of all caches.
PIXELS_FOLDER = "pixels"


class KeptPixels:
    """Decodes and resizes the pictures of a run, and keeps what comes out.

    What checks the pictures and what trains on them go through the same object, so that neither decodes what the other
    has decoded. An exception are pictures of more than 8 bits, where the training pictures show another white than one
    of them alone: that one is decoded again.

    Args:
        preprocessing: of the run.
        cache: the folder for all that is kept between runs.
        limit: bytes that pixels may take; 0: none are kept.
    """

    def __init__(self, preprocessing: PixelPreprocessing, cache: Path, limit: int) -> None:
        self.preprocessing, self.cache, self._limit = preprocessing, cache, limit

    @cached_property
    def store(self) -> PixelStore:
        """The pixels on disk."""
        black = self.preprocessing.black().numpy()
        way = hashlib.sha256(f"{self.preprocessing.way()} {decoders()}".encode()).hexdigest()
        return PixelStore(self.cache / PIXELS_FOLDER, way, black.shape, black.dtype, self._limit)

    def places(self, split: Split, white: float | None) -> Places:
        """The place of the picture of each row in the store [rows]; see `PixelStore.places`."""
        identities = identities_of(split)
        self.store.reserve(identities, white)
        return self.store.places(identities, white)

    def known(self, split: Split, places: Places) -> dict[int, int]:
        """The rows whose pictures are there and have 8 bits, each with the key of its content."""
        keys = zip(split.rows.tolist(), self.store.contents(places).tolist(), strict=True)
        return {row: key for row, key in keys if key}

    def look(self, raw: dict[str, Any], key: int, place: int, white: float | None) -> Levels | None:
        """Decode a picture, unless another one with this content has been, and keep its pixels.

        Args:
            raw: the picture, with its bytes.
            key: of its content.
            place: in the store.
            white: see `pictures.decode`.

        Returns:
            Its values, if it has more than 8 bits for each channel.

        Raises:
            BadImageError: as `pictures.decode`; large values are none of its reasons.
        """
        return self._decoded(raw, key, place, white).levels

    def pixels(self, split: Split, row: int, place: int, white: float | None) -> Tensor:
        """The pixels of the picture of a row: from its place or, at its first use, decoded and put there.

        Args:
            split: that the row is in.
            row: its number.
            place: in the store.
            white: see `pictures.decode`.

        Raises:
            BadImageError: as `pictures.decode`.
        """
        if (kept := self.store.read(place, white)) is not None:
            return torch.from_numpy(kept)
        raw = encoded_image(split, row)
        if content_size(raw) < 0:
            # There is no such file: the error says so.
            return self.preprocessing.read(raw, white)
        raw = raw | {"bytes": content(raw)}
        pixels, levels = self._decoded(raw, key_of(raw["bytes"]), place, white)
        if pixels is None:
            assert levels is not None
            raise BadImageError(beyond_white(levels, white))
        return pixels

    def _decoded(self, raw: dict[str, Any], key: int, place: int, white: float | None) -> "_Pixels":
        """The pixels of a picture with these bytes, which are put into its place."""
        same = self.store.of_content(key)
        if same is not None:
            self.store.write(place, key, 0.0, same)
            return _Pixels(torch.from_numpy(same), None)
        decoded = decode_with_levels(raw, white, self.preprocessing.least_side)
        if decoded.picture is None:
            return _Pixels(None, decoded.levels)
        pixels = self.preprocessing.resize(decoded.picture)
        self.store.write(place, key, decoded.white, pixels.numpy())
        return _Pixels(pixels, decoded.levels)


class _Pixels(NamedTuple):
    """What comes out of a picture.

    Attributes:
        pixels: None if its values are above white.
        levels: its values, if it has more than 8 bits for each channel.
    """

    pixels: Tensor | None
    levels: Levels | None
