"""Decode a picture from a file as in training, whatever its colour mode."""

import os
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, features

from levels import LevelsError, deep_picture, upright

# No SVG: it can contain scripts, and Pillow does not read it.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 50_000_000
MAX_BYTES = 10_000_000


class BadInputError(ValueError):
    """What cannot be classified, such as a broken picture; the message tells the visitor why."""


def decode(path: str | os.PathLike[str], white: float | None = None, least_side: int | None = None) -> Image.Image:
    """The picture as RGB: first frame, EXIF orientation applied, alpha dropped, more than 8 bits scaled to 8.

    Args:
        path: of the picture.
        white: the value that is white in pictures of more than 8 bits for each channel; None: the largest value of
            this picture, rounded up to a number of bits.
        least_side: so many pixels of each side of a JPEG are enough; None: all are decoded.

    Raises:
        BadInputError: empty, truncated, corrupt, no picture, larger than the limits, or with values that are no shades.
    """
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise BadInputError(f"It has {size / 1e6:.0f} MB, and the limit is {MAX_BYTES / 1e6:.0f} MB.")
    try:
        with warnings.catch_warnings():
            # The limit below is stricter than the one Pillow warns about.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=readable_formats())
        with picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise BadInputError(
                    f"It declares {picture.width} x {picture.height} pixels, more than this demo decodes."
                )
            picture.seek(0)
            if least_side is not None:
                picture.draft(None, (least_side, least_side))
            deep = deep_picture(picture)
            return upright(picture).convert("RGB") if deep is None else deep.in_eight_bits(white)
    except BadInputError:
        raise
    except LevelsError as error:
        raise BadInputError(f"It cannot be scaled to 8 bits: {error}.") from error
    except Image.DecompressionBombError as error:
        raise BadInputError("It declares far more pixels than this demo decodes.") from error
    except Exception as error:
        # Decoders raise SyntaxError, struct.error, ZeroDivisionError and others on hostile bytes.
        raise BadInputError(f"It is empty or damaged, or no picture of {', '.join(readable_formats())}.") from error


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that are decoded, in Pillow's names; AVIF and HEIC where this installation reads them."""
    further = ["AVIF"] if features.check("avif") else []
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
        further.append("HEIF")
    return (*FORMATS, *further)
