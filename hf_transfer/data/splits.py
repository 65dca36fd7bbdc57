"""Splits: some rows of a data set, and how to divide and reduce them in proportion."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from hf_transfer.data.fates import Accounted
from hf_transfer.data.levels import Levels
from hf_transfer.data.origins import Origins
from hf_transfer.targets.target import LabelColumns, Target, Values

if TYPE_CHECKING:
    import datasets

    from hf_transfer.data.groups import Groups

Rows = npt.NDArray[np.int64]
UNLABELLED = "unlabelled"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Split:
    """Some rows of a data set, which itself is not changed: a sample is identified by its row number.

    Attributes:
        dataset: all rows, with only the columns of their modality.
        rows: row numbers that belong to this split, ascending.
        targets: what is predicted of these rows, in the same order [rows, ...].
        unreadable: rows that are masked, each with the reason.
        levels: rows whose pictures have more than 8 bits for each channel, with the values of those decoded so far.
        origins: the file and line of each row of the data set; None: they are not known.
    """

    dataset: datasets.Dataset
    rows: Rows
    targets: Values
    unreadable: dict[int, str] = field(default_factory=dict)
    levels: Mapping[int, Levels] = field(default_factory=dict)
    origins: Origins | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Whether a row counts, that is, is not masked [rows]."""
        return ~np.isin(self.rows, list(self.unreadable))

    def fingerprint(self) -> str:
        """A hash of row numbers, targets and mask; the samples themselves are not read."""
        columns = (self.rows, self.targets, self.counted)
        digest = hashlib.sha256("".join(f"{column.dtype}{column.shape}" for column in columns).encode())
        for column in columns:
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Unlabelled:
    """A split of which no row has a label: a run predicts it.

    Attributes:
        name: of the split in the data.
        split: its samples; their targets stand for nothing.
        keys: the values of the columns that tell its rows apart, such as an identifier, by column.
        columns: of the labels in the other splits.
    """

    name: str
    split: Split
    keys: Mapping[str, list[Any]]
    columns: LabelColumns


@dataclass(frozen=True)
class Splits:
    """Training, validation and test samples of one target.

    Where a finished model is judged, `train` and `validation` may have no rows: they do not exist.

    Attributes:
        target: what is predicted.
        columns: the columns that were chosen, by the setting that names them, and the settings with which the target
            was read.
        samples: what a sample is, in the plural: images, texts or pairs.
        copies: for validation and test, how many rows have an exact copy in training.
        notes: what was decided about the data, in sentences for the report.
        names: sentences on the names of the classes, and where they are from.
        commit: of a data set on the Hub, the commit that was loaded.
        languages: of a data set on the Hub, the languages that its card names.
        where_from: a sentence on where each split comes from.
        rows_as_read: what became of each row, by split as it was read; empty if a split was not read.
        unlabelled: samples without labels, which are predicted; None: there are none.
        dropped: the rows that were dropped since they have no label, by split as it was read.
        groups: the rows that stay together, if a column names them.
    """

    train: Split
    validation: Split
    test: Split
    target: Target
    columns: dict[str, Any]
    samples: str
    copies: dict[str, int]
    notes: list[str]
    commit: str | None = None
    languages: tuple[str, ...] = ()
    where_from: str = ""
    rows_as_read: tuple[Accounted, ...] = ()
    names: Sequence[str] = ()
    unlabelled: Unlabelled | None = None
    dropped: Mapping[str, Rows] = field(default_factory=dict)
    groups: Groups | None = None

    def items(self) -> list[tuple[str, Split]]:
        """The splits that exist with their names, also one without labels, which is called `unlabelled`."""
        unlabelled = [] if self.unlabelled is None else [(UNLABELLED, self.unlabelled.split)]
        return [*self.labelled(), *unlabelled]

    def labelled(self) -> list[tuple[str, Split]]:
        """The splits with labels that exist, with their names."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return [(name, split) for name, split in splits.items() if len(split)]

    def judged(self) -> list[str]:
        """The names of the splits on which a model is judged: test, and validation if it exists."""
        return [name for name, _ in self.labelled() if name != "train"]

    def longest(self) -> int:
        """The number of rows of the longest split."""
        return max(len(split) for _, split in self.items())

    def of(self, name: str) -> Split:
        """The split of that name."""
        return dict(self.items())[name]

    def describe(self) -> list[str]:
        """Sentences on the data, for the screen and the report."""
        sizes = ", ".join(f"{shown_count(len(split), len(split.unreadable))} {name}" for name, split in self.labelled())
        copies = [f"{count} in {name}" for name, count in self.copies.items() if count]
        masked = [f"{len(split.unreadable)} in {name}" for name, split in self.items() if split.unreadable]
        return [
            f"{sizes} {self.samples} of {self.target.describe()}.",
            *([self.where_from] if self.where_from else []),
            *self.names,
            *self.notes,
            *([f"Exact copies of training {self.samples}: {', '.join(copies)}."] if copies else []),
            *([f"Unreadable {self.samples}, masked: {', '.join(masked)}."] if masked else []),
        ]


def shown_count(samples: int, masked: int) -> str:
    """How many of a number of samples count, for people: "120", or "119 of 120" where one of them is masked."""
    return f"{samples - masked:,} of {samples:,}" if masked else f"{samples:,}"


def cut_stratified(split: Split, fraction: float, seed: int, target: Target) -> tuple[Split, Split]:
    """Divide a split in two, as its target says: the rows that stay, and those that are split off."""
    cut = np.zeros(len(split), dtype=bool)
    cut[target.cut(split.targets, fraction, np.random.default_rng(seed))] = True
    return part_of(split, np.flatnonzero(~cut)), part_of(split, np.flatnonzero(cut))


def few_of_each(split: Split, limit: int, seed: int, target: Target) -> Split:
    """At most `limit` rows of each kind, such as a class, drawn with `seed`."""
    return part_of(split, target.few(split.targets, limit, np.random.default_rng(seed)))


def part_of(split: Split, positions: Rows) -> Split:
    """The rows at these positions of a split."""
    rows = split.rows[positions]
    return dataclasses.replace(
        split, rows=rows, targets=split.targets[positions], unreadable=_of_rows(split.unreadable, rows),
        levels=_of_rows(split.levels, rows),
    )  # fmt: skip


def _of_rows(values: Mapping[int, Value], rows: Rows) -> dict[int, Value]:
    """Those of the values by row that some rows have: often none, however many rows there are."""
    return {row: values[row] for row in np.intersect1d(list(values), rows).tolist()} if values else {}
