"""Parquet files whose groups of rows are larger than what Arrow reads of nested columns at once."""

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from datasets.builder import Key
from datasets.packaged_modules.parquet.parquet import Parquet

BYTES_AT_ONCE = 1 << 28


class ParquetInParts(Parquet):  # type: ignore[misc]
    """Reads some rows of a group after the other; `datasets` itself reads groups, as Arrow's scanner does."""

    def _generate_tables(self, files: Sequence[str], row_groups_list: object) -> Iterator[tuple[Key, pa.Table]]:  # noqa: ARG002
        for number, file in enumerate(files):
            with pyarrow.parquet.ParquetFile(file) as opened:
                for part, batch in enumerate(opened.iter_batches(rows_at_once(opened.metadata))):
                    yield Key(number, part), self._cast_table(pa.Table.from_batches([batch]))


def rows_at_once(metadata: Any) -> int:
    """How many rows have about `BYTES_AT_ONCE` where rows are largest.

    Args:
        metadata: of a Parquet file with rows.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    bytes_of_a_row = max(group.total_byte_size / group.num_rows for group in groups if group.num_rows)
    return max(1, int(BYTES_AT_ONCE / max(1, bytes_of_a_row)))


def read_in_parts(pattern: str) -> datasets.Dataset:
    """The rows of a file, which `datasets` then finds in its cache.

    Args:
        pattern: the path of the file, as a pattern.
    """
    builder = ParquetInParts(data_files={"train": [pattern]})
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    assert isinstance(rows, datasets.Dataset)
    return rows
