"""What became of a row of a data set as it was read."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_transfer.data.origins import Origins

USED, MASKED, DROPPED, UNUSED = "used", "masked", "dropped", "unused"
OVER_THE_LIMIT = "more than max_train_samples_per_class"
NO_LABEL = "no label"
NO_SPLIT = "in none of the splits training, validation and test"
# Its reason is that of the row.
ITS_OWN = ""


class Fate(NamedTuple):
    """What becomes of a row.

    Attributes:
        split: that it belongs to; None: to none.
        name: used, masked, dropped or unused.
        reason: why it is not used; None: it is.
    """

    split: str | None
    name: str
    reason: str | None = None


@dataclass(frozen=True)
class Accounted:
    """The rows of one split as it was read, each with its fate.

    Attributes:
        name: of the split in the data set.
        fates: the different fates of its rows; masked rows have their reasons in `reasons`.
        numbers: of each row the position of its fate in `fates` [rows].
        reasons: why rows are masked.
        origins: the file and line of each row; None: not known.
    """

    name: str
    fates: tuple[Fate, ...]
    numbers: npt.NDArray[np.int16]
    reasons: dict[int, str]
    origins: Origins | None = None


class Source(NamedTuple):
    """A split as it was read.

    Attributes:
        name: in the data set.
        rows: how many it has.
        splits: the names of the splits that are made of it; the first is its own; none: it is not used.
        origins: of its rows; None: not known.
    """

    name: str
    rows: int
    splits: tuple[str, ...]
    origins: Origins | None = None
