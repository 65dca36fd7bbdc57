"""One image: decoded the same way everywhere, or the reason why it cannot be used."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 50_000_000


class BadImageError(ValueError):
    """An image that cannot be used, with the reason."""


def decode(raw: dict[str, Any]) -> Image.Image:
    """The picture as RGB: first frame, rotated as its EXIF tag says.

    Colour modes are converted as `transformers` pipelines do, so that prediction sees what training saw;
    16-bit and float pictures are scaled first, because Pillow would clip them to white.

    Args:
        raw: `{"bytes": ... , "path": ...}`, as `datasets` stores an image that is not decoded.

    Raises:
        BadImageError: it is empty, truncated, corrupt, not an image, or has more than `MAX_PIXELS`.
    """
    with _opened(raw) as picture:
        return _upright_rgb(picture)


def decode_picture(picture: Image.Image) -> Image.Image:
    """The same for a picture that Pillow has opened already.

    Raises:
        BadImageError: it cannot be decoded, or has more than `MAX_PIXELS`.
    """
    _refuse_too_large(picture)
    try:
        return _upright_rgb(picture)
    except Exception as error:
        raise BadImageError(f"damaged: {error}") from error


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture.load()
    return _to_eight_bits(ImageOps.exif_transpose(picture)).convert("RGB")


def check_header(raw: dict[str, Any]) -> None:
    """Check the header alone: whether it is an image, and of a size that can be decoded.

    Raises:
        BadImageError: as `decode`, except for damage behind the header.
    """
    with _opened(raw):
        pass


def content(raw: dict[str, Any]) -> bytes:
    """The encoded bytes of an image."""
    data = raw.get("bytes")
    return data if data is not None else Path(raw["path"]).read_bytes()


def content_size(raw: dict[str, Any]) -> int:
    """How many bytes `content` would return, without reading them; -1 if there is no such file."""
    data = raw.get("bytes")
    if data is not None:
        return len(data)
    path = Path(raw.get("path") or "")
    return path.stat().st_size if path.is_file() else -1


@contextmanager
def _opened(raw: dict[str, Any]) -> Iterator[Image.Image]:
    """The picture, whose header was checked; all that goes wrong while it is used is a `BadImageError`."""
    try:
        source = io.BytesIO(raw["bytes"]) if raw.get("bytes") is not None else raw["path"]
        with warnings.catch_warnings():
            # The limit below is stricter than the one that Pillow warns about.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(source, formats=FORMATS)
        with picture:
            _refuse_too_large(picture)
            yield picture
    except BadImageError:
        raise
    except Exception as error:
        # On damaged bytes decoders raise SyntaxError, struct.error, ZeroDivisionError and others: all mean the same.
        raise BadImageError(_reason(raw, error)) from error


def _refuse_too_large(picture: Image.Image) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise BadImageError(_too_large(f"{picture.width} x {picture.height}"))


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "I":
        return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    if picture.mode == "F":
        return Image.fromarray((np.nan_to_num(np.asarray(picture)).clip(0, 1) * 255).round().astype(np.uint8))
    return picture


def _reason(raw: dict[str, Any], error: Exception) -> str:
    size = content_size(raw)
    if isinstance(error, Image.DecompressionBombError):
        return _too_large("far too many")
    if size == -1:
        return "there is no such file"
    if size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"{size} bytes that are not a {', '.join(FORMATS)} image"
    return f"damaged: {error}"


def _too_large(pixels: str) -> str:
    return f"it declares {pixels} pixels, and the limit is {MAX_PIXELS:,}"
