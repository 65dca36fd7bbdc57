"""From a name to a data set: Hub ids, folders, files, archives, samples and data in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from hf_transfer.data import archives, files, folders, hub_access, picture_folders, samples, tables
from hf_transfer.data.class_folders import PICTURES, TEXTS, advice_on_unread, described_suffixes
from hf_transfer.data.origins import Origins
from hf_transfer.data.picture_tables import METADATA
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.data.read_data import ReadSplits
from hf_transfer.data.split_names import SPLIT_NAMES
from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings

if TYPE_CHECKING:
    import datasets


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


def load(settings: DataSettings, read: Callable[[Path], Loaded], cache: Path) -> Loaded:
    """The data set that `dataset_name` names.

    Args:
        settings: its name, and how it is read.
        read: reads a file or folder on this machine.
        cache: the folder into which archives are unpacked.

    Raises:
        UserError: there is no such data set, or it cannot be read.
    """
    from datasets.exceptions import DatasetGenerationError

    name = settings.dataset_name
    if samples.is_sample(name):
        return Loaded(samples.load_sample(name))
    # As `datasets` names the files that it reads.
    path = Path(os.path.normpath(Path(name).expanduser().absolute()))
    try:
        if path.exists():
            loaded = _read(path, read, cache)
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
        hub_access.refuse_cache_without_rights(error)
        empty = isinstance(error, StopIteration)
        raise user_error(
            expected=f"a data set that can be read at {name}",
            found="no rows" if empty else (str(error.__cause__ or error) or type(error).__name__).splitlines()[0],
            do="fix or remove the file that this names" + ("" if path.exists() else ", or repeat the command"),
        ) from error


def _read(path: Path, read: Callable[[Path], Loaded], cache: Path) -> Loaded:
    """A file or folder: an archive is unpacked, and what `datasets` has saved is read, for all modalities alike."""
    notes = []
    if path.is_file() and archives.is_archive(path):
        notes.append(f"{path} was unpacked into {(unpacked := archives.unpacked(path, cache))}.")
        path = unpacked
    saved = folders.saved_folder(path) if path.is_dir() else None
    loaded = _loaded(folders.read_saved(saved)) if saved else read(path)
    return loaded._replace(notes=[*notes, *loaded.notes])


def _loaded(data: ReadSplits) -> Loaded:
    return Loaded(data.data, origins=data.origins, notes=data.notes)


def read_files(
    path: Path, settings: DataSettings, text_columns: Sequence[str], *, image_column: str | None = None,
    tables_name_images: bool = False, samples_are_texts: bool = False,
) -> Loaded:  # fmt: skip
    """A folder of images or texts by class, images that a table names, a folder of tables, or one table.

    Args:
        path: the folder or file.
        settings: how it is read.
        text_columns: columns whose values are text also where they look like numbers.
        image_column: the column of images, if the settings name it.
        tables_name_images: whether a table that names files names images.
        samples_are_texts: whether tables come before images, and files of text are samples.
    """
    if path.is_file():
        if not tables_name_images:
            return _loaded(tables.load_tables(path, [path], settings, text_columns))
        return _loaded(picture_folders.read_table_of_pictures(path, settings, text_columns, image_column))
    tree = files.walk(path)
    images, table_files = _of(tree, SUFFIXES), _of(tree, tables.TABLE_BUILDERS)
    plain_tables = [file for file in table_files if file.stem != METADATA]
    if images and not (samples_are_texts and plain_tables):
        files.refuse_compressed(file for file in tree.files if archives.is_archive(file))
        return _loaded(picture_folders.read(path, tree, settings, text_columns, image_column))
    if table_files:
        loaded = _loaded(tables.load_tables(path, plain_tables or table_files, settings, text_columns))
        unused = [file for file in table_files if plain_tables and file.stem == METADATA]
        unused += [file for file in _of(tree, TEXTS.suffixes) if samples_are_texts and file.parent != path]
        note = f"Not used, since tables come before them: {len(unused)} files, such as {unused[0]}." if unused else ""
        return loaded._replace(notes=[*loaded.notes, *filter(None, [note])])
    if samples_are_texts and _of(tree, TEXTS.suffixes):
        return _loaded(folders.read_texts(path, tree, settings.encoding))
    if unread := _of(tree, PICTURES.unread):
        raise user_error(
            expected=f"images ({', '.join(sorted(SUFFIXES))}) below {path}",
            found=f"{described_suffixes(unread, PICTURES)}, which are not read",
            do=advice_on_unread(unread),
        )
    raise user_error(
        expected=f"images ({', '.join(sorted(SUFFIXES))}) or tables ({', '.join(tables.TABLE_BUILDERS)}) below {path}",
        found=f"{len(tree.files)} files, and none of these kinds",
        do="for images put each class in a folder of its own, as in FOLDER/cat/1.jpg; for texts write a train.csv",
    )


def _of(tree: files.Tree, suffixes: Collection[str]) -> list[Path]:
    return [file for file in tree.files if file.suffix.lower() in suffixes]


def _load_from_hub(settings: DataSettings) -> Loaded:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

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
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or Path(name).suffix.lower() in tables.TABLE_BUILDERS
        or archives.is_archive(Path(name))
    )


def origins_by_split(loaded: Loaded, renamed: Mapping[str, datasets.Dataset]) -> dict[str, Origins]:
    """The file and line of each row, by the names of the splits that a run uses.

    Args:
        loaded: the data set as it was read.
        renamed: its splits by these names; see `rename_splits`.
    """
    return {
        name: loaded.origins[one]
        for name, rows in renamed.items() for one, read in loaded.data.items() if read is rows and one in loaded.origins
    }  # fmt: skip


def rename_splits(
    loaded: datasets.DatasetDict, *, needs_training: bool = True
) -> tuple[datasets.DatasetDict, list[str]]:
    """The splits under the names train, validation and test, and a note on splits that are not used.

    Args:
        loaded: the splits as they were read.
        needs_training: refuse data without a training split.

    Raises:
        UserError: there is no training split, or none of the three.
    """
    import datasets

    renamed = {}
    for split, usual_names in SPLIT_NAMES.items():
        if present := [name for name in usual_names if name in loaded]:
            renamed[split] = loaded[present[0]]
    if needs_training and "train" not in renamed:
        raise user_error(
            expected=f"a training split, named {' or '.join(SPLIT_NAMES['train'])}",
            found=f"the splits {', '.join(loaded)}",
            do="rename the split that is for training (in a folder: its sub-folder); to judge a finished model: "
            "--evaluate_only",
        )
    if not renamed:
        raise user_error(
            expected=f"a split named {', '.join(SPLIT_NAMES)}, or a usual variant",
            found=f"the splits {', '.join(loaded)}",
            do="rename the split on which the model is judged: test",
        )
    unused = [name for name in loaded if all(loaded[name] is not kept for kept in renamed.values())]
    notes = [f"Splits not used: {', '.join(unused)}."] if unused else []
    return datasets.DatasetDict(renamed), notes
