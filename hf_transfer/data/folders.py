"""Reads folders: pictures or texts by class, pictures that a table names, and data sets that `datasets` has saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_transfer.data import encodings
from hf_transfer.data.class_folders import PICTURES, TEXTS, Arrangement, Part, checked
from hf_transfer.data.files import Tree, is_hidden
from hf_transfer.data.origins import Origins
from hf_transfer.data.read_data import ReadSplits
from hf_transfer.data.split_folders import is_split
from hf_transfer.errors import user_error

if TYPE_CHECKING:
    import datasets

# The files by which `datasets` knows a folder that `save_to_disk` has written.
SAVED_SPLITS, SAVED_SPLIT = "dataset_dict.json", "state.json"


def read_pictures(root: Path, tree: Tree) -> ReadSplits:
    """A folder of pictures by class, in the columns `image` and `label`; see `class_folders.checked`.

    The labels of a split without folders of classes are missing.
    """
    import datasets

    return _data_of(checked(root, tree, PICTURES), "image", datasets.Image(), picture_column)


def read_texts(root: Path, tree: Tree, encoding: str) -> ReadSplits:
    """A folder of text files by class, in the columns `text` and `label`; see `class_folders.checked`.

    Raises:
        UserError: a file is not in this encoding.
    """
    import datasets

    return _data_of(
        checked(root, tree, TEXTS), "text", datasets.Value("large_string"),
        lambda files: pa.array([encodings.read_text(file, encoding) for file in files], pa.large_string()),
    )  # fmt: skip


def _data_of(
    arranged: Arrangement, column: str, feature: Any, values: Callable[[Sequence[Path]], pa.Array]
) -> ReadSplits:
    import datasets

    names = sorted({name for part in arranged.parts.values() for name in part.classes})
    data, origins = datasets.DatasetDict(), {}
    for split, part in arranged.parts.items():
        files, labels = _rows(part, names)
        columns, features = {column: values(files)}, {column: feature}
        columns["label"], features["label"] = pa.array(labels, pa.int64()), datasets.ClassLabel(names=names)
        data[split] = _data_set(columns, datasets.Features(features))
        origins[split] = Origins(
            tuple(map(str, files)), np.arange(len(files), dtype=np.int32), np.zeros(len(files), dtype=np.int64)
        )
    return ReadSplits(data, origins, arranged.notes)


def _rows(part: Part, names: Sequence[str]) -> tuple[list[Path], Sequence[int | None]]:
    """The files of a split in a fixed order, each with the number of its class; None: it is in no folder of one."""
    numbers = {name: number for number, name in enumerate(names)}
    rows = [(file, numbers[name]) for name in sorted(part.classes) for file in part.classes[name]]
    if not part.classes:
        return part.loose, [None] * len(part.loose)
    return [file for file, _ in rows], [number for _, number in rows]


def _data_set(columns: Mapping[str, pa.Array], features: datasets.Features) -> datasets.Dataset:
    """A data set of these columns. Not from dictionaries: those are encoded one by one, which takes minutes."""
    import datasets

    table = pa.table(dict(columns)).cast(features.arrow_schema)
    return datasets.Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features))


def picture_column(files: Sequence[Path | None]) -> pa.Array:
    """Paths of pictures as `datasets` holds pictures that are not decoded; None: there is none.

    Raises:
        UserError: the name of a file is not valid text.
    """
    for file in files:
        if file is not None and not _is_text(str(file)):
            raise user_error(
                expected="names of files that are valid UTF-8", found=repr(str(file)), do="rename this file or folder"
            )
    paths = pa.array([None if file is None else str(file) for file in files], pa.string())
    missing = pa.nulls(len(files), pa.binary())
    absent = pa.array([file is None for file in files], pa.bool_())
    return pa.StructArray.from_arrays([missing, paths], ["bytes", "path"], mask=absent)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def saved_folder(folder: Path) -> Path | None:
    """The folder that `save_to_disk` has written: this one, or the only one in it; None: it is another folder."""
    inner = [one for one in folder.iterdir() if one.is_dir() and not is_hidden(one.name)]
    for candidate in [folder, *(inner if len(inner) == 1 else [])]:
        is_split_folder = (candidate / SAVED_SPLIT).is_file() and (candidate / "dataset_info.json").is_file()
        if is_split_folder or (candidate / SAVED_SPLITS).is_file():
            return candidate
    return None


def read_saved(folder: Path) -> ReadSplits:
    """A `Dataset` or `DatasetDict` that `save_to_disk` has written.

    A single data set is the split that it was loaded as, or else the one for training.
    """
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, datasets.DatasetDict):
        split = str(saved.split)
        saved = datasets.DatasetDict({split if is_split(split) else "train": saved})
    return ReadSplits(saved.with_format(None), {}, [])
