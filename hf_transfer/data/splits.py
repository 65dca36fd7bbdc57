"""Splits: some rows of a data set, and how to cut and thin them class by class."""

from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute

from hf_transfer.data.labels import Labels

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Some rows of a data set, which itself stays untouched: a sample is known by its row number.

    Attributes:
        dataset: all rows, with the column `image`, not decoded, `text` and perhaps `text_pair`, or `image` and `text`.
        rows: row numbers that belong to this split, ascending.
        labels: class numbers of these rows, in the same order.
        bad: rows that are masked, each with the reason.
    """

    dataset: datasets.Dataset
    rows: Rows
    labels: Labels
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, row: int) -> dict[str, Any]:
        """The encoded image of a row: `{"bytes": ..., "path": ...}`, one of them None; both if there is no image."""
        return self.dataset[row]["image"] or {"bytes": None, "path": None}

    def texts(self) -> list[tuple[str | None, ...]]:
        """The text of each row, or its pair of texts, in the order of `rows`."""
        chosen = self.dataset.select(self.rows)
        columns = [chosen[name][:] for name in ("text", "text_pair") if name in chosen.column_names]
        return list(zip(*columns, strict=True))

    def given(self, column: str) -> npt.NDArray[np.bool_]:
        """Whether there is anything in the column `image` or `text`, for each row in the order of `rows`."""
        values = self.dataset.with_format("arrow")[:][column]
        parts = [values]
        if column == "image":
            parts = [pyarrow.compute.struct_field(values, name) for name in ("bytes", "path")]
        given = np.any([pyarrow.compute.is_valid(part).to_numpy() for part in parts], axis=0)
        return np.asarray(given[self.rows], dtype=bool)

    def describe(self, row: int) -> str:
        """How to find a row again: the path of its image, or its number."""
        path = self.raw(row)["path"] if "image" in self.dataset.column_names else None
        return str(path) if path else f"row {row}"


def cut_stratified(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split in two, class by class: what stays, and what was cut off.

    Unlike `sklearn.model_selection.train_test_split`, no class goes without a sample on either side.
    """
    generator = np.random.default_rng(seed)
    positions = []
    for members in _members_by_class(split.labels):
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        positions.append(generator.permutation(members)[:count])
    cut = np.zeros(len(split), dtype=bool)
    cut[np.concatenate(positions)] = True
    return _part(split, np.flatnonzero(~cut)), _part(split, np.flatnonzero(cut))


def few_per_class(split: Split, limit: int, seed: int) -> Split:
    """At most `limit` rows of each class, drawn with `seed`."""
    generator = np.random.default_rng(seed)
    positions = [generator.permutation(members)[:limit] for members in _members_by_class(split.labels)]
    return _part(split, np.sort(np.concatenate(positions)))


def _part(split: Split, positions: Rows) -> Split:
    return Split(split.dataset, split.rows[positions], split.labels[positions])


def _members_by_class(labels: Labels) -> list[Rows]:
    return [np.flatnonzero(labels == number) for number in np.unique(labels)]
