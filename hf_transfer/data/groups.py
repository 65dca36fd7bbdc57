"""Units: rows that stay on one side when a split is made, since they share their content or their group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute

from hf_transfer.errors import user_error

if TYPE_CHECKING:
    import datasets

# One number for each row: rows that share it belong together.
Keys = npt.NDArray[np.uint64]
KEY_BYTES = 8
# Of a row that has no such key.
NO_KEY = np.uint64(0)


class Units(NamedTuple):
    """Rows that stay together.

    Attributes:
        of_rows: the unit of each row [rows].
        keys: what a unit is known by, which does not depend on other units [units].
    """

    of_rows: npt.NDArray[np.int64]
    keys: Keys

    def places(self, seed: int, name: str) -> npt.NDArray[np.float64]:
        """A place for each unit, uniform from 0 to 1, that depends on its key, the seed and a name alone [units]."""
        start, keys = f"{seed} {name} ".encode(), self.keys.astype(">u8").tobytes()
        digests = b"".join(
            hashlib.blake2b(start + keys[place : place + KEY_BYTES], digest_size=KEY_BYTES).digest()
            for place in range(0, len(keys), KEY_BYTES)
        )
        return np.frombuffer(digests, ">u8").astype(np.float64) / 2.0 ** (8 * KEY_BYTES)

    def part(self, positions: npt.NDArray[np.int64]) -> Units:
        """The units of the rows at these positions, all of whose rows are among them."""
        chosen, of_rows = np.unique(self.of_rows[positions], return_inverse=True)
        return Units(of_rows, self.keys[chosen])


def key_of(content: bytes) -> int:
    """The key of a content: a hash of 64 bits, and never `NO_KEY`."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=KEY_BYTES).digest()) or 1


def units_of(keys: Sequence[Keys]) -> Units:
    """The units of rows that have several keys: rows that share one are in the same unit, and so on from row to row.

    A unit is known by the smallest of its keys in the first column; so it keeps its place when it gets another row,
    unless the key of that row is smaller. Keys of near-duplicates can be a further column.

    Args:
        keys: by column, of all rows; every row has one in the first column.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, nodes, first_node = [], [], len(keys[0])
    for column in keys:
        given = np.flatnonzero(column != NO_KEY)
        different, numbers = np.unique(column[given], return_inverse=True)
        rows.append(given)
        nodes.append(first_node + numbers)
        first_node += len(different)
    ends = np.concatenate(rows), np.concatenate(nodes)
    graph = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(first_node, first_node))
    of_nodes = connected_components(graph, directed=False)[1]
    numbers = np.unique(of_nodes[: len(keys[0])], return_inverse=True)[1].astype(np.int64)
    smallest = np.full(numbers.max(initial=-1) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, numbers, keys[0])
    return Units(numbers, smallest)


def each_row_alone(rows: npt.NDArray[np.int64]) -> Units:
    """The units of rows that do not belong together, each known by its number."""
    keys = [key_of(f"row {row}".encode()) for row in rows.tolist()]
    return Units(np.arange(len(rows)), np.asarray(keys, dtype=np.uint64))


class Groups(NamedTuple):
    """The groups of all rows of a data set, by split.

    Attributes:
        column: that they are in.
        names: for each split that has the column, the group of each row; None: it has none.
    """

    column: str
    names: dict[str, list[str | None]]

    def columns(self, rows: npt.NDArray[np.int64], contents: Keys) -> list[Keys]:
        """For `units_of`: a column of keys of some rows of training, which is the content where there is no group.

        Args:
            rows: of training.
            contents: the keys of their contents [rows].
        """
        names = [self.names["train"][row] for row in rows.tolist()]
        known = {name: key_of(f"group {name}".encode()) for name in set(names) if name is not None}
        keys = [
            content if name is None else known[name] for name, content in zip(names, contents.tolist(), strict=True)
        ]
        return [np.asarray(keys, dtype=np.uint64)]

    def notes(self) -> list[str]:
        """Sentences on rows without a group, and on groups of given splits that are in training, too."""
        missing = {split: names.count(None) for split, names in self.names.items()}
        without = [f"{count:,} in {split}" for split, count in missing.items() if count]
        notes = [f"Rows without a group in column '{self.column}': {', '.join(without)}."] if without else []
        training = set(self.names.get("train", ())) - {None}
        for split, names in self.names.items():
            groups = set(names) - {None}
            if split != "train" and (shared := sorted(str(name) for name in groups & training)):
                notes.append(
                    f"Groups of column '{self.column}' in {split} that are in training, too: {len(shared):,} of "
                    f"{len(groups):,}, such as {shared[0]!r}."
                )
        return notes


def read_groups(data: datasets.DatasetDict, column: str) -> Groups:
    """The groups in a column: texts, numbers or class labels; an empty cell is no group.

    Raises:
        UserError: training has no such column, or it has other values.
    """
    train = data["train"]
    if column not in train.column_names:
        raise user_error(
            expected=f"the column '{column}' in the training split, as --group_column_name says",
            found=f"the columns {', '.join(train.column_names)}",
            do="set --group_column_name to one of these",
        )
    return Groups(column, {name: _names(rows, column) for name, rows in data.items() if column in rows.column_names})


def _names(rows: datasets.Dataset, column: str) -> list[str | None]:
    import datasets

    from hf_transfer.targets.class_labels import class_name

    feature = rows.features[column]
    if isinstance(feature, datasets.Image):
        # Rows with the same picture are a group.
        encoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        images = encoded.with_format("arrow")[:][column]
        paths, contents = (pyarrow.compute.struct_field(images, part).to_pylist() for part in ("path", "bytes"))
        return [
            path if content is None else f"{key_of(content):x}" for path, content in zip(paths, contents, strict=True)
        ]
    if not isinstance(feature, datasets.Value | datasets.ClassLabel) or "binary" in str(feature.dtype):
        raise user_error(
            expected=f"names or numbers of groups in column '{column}'",
            found=str(feature),
            do="name another column in --group_column_name",
        )
    values = rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    if isinstance(feature, datasets.ClassLabel):
        # Numbers of classes may differ between splits.
        values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return [None if value is None or value != value or value == "" else class_name(value) for value in values]
