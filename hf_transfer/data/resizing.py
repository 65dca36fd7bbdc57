"""What most image processors do with the size of a picture, by Pillow alone: resize it, then crop its centre."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

# ConvNeXt's processor resizes to this size as it is; for smaller ones it keeps the ratio of the sides, and crops.
WARPED_FROM = 384


class Resizing(NamedTuple):
    """Resize a picture, then crop its centre.

    `Image.resize` looks at every pixel of a picture that becomes smaller, as processors do that call it through arrays.

    Attributes:
        size: height and width, or the length of the shorter side; None: it is not resized.
        resample: the filter, as Pillow numbers them.
        crop: height and width of the part that is kept; outside of the picture it is black. None: all of it.
        rounds_crop: if that part cannot be in the middle, its place is rounded as torchvision does; else as
            transformers does, down.
    """

    size: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None = None
    rounds_crop: bool = False

    @property
    def side(self) -> int | None:
        """So many pixels of each side are wanted at least; None: all that there are."""
        return max(self.size) if isinstance(self.size, tuple) else self.size

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The pixels of an RGB picture [3, height, width]."""
        if isinstance(self.size, int):
            # Of the longer side the fraction of a pixel is cut off, as transformers does.
            short, long = self.size, int(self.size * max(image.size) / min(image.size))
            image = image.resize((short, long) if image.width <= image.height else (long, short), self.resample)
        elif self.size is not None:
            image = image.resize(self.size[::-1], self.resample)
        if self.crop is not None:
            height, width = self.crop
            left, top = self._start(image.width - width), self._start(image.height - height)
            image = image.crop((left, top, left + width, top + height))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def _start(self, excess: int) -> int:
        """Where the part that is kept begins, for so many pixels more than it has."""
        if not self.rounds_crop:
            return excess // 2
        # Of what is added around a small picture, the odd pixel is on the right or below.
        return round(excess / 2) if excess >= 0 else -(-excess // 2)


def resizings_of(processor: Any) -> Iterator[Resizing]:
    """What a processor may do with the size of a picture, by its settings; whether it does must be checked.

    Args:
        processor: of a checkpoint, with transformers' names of settings.
    """
    resample = getattr(processor, "resample", None)
    resample = int(Image.Resampling.BILINEAR if resample is None else resample)
    crop = _both(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else None
    rounds = bool(getattr(processor, "rounds_crop", False))
    size = getattr(processor, "size", None) or {}
    if not getattr(processor, "do_resize", False):
        yield Resizing(None, resample, crop)
    elif (both := _both(size)) is not None:
        yield Resizing(both, resample, crop)
    elif (shortest := size.get("shortest_edge")) is not None:
        if (share := getattr(processor, "crop_pct", None)) is not None:
            square = (shortest, shortest)
            yield (
                Resizing(square, resample)
                if shortest >= WARPED_FROM
                else Resizing(int(shortest / share), resample, square)
            )
        yield Resizing(shortest, resample, crop, rounds)


def _both(size: Any) -> tuple[int, int] | None:
    """Height and width of a size that names both."""
    height, width = (None, None) if size is None else (size.get("height"), size.get("width"))
    return None if height is None or width is None else (int(height), int(width))
