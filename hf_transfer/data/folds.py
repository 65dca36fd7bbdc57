"""Folds: each training row is predicted by heads that saw neither it nor its copies nor its group."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_transfer.data.cutting import kinds_of_units
from hf_transfer.data.groups import Units
from hf_transfer.data.splits import Split
from hf_transfer.errors import UserError, user_error
from hf_transfer.targets.stratification import cut_units
from hf_transfer.targets.target import Target, Values

# Below so many rows, folds are drawn again until a row has been trained on this often; see `_plan`.
FEW_ROWS, FEWEST_HEADS = 1_000, 10
# Above so many, one part is held out, and no head is made without the others.
MANY_ROWS = 20_000
MOST_FOLDS, FOLDS_OF_MORE_ROWS = 5, 3
# Of a row that is in no fold.
NO_FOLD = -1


class NoFoldsError(UserError):
    """No training row can be predicted by a head that has not seen it."""


class Folds(NamedTuple):
    """In which fold each row is, in each of some repeats.

    Attributes:
        of_rows: numbers from 0, or `NO_FOLD` [repeats, rows]; a row is in a fold in all repeats, or in none.
        units: of each row: rows of one unit share a fold [rows].
    """

    of_rows: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]

    @property
    def predicted(self) -> npt.NDArray[np.bool_]:
        """Whether a row is in a fold [rows]."""
        chosen: npt.NDArray[np.bool_] = self.of_rows[0] != NO_FOLD
        return chosen

    @property
    def units_have_several_rows(self) -> bool:
        """Whether any rows belong together."""
        return len(np.unique(self.units)) < len(self.units)

    def each(self) -> list[tuple[int, npt.NDArray[np.bool_]]]:
        """Each fold with the number of its repeat, as a mask of its rows [rows]."""
        return [
            (repeat, numbers == fold)
            for repeat, numbers in enumerate(self.of_rows)
            for fold in np.unique(numbers[numbers != NO_FOLD]).tolist()
        ]

    def outside(self) -> list[npt.NDArray[np.bool_]]:
        """For each fold, the rows that are not in it [rows]."""
        return [~inside for _, inside in self.each()]

    def first(self) -> "Folds":
        """The first repeat alone."""
        return self._replace(of_rows=self.of_rows[:1])

    def others(self) -> "Folds":
        """All repeats but the first."""
        return self._replace(of_rows=self.of_rows[1:])

    def of_part(self, rows: npt.NDArray[np.bool_]) -> "Folds":
        """The same folds of some rows; the others are in none [rows]."""
        return self._replace(of_rows=np.where(rows, self.of_rows, NO_FOLD))


def halved(
    learnt_from: Sequence[npt.NDArray[np.bool_]], targets: Values, target: Target, seed: int = 0
) -> list[npt.NDArray[np.bool_]]:
    """About half of the rows of each mask, with every kind of sample in proportion; a kind keeps at least one.

    Args:
        learnt_from: the rows that heads are solved on, one mask for each [rows].
        targets: of all rows.
        target: what is predicted.
        seed: of the draw.
    """
    smaller = []
    for number, rows in enumerate(learnt_from):
        positions, kept = np.flatnonzero(rows), rows.copy()
        kept[positions[target.cut(targets[positions], 0.5, np.random.default_rng((seed, number)))]] = False
        smaller.append(kept)
    return smaller


def folds_of(train: Split, units: Units, target: Target, seed: int = 0, *, count: int | None = None) -> Folds:
    """Divide training rows into folds that have every kind of sample in proportion.

    A fold holds whole units. In which fold a unit is depends on its content, the seed and the kinds of the others, not
    on the order of the rows.

    Reference: Kohavi, "A study of cross-validation and bootstrap for accuracy estimation and model selection", IJCAI
    1995, https://www.ijcai.org/Proceedings/95-2/Papers/016.pdf (stratified folds, and repeating them).

    Args:
        train: the rows; all of them count.
        units: of the rows.
        target: what is predicted, with the kinds that are in proportion.
        seed: of the folds.
        count: of the folds, which are then drawn once, and no more than there are units; None: as many, and as often,
            as the rows need.

    Raises:
        NoFoldsError: all rows belong together, or no two have the same class.
    """
    if len(units.keys) < 2:
        together = f"{len(train):,} rows that are copies of each other, or of one group"
        raise _no_folds("that differ", together, "add samples, or name another --group_column_name")
    count, repeats = _plan(train, units, target) if count is None else (min(count, len(units.keys)), 1)
    kinds = kinds_of_units(train, units, target)
    of_units = np.full((repeats, len(units.keys)), NO_FOLD)
    for repeat in range(repeats):
        left = np.arange(len(units.keys))
        for fold in range(1 if len(train) > MANY_ROWS else count - 1):
            places = units.places(seed, f"repeat {repeat}, fold {fold}")[left]
            inside = cut_units(kinds[left], places, 1 / (count - fold))
            of_units[repeat, left[inside]] = fold
            left = left[~inside]
        if len(train) <= MANY_ROWS:
            of_units[repeat, left] = count - 1
    folds = Folds(of_units[:, units.of_rows], units.of_rows)
    if not all(outside.any() for outside in folds.outside()):
        kind = target.divided_by.removeprefix("by ") if target.divided_by.startswith("by ") else "kind"
        raise _no_folds(f"of one {kind} that differ", "one of each", "add samples, or use --strategy linear_probe")
    return folds


def _no_folds(which: str, found: str, do: str) -> NoFoldsError:
    expected = f"at least 2 training samples {which}, to predict each by a head that has not seen it"
    error = user_error(expected=expected, found=found, do=do)
    return NoFoldsError(str(error), found=error.found)


def _plan(train: Split, units: Units, target: Target) -> tuple[int, int]:
    """How many folds there are, and how often they are drawn.

    There are at most as many as the smallest stratum, such as a class, has units, and at least two.
    """
    pairs = np.unique(np.column_stack([target.strata(train.targets), units.of_rows]), axis=0)
    smallest = int(np.unique(pairs[:, 0], return_counts=True)[1].min())
    most = FOLDS_OF_MORE_ROWS if FEW_ROWS <= len(train) <= MANY_ROWS else MOST_FOLDS
    count = max(2, most if len(train) > MANY_ROWS else min(most, smallest))
    return count, math.ceil(FEWEST_HEADS / count) if len(train) < FEW_ROWS else 1
