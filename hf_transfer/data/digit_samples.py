"""The samples that are made of handwritten digits: `sample:digits`, `sample:digit-sets`, `sample:digit-slants`."""

from collections.abc import Iterable, Sequence

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image

from hf_transfer.data.draws import Draws

NAMES = [str(digit) for digit in range(10)]
SIDE = 8
SETS_SEED = 40_009
# How many pictures have no digit, one, two, three and four. None of the 1,797 handwritten digits is used twice.
SETS = {"train": (60, 210, 210, 90, 30), "validation": (15, 52, 53, 22, 8), "test": (30, 105, 105, 45, 15)}
# The grain of paper, by which no two empty pictures are the same; it is fainter than the faintest ink, which is 16.
GRAIN = 8


def digits() -> datasets.DatasetDict:
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, UCI 1998), from scikit-learn."""
    pixels, labels = _handwritten()
    return datasets.DatasetDict({"train": _dataset(pixels, "label", labels.tolist(), datasets.ClassLabel(names=NAMES))})


def digit_sets() -> datasets.DatasetDict:
    """Pictures with room for four handwritten digits, and which digits occur in each: none, some, or one repeatedly.

    Of 16 x 16 pixels: the digits keep their 8 x 8, each in a corner, and the rest is nearly black. Columns `image` and
    `labels`; three splits.
    """
    pixels, digits = _handwritten()
    draws = Draws(SETS_SEED)
    unused = draws.shuffled(range(len(digits)))
    splits = {}
    for split, pictures_with in SETS.items():
        sizes = draws.shuffled([size for size, count in enumerate(pictures_with) for _ in range(count)])
        chosen = [[unused.pop() for _ in range(size)] for size in sizes]
        pictures = [_four_corners(pixels[rows], draws) for rows in chosen]
        labels = [sorted(set(digits[rows].tolist())) for rows in chosen]
        splits[split] = _dataset(pictures, "labels", labels, datasets.List(datasets.ClassLabel(names=NAMES)))
    return datasets.DatasetDict(splits)


def digit_slants() -> datasets.DatasetDict:
    """All handwritten digits, and how far each leans: columns `image` and `slant`, one split."""
    pixels, digits = _handwritten()
    slants = handwriting_slants(pixels, digits)
    return datasets.DatasetDict({"train": _dataset(pixels, "slant", slants.tolist(), datasets.Value("float64"))})


def handwriting_slants(pixels: npt.NDArray[np.uint8], digits: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """By how many degrees each digit leans more to the right than digits of its kind do on average.

    The angle of the ink is that of the shear which would make its horizontal and vertical moment zero: the arc tangent
    of the mixed second moment over the vertical one (slant normalisation by moments, as in Casey, "Moment Normalization
    of Handprinted Characters", IBM Journal 1970, https://doi.org/10.1147/rd.145.0548). Upright writing has an angle of
    its own for each digit: a 7 has its ink at the upper right and at the lower left, a 6 the other way. So the average
    of the same digit is subtracted.

    Args:
        pixels: ink in [digits, rows, columns], 0 where there is none.
        digits: which digit each is.

    Returns:
        Degrees to one decimal; positive: to the right, as a slash leans; negative: to the left, as a backslash.
    """
    ink = pixels.astype(np.float64)
    ink /= ink.sum(axis=(1, 2), keepdims=True)
    height, width = np.mgrid[pixels.shape[1] : 0 : -1, : pixels.shape[2]].astype(np.float64)
    across = width - (ink * width).sum(axis=(1, 2), keepdims=True)
    up = height - (ink * height).sum(axis=(1, 2), keepdims=True)
    angles = np.degrees(np.arctan((ink * across * up).sum(axis=(1, 2)) / (ink * up**2).sum(axis=(1, 2))))
    averages = np.bincount(digits, weights=angles) / np.bincount(digits)
    slants: npt.NDArray[np.float64] = (angles - averages[digits]).round(1)
    return slants


def _handwritten() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * (255 / 16)).round().astype(np.uint8), data.target


def _four_corners(pixels: npt.NDArray[np.uint8], draws: Draws) -> npt.NDArray[np.uint8]:
    """A picture with up to four digits, each in a corner that is drawn."""
    picture = np.array([[draws.below(GRAIN) for _ in range(2 * SIDE)] for _ in range(2 * SIDE)], dtype=np.uint8)
    corners = draws.shuffled([(top, left) for top in (0, SIDE) for left in (0, SIDE)])
    for digit, (top, left) in zip(pixels, corners, strict=False):
        corner = picture[top : top + SIDE, left : left + SIDE]
        np.maximum(corner, digit, out=corner)
    return picture


def _dataset(
    pixels: Iterable[npt.NDArray[np.uint8]], column: str, values: Sequence[object], kind: object
) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), column: kind})
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(picture) for picture in pixels], column: values}, features=features
    )
