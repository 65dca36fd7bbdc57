"""Samples with labels and with numbers that their patterns show, and the targets of both."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from tests.training.toy_task import Rows, with_targets

CENTRE, SCALE = 130.0, 30.0
LABELS = LabelSets(("round", "red", "large"))
NUMBERS = Numbers(("width", "height"), (CENTRE, CENTRE), (SCALE, SCALE))


def label_rows(size: int, *, seed: int = 0, missing: float = 0.0, masked: Sequence[int] = ()) -> Rows:
    """Three labels that depend on the pattern of a sample; some cells are wrong, and some are missing."""
    rows = Rows(size, seed=seed, masked=tuple(masked))
    generator = np.random.default_rng(seed)
    cells = np.asarray([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32)[rows.labels.numpy()]
    cells = np.where(generator.random(cells.shape) < 0.2, 1 - cells, cells)
    cells[generator.random(cells.shape) < missing] = np.nan
    return with_targets(rows, cells)


def number_rows(size: int, *, seed: int = 0, missing: float = 0.0, masked: Sequence[int] = ()) -> Rows:
    """Two numbers that depend on the pattern of a sample, in units of their own, with noise."""
    rows = Rows(size, seed=seed, masked=tuple(masked))
    generator = np.random.default_rng(seed)
    plain: npt.NDArray[np.float64] = np.asarray([[1, -2], [2, 0], [3, 2], [4, 0], [5, 1]], dtype=np.float64)
    numbers = 100 + 20 * (plain[rows.labels.numpy()] + generator.normal(size=(size, 2)))
    numbers[generator.random(numbers.shape) < missing] = np.nan
    return with_targets(rows, numbers)
