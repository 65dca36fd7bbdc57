"""From a name to checked splits: Hub ids, folders, files and samples."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_transfer.config import RunConfig, TextConfig, VisionConfig, mistake
from hf_transfer.data import columns, files, hub_access, samples
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
Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Splits:
    """Training, validation and test samples with one list of class names.

    Attributes:
        samples: what a sample is, in the plural: images, texts or pairs.
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
    loaded, notes, found = _loaded(config)
    column = columns.image_column(loaded["train"], config.image_column_name)
    checked, names = checked_splits(loaded, config, notes, partial(columns.images, column=column), find_bad_images)
    copies = count_duplicate_images(checked)
    return Splits(**checked, samples="images", label_names=names, duplicates=copies, notes=notes, found=found)


def load_text_splits(config: TextConfig) -> Splits:
    """Load, check and split the texts, or pairs of texts, that `config.dataset_name` names.

    Raises:
        UserError: anything that a person must mend in the data or in the settings about them.
    """
    loaded, notes, found = _loaded(config)
    chosen = columns.text_columns(loaded["train"], config)
    label = columns.label_column(loaded["train"], config.label_column_name)
    notes += columns.unused_texts(loaded["train"], (*chosen, label))
    checked, names = checked_splits(loaded, config, notes, partial(columns.texts, columns=chosen), find_bad_texts)
    copies = count_duplicate_texts(checked)
    return Splits(**checked, samples="texts", label_names=names, duplicates=copies, notes=notes, found=found)


def _loaded(config: RunConfig) -> tuple[datasets.DatasetDict, list[str], hub_access.Found | None]:
    """The splits by our names, notes on what of the data is not used, and what the Hub says of them."""
    data, found = load(config, _read)
    loaded, notes = rename_splits(data)
    return loaded, notes + _unused_files(config, loaded), found


def checked_splits(
    loaded: datasets.DatasetDict, config: RunConfig, notes: list[str],
    select: Callable[[datasets.Dataset], datasets.Dataset], find_bad: Callable[[Split, str, RunConfig], dict[int, str]],
) -> tuple[dict[str, Split], list[str]]:  # fmt: skip
    """All three splits with their labels, missing ones cut off training, and the class names."""
    label_column = columns.label_column(loaded["train"], config.label_column_name)
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


def load(
    config: Config, read: Callable[[Path, Config], datasets.DatasetDict]
) -> tuple[datasets.DatasetDict, hub_access.Found | None]:
    """The data set that `config.dataset_name` names, and what the Hub says of it; what lies here is read by `read`."""
    name = config.dataset_name
    if samples.is_sample(name):
        return samples.load_sample(name), None
    path, found = Path(name).expanduser(), None
    try:
        if path.exists():
            files.refuse_patterns(path)
            loaded = read(path, config)
        elif _looks_like_a_path(name):
            raise mistake(
                expected="a data set: a folder or file here, a Hub id, or sample:NAME",
                found=f"no folder or file {path}",
                do="correct --dataset_name",
            )
        else:
            loaded, found = _load_from_hub(config)
        for split in loaded.values():
            # Texts that are none, which Arrow has taken as they are: they would be noticed wherever one is looked at.
            split.data.table.validate(full=True)
        return loaded, found
    except (DatasetGenerationError, OSError, ValueError, TypeError, RuntimeError, StopIteration) as error:
        _refuse_other_encoding(path, config.encoding)
        empty = isinstance(error, StopIteration)
        raise mistake(
            expected=f"a data set that can be read at {name}",
            found="no rows" if empty else (str(error.__cause__ or error) or type(error).__name__).splitlines()[0],
            do="mend or remove what is named here" + ("" if path.exists() else ", or repeat the command"),
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


def _read(path: Path, config: RunConfig) -> datasets.DatasetDict:
    return _load_folder(path, config) if path.is_dir() else load_tables(path, [path], config)


def _load_folder(folder: Path, config: RunConfig) -> datasets.DatasetDict:
    images, tables = _images_and_tables(folder)
    if images:
        _refuse_capital_splits(folder)
        # These, datasets would unpack.
        files.refuse_packed(file for file in files.files_below(folder) if file.suffix.lower() == ".zip")
        files.refuse_guessed_labels(folder, (config.label_column_name or "", *columns.LABEL_NAMES))
        return datasets.load_dataset("imagefolder", data_dir=str(folder))
    if tables:
        return load_tables(folder, tables, config)
    raise mistake(
        expected=f"images ({', '.join(sorted(SUFFIXES))}) or tables ({', '.join(TABLE_BUILDERS)}) below {folder}",
        found=f"{len(files.files_below(folder))} files, and none of them is one",
        do="for images put each class in a folder of its own, as in FOLDER/cat/1.jpg; for texts write a train.csv",
    )


def _images_and_tables(folder: Path) -> tuple[list[Path], list[Path]]:
    found = files.files_below(folder)
    tables = [file for file in found if file.suffix.lower() in TABLE_BUILDERS and not file.name.startswith("metadata.")]
    return [file for file in found if file.suffix.lower() in SUFFIXES], tables


def _unused_files(config: RunConfig, loaded: datasets.DatasetDict) -> list[str]:
    folder = Path(config.dataset_name).expanduser()
    if samples.is_sample(config.dataset_name) or not folder.is_dir():
        return []
    images, tables = _images_and_tables(folder)
    if images:
        return files.unused_images(folder, SUFFIXES, loaded)
    return files.unused_tables(folder, TABLE_BUILDERS[tables[0].suffix.lower()], tables)


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


def load_tables(source: Path, tables: Sequence[Path], config: RunConfig) -> datasets.DatasetDict:
    """Tables of one kind; a file whose name begins with a split's name belongs to that split."""
    builders = {TABLE_BUILDERS.get(file.suffix.lower()) for file in tables}
    builder = builders.pop()
    if builders or builder is None:
        raise mistake(
            expected=f"files of one kind among {', '.join(TABLE_BUILDERS)}",
            found=f"{', '.join(sorted({file.suffix or file.name for file in tables}))} in {source}",
            do="name one of them, or a folder that has one kind",
        )
    files.refuse_packed(tables)
    options: dict[str, Any] = {} if builder == "parquet" else {"encoding": config.encoding}
    if builder == "csv":
        # Only an empty field is missing: pandas would also drop texts and labels such as None, NA, null or nan.
        options |= {"keep_default_na": False, "na_values": [""], "converters": _read_as_text(config)}
    if builder == "json":
        options["parse_agent_traces"] = False
    if all(file.suffix.lower() == ".tsv" for file in tables):
        options["sep"] = "\t"
    where = {"data_dir": str(source)} if source.is_dir() else {"data_files": str(source)}
    loaded = datasets.load_dataset(builder, **where, **options)
    files.refuse_surplus_fields(loaded, source)
    return loaded


def _read_as_text(config: RunConfig) -> dict[str, Callable[[str], str | None]]:
    """The columns of labels and texts, of which a CSV file does not say that they are no numbers."""
    settings = ("label_column_name", "text_column_name", "text_pair_column_name")
    named = [name for setting in settings if (name := getattr(config, setting, None))]
    return dict.fromkeys([*named, *columns.LABEL_NAMES, *columns.TEXT_NAMES], files.text_or_nothing)


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


def rename_splits(loaded: datasets.DatasetDict) -> tuple[datasets.DatasetDict, list[str]]:
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
