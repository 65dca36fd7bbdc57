"""Files and folders on this machine: checks before and after they are read, and notes on files that are not used."""

import os
import zlib
from collections.abc import Collection, Iterable, Mapping, Set
from lzma import LZMAError
from pathlib import Path

import datasets
import pandas
import pyarrow.compute
from datasets.data_files import FILES_TO_IGNORE
from datasets.utils.extract import Extractor

from hf_transfer.errors import user_error
from hf_transfer.targets.class_labels import class_name, fractions_among

# `datasets` reads a path with these as a pattern that matches other paths, too, or as a path inside an archive.
PATTERN_SIGNS = ("*", "?", "[", "]", "::")
METADATA = "metadata.csv"


def files_below(folder: Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """All files at any depth in a fixed order, except for those that `datasets` ignores, such as README.md.

    Args:
        folder: links in it are followed.
        suffixes: only files with these, in lower case.
    """
    paths = [Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names]
    chosen = [path for path in paths if suffixes is None or path.suffix.lower() in suffixes]
    return sorted(path for path in chosen if path.name not in FILES_TO_IGNORE)


def refuse_patterns(path: Path) -> None:
    """Refuse a path that `datasets` would read as a pattern."""
    if signs := [sign for sign in PATTERN_SIGNS if sign in str(path.absolute())]:
        raise user_error(
            expected=f"a path without {' '.join(PATTERN_SIGNS)}, which would be read as a pattern",
            found=f"{' '.join(signs)} in {path.absolute()}",
            do="rename the file or folder",
        )


def refuse_compressed(files: Iterable[Path]) -> None:
    """Refuse archives and compressed files, whatever their names are: a few bytes can unpack to any amount."""
    for file in files:
        if kind := _compression(file):
            raise user_error(
                expected="data that are not compressed",
                found=f"{file}, which is compressed with {kind}",
                do="unpack it, check what comes out, and move the archive elsewhere",
            )


def _compression(file: Path) -> str | None:
    try:
        return Extractor.infer_extractor_format(file) or ("zip" if file.suffix.lower() == ".zip" else None)
    except (EOFError, LZMAError, zlib.error):
        return "a format that cannot be read, or is damaged"


def refuse_guessed_labels(folder: Path, columns: Iterable[str]) -> None:
    """Refuse labels in a `metadata.csv` that pandas would change, since it guesses types: 01 becomes 1, NA nothing."""
    for file in (path for path in files_below(folder) if path.name == METADATA):
        as_written = pandas.read_csv(file, dtype=str, keep_default_na=False)
        as_guessed = pandas.read_csv(file)
        for column in set(columns) & set(as_written.columns):
            if fractions_among([text for text in as_written[column] if text]):
                # Measurements, not names: 1.0 and 1 are the same.
                continue
            pairs = [pair for pair in zip(as_written[column], as_guessed[column], strict=True) if pair[0] != ""]
            # NaN, which stands for a missing value, is the only one that differs from itself.
            if changed := sorted({text for text, value in pairs if value != value or text != class_name(value)}):
                raise user_error(
                    expected=f"labels in column '{column}' of {file} that are read as they are written",
                    found=f"{', '.join(map(repr, changed[:5]))}, which would be read as numbers or as missing",
                    do="write a metadata.jsonl with the labels as strings, or use other labels",
                )


def unused_images(images: Iterable[Path], loaded: Mapping[str, datasets.Dataset]) -> list[str]:
    """A note on images that are in no split: `datasets` skips files whose names it does not expect."""
    used = set()
    for split in loaded.values():
        for column in (name for name, kind in split.features.items() if isinstance(kind, datasets.Image)):
            paths = pyarrow.compute.struct_field(split.with_format("arrow")[:][column], "path").to_pylist()
            used |= {os.path.normpath(path) for path in paths if path}
    return _note([Path(os.path.normpath(image.absolute())) for image in images], used, "images")


def _note(files: Iterable[Path], used: Set[str], kind: str) -> list[str]:
    """A note on the files that are not used; those that begin with a dot are hidden on purpose."""
    unused = [file for file in files if os.path.normpath(file.absolute()) not in used and not file.name.startswith(".")]
    return [f"Not used, since they are in no split: {len(unused)} {kind}, such as {unused[0]}."] if unused else []
