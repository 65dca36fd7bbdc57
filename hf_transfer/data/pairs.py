"""From a name to checked splits of pairs: an image and a text, either of which may be missing."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow.compute

from hf_transfer.config import UserError, mistake
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.data import columns, samples
from hf_transfer.data.files import files_below
from hf_transfer.data.images import SUFFIXES
from hf_transfer.data.sources import (
    SPLIT_NAMES,
    TABLE_BUILDERS,
    Splits,
    checked_splits,
    load,
    load_tables,
    rename_splits,
)
from hf_transfer.data.splits import Split
from hf_transfer.data.verification import count_duplicate_pairs, find_bad_pairs

LISTED = 5
METADATA = "metadata"
# What an imagefolder's metadata call the path of an image.
PATH_NAME = "file_name"
OTHER_RECIPE = {"image": "text", "text": "vision"}
Tables = Mapping[Path, datasets.Dataset]


def load_pair_splits(config: MultimodalConfig) -> Splits:
    """Load, check and split the pairs of image and text that `config.dataset_name` names.

    Raises:
        UserError: anything that a person must mend in the data or in the settings about them.
    """
    data, found = load(config, _read)
    loaded, notes = rename_splits(data)
    train = loaded["train"]
    image = columns.image_column(train, config.image_column_name)
    if image == config.text_column_name:
        raise mistake(
            expected="two columns for --image_column_name and --text_column_name",
            found=f"'{image}' for both",
            do="name the other column",
        )
    text = columns.text_column(train, config)
    label = columns.label_column(train, config.label_column_name)
    notes += columns.unused_texts(train, (image, text, label))
    select = partial(_pairs, image=image, text=text, config=config)
    checked, names = checked_splits(loaded, config, notes, select, find_bad_pairs)
    notes += _missing(checked, {"image": image, "text": text})
    copies = count_duplicate_pairs(checked)
    return Splits(**checked, samples="pairs", label_names=names, duplicates=copies, notes=notes, found=found)


def _pairs(data: datasets.Dataset, image: str, text: str, config: MultimodalConfig) -> datasets.Dataset:
    """The columns `image`, not decoded, and `text`; a text of white space is none."""
    columns.refuse_other_values(data, text)
    texts = [value if value is not None and value.strip() else None for value in data[text][:]]
    images = columns.images(data, image)
    if not Path(config.dataset_name).expanduser().exists() and not samples.is_sample(config.dataset_name):
        caches = (huggingface_hub.constants.HF_HOME, huggingface_hub.constants.HF_HUB_CACHE)
        _refuse_paths(images, "image", (*caches, str(datasets.config.HF_DATASETS_CACHE)))
    features = datasets.Features({"text": datasets.Value("large_string")})
    return datasets.concatenate_datasets([images, datasets.Dataset.from_dict({"text": texts}, features)], axis=1)


def _missing(splits: Mapping[str, Split], named: Mapping[str, str]) -> list[str]:
    """Notes on the pairs that lack one of the two; training must have some of each."""
    notes = []
    for column, name in named.items():
        lacking = {split: int((~part.given(column)).sum()) for split, part in splits.items()}
        if lacking["train"] == len(splits["train"]):
            raise mistake(
                expected=f"training rows with something in column '{name}'",
                found=f"nothing in any of {lacking['train']} rows",
                do=f"name the right column in --{column}_column_name, or use recipes/{OTHER_RECIPE[column]}.py",
            )
        if counts := [f"{count:,} of {len(splits[split]):,} in {split}" for split, count in lacking.items() if count]:
            notes.append(f"Pairs without {'an image' if column == 'image' else 'a text'}: {', '.join(counts)}.")
    return notes


def _read(path: Path, config: MultimodalConfig) -> datasets.DatasetDict:
    """Tables, or a folder of them with their images; a table's paths are relative to its own folder."""
    folder = path if path.is_dir() else path.parent
    split_of = _tables(folder) if path.is_dir() else {path: "train"}
    tables = {table: load_tables(table, [table], config)["train"] for table in split_of}
    _refuse_other_columns(tables)
    column = _path_column(list(tables.values()), config.image_column_name)
    embedded = [(data, name) for data in tables.values() for name in _embedded(data)] if column is None else []
    for data, name in embedded:
        _refuse_paths(data, name, ())
    files: dict[Path, list[str | None]] = {}
    if column is not None:
        files = _image_files(tables, column, folder.resolve())
        tables = {table: _with_files(data, column, files[table]) for table, data in tables.items()}
    if path.is_dir() and (column is not None or embedded):
        _refuse_unnamed(folder, {file for found in files.values() for file in found if file})
    parts = defaultdict(list)
    for table, data in tables.items():
        parts[split_of[table]].append(data)
    return datasets.DatasetDict({name: datasets.concatenate_datasets(part) for name, part in parts.items()})


def _tables(folder: Path) -> dict[Path, str]:
    """The tables below a folder, each with its split: `metadata.*` if there are such, else all."""
    found = [file for file in files_below(folder) if file.suffix.lower() in TABLE_BUILDERS]
    shown = [file for file in found if not _is_hidden(file, folder)]
    tables = [file for file in shown if file.stem == METADATA] or shown
    if not tables:
        raise mistake(
            expected=f"tables ({', '.join(TABLE_BUILDERS)}) of images and texts below {folder}",
            found="none",
            do=f"write a metadata.csv beside the images, with the columns {PATH_NAME}, text and label",
        )
    splits = {table: _split_of(table.relative_to(folder)) for table in tables}
    unknown = [str(table.relative_to(folder)) for table, split in splits.items() if split is None]
    if 0 < len(unknown) < len(tables):
        raise mistake(
            expected=f"tables in {folder} that all have the name of their split, as train.csv or test/metadata.csv",
            found=f"{_some(unknown)}, beside others that have",
            do="rename these or move them elsewhere",
        )
    return {table: split or "train" for table, split in splits.items()}


def _split_of(table: Path) -> str | None:
    """Which split's name a part of a path begins with."""
    known = {theirs: ours for ours, names in SPLIT_NAMES.items() for theirs in names}
    words = [re.match("[a-z]*", part.lower()) for part in table.parts]
    return next((known[word[0]] for word in words if word and word[0] in known), None)


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _refuse_other_columns(tables: Tables) -> None:
    """A column that some tables lack would be taken for one whose values are missing."""
    first, *others = tables
    wanted = set(tables[first].column_names)
    for table in others:
        if different := sorted(wanted ^ set(tables[table].column_names)):
            raise mistake(
                expected=f"the same columns in {table} and in {first}",
                found=f"{', '.join(different)} in one of them alone",
                do="give all tables the same columns",
            )


def _path_column(tables: Sequence[datasets.Dataset], wanted: str | None) -> str | None:
    """The column of paths to images: the wanted one, or `file_name`, or the only one whose first value is one.

    None where tables hold the images themselves.
    """
    if wanted is None and any(_embedded(data) for data in tables):
        return None
    for data in tables:
        text = [name for name, kind in data.features.items() if columns.is_text(kind)]
        likely = [name for name in text if _names_an_image(next(filter(None, data[name]), ""))]
        usual = [name for name in (PATH_NAME, *columns.IMAGE_NAMES) if name in text]
        chosen = [name for name in text if name == wanted] if wanted else usual[:1] or likely
        if len(chosen) == 1:
            return chosen[0]
    return None


def _embedded(data: datasets.Dataset) -> list[str]:
    """The columns that are of images by their type, or can be read as such."""
    kinds = data.features.items()
    return [
        name for name, kind in kinds if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "path" in kind)
    ]


def _names_an_image(value: str) -> bool:
    return value.lower().endswith(tuple(SUFFIXES))


def _image_files(tables: Tables, column: str, root: Path) -> dict[Path, list[str | None]]:
    """For each table the file of each row's image, or None where it names none.

    Raises:
        UserError: a path leaves the folder of the data, or there is no such file.
    """
    outside, gone = [], []
    files: dict[Path, list[str | None]] = defaultdict(list)
    for table, data in tables.items():
        for row, name in enumerate(data[column][:]):
            if name is None or not str(name).strip():
                files[table].append(None)
                continue
            file = _resolved(table.parent / str(name))
            where = f"{name} in row {row} of {table.name}"
            if Path(str(name)).is_absolute() or (file is not None and not file.is_relative_to(root)):
                outside.append(where)
            elif file is None or not file.is_file():
                gone.append(where)
            files[table].append(str(file))
    if outside:
        raise mistake(
            expected=f"paths of images that stay in {root}, relative to their table",
            found=f"{len(outside)} that leave it: {_some(outside)}",
            do="copy these images into the folder, and name them from there",
        )
    if gone:
        raise mistake(
            expected=f"files for all images that column '{column}' names",
            found=f"{len(gone)} that do not exist: {_some(gone)}",
            do="correct these paths (rows count from 0); where there is no image, leave the field empty",
        )
    return files


def _resolved(path: Path) -> Path | None:
    """Where a path leads to, through links; None for what can be no path."""
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        # Too long, with a null byte, through a file or round in circles: there is no such file.
        return None


def _with_files(data: datasets.Dataset, column: str, files: Sequence[str | None]) -> datasets.Dataset:
    images = [None if file is None else {"bytes": None, "path": file} for file in files]
    return data.remove_columns(column).add_column(column, images, feature=datasets.Image(decode=False))


def _refuse_unnamed(folder: Path, named: set[str]) -> None:
    images = [file for file in files_below(folder) if _names_an_image(file.name) and not _is_hidden(file, folder)]
    unnamed = [str(file.relative_to(folder)) for file in images if str(file.resolve()) not in named]
    if unnamed:
        raise mistake(
            expected=f"for each image below {folder} a row that names it",
            found=f"{len(unnamed)} of {len(images)} that none names: {_some(unnamed)}",
            do="add rows for them, or move them elsewhere",
        )


def _refuse_paths(data: datasets.Dataset, column: str, roots: Sequence[str]) -> None:
    """Images that a table should hold itself, but for which it names files of this machine outside of `roots`."""
    values = data.cast_column(column, datasets.Image(decode=False)).with_format("arrow")[:][column]
    encoded = pyarrow.compute.is_valid(pyarrow.compute.struct_field(values, "bytes")).to_pylist()
    paths = pyarrow.compute.struct_field(values, "path").to_pylist()
    allowed = [Path(root).resolve() for root in roots]
    for row, (held, path) in enumerate(zip(encoded, paths, strict=True)):
        if held or not path:
            continue
        file = _resolved(Path(path))
        if file is None or not any(file.is_relative_to(root) for root in allowed):
            raise _path_instead(column, path, row)


def _path_instead(column: str, path: str, row: int) -> UserError:
    return mistake(
        expected=f"images themselves in column '{column}'",
        found=f"in row {row} the path {path}",
        do="store the images with their bytes, or give their paths in a column of text, relative to the table",
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
