"""Divide units of samples in two parts that have about the same share of every kind of sample."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array, hstack

from hf_transfer.targets.target import Positions

# How far a part may be from the wished share of a kind, and of all samples; but half a sample is always allowed.
KIND_TOLERANCE, WHOLE_TOLERANCE = 0.2, 0.1
SAMPLE_TOLERANCE = 0.5
WHOLE_WEIGHT = 1e-3


def cut_units(counts: csr_array, places: npt.NDArray[np.float64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which units are split off: those placed below `fraction`, with as few changes as proportions need.

    A unit whose place depends on nothing else stays on its side when other units come or go, unless it is one of the
    changes. A kind is changed only if its part is further than `KIND_TOLERANCE` from the wished size, or has none of
    its units: first come the units that are nearest to `fraction`, and the rarest kinds. In this order, iterative
    stratification divides samples of several kinds; here it starts from the places and stops within the tolerance.

    Reference: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011,
    https://doi.org/10.1007/978-3-642-23808-6_10 (iterative stratification).

    Args:
        counts: how many samples of each kind a unit has [units, kinds].
        places: of the units, uniform between 0 and 1 [units].
        fraction: the share of the samples that is split off, at most one half.

    Returns:
        True for units that are split off [units]. Each kind has a unit in the other part, and if it has two units, also
        one in this part, where other kinds allow that.
    """
    order = np.argsort(places, kind="stable")
    division = _Division(counts[order], int(np.searchsorted(places[order], fraction)), fraction)
    division.leave_a_unit_of_each_kind()
    for kind in np.argsort(division.wanted, kind="stable").tolist():
        division.correct(kind)
    split_off = np.zeros(len(places), dtype=bool)
    split_off[order] = division.split_off
    return split_off


class _Division:
    """Units in the order of their places, and which of them are split off; the last kind is that of all samples.

    Args:
        counts: see `cut_units`.
        below: how many units are split off at first.
        fraction: see `cut_units`.
    """

    def __init__(self, counts: csr_array, below: int, fraction: float) -> None:
        everything = csr_array(np.asarray(counts.sum(1)).reshape(-1, 1))
        self.counts = csr_array(hstack([counts, everything]))
        self.by_kind = csc_array(self.counts)
        self.split_off = np.arange(counts.shape[0]) < below
        samples, units = np.asarray(self.counts.sum(0)), np.diff(self.by_kind.indptr)
        self.wanted = fraction * samples
        share = np.append(np.full(counts.shape[1], KIND_TOLERANCE), WHOLE_TOLERANCE)
        tolerance = np.maximum(SAMPLE_TOLERANCE, share * self.wanted)
        divisible = units > 1
        self.lowest = np.where(divisible, np.maximum(self.wanted - tolerance, 1), 0)
        self.highest = np.where(divisible, np.maximum(self.wanted + tolerance, self.lowest), 0)
        # The whole gives way to each kind.
        self.weights = np.append(np.ones(counts.shape[1]), WHOLE_WEIGHT) / np.maximum(self.wanted, 1)
        self.sizes = np.asarray(self.counts[self.split_off].sum(0))
        self.units_left = units - np.diff(csc_array(self.counts[self.split_off]).indptr)

    def leave_a_unit_of_each_kind(self) -> None:
        """Where all units of a kind are split off, take the one that is nearest to `fraction` back."""
        for kind in np.flatnonzero(self.units_left == 0).tolist():
            units = self._units_of(kind)
            if self.units_left[kind] == 0 and len(units):
                self._move(int(units[-1]))

    def correct(self, kind: int) -> None:
        """Move units of this kind, as long as that is needed and makes more right than wrong."""
        units = self._units_of(kind)
        if self.sizes[kind] < self.lowest[kind]:
            candidates = units[~self.split_off[units]]
        else:
            candidates = units[self.split_off[units]][::-1]
        for unit in candidates.tolist():
            if self.lowest[kind] <= self.sizes[kind] <= self.highest[kind]:
                return
            if self._is_better_moved(unit):
                self._move(unit)

    def _units_of(self, kind: int) -> Positions:
        units: Positions = self.by_kind.indices[self.by_kind.indptr[kind] : self.by_kind.indptr[kind + 1]]
        return units

    def _moved(self, unit: int) -> tuple[Positions, npt.NDArray[np.int64]]:
        """The kinds of a unit, and how many more samples of each would be split off if it moved."""
        entries = slice(self.counts.indptr[unit], self.counts.indptr[unit + 1])
        samples = self.counts.data[entries]
        return self.counts.indices[entries], -samples if self.split_off[unit] else samples

    def _is_better_moved(self, unit: int) -> bool:
        kinds, change = self._moved(unit)
        if not self.split_off[unit] and (self.units_left[kinds] == 1).any():
            return False
        return self._error(kinds, self.sizes[kinds] + change) < self._error(kinds, self.sizes[kinds])

    def _error(self, kinds: Positions, sizes: npt.NDArray[np.float64]) -> float:
        """How far sizes are outside of their limits, as shares of the wished sizes."""
        outside = np.maximum(np.maximum(self.lowest[kinds] - sizes, sizes - self.highest[kinds]), 0)
        return float((outside * self.weights[kinds]).sum())

    def _move(self, unit: int) -> None:
        kinds, change = self._moved(unit)
        self.sizes[kinds] += change
        self.units_left[kinds] += 1 if self.split_off[unit] else -1
        self.split_off[unit] = not self.split_off[unit]


def few_of_each_label(cells: npt.NDArray[np.float32], limit: int, generator: np.random.Generator) -> Positions:
    """Positions of samples, drawn until each label has `limit` of them or no more; as many without labels.

    A label that often comes with rarer ones can have more than `limit`.

    Args:
        cells: 1 for a label that a sample has; others count as none [samples, labels].
        limit: samples of each label.
        generator: draws the order.
    """
    has_label = np.column_stack([cells == 1, (cells != 1).all(1)])
    counts = np.zeros(has_label.shape[1], dtype=np.int64)
    kept = []
    for sample in generator.permutation(len(cells)).tolist():
        if (counts[has_label[sample]] < limit).any():
            counts += has_label[sample]
            kept.append(sample)
    return np.sort(np.asarray(kept, dtype=np.int64))
