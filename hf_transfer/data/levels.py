"""Pictures of more than 8 bits for each channel: their values, and how these become 8 bits; and which way up they are.

The same file is in `hf_transfer/data/` and in `space/`, which imports nothing of the package, so that a demo decodes
as training did.
"""

import io
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

# The setting that names what is white, and its name in the file that is saved with a model.
LARGEST_PIXEL_VALUE = "largest_pixel_value"
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# What is white in pictures whose largest value is not above it: 8, 10, 12, 14 or 16 bits; in floats also 1.
WHITE_LEVELS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
WHITE_OF_FLOATS = (1.0, *WHITE_LEVELS)
# Of 16-bit colours Pillow keeps the upper byte. Read with the other order of bytes, it keeps the lower one.
OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
# Grey with transparency: both bytes of each become the four channels of this mode.
GREY_WITH_ALPHA, FOUR_BYTES = "LA;16B", "RGBA"
# The EXIF tag that says which way up a picture is, and what to do for each of its values.
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pixels that are looked at to tell how many values a picture has.
SAMPLED_PIXELS = 4096


class LevelsError(ValueError):
    """Values that are no shades of grey or colour; the message says which, as a part of a sentence."""


class Levels(NamedTuple):
    """The values of a picture.

    Attributes:
        smallest: of all values.
        largest: of all values.
        distinct: how many different values `SAMPLED_PIXELS` pixels have.
        whole: whether they are stored as whole numbers.
    """

    smallest: float
    largest: float
    distinct: int
    whole: bool

    @property
    def range(self) -> float:
        """From the smallest to the largest."""
        return self.largest - self.smallest


@dataclass(frozen=True)
class DeepPicture:
    """A picture of more than 8 bits.

    Attributes:
        values: upright; [height, width] or [height, width, 3].
    """

    values: npt.NDArray[Any]

    @property
    def levels(self) -> Levels:
        """Which values it has."""
        flat = self.values.reshape(-1)
        # An odd step does not stay in one column.
        sample = flat[:: max(1, flat.size // SAMPLED_PIXELS) | 1]
        whole = bool(np.issubdtype(flat.dtype, np.integer))
        return Levels(float(flat.min()), float(flat.max()), len(np.unique(sample)), whole)

    def in_eight_bits(self, white: float | None = None) -> Image.Image:
        """The picture as RGB with values from 0 to 255; 0 stays black.

        Args:
            white: the value that becomes white; None: as `white_level` has it for this picture.

        Raises:
            LevelsError: a value is above white.
        """
        levels = self.levels
        if white is None:
            white = white_level(levels.largest, whole=levels.whole)
        if levels.largest > white:
            raise LevelsError(f"its values go up to {levels.largest:,g}, above {white:,g}, which is white")
        if levels.whole and white >= 255:
            # For all bits that are used this takes the upper eight, as Pillow does.
            wide = self.values.astype(np.uint32 if white <= 65535 else np.uint64)
            scaled = wide * 256 // (int(white) + 1)
        else:
            scaled = np.rint(self.values * np.float32(255 / white))
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def white_level(largest: float, *, whole: bool) -> float:
    """The value that is white in pictures with this largest value: 8, 10, 12, 14 or 16 bits, in floats also 1.

    Args:
        largest: of all pictures that belong together.
        whole: whether values are whole numbers.

    Raises:
        LevelsError: it has more than 16 bits.
    """
    for white in WHITE_LEVELS if whole else WHITE_OF_FLOATS:
        if largest <= white:
            return white
    raise LevelsError(f"its values go up to {largest:,g}, more than 16 bits")


def upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF tag says it is turned.

    `ImageOps.exif_transpose` writes all other tags again, and fails if one of them has a wrong type.
    """
    # Some formats turn the picture themselves as they read it, and then drop the tag.
    picture.load()
    turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture whose pixels are not read yet has more than 8 bits for each channel."""
    return picture.mode in DEEP_MODES or ";16" in _raw_mode(picture)


def deep_picture(picture: Image.Image) -> DeepPicture | None:
    """All bits of a picture whose pixels are not read yet; None if it has 8 bits for each channel.

    Raises:
        LevelsError: it has values below 0, NaN or infinite ones, or only lower bits, which cannot be read.
    """
    raw_mode = _raw_mode(picture)
    if picture.mode in DEEP_MODES:
        values = _upright(picture)
    elif raw_mode == GREY_WITH_ALPHA:
        _read_as(FOUR_BYTES, picture)
        values = _both_bytes(*np.moveaxis(_upright(picture), -1, 0)[:2])
    elif raw_mode in OTHER_BYTE:
        lower = _opened_again(picture)
        _read_as(OTHER_BYTE[raw_mode], lower)
        values = _both_bytes(_upright(picture)[..., :3], _upright(lower)[..., :3])
    else:
        picture.load()
        if ";16" in raw_mode and not np.asarray(picture).any():
            raise LevelsError("the upper 8 bits of its 16-bit colours are all 0")
        return None
    if not np.isfinite(values).all():
        raise LevelsError("it has values that are NaN or infinite")
    if (smallest := values.min()) < 0:
        raise LevelsError(f"it has values below 0, such as {smallest:,g}")
    return DeepPicture(values)


def _upright(picture: Image.Image) -> npt.NDArray[Any]:
    return np.asarray(upright(picture))


def _both_bytes(upper: npt.NDArray[Any], lower: npt.NDArray[Any]) -> npt.NDArray[Any]:
    both: npt.NDArray[np.uint16] = upper.astype(np.uint16) << 8 | lower
    return both


def _opened_again(picture: Any) -> Any:
    """The same picture, whose pixels can be read in another way."""
    position = picture.fp.tell()
    picture.fp.seek(0)
    content = picture.fp.read()
    picture.fp.seek(position)
    return Image.open(io.BytesIO(content), formats=[picture.format])


def _raw_mode(picture: Any) -> str:
    """How the pixels are stored, in Pillow's names; empty if they have been read."""
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _read_as(raw_mode: str, picture: Any) -> None:
    """Let Pillow take the pixels of a picture, once it reads them, as stored in `raw_mode`."""
    tiles = []
    for tile in picture.tile:
        arguments = (raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode
        tiles.append(tile._replace(args=arguments))
    picture.tile = tiles
