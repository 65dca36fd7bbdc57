"""The content of a row: its encoded image and its texts."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute

from hf_transfer.data.splits import Split

TEXT_COLUMNS = ("text", "text_pair")


def encoded_image(split: Split, row: int) -> dict[str, Any]:
    """The encoded image of a row: `{"bytes": ..., "path": ...}`, one of which is None, or both if it has no image."""
    return split.dataset[row]["image"] or {"bytes": None, "path": None}


def texts_of(split: Split) -> list[tuple[str | None, ...]]:
    """The text of each row, or its pair of texts, in the order of the rows."""
    chosen = split.dataset.select(split.rows)
    columns = [chosen[name][:] for name in TEXT_COLUMNS if name in chosen.column_names]
    return list(zip(*columns, strict=True))


def is_given(split: Split, column: str) -> npt.NDArray[np.bool_]:
    """Whether each row has a value in the column `image` or `text` [rows]."""
    values = split.dataset.with_format("arrow")[:][column]
    parts = [values]
    if column == "image":
        parts = [pyarrow.compute.struct_field(values, name) for name in ("bytes", "path")]
    given = np.any([pyarrow.compute.is_valid(part).to_numpy() for part in parts], axis=0)
    return np.asarray(given[split.rows], dtype=bool)


def describe_row(split: Split, row: int) -> str:
    """The path of a row's image, and the file and line of the row; its number, if neither is known."""
    path = encoded_image(split, row)["path"] if "image" in split.dataset.column_names else None
    if split.origins is None:
        return str(path) if path else f"row {row}"
    in_file = split.origins.describe(row)
    return f"{path} in {in_file}" if path and split.origins.of(row)[0] != path else in_file
