"""Files and folders on this machine, before and after they are read: what is refused, and what would go unnoticed."""

import os
import zlib
from collections.abc import Iterable, Mapping
from lzma import LZMAError
from pathlib import Path

import datasets
import pandas
import pyarrow.compute
from datasets.data_files import FILES_TO_IGNORE
from datasets.utils.extract import Extractor

from hf_transfer.config import mistake
from hf_transfer.data.labels import class_name

# `datasets` takes a path for a pattern that other paths may fit, too, or for a path within an archive.
PATTERN_SIGNS = ("*", "?", "[", "]", "::")
METADATA = "metadata.csv"


def files_below(folder: Path) -> list[Path]:
    """All files at any depth, in a fixed order, but for those that describe the others."""
    found = [Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted(path for path in found if path.name not in FILES_TO_IGNORE)


def refuse_patterns(path: Path) -> None:
    """A path that would not be taken literally is refused."""
    if signs := [sign for sign in PATTERN_SIGNS if sign in str(path.absolute())]:
        raise mistake(
            expected=f"a path without {' '.join(PATTERN_SIGNS)}, which would stand for other files",
            found=f"{' '.join(signs)} in {path.absolute()}",
            do="rename the file or folder",
        )


def refuse_packed(files: Iterable[Path]) -> None:
    """Archives and compressed files are refused, whatever they are called: a few bytes can unpack to any amount."""
    for file in files:
        if kind := _packed_with(file):
            raise mistake(
                expected="data that are not packed",
                found=f"{file}, which is packed with {kind}",
                do="unpack it, look at what comes out, and move the archive out of the way",
            )


def _packed_with(file: Path) -> str | None:
    try:
        return Extractor.infer_extractor_format(file) or ("zip" if file.suffix.lower() == ".zip" else None)
    except (EOFError, LZMAError, zlib.error):
        return "something that is damaged, too"


def refuse_guessed_labels(folder: Path, columns: Iterable[str]) -> None:
    """Labels in a `metadata.csv` whose type would be guessed, and the label be another: 01 would become 1, NA none."""
    for file in (path for path in files_below(folder) if path.name == METADATA):
        written = pandas.read_csv(file, dtype=str, keep_default_na=False)
        guessed = pandas.read_csv(file)
        for column in set(columns) & set(written.columns):
            pairs = [pair for pair in zip(written[column], guessed[column], strict=True) if pair[0] != ""]
            if changed := sorted({text for text, value in pairs if value != value or text != class_name(value)}):
                raise mistake(
                    expected=f"labels in column '{column}' of {file} that are read as they are written",
                    found=f"{', '.join(map(repr, changed[:5]))}, which would be taken for numbers or for nothing",
                    do="write a metadata.jsonl with the labels as strings, or use other labels",
                )


def refuse_surplus_fields(loaded: Mapping[str, datasets.Dataset], source: Path) -> None:
    """Rows with more fields than the header: an unquoted comma would move each field to the column before."""
    if any("__index_level_0__" in split.column_names for split in loaded.values()):
        raise mistake(
            expected=f"as many fields in each row of {source} as in its first line",
            found="rows with more of them",
            do="quote fields that hold commas, or name the missing columns in the first line",
        )


def text_or_nothing(field: str) -> str | None:
    """A field of a CSV file as it is written: 007 is no number; an empty one is missing."""
    return field or None


def unused_images(folder: Path, suffixes: Iterable[str], loaded: Mapping[str, datasets.Dataset]) -> list[str]:
    """A note on images in a folder that are in no split: `datasets` leaves out what its names do not lead it to."""
    used = set()
    for split in loaded.values():
        for column in (name for name, kind in split.features.items() if isinstance(kind, datasets.Image)):
            paths = pyarrow.compute.struct_field(split.with_format("arrow")[:][column], "path").to_pylist()
            used |= {os.path.normpath(path) for path in paths if path}
    images = [
        path for path in files_below(Path(os.path.normpath(folder.absolute()))) if path.suffix.lower() in suffixes
    ]
    return _note([path for path in images if os.path.normpath(path) not in used], "images")


def unused_tables(folder: Path, builder: str, files: Iterable[Path]) -> list[str]:
    """The same of tables."""
    found = datasets.load_dataset_builder(builder, data_dir=str(folder)).config.data_files
    used = {os.path.normpath(path) for paths in found.values() for path in paths}
    return _note([file for file in files if os.path.normpath(file.absolute()) not in used], "tables")


def _note(unused: list[Path], kind: str) -> list[str]:
    # Files that begin with a dot are hidden on purpose.
    unused = [path for path in unused if not path.name.startswith(".")]
    return [f"Not used, since they are in no split: {len(unused)} {kind}, such as {unused[0]}."] if unused else []
