"""Images with texts in tables, which hold paths of images or the images themselves."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow.compute

from hf_transfer.data import columns
from hf_transfer.data.files import files_below
from hf_transfer.data.hub_access import is_hub_id
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.data.sources import Loaded
from hf_transfer.data.split_names import notes_on_files, split_of
from hf_transfer.data.tables import TABLE_BUILDERS, joined, read_each, refuse_other_columns
from hf_transfer.errors import some, user_error
from hf_transfer.settings.run import MultimodalConfig

METADATA = "metadata"
# The column of an imagefolder's metadata with the paths of images.
PATH_NAME = "file_name"
Tables = Mapping[Path, datasets.Dataset]


def select_pairs(data: datasets.Dataset, image: str, text: str, dataset_name: str) -> datasets.Dataset:
    """The columns `image`, not decoded, and `text`; a text of white space counts as missing.

    Args:
        data: a split.
        image: the column of images.
        text: the column of texts.
        dataset_name: as the user named the data set.
    """
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
    """Tables, or a folder of them with their images; a table's paths are relative to its own folder.

    Args:
        path: a table, or the folder.
        config: how tables are read, and the column of images if it is set.
        text_columns: columns that are read as text even if their values look like numbers.

    Raises:
        UserError: paths that leave the folder or do not exist, images that no row names, tables with other columns.
    """
    folder = path if path.is_dir() else path.parent
    splits = _tables(folder) if path.is_dir() else {"train": [path]}
    files = [file for split_files in splits.values() for file in split_files]
    read = read_each(files, config.data, text_columns, path)
    tables: Tables = {file: table.data for file, table in read.items()}
    refuse_other_columns(tables)
    column = _path_column(list(tables.values()), config.image.image_column_name)
    embedded = [(data, name) for data in tables.values() for name in _embedded(data)] if column is None else []
    for data, name in embedded:
        _refuse_paths(data, name, ())
    named: set[str] = set()
    if column is not None:
        tables, named = _with_files(tables, column, folder.resolve())
    if path.is_dir() and (column is not None or embedded):
        _refuse_unnamed(folder, named)
    notes = notes_on_files(folder, splits, []) + [note for table in read.values() for note in table.notes]
    with_images = {file: table._replace(data=tables[file]) for file, table in read.items()}
    whole = joined({split: {file: with_images[file] for file in splits[split]} for split in splits})
    return Loaded(whole.data, origins=whole.origins, notes=notes)


def _tables(folder: Path) -> dict[str, list[Path]]:
    """The tables of each split below a folder: those named `metadata` if there are any, else all."""
    visible = _visible(folder, TABLE_BUILDERS)
    tables = [file for file in visible if file.stem == METADATA] or visible
    if not tables:
        raise user_error(
            expected=f"tables ({', '.join(TABLE_BUILDERS)}) of images and texts below {folder}",
            found="none",
            do=f"write a metadata.csv beside the images, with the columns {PATH_NAME}, text and label",
        )
    names = {table: split_of(table.relative_to(folder)) for table in tables}
    unknown = [str(table.relative_to(folder)) for table, split in names.items() if split is None]
    if 0 < len(unknown) < len(tables):
        raise user_error(
            expected=f"tables in {folder} that all name their split, as train.csv or test/metadata.csv do",
            found=f"{some(unknown)}, beside others that do",
            do="rename these or move them elsewhere",
        )
    splits: dict[str, list[Path]] = {}
    for table, split in names.items():
        splits.setdefault(split or "train", []).append(table)
    return splits


def _visible(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files below a folder that have one of these suffixes and are not hidden."""
    files = files_below(folder, suffixes)
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _path_column(tables: Sequence[datasets.Dataset], wanted: str | None) -> str | None:
    """The column of paths of images: as set, or with a usual name, or the only one whose first value is such a path.

    None if the tables hold the images themselves.
    """
    if wanted is None and any(_embedded(data) for data in tables):
        return None
    for data in tables:
        text = [name for name, kind in data.features.items() if columns.is_text(kind)]
        usual = [PATH_NAME] if PATH_NAME in text else columns.by_name(text, columns.IMAGE)
        likely = columns.likely_paths(data, text)
        chosen = [name for name in text if name == wanted] if wanted else usual if len(usual) == 1 else likely
        if len(chosen) == 1:
            return chosen[0]
    return None


def _embedded(data: datasets.Dataset) -> list[str]:
    """The columns whose type is that of images, or can be read as images."""
    kinds = data.features.items()
    return [
        name for name, kind in kinds if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "path" in kind)
    ]


def _with_files(tables: Tables, column: str, root: Path) -> tuple[dict[Path, datasets.Dataset], set[str]]:
    """The tables with images in the place of their paths, None for rows without one; and the paths of all files.

    Raises:
        UserError: a path leaves the folder of the data, or there is no such file.
    """
    outside, missing = [], []
    changed, named = {}, set()
    for table, data in tables.items():
        images: list[dict[str, str | None] | None] = []
        for row, name in enumerate(data[column][:]):
            if name is None or not str(name).strip():
                images.append(None)
                continue
            file = _resolved(table.parent / str(name))
            where = f"{name} in row {row} of {table.name}"
            if Path(str(name)).is_absolute() or (file is not None and not file.is_relative_to(root)):
                outside.append(where)
            elif file is None or not file.is_file():
                missing.append(where)
            images.append({"bytes": None, "path": str(file)})
            named.add(str(file))
        feature = datasets.Image(decode=False)
        changed[table] = data.remove_columns(column).add_column(column, images, feature=feature)
    if outside:
        raise user_error(
            expected=f"paths of images that stay in {root}, relative to their table",
            found=f"{len(outside)} that leave it: {some(outside)}",
            do="copy these images into the folder, and name them from there",
        )
    if missing:
        raise user_error(
            expected=f"files for all images that column '{column}' names",
            found=f"{len(missing)} that do not exist: {some(missing)}",
            do="correct these paths (rows are counted from 0); leave the field empty if there is no image",
        )
    return changed, named


def _resolved(path: Path) -> Path | None:
    """The path after following links; None if it cannot be a path."""
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        # It is too long, has a null byte, leads through a file, or its links form a loop: there is no such file.
        return None


def _refuse_unnamed(folder: Path, named: set[str]) -> None:
    images = _visible(folder, SUFFIXES)
    unnamed = [str(file.relative_to(folder)) for file in images if str(file.resolve()) not in named]
    if unnamed:
        raise user_error(
            expected=f"for each image below {folder} a row that names it",
            found=f"{len(unnamed)} of {len(images)} that no row names: {some(unnamed)}",
            do="add rows for them, or move them elsewhere",
        )


def _refuse_paths(data: datasets.Dataset, column: str, roots: Sequence[str]) -> None:
    """Refuse images that are not embedded in a table, but files of this machine outside of `roots`."""
    values = data.cast_column(column, datasets.Image(decode=False)).with_format("arrow")[:][column]
    encoded = pyarrow.compute.is_valid(pyarrow.compute.struct_field(values, "bytes")).to_pylist()
    paths = pyarrow.compute.struct_field(values, "path").to_pylist()
    allowed = [Path(root).resolve() for root in roots]
    for row, (embedded, path) in enumerate(zip(encoded, paths, strict=True)):
        if embedded or not path:
            continue
        file = _resolved(Path(path))
        if file is None or not any(file.is_relative_to(root) for root in allowed):
            raise user_error(
                expected=f"embedded images in column '{column}'",
                found=f"in row {row} the path {path}",
                do="embed the images with their bytes, or give their paths in a column of text, relative to the table",
            )
