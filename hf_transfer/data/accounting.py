"""What becomes of each row of a data set as it was read: no row is lost without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from hf_transfer.data.fates import (
    DROPPED,
    ITS_OWN,
    MASKED,
    NO_LABEL,
    NO_SPLIT,
    OVER_THE_LIMIT,
    UNUSED,
    USED,
    Accounted,
    Fate,
    Source,
)
from hf_transfer.data.origins import Origins
from hf_transfer.data.splits import Rows, Split

if TYPE_CHECKING:
    import datasets


def sources_of(
    loaded: Mapping[str, datasets.Dataset], renamed: Mapping[str, datasets.Dataset], missing: Iterable[str],
    origins: Mapping[str, Origins],
) -> list[Source]:  # fmt: skip
    """The splits as they were read.

    Args:
        loaded: the data set as it was read.
        renamed: the same splits by the names that a run uses, as far as it does.
        missing: the names of the splits that are cut off training.
        origins: of the rows, by the name of the split in the data set.
    """
    sources, unassigned = [], dict(renamed)
    for name, rows in loaded.items():
        split = next((one for one, used in unassigned.items() if used is rows), None)
        unassigned.pop(split or "", None)
        splits = () if split is None else (split, *missing) if split == "train" else (split,)
        sources.append(Source(name, len(rows), splits, origins.get(name)))
    return sources


def account(
    sources: Iterable[Source], splits: Mapping[str, Split], limited: Rows, dropped: Mapping[str, Rows]
) -> tuple[Accounted, ...]:
    """What becomes of the rows of each split as it was read.

    Args:
        sources: all splits as they were read.
        splits: the finished ones, by name.
        limited: the rows of training that were left out by `max_train_samples_per_class`.
        dropped: the rows without a label, by the name of the split.
    """
    return tuple(_account(source, splits, limited, dropped) for source in sources)


def _account(source: Source, splits: Mapping[str, Split], limited: Rows, dropped: Mapping[str, Rows]) -> Accounted:
    fates: list[Fate] = []
    numbers = np.full(source.rows, -1, dtype=np.int16)
    reasons: dict[int, str] = {}

    def mark(rows: Rows, fate: Fate) -> None:
        if len(rows):
            assert (numbers[rows] == -1).all(), "a row has one fate"
            numbers[rows] = len(fates)
            fates.append(fate)

    for name in source.splits:
        split = splits[name]
        mark(split.rows[split.counted], Fate(name, USED))
        mark(split.rows[~split.counted], Fate(name, MASKED, ITS_OWN))
        reasons |= split.unreadable
    if "train" in source.splits:
        mark(limited, Fate("train", UNUSED, OVER_THE_LIMIT))
    for name in source.splits[:1]:
        mark(dropped.get(name, np.empty(0, dtype=np.int64)), Fate(None, DROPPED, NO_LABEL))
    if not source.splits:
        mark(np.arange(source.rows), Fate(None, UNUSED, NO_SPLIT))
    assert (numbers >= 0).all(), "each row has a fate"
    return Accounted(source.name, tuple(fates), numbers, reasons, source.origins)
