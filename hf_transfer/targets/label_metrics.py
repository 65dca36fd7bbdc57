"""How good scores of labels, and the labels that are chosen by them, are; a sample may have any number of labels.

Truth is 1 where a sample has a label, 0 where it has not, and NaN where that is not known: such a cell counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.intervals import WEIGHTS_AT_ONCE, affordable_resamples, bootstrap_intervals
from hf_transfer.targets.target import Interval

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# Cells times bootstrap samples that take about 10 s on one core.
RESAMPLED_CELLS = 2 * 10**9
# With fewer, a row of weights is too short for the work of finding it.
FEWEST_DRAWS_AT_ONCE = 8
# Labels whose cells are counted at once.
LABELS_AT_ONCE = 64
# Up to here float32 counts exactly.
LARGEST_EXACT_COUNT = 2**24


def average_precisions(scores: Floats, truth: Floats) -> Floats:
    """The average precision of each label: the mean over its positives of the precision down to that positive's score.

    Samples with equal scores are ranked together, as scikit-learn's `average_precision_score` does.

    Reference: Buckley and Voorhees, "Evaluating Evaluation Measure Stability", SIGIR 2000,
    https://doi.org/10.1145/345508.345543.

    Args:
        scores: higher is more probable [samples, labels].
        truth: 1, 0 or NaN [samples, labels].

    Returns:
        From 0 to 1 [labels]; NaN for a label without a known positive.
    """
    precisions = np.full(truth.shape[1], np.nan)
    for label, ranked in _ranked_labels(scores, truth):
        hits = ranked.hits.astype(float)[:, None]
        precisions[label] = _average_precision(np.diff(hits, axis=0, prepend=0), ranked.seen[:, None])[0]
    return precisions


def label_metrics(scores: Floats, chosen: Flags, truth: Floats, only: str | None = None) -> dict[str, float]:
    """The metrics of a data set.

    Args:
        scores: higher is more probable [samples, labels].
        chosen: which labels the answer names [samples, labels].
        truth: 1, 0 or NaN [samples, labels].
        only: compute this metric alone; nothing, if it is none of them.

    Returns:
        `map`: the mean of `average_precisions` over the labels with a known positive; 0 if there is none.
        `f1_micro`: F1 over all cells together; 0 if no label is there and none is chosen.
        `f1_macro`: the plain mean of F1 over the labels that are there or are chosen; 0 if there is none.
        `f1_samples`: the mean of `sample_f1` over the samples with a known cell.
        `subset_accuracy`: the share of them of which every known cell is right.
    """
    metrics = {}
    if only in (None, "map"):
        precisions = average_precisions(scores, truth)
        known = precisions[~np.isnan(precisions)]
        metrics["map"] = float(known.mean()) if len(known) else 0.0
    counted = _counted_metrics(_Cells.of(chosen, truth), np.ones((len(truth), 1)), only)
    return metrics | {name: float(values[0]) for name, values in counted.items()}


def sample_f1(chosen: Flags, truth: Floats) -> Floats:
    """The F1 of each sample over its known cells.

    Args:
        chosen: which labels the answer names [samples, labels].
        truth: 1, 0 or NaN [samples, labels].

    Returns:
        From 0 to 1 [samples]; 1 for a sample that has no label and gets none, NaN for one without a known cell.
    """
    known = ~np.isnan(truth)
    named, there = chosen & known, truth == 1
    hits, both = (named & there).sum(1), named.sum(1) + there.sum(1)
    return np.where(known.any(1), np.divide(2 * hits, both, out=np.ones(len(truth)), where=both > 0), np.nan)


def label_intervals(scores: Floats, chosen: Flags, truth: Floats) -> dict[str, Interval]:
    """95 % intervals of `label_metrics`, from percentiles over bootstrap samples, which are the same for all of them.

    Each label is sorted once; a bootstrap sample is then how often each row counts. There are 1,000 bootstrap samples,
    and fewer, at least 200, for more than 2 million cells; up to 10 million cells take about 10 s on one core.

    Args:
        scores: higher is more probable [samples, labels].
        chosen: which labels the answer names [samples, labels].
        truth: 1, 0 or NaN [samples, labels].
    """
    number = np.float32 if len(truth) < LARGEST_EXACT_COUNT else np.float64
    cells = _Cells.of(chosen, truth)
    groups = [_Groups.of(ranked, len(truth), number) for _, ranked in _ranked_labels(scores, truth)]

    def metrics(weights: Floats) -> dict[str, Floats]:
        counts = weights.astype(number)
        return {"map": _mean_average_precision(groups, counts), **_counted_metrics(cells, counts)}

    resamples = affordable_resamples(truth.size, RESAMPLED_CELLS)
    return bootstrap_intervals(
        len(truth), metrics, resamples, at_once=max(FEWEST_DRAWS_AT_ONCE, WEIGHTS_AT_ONCE // len(truth))
    )


def label_rows(
    names: Sequence[str], scores: Floats, chosen: Flags, truth: Floats, thresholds: Floats
) -> list[dict[str, Any]]:
    """A row of a table for each label: name, average precision, precision, recall, F1, threshold, number of samples.

    `samples` is how many known positives there are. Without one, the average precision is None; precision, recall and
    F1 are 0 where they are not defined.

    Args:
        names: of the labels.
        scores: higher is more probable [samples, labels].
        chosen: which labels the answer names [samples, labels].
        truth: 1, 0 or NaN [samples, labels].
        thresholds: from which score a label is chosen [labels].
    """
    hits, named, there = (
        counts[:, 0].astype(int) for counts in _Cells.of(chosen, truth).counts(np.ones((len(truth), 1)))
    )
    return [
        {
            "label": name,
            "average_precision": None if np.isnan(precision) else float(precision),
            "precision": float(right / max(answers, 1)),
            "recall": float(right / max(positives, 1)),
            "f1": float(2 * right / max(answers + positives, 1)),
            "threshold": float(threshold),
            "samples": int(positives),
        }
        for name, precision, right, answers, positives, threshold in zip(
            names, average_precisions(scores, truth), hits, named, there, thresholds, strict=True
        )
    ]


class _Ranked(NamedTuple):
    """The samples of a label by falling score, down to its last positive.

    They are in groups, each of which ends with the score of a positive.

    Attributes:
        rows: their row numbers.
        positives: row numbers of the positives.
        seen: how many of the samples precede the end of each group.
        hits: how many of the positives do.
    """

    rows: npt.NDArray[np.int32]
    positives: npt.NDArray[np.int32]
    seen: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]


def _ranked_labels(scores: Floats, truth: Floats) -> Iterator[tuple[int, _Ranked]]:
    """The labels that have a known positive."""
    for label in np.flatnonzero((truth == 1).any(0)):
        known = np.flatnonzero(~np.isnan(truth[:, label]))
        falling = scores[known, label]
        order = np.argsort(-falling)
        falling, rows = falling[order], known[order].astype(np.int32)
        positive = truth[rows, label] == 1
        hits = positive.cumsum()
        # Samples with equal scores have no order: a group ends where the score changes.
        seen = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) + 1
        seen = seen[np.diff(hits[seen - 1], prepend=0) > 0]
        yield int(label), _Ranked(rows[: seen[-1]], rows[positive], seen, hits[seen - 1])


class _Groups(NamedTuple):
    """Matrices that sum the weights of the samples in each group of a label, and of its positives in each group."""

    samples: csr_array
    positives: csr_array

    @classmethod
    def of(cls, ranked: _Ranked, samples: int, number: type) -> _Groups:
        from scipy.sparse import csr_array

        shape = (len(ranked.seen), samples)
        return cls(
            *(
                csr_array((np.ones(len(rows), number), rows, np.append(0, ends).astype(np.int32)), shape)
                for rows, ends in ((ranked.rows, ranked.seen), (ranked.positives, ranked.hits))
            )
        )


def _average_precision(gained: npt.NDArray[Any], seen: npt.NDArray[Any]) -> Floats:
    """The average precision of a label in each draw; NaN where it has no positive.

    Args:
        gained: positives in each group [groups, draws]; it is overwritten.
        seen: samples down to the end of each group [groups, draws].
    """
    hits = gained.cumsum(0)
    gained *= hits
    gained /= np.maximum(seen, 1)
    # A copy: `hits` would be kept.
    positives = hits[-1].copy()
    precision: Floats = np.divide(gained.sum(0), positives, out=np.full(len(positives), np.nan), where=positives > 0)
    return precision


def _mean_average_precision(groups: Sequence[_Groups], weights: npt.NDArray[Any]) -> Floats:
    total, labels = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for one in groups:
        seen = one.samples @ weights
        precision = _average_precision(one.positives @ weights, np.cumsum(seen, 0, out=seen))
        total += np.nan_to_num(precision)
        labels += ~np.isnan(precision)
    return total / np.maximum(labels, 1)


@dataclass(frozen=True)
class _Cells:
    """What is counted of the known cells.

    Attributes:
        named: which labels the answers name, bool [samples, labels].
        there: which labels the samples have, bool [samples, labels].
        known: which samples have a known cell, bool [samples].
        exact: which of them are answered without a mistake, bool [samples].
        f1: of the samples, 0 for one without a known cell [samples].
    """

    named: Flags
    there: Flags
    known: Flags
    exact: Flags
    f1: Floats

    @classmethod
    def of(cls, chosen: Flags, truth: Floats) -> _Cells:
        known: Flags = ~np.isnan(truth)
        named, there, some = chosen & known, np.equal(truth, 1), np.any(known, axis=1)
        exact = np.all(named == there, axis=1) & some
        return cls(named, there, some, exact, np.nan_to_num(sample_f1(chosen, truth)))

    def counts(self, weights: npt.NDArray[Any]) -> tuple[Floats, Floats, Floats]:
        """Cells that are named and there, that are named, and that are there [labels, draws]."""
        hits, named, there = (np.zeros((self.named.shape[1], weights.shape[1])) for _ in range(3))
        for first in range(0, len(hits), LABELS_AT_ONCE):
            block = slice(first, first + LABELS_AT_ONCE)
            for cells, total in (
                (self.named[:, block] & self.there[:, block], hits),
                (self.named[:, block], named),
                (self.there[:, block], there),
            ):
                total[block] = cells.astype(weights.dtype).T @ weights
        return hits, named, there


def _counted_metrics(cells: _Cells, weights: npt.NDArray[Any], only: str | None = None) -> dict[str, Floats]:
    """All metrics but `map`, of samples with weights [samples, draws]."""
    metrics: dict[str, Floats] = {}
    if only in (None, "f1_micro", "f1_macro"):
        hits, named, there = cells.counts(weights)
        both = named + there
        metrics["f1_micro"] = 2 * hits.sum(0) / np.maximum(both.sum(0), 1)
        metrics["f1_macro"] = (2 * hits / np.maximum(both, 1)).sum(0) / np.maximum((both > 0).sum(0), 1)
    samples = np.maximum(cells.known @ weights, 1.0)
    if only in (None, "f1_samples"):
        metrics["f1_samples"] = cells.f1 @ weights / samples
    if only in (None, "subset_accuracy"):
        metrics["subset_accuracy"] = cells.exact @ weights / samples
    return metrics if only is None else {name: values for name, values in metrics.items() if name == only}
