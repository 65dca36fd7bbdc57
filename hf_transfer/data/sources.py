"""From a name to a data set: Hub ids, folders, files, samples and data in memory."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_transfer.data import columns, encodings, files, hub_access, samples, tables
from hf_transfer.data.origins import Origins
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.data.split_names import SPLIT_NAMES
from hf_transfer.errors import UserError, user_error
from hf_transfer.settings.data import DataSettings


class Loaded(NamedTuple):
    """A data set as it was read.

    Attributes:
        data: its splits.
        info: what the Hub says of it; None for other data, and without an answer.
        origins: of each split the file and line of each row; empty for data of the Hub, of memory and of the samples.
        notes: sentences on how files were read.
    """

    data: datasets.DatasetDict
    info: hub_access.RepositoryInfo | None = None
    origins: Mapping[str, Origins] = MappingProxyType({})
    notes: Sequence[str] = ()


def load(settings: DataSettings, read: Callable[[Path], Loaded]) -> Loaded:
    """The data set that `dataset_name` names.

    Args:
        settings: its name, and how it is read.
        read: reads a file or folder on this machine.

    Raises:
        UserError: there is no such data set, or it cannot be read.
    """
    name = settings.dataset_name
    if samples.is_sample(name):
        return Loaded(samples.load_sample(name))
    path = Path(name).expanduser()
    try:
        if path.exists():
            files.refuse_patterns(path)
            loaded = read(path)
        elif _looks_like_a_path(name):
            raise user_error(
                expected="a data set: a folder or file here, a Hub id, or sample:NAME",
                found=f"no folder or file {path}",
                do="correct --dataset_name",
            )
        else:
            loaded = _load_from_hub(settings)
        for split in loaded.data.values():
            # Arrow accepts invalid text, and would fail later, wherever that sample is read.
            split.data.table.validate(full=True)
        return loaded
    except (DatasetGenerationError, OSError, ValueError, TypeError, RuntimeError, StopIteration) as error:
        if path.exists() and (other := _of_other_encoding(path, settings.encoding)):
            raise other from error
        empty = isinstance(error, StopIteration)
        raise user_error(
            expected=f"a data set that can be read at {name}",
            found="no rows" if empty else (str(error.__cause__ or error) or type(error).__name__).splitlines()[0],
            do="fix or remove the file that this names" + ("" if path.exists() else ", or repeat the command"),
        ) from error


def read_files(path: Path, settings: DataSettings, text_columns: Sequence[str]) -> Loaded:
    """A folder of images by class, a folder of tables, or one table.

    Args:
        path: the folder or file.
        settings: how it is read.
        text_columns: columns whose values are text also where they look like numbers.
    """
    images, table_files = _images_and_tables(path) if path.is_dir() else ([], [path])
    if images:
        _refuse_capital_splits(path)
        # `datasets` would unpack them.
        files.refuse_compressed(files.files_below(path, [".zip"]))
        if settings.problem_type != "regression":
            files.refuse_guessed_labels(path, (settings.label_column_name or "", *columns.LABEL_NAMES))
        return Loaded(datasets.load_dataset("imagefolder", data_dir=str(path)))
    if table_files:
        read = tables.load_tables(path, table_files, settings, text_columns)
        return Loaded(read.data, origins=read.origins, notes=read.notes)
    raise user_error(
        expected=f"images ({', '.join(sorted(SUFFIXES))}) or tables ({', '.join(tables.TABLE_BUILDERS)}) below {path}",
        found=f"{len(files.files_below(path))} files, and none of these kinds",
        do="for images put each class in a folder of its own, as in FOLDER/cat/1.jpg; for texts write a train.csv",
    )


def _images_and_tables(folder: Path) -> tuple[list[Path], list[Path]]:
    below = files.files_below(folder, tables.TABLE_BUILDERS)
    return files.files_below(folder, SUFFIXES), [file for file in below if not file.name.startswith("metadata.")]


def unused_files(name: str, loaded: datasets.DatasetDict) -> list[str]:
    """Notes on files in a folder that no split contains."""
    folder = Path(name).expanduser()
    if samples.is_sample(name) or not folder.is_dir():
        return []
    images, _ = _images_and_tables(folder)
    return files.unused_images(images, loaded) if images else []


def _of_other_encoding(path: Path, encoding: str) -> UserError | None:
    """The error on the first bytes of CSV and JSON files that are not valid in an encoding; None: all are."""
    below = [path] if path.is_file() else files.files_below(path, tables.TABLE_BUILDERS)
    text = [file for file in below if tables.TABLE_BUILDERS.get(file.suffix.lower()) in ("csv", "json")]
    return next(filter(None, (encodings.undecodable(file, encoding) for file in text)), None)


def _refuse_capital_splits(folder: Path) -> None:
    """Refuse folders such as Train and Test: `datasets` would read them as one split, and test images be trained on."""
    known = {name for names in SPLIT_NAMES.values() for name in names}
    capital = [path.name for path in sorted(folder.iterdir()) if path.name.lower() in known - {path.name}]
    if capital:
        raise user_error(
            expected=f"split folders in lower case in {folder}",
            found=", ".join(capital),
            do=f"rename them: {', '.join(name.lower() for name in capital)}",
        )


def _load_from_hub(settings: DataSettings) -> Loaded:
    name = settings.dataset_name
    info = hub_access.ask_hub(name, kind="dataset", revision=settings.dataset_revision)
    try:
        with hub_access.local_files_only(info is None):
            # Without an answer from the Hub, `datasets` finds the copy in its cache by the name alone.
            data = datasets.load_dataset(name, settings.dataset_config_name, revision=info.commit if info else None)
    except (ConnectionError, DatasetNotFoundError, FileNotFoundError) as error:
        if info:
            raise
        raise hub_access.unreachable(name, kind="dataset", setting="dataset_name") from error
    return Loaded(data, info)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix.lower() in tables.TABLE_BUILDERS


def rename_splits(loaded: datasets.DatasetDict) -> tuple[datasets.DatasetDict, list[str]]:
    """The splits under the names train, validation and test, and a note on splits that are not used.

    Raises:
        UserError: there is no training split.
    """
    renamed = {}
    for split, usual_names in SPLIT_NAMES.items():
        if present := [name for name in usual_names if name in loaded]:
            renamed[split] = loaded[present[0]]
    if "train" not in renamed:
        raise user_error(
            expected=f"a training split, named {' or '.join(SPLIT_NAMES['train'])}",
            found=f"the splits {', '.join(loaded)}",
            do="rename the split that is for training (in a folder: its sub-folder)",
        )
    unused = [name for name in loaded if all(loaded[name] is not kept for kept in renamed.values())]
    notes = [f"Splits not used: {', '.join(unused)}."] if unused else []
    return datasets.DatasetDict(renamed), notes
