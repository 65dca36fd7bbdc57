"""Images with texts in tables, which hold paths of images or the images themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pyarrow.compute

from hf_transfer.data import columns
from hf_transfer.data.files import Tree, walk
from hf_transfer.data.hub_access import is_hub_id
from hf_transfer.data.picture_folders import joined, labels_in, read_tables, splits_of
from hf_transfer.data.picture_tables import (
    PATH_NAME,
    PictureFinder,
    embedded_columns,
    path_column,
    real,
    resolved,
    splits_named,
    tables_in,
    with_pictures,
)  # fmt: skip
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.data.sources import Loaded
from hf_transfer.data.tables import TABLE_BUILDERS
from hf_transfer.data.text_checks import fault_of_texts
from hf_transfer.errors import some, user_error
from hf_transfer.modalities.image import MISSING, Reader, picture_in
from hf_transfer.modalities.modality import LocatedSample, Wanted
from hf_transfer.modalities.sample_tables import SampleTable, chosen_columns, refuse_missing, table_at
from hf_transfer.settings.run import MultimodalConfig

if TYPE_CHECKING:
    import datasets

# Why there can be no answer.
NEITHER = "neither an image nor a text"


def select_pairs(data: datasets.Dataset, image: str, text: str, dataset_name: str) -> datasets.Dataset:
    """The columns `image`, not decoded, and `text`; a text of white space counts as missing.

    Args:
        data: a split.
        image: the column of images.
        text: the column of texts.
        dataset_name: as the user named the data set.
    """
    import datasets

    columns.refuse_other_values(data, text)
    texts = [value if value is not None and value.strip() else None for value in data[text][:]]
    images = columns.images(data, image)
    # A data set of somebody else must not read files of this machine; a program that passes its own data may name them.
    if is_hub_id(dataset_name):
        caches = (huggingface_hub.constants.HF_HOME, huggingface_hub.constants.HF_HUB_CACHE)
        _refuse_paths(images, "image", (*caches, str(datasets.config.HF_DATASETS_CACHE)))
    features = datasets.Features({"text": datasets.Value("large_string")})
    return datasets.concatenate_datasets([images, datasets.Dataset.from_dict({"text": texts}, features)], axis=1)


def read_pairs(path: Path, config: MultimodalConfig, text_columns: Sequence[str]) -> Loaded:
    """A table that names images, or a folder of tables with their images; see `data/picture_tables.py`.

    Args:
        path: a table, or the folder.
        config: how tables are read, and the column of images if it is set.
        text_columns: columns that are read as text even if their values look like numbers.

    Raises:
        UserError: paths that leave the folder or do not exist, images that no row names, tables with other columns.
    """
    is_folder = path.is_dir()
    folder = path if is_folder else path.parent
    tree = walk(path) if is_folder else None
    split_of, notes = _tables(folder, tree) if tree else ({path: "train"}, [])
    read = read_tables(list(split_of), config.data, text_columns, path)
    rows = {table: one.data for table, one in read.items()}
    wanted = config.image.image_column_name
    finder = PictureFinder(folder, tree, anywhere=not is_folder)
    column = path_column(rows, finder, wanted, labels_in(config.data))
    embedded = [(data, name) for data in rows.values() for name in embedded_columns(data)] if column is None else []
    for data, name in embedded:
        _refuse_paths(data, name, ())
    named: set[Path] = set()
    if column is not None:
        rows, named = with_pictures(read, column, finder, name=wanted or column, all_exist=True)
    whole = joined({table: read[table]._replace(data=data) for table, data in rows.items()}, split_of, config.data)
    if tree and (column is not None or embedded):
        _refuse_unnamed(folder, tree, named)
    return Loaded(whole.data, origins=whole.origins, notes=[*whole.notes, *notes])


def _tables(folder: Path, tree: Tree) -> tuple[dict[Path, str], list[str]]:
    """The tables below a folder, each with its split, and notes on tables that are not used."""
    tables, notes = tables_in(tree)
    if not tables:
        raise user_error(
            expected=f"tables ({', '.join(TABLE_BUILDERS)}) of images and texts below {folder}",
            found="none",
            do=f"write a metadata.csv beside the images, with the columns {PATH_NAME}, text and label",
        )
    return splits_of(folder, splits_named(folder, tables), tables), notes


def _refuse_unnamed(folder: Path, tree: Tree, named: set[Path]) -> None:
    images = [file for file in tree.files if file.suffix.lower() in SUFFIXES]
    unnamed = [str(file.relative_to(folder)) for file in images if real(file) not in named]
    if unnamed:
        raise user_error(
            expected=f"for each image below {folder} a row that names it",
            found=f"{len(unnamed)} of {len(images)} that no row names: {some(unnamed)}",
            do="add rows for them, or move them elsewhere",
        )


def _refuse_paths(data: datasets.Dataset, column: str, roots: Sequence[str]) -> None:
    """Refuse images that are not embedded in a table, but files of this machine outside of `roots`."""
    import datasets

    values = data.cast_column(column, datasets.Image(decode=False)).with_format("arrow")[:][column]
    encoded = pyarrow.compute.is_valid(pyarrow.compute.struct_field(values, "bytes")).to_pylist()
    paths = pyarrow.compute.struct_field(values, "path").to_pylist()
    allowed = [Path(root).resolve() for root in roots]
    for row, (embedded, path) in enumerate(zip(encoded, paths, strict=True)):
        if embedded or not path:
            continue
        file = resolved(Path(path))
        if file is None or not any(file.is_relative_to(root) for root in allowed):
            raise user_error(
                expected=f"embedded images in column '{column}'",
                found=f"in row {row} the path {path}",
                do="embed the images with their bytes, or give their paths in a column of text, relative to the table",
            )


def table_of_pairs(path: Path, wanted: Wanted, saved: Mapping[str, Any]) -> tuple[SampleTable, str | None, str | None]:
    """A table of pairs to predict, and its columns of images and of texts.

    Args:
        path: of the table.
        wanted: the settings that name columns, by name.
        saved: the columns of the training data, by the setting that names each.

    Raises:
        UserError: it lacks a column, or cannot be read.
    """
    table = table_at(path, wanted, saved)
    existing = table.data.column_names
    usual = {
        "text_column_name": columns.by_name(existing, columns.TEXT),
        "image_column_name": columns.by_name(existing, columns.IMAGE),
    }
    chosen = chosen_columns(existing, usual, wanted, saved)
    refuse_missing(
        path, chosen.values(), existing, expected="of texts, or one of paths of images",
        do="name them in --text_column_name and --image_column_name",
    )  # fmt: skip
    if text := chosen.get("text_column_name"):
        columns.refuse_other_values(table.data, text)
    return table, chosen.get("image_column_name"), text


def pairs_in(tables: Sequence[tuple[SampleTable, str | None, str | None]], read: Reader) -> Iterator[LocatedSample]:
    """The pairs in tables, one by one.

    Args:
        tables: each with its columns of images and of texts.
        read: see `image.reader_of`.
    """
    for table, image, text in tables:
        path_of = partial(PictureFinder(table.path.parent, anywhere=True).path, table=table.path)
        for row, line, values in table.rows([name for name in (image, text) if name]):
            words, value = (values[name] if name else None for name in (text, image))
            words = words if words and words.strip() else None
            picture, fault = picture_in(value, path_of, read)
            if picture is None and fault == MISSING:
                fault = "" if words else NEITHER
            if words and not fault:
                fault = fault_of_texts([words])
            yield LocatedSample(table.path, row, (picture, words), fault, line)
