"""From a name to checked splits: Hub ids, folders, files and samples."""

import codecs
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_transfer.config import RunConfig, TextConfig, VisionConfig, mistake
from hf_transfer.data import hub_access, samples
from hf_transfer.data.images import SUFFIXES
from hf_transfer.data.labels import check_classes, read_labels
from hf_transfer.data.splits import Split, cut_stratified, few_per_class
from hf_transfer.data.verification import (
    count_duplicate_images,
    count_duplicate_texts,
    find_bad_images,
    find_bad_texts,
)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
TABLE_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
LABEL_NAMES = ("label", "labels")
TEXT_NAMES = ("text", "sentence", "content", "sentence1", "premise", "question1", "question")
Config = TypeVar("Config", VisionConfig, TextConfig)


@dataclass(frozen=True)
class Splits:
    """Training, validation and test samples with one list of class names.

    Attributes:
        samples: what a sample is, in the plural: images or texts.
        label_names: class names; their positions are the class numbers.
        duplicates: for validation and test, how many rows have an exact copy in training.
        notes: what was decided about the data, in sentences for the report.
        found: what the Hub says of a data set that is loaded from it.
    """

    train: Split
    validation: Split
    test: Split
    samples: str
    label_names: list[str]
    duplicates: dict[str, int]
    notes: list[str]
    found: hub_access.Found | None = None

    def items(self) -> list[tuple[str, Split]]:
        """The splits with their names."""
        return [("train", self.train), ("validation", self.validation), ("test", self.test)]

    def describe(self) -> list[str]:
        """Sentences on the data, for the screen and the report."""
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.items())
        copies = [f"{count} in {name}" for name, count in self.duplicates.items() if count]
        masked = [f"{len(split.bad)} in {name}" for name, split in self.items() if split.bad]
        return [
            f"{sizes} {self.samples} of {len(self.label_names)} classes.",
            *self.notes,
            *([f"Exact copies of training {self.samples}: {', '.join(copies)}."] if copies else []),
            *([f"Unreadable {self.samples}, masked in place: {', '.join(masked)}."] if masked else []),
        ]


def load_image_splits(config: VisionConfig) -> Splits:
    """Load, check and split the images that `config.dataset_name` names.

    Raises:
        UserError: anything that a person must mend in the data or in the settings about them.
    """
    data, found = _load(config)
    loaded, notes = _rename_splits(data)
    column = _image_column(loaded["train"], config.image_column_name)
    checked, names = _checked_splits(loaded, config, notes, partial(_images, column=column), find_bad_images)
    copies = count_duplicate_images(checked)
    return Splits(**checked, samples="images", label_names=names, duplicates=copies, notes=notes, found=found)


def load_text_splits(config: TextConfig) -> Splits:
    """Load, check and split the texts, or pairs of texts, that `config.dataset_name` names.

    Raises:
        UserError: anything that a person must mend in the data or in the settings about them.
    """
    data, found = _load(config)
    loaded, notes = _rename_splits(data)
    columns = _text_columns(loaded["train"], config)
    label = _label_column(loaded["train"], config.label_column_name)
    unused = [
        name for name, kind in loaded["train"].features.items() if _is_text(kind) and name not in (*columns, label)
    ]
    notes += [f"Columns of text that are not used: {', '.join(unused)}."] if unused else []
    checked, names = _checked_splits(loaded, config, notes, partial(_texts, columns=columns), find_bad_texts)
    copies = count_duplicate_texts(checked)
    return Splits(**checked, samples="texts", label_names=names, duplicates=copies, notes=notes, found=found)


def _checked_splits(
    loaded: datasets.DatasetDict, config: Config, notes: list[str],
    select: Callable[[datasets.Dataset], datasets.Dataset], find_bad: Callable[[Split, str, Config], dict[int, str]],
) -> tuple[dict[str, Split], list[str]]:  # fmt: skip
    """All three splits with their labels, missing ones cut off training, and the class names."""
    label_column = _label_column(loaded["train"], config.label_column_name)
    names, labels = read_labels(loaded, label_column)
    samples = {name: select(data) for name, data in loaded.items()}
    missing = [name for name in SPLIT_NAMES if name not in loaded]
    check_classes(names, labels, splits_to_cut=len(missing))

    splits = {name: Split(data, np.arange(len(data)), labels[name]) for name, data in samples.items()}
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    for name in reversed(missing):
        splits["train"], splits[name] = cut_stratified(splits["train"], fractions[name], config.split_seed)
        notes.append(f"No {name} split: {len(splits[name])} rows were cut off training, by class.")
    if config.max_train_samples_per_class is not None:
        splits["train"] = few_per_class(splits["train"], config.max_train_samples_per_class, config.seed)
    bad = {name: find_bad(split, name, config) for name, split in splits.items()}
    return {name: dataclasses.replace(splits[name], bad=bad[name]) for name in SPLIT_NAMES}, names


def _load(config: RunConfig) -> tuple[datasets.DatasetDict, hub_access.Found | None]:
    name = config.dataset_name
    if samples.is_sample(name):
        return samples.load_sample(name), None
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _load_folder(path, config.encoding), None
        if path.is_file():
            return _load_files(path, [path], config.encoding), None
        if _looks_like_a_path(name):
            raise mistake(
                expected="a data set: a folder or file here, a Hub id, or sample:NAME",
                found=f"no folder or file {path}",
                do="correct --dataset_name",
            )
        return _load_from_hub(config)
    except (DatasetGenerationError, EmptyDatasetError, PermissionError, ValueError) as error:
        _refuse_other_encoding(path, config.encoding)
        raise mistake(
            expected=f"a data set that can be read at {name}",
            found=(str(error.__cause__ or error) or type(error).__name__).splitlines()[0],
            do="mend or remove what is named here",
        ) from error


def _refuse_other_encoding(path: Path, encoding: str) -> None:
    """Name the first bytes of CSV and JSON files that are no text in `encoding`."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if TABLE_BUILDERS.get(file.suffix.lower()) not in ("csv", "json"):
            continue
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    line.decode(encoding)
                except UnicodeDecodeError as error:
                    raise mistake(
                        expected=f"text in {encoding} in {file}",
                        found=f"line {number}: byte 0x{line[error.start]:02x} at column {error.start + 1}",
                        do="name the file's encoding, --encoding latin-1 or cp1252, say, or save it as UTF-8",
                    ) from error


def _load_folder(folder: Path, encoding: str) -> datasets.DatasetDict:
    files = sorted(Path(root, file) for root, _, names in os.walk(folder, followlinks=True) for file in names)
    tables = [file for file in files if file.suffix.lower() in TABLE_BUILDERS and not file.name.startswith("metadata.")]
    if any(file.suffix.lower() in SUFFIXES for file in files):
        _refuse_capital_splits(folder)
        return datasets.load_dataset("imagefolder", data_dir=str(folder))
    if tables:
        return _load_files(folder, tables, encoding)
    raise mistake(
        expected=f"images ({', '.join(sorted(SUFFIXES))}) or tables ({', '.join(TABLE_BUILDERS)}) below {folder}",
        found=f"{len(files)} files, and none of them is one",
        do="for images put each class in a folder of its own, as in FOLDER/cat/1.jpg; for texts write a train.csv",
    )


def _refuse_capital_splits(folder: Path) -> None:
    """Folders named Train and Test would be read as one split, and test images be trained on."""
    known = {name for names in SPLIT_NAMES.values() for name in names}
    capital = [path.name for path in sorted(folder.iterdir()) if path.name.lower() in known - {path.name}]
    if capital:
        raise mistake(
            expected=f"split folders in lower case in {folder}",
            found=", ".join(capital),
            do=f"rename them: {', '.join(name.lower() for name in capital)}",
        )


def _load_files(source: Path, files: Sequence[Path], encoding: str) -> datasets.DatasetDict:
    """Tables of one kind; a file whose name begins with a split's name belongs to that split."""
    builders = {TABLE_BUILDERS.get(file.suffix.lower()) for file in files}
    builder = builders.pop()
    if builders or builder is None:
        raise mistake(
            expected=f"files of one kind among {', '.join(TABLE_BUILDERS)}",
            found=f"{', '.join(sorted({file.suffix or file.name for file in files}))} in {source}",
            do="name one of them, or a folder that has one kind",
        )
    options: dict[str, Any] = {} if builder == "parquet" else {"encoding": encoding}
    if builder == "csv":
        # Only an empty field is missing: pandas would also drop texts and labels such as None, NA, null or nan.
        options |= {"keep_default_na": False, "na_values": [""]}
    if builder == "json" and codecs.lookup(encoding).name == "utf-8":
        # Arrow takes these bytes as they are, and fails much later, wherever a text is looked at.
        for file in files:
            _refuse_other_encoding(file, encoding)
    if all(file.suffix.lower() == ".tsv" for file in files):
        options["sep"] = "\t"
    if source.is_dir():
        return datasets.load_dataset(builder, data_dir=str(source), **options)
    return datasets.load_dataset(builder, data_files=str(source), **options)


def _load_from_hub(config: RunConfig) -> tuple[datasets.DatasetDict, hub_access.Found | None]:
    name = config.dataset_name
    found = hub_access.ask_hub(name, kind="dataset", revision=config.dataset_revision)
    try:
        with hub_access.local_files_only(found is None):
            # Without the Hub only the cached copy counts, and it is found by its name alone.
            data = datasets.load_dataset(name, config.dataset_config_name, revision=found.commit if found else None)
    except (ConnectionError, DatasetNotFoundError, FileNotFoundError) as error:
        if found:
            raise
        raise hub_access.unreachable(name, kind="dataset", setting="dataset_name") from error
    return data, found


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix.lower() in TABLE_BUILDERS


def _rename_splits(loaded: datasets.DatasetDict) -> tuple[datasets.DatasetDict, list[str]]:
    """The splits under our three names, and a note about those that are not used."""
    renamed = {}
    for ours, theirs in SPLIT_NAMES.items():
        for name in theirs:
            if name in loaded:
                renamed[ours] = loaded[name]
                break
    if "train" not in renamed:
        raise mistake(
            expected=f"a training split, named {' or '.join(SPLIT_NAMES['train'])}",
            found=f"the splits {', '.join(loaded)}",
            do="rename the split (for a folder: its sub-folder) that is for training",
        )
    unused = [name for name in loaded if all(loaded[name] is not kept for kept in renamed.values())]
    notes = [f"Splits not used: {', '.join(unused)}."] if unused else []
    return datasets.DatasetDict(renamed), notes


def _image_column(data: datasets.Dataset, wanted: str | None) -> str:
    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    return _column(data, wanted, ("image", "img"), candidates, "image_column_name")


def _images(data: datasets.Dataset, column: str) -> datasets.Dataset:
    """The images alone, as encoded bytes or paths, in a column named `image`."""
    try:
        encoded = data.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise mistake(
            expected=f"images or paths to images in column '{column}'",
            found=str(data.features[column]),
            do="name the column with the images in --image_column_name",
        ) from error
    images = encoded.select_columns([column])
    return images if column == "image" else images.rename_column(column, "image")


def _text_columns(data: datasets.Dataset, config: TextConfig) -> list[str]:
    """The column of texts, and that of their pairs if there is one."""
    label = config.label_column_name or next((name for name in LABEL_NAMES if name in data.column_names), None)
    candidates = [name for name, feature in data.features.items() if name != label and _is_text(feature)]
    columns = [_column(data, config.text_column_name, TEXT_NAMES, candidates, "text_column_name")]
    if config.text_pair_column_name is not None:
        columns.append(_column(data, config.text_pair_column_name, (), [], "text_pair_column_name"))
        if columns[0] == columns[1]:
            raise mistake(
                expected="two columns for --text_column_name and --text_pair_column_name",
                found=f"'{columns[0]}' for both",
                do="name the other column, or leave --text_pair_column_name out",
            )
    for name in columns:
        # A column without any value has no type; its rows are named one by one.
        if not _is_text(data.features[name]) and data.features[name] != datasets.Value("null"):
            raise mistake(
                expected=f"text in column '{name}'",
                found=_kind(data.features[name]),
                do="name the column with the texts in --text_column_name, or join the parts of each text beforehand",
            )
    return columns


def _is_text(feature: object) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _kind(feature: object) -> str:
    if isinstance(feature, datasets.Value):
        return f"values of type {feature.dtype}"
    return "lists" if isinstance(feature, list | datasets.List | datasets.LargeList) else type(feature).__name__


def _texts(data: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    """The texts alone, in a column named `text`, and their pairs in `text_pair`."""
    chosen = data.select_columns(list(dict.fromkeys(columns)))
    renamed = {old: new for old, new in zip(columns, ("text", "text_pair"), strict=False) if old != new}
    return chosen.rename_columns(renamed) if renamed else chosen


def _label_column(data: datasets.Dataset, wanted: str | None) -> str:
    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)]
    if wanted is None and len(data.column_names) == 1:
        raise mistake(
            expected="a label for each sample, of at least 2 classes",
            found="samples without labels: images in one folder or beside the class folders, or a table of one column",
            do="put images of each class in a folder of their own, as in FOLDER/cat/1.jpg; give tables a column label",
        )
    return _column(data, wanted, LABEL_NAMES, candidates, "label_column_name")


def _column(
    data: datasets.Dataset, wanted: str | None, usual: Sequence[str], candidates: Sequence[str], setting: str
) -> str:
    """The wanted column; else one with a usual name; else the only one of the right type."""
    existing = data.column_names
    if wanted is not None:
        if wanted in existing:
            return wanted
        found = f"no column {wanted!r}; there are {', '.join(existing)}"
    else:
        named = [name for name in usual if name in existing]
        if named or len(candidates) == 1:
            return (named or list(candidates))[0]
        found = f"the columns {', '.join(existing)}"
    raise mistake(expected=f"the column for --{setting}", found=found, do=f"set --{setting} to one of these")
