"""Decode a picture from a file as in training, whatever its colour mode."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# No SVG: it can contain scripts, and Pillow does not read it.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 50_000_000
MAX_BYTES = 10_000_000


class BadInputError(ValueError):
    """What cannot be classified, such as a broken picture; the message tells the visitor why."""


def decode(path: str | os.PathLike[str]) -> Image.Image:
    """The picture as RGB: first frame, EXIF orientation applied, alpha dropped, 16 bits scaled to 8.

    Raises:
        BadInputError: empty, truncated, corrupt, no picture, or larger than the limits.
    """
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise BadInputError(f"It has {size / 1e6:.0f} MB, and the limit is {MAX_BYTES / 1e6:.0f} MB.")
    try:
        with warnings.catch_warnings():
            # The limit below is stricter than the one Pillow warns about.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=FORMATS)
        with picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise BadInputError(
                    f"It declares {picture.width} x {picture.height} pixels, more than this demo decodes."
                )
            picture.seek(0)
            picture.load()
            return _eight_bits(ImageOps.exif_transpose(picture)).convert("RGB")
    except BadInputError:
        raise
    except Image.DecompressionBombError as error:
        raise BadInputError("It declares far more pixels than this demo decodes.") from error
    except Exception as error:
        # Decoders raise SyntaxError, struct.error, ZeroDivisionError and others on hostile bytes.
        raise BadInputError("It is empty or damaged, or no JPEG, PNG, WebP, BMP, GIF or TIFF picture.") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pillow alone would clip 16-bit and float pictures to white."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "I":
        return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    if picture.mode == "F":
        return Image.fromarray((np.nan_to_num(np.asarray(picture)).clip(0, 1) * 255).round().astype(np.uint8))
    return picture
