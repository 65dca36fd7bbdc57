"""What reading files gives: the table in a file, and the splits of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hf_transfer.data.origins import Origins

if TYPE_CHECKING:
    import datasets

# At which each row of a file starts, as an editor counts; 0: a row is not in one place, or the file has no lines.
Lines = npt.NDArray[np.int64]


class ReadTable(NamedTuple):
    """The table in a file.

    Attributes:
        table: its columns; of CSV they are text, null where a field is empty.
        lines: at which each row starts [rows].
        notes: sentences on how it was read.
        digest: a hash of all that decides on the columns: the file, and the way in which it was read.
    """

    table: pa.Table
    lines: Lines
    notes: list[str]
    digest: str


class ReadSplits(NamedTuple):
    """The splits in a file or a folder.

    Attributes:
        data: by name, in lower case.
        origins: of each split the file and line of each row; empty where rows have none.
        notes: sentences on how the files were understood, and on those that are not used.
    """

    data: datasets.DatasetDict
    origins: dict[str, Origins]
    notes: list[str]
