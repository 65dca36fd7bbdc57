"""Classes or labels that a head misses: a score, which is a mean over all rows, hides those with few rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.intervals import wilson_interval
from hf_transfer.targets.predictions import Predictions

# An answer that is the same for all rows misses each class but one. A head should miss at most this share of each.
SHARE_TO_MISS = 0.1
# Of fewer rows, most folds have none, and what a head makes of the others says little.
FEWEST_TO_JUDGE = 5
# So many are named.
MOST_SHOWN = 3


@dataclass(frozen=True)
class Missed:
    """A class or a label that a head misses too often.

    Attributes:
        name: of the class or label.
        missed: how many of its rows have another answer.
        rows: that it has.
    """

    name: str
    missed: int
    rows: int


def missed_in_words(missed: Sequence[Missed]) -> str:
    """The first of them with their rows: part of a sentence."""
    shown = [f"{one.name} ({one.missed:,} of {one.rows:,})" for one in missed[:MOST_SHOWN]]
    others = f" and {len(missed) - MOST_SHOWN:,} more" if len(missed) > MOST_SHOWN else ""
    return f"{', '.join(shown)}{others}"


def missed_by(predictions: Predictions) -> tuple[Missed, ...]:
    """The classes or labels of which a head misses more than a tenth of the rows, and not by chance alone.

    Those of fewer than `FEWEST_TO_JUDGE` rows are left out. The others are there if the lower end of the 95 % interval
    of their share of missed rows is above a tenth (Wilson's, see `wilson_interval`).

    Args:
        predictions: for rows that the head has not seen.

    Returns:
        First the one with the largest share; none for a target without classes or labels.
    """
    target = predictions.target
    if not target.activation:
        return ()
    names = target.names
    truth, answers = (
        _cells(values, len(names)) for values in (predictions.targets, target.predicted(predictions.outputs))
    )
    rows, missed = truth.sum(0).tolist(), (truth & ~answers).sum(0).tolist()
    too_often = [Missed(*one) for one in zip(names, missed, rows, strict=True) if _is_too_often(one[1], one[2])]
    return tuple(sorted(too_often, key=lambda one: -one.missed / one.rows))


def _cells(values: npt.NDArray[np.generic], outputs: int) -> npt.NDArray[np.bool_]:
    """Whether each row has each class or label [rows, outputs]; a label that is not known counts as none."""
    cells: npt.NDArray[np.bool_] = values[:, None] == np.arange(outputs) if values.ndim == 1 else values == 1
    return cells


@cache
def _is_too_often(missed: int, rows: int) -> bool:
    return (
        rows >= FEWEST_TO_JUDGE and missed > SHARE_TO_MISS * rows and wilson_interval(missed, rows)[0] > SHARE_TO_MISS
    )
