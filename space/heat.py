"""Draw a heat map over a picture."""

from typing import Any

import numpy as np
from PIL import Image

from explanation import HeatMap

SIDE = 448
# The range of greys of the picture, narrow enough for the tint to show on black and on white.
DARKEST, LIGHTEST = 38, 240
# From no heat to full heat: the tint, and its opacity.
STOPS = (0.0, 0.5, 1.0)
TINTS = ((154, 52, 18), (234, 88, 12), (253, 186, 60))
COVERS = (0.0, 0.5, 0.82)


def overlay(picture: Image.Image, heat: HeatMap) -> Image.Image:
    """The picture in grey, tinted by the heat; small pictures are enlarged."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None]
    ground = DARKEST + grey * ((LIGHTEST - DARKEST) / 255)
    values = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    tint = np.stack([np.interp(values, STOPS, channel) for channel in zip(*TINTS, strict=True)], axis=-1)
    cover = np.interp(values, STOPS, COVERS)[..., None]
    return Image.fromarray((ground * (1 - cover) + tint * cover).astype(np.uint8))


def seen_by(processor: Any, picture: Image.Image) -> Image.Image:
    """The part of the picture that the model sees: all of it, unless its processor crops."""
    if not getattr(processor, "do_center_crop", False):
        return picture
    pixels = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return Image.fromarray(np.moveaxis(np.asarray(pixels), 0, -1).clip(0, 255).astype(np.uint8))
