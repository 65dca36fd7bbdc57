"""From a name to checked splits: Hub ids, folders, files and samples."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_transfer.config import VisionConfig, mistake
from hf_transfer.data import hub_access, samples
from hf_transfer.data.images import SUFFIXES
from hf_transfer.data.labels import check_classes, read_labels
from hf_transfer.data.splits import Split, cut_stratified, few_per_class
from hf_transfer.data.verification import count_duplicates, find_bad_images

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
TABLE_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class ImageSplits:
    """Training, validation and test images with one list of class names.

    Attributes:
        label_names: class names; their positions are the class numbers.
        mirror_keeps_class: False if a mirrored image may belong to another class.
        duplicates: for validation and test, how many rows have an exact copy in training.
        notes: what was decided about the data, in sentences for the report.
    """

    train: Split
    validation: Split
    test: Split
    label_names: list[str]
    mirror_keeps_class: bool
    duplicates: dict[str, int]
    notes: list[str]

    def items(self) -> list[tuple[str, Split]]:
        """The splits with their names."""
        return [("train", self.train), ("validation", self.validation), ("test", self.test)]

    def describe(self) -> list[str]:
        """Sentences on the data, for the screen and the report."""
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.items())
        copies = [f"{count} in {name}" for name, count in self.duplicates.items() if count]
        masked = [f"{len(split.bad)} in {name}" for name, split in self.items() if split.bad]
        return [
            f"{sizes} images of {len(self.label_names)} classes.",
            *self.notes,
            *([f"Exact copies of training images: {', '.join(copies)}."] if copies else []),
            *([f"Unreadable images, masked in place: {', '.join(masked)}."] if masked else []),
        ]


def load_image_splits(config: VisionConfig) -> ImageSplits:
    """Load, check and split the images that `config.dataset_name` names.

    Raises:
        UserError: anything that a person must mend in the data or in the settings about them.
    """
    loaded, notes = _rename_splits(_load(config))
    image_column = _image_column(loaded["train"], config.image_column_name)
    label_column = _label_column(loaded["train"], config.label_column_name)
    names, labels = read_labels(loaded, label_column)
    images = {name: _images(data, image_column) for name, data in loaded.items()}
    missing = [name for name in SPLIT_NAMES if name not in loaded]
    check_classes(names, labels, splits_to_cut=len(missing))

    splits = {name: Split(data, np.arange(len(data)), labels[name]) for name, data in images.items()}
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    for name in reversed(missing):
        splits["train"], splits[name] = cut_stratified(splits["train"], fractions[name], config.split_seed)
        notes.append(f"No {name} split: {len(splits[name])} rows were cut off training, by class.")
    if config.max_train_samples_per_class is not None:
        splits["train"] = few_per_class(splits["train"], config.max_train_samples_per_class, config.seed)

    checked = {
        name: dataclasses.replace(split, bad=find_bad_images(split, name, config)) for name, split in splits.items()
    }
    return ImageSplits(
        train=checked["train"],
        validation=checked["validation"],
        test=checked["test"],
        label_names=names,
        mirror_keeps_class=config.dataset_name not in samples.NOT_TO_BE_MIRRORED,
        duplicates=count_duplicates(checked),
        notes=notes,
    )


def _load(config: VisionConfig) -> datasets.DatasetDict:
    name = config.dataset_name
    if samples.is_sample(name):
        return samples.load_sample(name)
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _load_folder(path)
        if path.is_file():
            return _load_files(path, [path])
        if _looks_like_a_path(name):
            raise mistake(
                expected="a data set: a folder or file here, a Hub id, or sample:NAME",
                found=f"no folder or file {path}",
                do="correct --dataset_name",
            )
        return _load_from_hub(config)
    except (DatasetGenerationError, EmptyDatasetError, PermissionError, ValueError) as error:
        raise mistake(
            expected=f"a data set that can be read at {name}",
            found=(str(error.__cause__ or error) or type(error).__name__).splitlines()[0],
            do="mend or remove what is named here",
        ) from error


def _load_folder(folder: Path) -> datasets.DatasetDict:
    files = sorted(Path(root, file) for root, _, names in os.walk(folder, followlinks=True) for file in names)
    tables = [file for file in files if file.suffix.lower() in TABLE_BUILDERS and not file.name.startswith("metadata.")]
    if any(file.suffix.lower() in SUFFIXES for file in files):
        _refuse_capital_splits(folder)
        return datasets.load_dataset("imagefolder", data_dir=str(folder))
    if tables:
        return _load_files(folder, tables)
    raise mistake(
        expected=f"images ({', '.join(sorted(SUFFIXES))}) or Parquet files below {folder}",
        found=f"{len(files)} files, and none of them is one",
        do="put each class in a folder of its own, as in FOLDER/cat/1.jpg, or add a metadata.csv",
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


def _load_files(source: Path, files: Sequence[Path]) -> datasets.DatasetDict:
    """Tables of one kind; a file whose name begins with a split's name belongs to that split."""
    builders = {TABLE_BUILDERS.get(file.suffix.lower()) for file in files}
    builder = builders.pop()
    if builders or builder is None:
        raise mistake(
            expected=f"files of one kind among {', '.join(TABLE_BUILDERS)}",
            found=f"{', '.join(sorted({file.suffix or file.name for file in files}))} in {source}",
            do="name one of them, or a folder that has one kind",
        )
    if source.is_dir():
        return datasets.load_dataset(builder, data_dir=str(source))
    return datasets.load_dataset(builder, data_files=str(source))


def _load_from_hub(config: VisionConfig) -> datasets.DatasetDict:
    name, revision = config.dataset_name, config.dataset_revision
    answers = hub_access.hub_answers(name, kind="dataset", revision=revision)
    try:
        with hub_access.local_files_only(not answers):
            # Without the Hub only the cached copy counts, and it is found by its name alone.
            found = datasets.load_dataset(name, config.dataset_config_name, revision=revision if answers else None)
    except (ConnectionError, DatasetNotFoundError, FileNotFoundError) as error:
        if answers:
            raise
        raise hub_access.unreachable(name, kind="dataset", setting="dataset_name") from error
    return found


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


def _label_column(data: datasets.Dataset, wanted: str | None) -> str:
    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)]
    if wanted is None and len(data.column_names) == 1:
        raise mistake(
            expected="a label for each image, of at least 2 classes",
            found="images without labels: in one folder, beside the class folders, or in a table of one column",
            do="put each class in a folder of its own, as in FOLDER/cat/1.jpg, or add a metadata.csv",
        )
    return _column(data, wanted, ("label", "labels"), candidates, "label_column_name")


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
