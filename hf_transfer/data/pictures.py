"""One image: decoded the same way everywhere, or the reason why it cannot be used."""

import errno
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from hf_transfer.data.levels import Levels, LevelsError, deep_picture, is_deep, upright, white_level

# Change this with the code that decodes: it is saved with models, and it is a part of the fingerprint of pixels.
DECODING = (
    "first frame, EXIF orientation applied, RGB; more than 8 bits are scaled by the value that is white; JPEG at 1/2, "
    "1/4 or 1/8 of its size where both sides keep decoded_side pixels"
)
# The name of this number of pixels in what is saved with a model; without it, all pixels are decoded.
DECODED_SIDE = "decoded_side"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Formats that not each installation reads: their suffixes, and how to read them.
HEIF, AVIF = "HEIC", "AVIF"
FURTHER_FORMATS = {
    HEIF: ((".heic", ".heif", ".hif"), "pip install 'hf-transfer-learning[heif]'"),
    AVIF: ((".avif",), "pip install --upgrade pillow"),
}
SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm",
        ".pgm", ".pbm", ".pnm",
    }.union(*(suffixes for suffixes, _ in FURTHER_FORMATS.values()))
)  # fmt: skip
# In the first bytes of ISO media files: what they hold.
BRANDS = {b"avif": AVIF, b"avis": AVIF, **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"), HEIF)}
MAX_PIXELS = 50_000_000
# What Pillow decodes with, in its own names.
LIBRARIES = ("libjpeg_turbo", "jpg", "zlib", "libtiff", "webp", "avif")
# Errors of the system that damage in a picture causes, such as a place before the begin of the file.
OF_DAMAGE = (None, errno.EINVAL, errno.EOVERFLOW)


class BadImageError(ValueError):
    """An image that cannot be used, with the reason."""


class NotReadError(BadImageError):
    """An image whose file could not be read this time, such as for lack of a right: what is in it is not known."""


@cache
def further_formats() -> tuple[str, ...]:
    """Which of HEIC and AVIF this installation reads."""
    readable = []
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
        readable.append(HEIF)
    if features.check("avif"):
        readable.append(AVIF)
    return tuple(readable)


def readable_formats() -> tuple[str, ...]:
    """The names of the formats that are decoded, for messages."""
    return (*FORMATS, *further_formats())


@cache
def decoders() -> str:
    """What decodes pictures here, with versions: another one may give other pixels, or read what this one cannot."""
    versions = {"Pillow": PIL.__version__} | {name: features.version(name) for name in LIBRARIES}
    if HEIF in further_formats():
        import pillow_heif

        versions["pillow_heif"] = pillow_heif.__version__
    return ", ".join([*(f"{name} {version}" for name, version in versions.items()), *readable_formats()])


def decode(raw: dict[str, Any], white: float | None = None, least_side: int | None = None) -> Image.Image:
    """The picture as RGB: first frame, rotated as its EXIF tag says.

    A large JPEG is decoded at a fraction of its size, from the lowest frequencies of each block of 8 x 8 pixels: of 12
    megapixels that takes a fifth of the time. All of the file is read, so that damage is seen as before.

    Colour modes are converted as `transformers` pipelines do, so that prediction sees what training saw. A pipeline
    clips grey pictures of more than 8 bits to white; here `white` says how they become 8 bits.

    Args:
        raw: `{"bytes": ... , "path": ...}`, as `datasets` stores an image that is not decoded.
        white: the value that is white in pictures of more than 8 bits for each channel; None: the largest value of
            this picture, rounded up to a number of bits (see `levels.white_level`).
        least_side: so many pixels of each side of a JPEG are enough; None: all are decoded.

    Raises:
        BadImageError: it is empty, truncated, corrupt, not an image, has more than `MAX_PIXELS`, or values that are no
            shades: below 0, above `white`, NaN or infinite.
    """
    with _opened(raw) as picture:
        _reduce(picture, least_side)
        return _upright_rgb(picture, white)


def decode_picture(picture: Image.Image, white: float | None = None) -> Image.Image:
    """The same for a picture that Pillow has opened already, with all of its pixels.

    Raises:
        BadImageError: it cannot be decoded, has more than `MAX_PIXELS`, or values that are no shades.
    """
    _refuse_too_large(picture)
    try:
        return _upright_rgb(picture, white)
    except LevelsError as error:
        raise BadImageError(str(error)) from error
    except Exception as error:
        raise BadImageError(f"damaged: {error}") from error


def _reduce(picture: Image.Image, least_side: int | None) -> None:
    """Let Pillow decode fewer pixels; of other formats than JPEG it decodes all."""
    if least_side is not None:
        picture.draft(None, (least_side, least_side))


def _upright_rgb(picture: Image.Image, white: float | None) -> Image.Image:
    deep = deep_picture(picture)
    if deep is not None:
        return deep.in_eight_bits(white)
    return _upright_in_rgb(picture)


def _upright_in_rgb(picture: Image.Image) -> Image.Image:
    """The picture turned and converted; one that needs neither is not copied, unlike by `convert`."""
    turned = upright(picture)
    return turned if turned.mode == "RGB" else turned.convert("RGB")


class Decoded(NamedTuple):
    """A picture with what is known of its values.

    Attributes:
        picture: as RGB; None if it cannot be scaled to 8 bits: see `beyond_white`.
        levels: its values, if it has more than 8 bits for each channel.
        white: the value that has become white in such a picture, else 0.
    """

    picture: Image.Image | None
    levels: Levels | None = None
    white: float = 0.0


def decode_with_levels(raw: dict[str, Any], white: float | None = None, least_side: int | None = None) -> Decoded:
    """Decode a picture; see `decode`.

    Raises:
        BadImageError: as `decode`; large values are none of its reasons.
    """
    with _opened(raw) as picture:
        _reduce(picture, least_side)
        deep = deep_picture(picture)
        if deep is None:
            return Decoded(_upright_in_rgb(picture))
        levels = deep.levels
        if beyond_white(levels, white) is not None:
            return Decoded(None, levels)
        white = white_level(levels.largest, whole=levels.whole) if white is None else white
        return Decoded(deep.in_eight_bits(white), levels, white)


def decoded_levels(raw: dict[str, Any]) -> Levels | None:
    """Decode a picture; returns its values if it has more than 8 bits for each channel, else None.

    Raises:
        BadImageError: as `decode`; large values are none of its reasons.
    """
    return decode_with_levels(raw).levels


def check_header(raw: dict[str, Any]) -> bool:
    """Check the header alone: whether it is an image, and of a size that can be decoded.

    Returns:
        Whether it has more than 8 bits for each channel.

    Raises:
        BadImageError: as `decode`, except for what is behind the header.
    """
    with _opened(raw) as picture:
        return is_deep(picture)


def beyond_white(levels: Levels, white: float | None) -> str | None:
    """Why a picture with these values cannot be scaled, for people; None if it can.

    Args:
        levels: its values.
        white: see `decode`.
    """
    if white is not None and levels.largest > white:
        return f"its values go up to {levels.largest:,g}, above {white:,g}, which is white in these data"
    try:
        white_level(levels.largest, whole=levels.whole)
    except LevelsError as error:
        return None if white is not None else f"{error}; --largest_pixel_value says which value is white"
    return None


def content(raw: dict[str, Any]) -> bytes:
    """The encoded bytes of an image.

    Raises:
        NotReadError: its file cannot be read, or has just been removed.
    """
    data = raw.get("bytes")
    if data is not None:
        return data  # type: ignore[no-any-return]
    try:
        return Path(raw["path"]).read_bytes()
    except OSError as error:
        raise _not_read(error) from error


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
            picture = Image.open(source, formats=_pillow_formats())
        with picture:
            _refuse_too_large(picture)
            _read_at_once(picture, raw)
            yield picture
    except BadImageError:
        raise
    except LevelsError as error:
        raise BadImageError(str(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in OF_DAMAGE and content_size(raw) >= 0:
            raise _not_read(error) from error
        # On damaged bytes decoders raise SyntaxError, struct.error, ZeroDivisionError and others: all mean the same.
        raise BadImageError(_reason(raw, error)) from error


def _read_at_once(picture: Image.Image, raw: Mapping[str, Any]) -> None:
    """Give the bytes of a JPEG that are in memory to its decoder as one block, in place of blocks of 64 KiB."""
    if isinstance(picture, JpegImageFile) and raw.get("bytes"):
        picture.decodermaxblock = max(picture.decodermaxblock, len(raw["bytes"]))


def _not_read(error: OSError) -> NotReadError:
    return NotReadError(f"it cannot be read: {error.strerror}")


def _refuse_too_large(picture: Image.Image) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise BadImageError(_too_large(f"{picture.width} x {picture.height}"))


def _pillow_formats() -> tuple[str, ...]:
    return tuple("HEIF" if name == HEIF else name for name in readable_formats())


def _reason(raw: dict[str, Any], error: Exception) -> str:
    size = content_size(raw)
    if isinstance(error, Image.DecompressionBombError):
        return _too_large("far too many")
    if size == -1:
        return "there is no such file"
    if size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        kind = _further_format(raw)
        if kind is not None and kind not in further_formats():
            return f"{kind} pictures can be read after {FURTHER_FORMATS[kind][1]}"
        return f"{size} bytes that are not a {', '.join(readable_formats())} image"
    return f"damaged: {error}"


def _further_format(raw: dict[str, Any]) -> str | None:
    """Which of `FURTHER_FORMATS` a file has, by its first bytes."""
    with io.BytesIO(raw["bytes"]) if raw.get("bytes") is not None else Path(raw["path"]).open("rb") as file:
        return BRANDS.get(file.read(12)[8:])


def _too_large(pixels: str) -> str:
    return f"it declares {pixels} pixels, and the limit is {MAX_PIXELS:,}"
