"""Files of pictures of more than 8 bits for each channel, written by hand where Pillow writes none."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from tests.data.conftest import png_by_hand

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png16(values: Any) -> bytes:
    """A PNG of 16 bits: grey [height, width] or [height, width, channels]."""
    values = np.asarray(values)
    height, width = values.shape[:2]
    colour = COLOUR_TYPES[1 if values.ndim == 2 else values.shape[2]]
    rows = [row.tobytes() for row in values.astype(">u2")]
    return png_by_hand(width, height, depth=16, colour=colour, rows=rows)


def tiff16(
    values: Any, *, order: str = "<", compressed: bool = False, orientation: int = 1, photometric: int = 2
) -> bytes:
    """A TIFF of 16-bit colours [height, width, channels], as TIFF 6.0 describes it.

    Args:
        values: of the channels.
        order: of the bytes, in the signs of `struct`.
        compressed: with deflate.
        orientation: tag of that name.
        photometric: what the channels are; 2: red, green and blue, 5: ink.
    """
    height, width, channels = values.shape
    body = values.astype(f"{order}u2").tobytes()
    body = zlib.compress(body) if compressed else body
    bits_at = 8 + len(body) + len(body) % 2
    short, long = 3, 4
    tags = [
        (256, short, 1, width), (257, short, 1, height), (258, short, channels, bits_at),
        (259, short, 1, 8 if compressed else 1), (262, short, 1, photometric), (273, long, 1, 8),
        (274, short, 1, orientation), (277, short, 1, channels), (278, short, 1, height), (279, long, 1, len(body)),
        (284, short, 1, 1), *([(338, short, 1, 2)] if channels == 4 and photometric == 2 else []),
    ]  # fmt: skip
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        directory += struct.pack(f"{order}HHI", tag, kind, count)
        directory += struct.pack(*((f"{order}HH", value, 0) if kind == short and count == 1 else (f"{order}I", value)))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, bits_at + 2 * channels)
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    return head + body + b"\0" * (len(body) % 2) + bits + directory + struct.pack(f"{order}I", 0)


def tiff(values: Any) -> bytes:
    """A grey TIFF as Pillow writes it: of uint16, int32 or float32 [height, width]."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values)).save(buffer, "TIFF")
    return buffer.getvalue()


def grey(shape: tuple[int, ...], largest: int, seed: int = 0) -> Any:
    """Values from 0 to `largest`, both of which occur."""
    values = np.random.default_rng(seed).integers(0, largest + 1, shape).astype(np.uint16)
    values.flat[:2] = (largest, 0)
    return values
