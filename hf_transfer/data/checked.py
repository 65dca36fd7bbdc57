"""From a loaded data set to checked splits: columns, targets, missing splits, unreadable samples, copies."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import datasets
import numpy as np

from hf_transfer.data import columns, verification
from hf_transfer.data.sources import Loaded, load, read_files, rename_splits, unused_files
from hf_transfer.data.split_names import SPLIT_NAMES
from hf_transfer.data.splits import Split, Splits, cut_stratified, few_of_each
from hf_transfer.errors import user_error
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.table import target_of
from hf_transfer.targets.target import OPTIONAL_SETTINGS

# The settings that name columns which are read as they are written, of all modalities.
TEXT_SETTINGS = ("label_column_name", "text_column_name", "text_pair_column_name", "image_column_name")


class Selected(NamedTuple):
    """The samples of a data set.

    Attributes:
        splits: the columns of the samples alone.
        columns: the columns that were chosen, by the setting that names each.
    """

    splits: dict[str, datasets.Dataset]
    columns: dict[str, str]


Config = TypeVar("Config", bound=RunConfig)


class SampleColumns(ABC, Generic[Config]):
    """How a modality finds its samples in the rows of a data set; see `modalities.modality.Modality`.

    Attributes:
        samples: what a sample is, in the plural.
        usable: what all rows are expected to be, for messages ("images that can be read").
        unusable: what bad rows are, for messages ("that cannot be read").
    """

    samples: ClassVar[str]
    usable: ClassVar[str]
    unusable: ClassVar[str]

    def read(self, path: Path, config: Config) -> Loaded:
        """The data set in a file or folder on this machine."""
        return read_files(path, config.data, self.text_columns(config))

    def text_columns(self, config: Config) -> list[str]:
        """The columns that the settings name and that are read as text even if their values look like numbers."""
        values = config.flat()
        return [str(values[name]) for name in TEXT_SETTINGS if values.get(name)]

    def notes_on_files(self, name: str, loaded: datasets.DatasetDict) -> list[str]:
        """Notes on files of the data set that are in no split."""
        return unused_files(name, loaded)

    @abstractmethod
    def select(self, loaded: datasets.DatasetDict, config: Config) -> Selected:
        """Only the columns of the samples, for each split."""

    @abstractmethod
    def bad_rows(self, split: Split, config: Config) -> dict[int, str]:
        """Rows that cannot be used, each with the reason."""

    def checked(self, split: Split, name: str, config: Config) -> Split:
        """The split with its bad rows masked.

        Raises:
            UserError: there are some, and they are not to be masked, or they are too many.
        """
        bad = self.bad_rows(split, config)
        verification.refuse_bad_rows(bad, split, name, config.data, usable=self.usable, unusable=self.unusable)
        return replace(split, unreadable=bad)

    def notes_on_samples(self, splits: Mapping[str, Split], columns: Mapping[str, str]) -> list[str]:  # noqa: ARG002
        """Notes on the checked samples.

        Args:
            splits: of the data set.
            columns: the columns that were chosen, by the setting that names each.

        Raises:
            UserError: together they are no data to train on.
        """
        return []

    def copies(self, splits: Mapping[str, Split]) -> dict[str, int]:
        """For validation and test: how many rows have an exact copy in training."""
        return verification.copies(splits)


def load_splits(config: RunConfig, modality: SampleColumns[Any], given: datasets.DatasetDict | None = None) -> Splits:
    """Load, check and divide the samples that the settings name.

    Args:
        config: the settings of the run.
        modality: what a sample is.
        given: data in memory; None: what `dataset_name` names.

    Raises:
        UserError: anything that a person must fix in the data or in the settings about them.
    """
    loaded = Loaded(given) if given is not None else load(config.data, lambda path: modality.read(path, config))
    data, notes = rename_splits(loaded.data)
    notes = [*loaded.notes, *notes]
    if given is None:
        notes += modality.notes_on_files(config.data.dataset_name, data)
    selected, label_columns = columns.together(
        lambda: modality.select(data, config), lambda: columns.label_columns(data["train"], config.data)
    )
    notes += columns.notes_on_choice(selected.columns, label_columns.names, config.flat())
    if "text_column_name" in selected.columns:
        notes += columns.unused_texts(data["train"], (*selected.columns.values(), *label_columns.names))
    kind, reasons = target_of(config.data.problem_type, data["train"], label_columns)
    notes += reasons
    Ranking.of(kind, config.training.metric_for_best_model)
    config.refuse(OPTIONAL_SETTINGS - kind.supported_settings, f"the problem type {kind.problem_type}")
    target, values = kind.read(data, label_columns)

    missing = [name for name in SPLIT_NAMES if name not in data]
    refuse_unused_fractions(config, data)
    target.check(values, splits_to_cut=len(missing))
    splits = {name: Split(rows, np.arange(len(rows)), values[name]) for name, rows in selected.splits.items()}
    fractions = {"validation": config.data.validation_fraction, "test": config.data.test_fraction}
    for name in reversed(missing):
        splits["train"], splits[name] = cut_stratified(splits["train"], fractions[name], config.data.split_seed, target)
        notes.append(f"No {name} split: {len(splits[name])} rows were split off training, {target.divided_by}.")
    if (limit := config.data.max_train_samples_per_class) is not None:
        splits["train"] = few_of_each(splits["train"], limit, config.training.seed, target)
    checked = {name: modality.checked(splits[name], name, config) for name in SPLIT_NAMES}
    notes += modality.notes_on_samples(checked, selected.columns)
    notes += target.notes({name: split.targets[split.counted] for name, split in checked.items()})
    setting = "label_column_names" if len(label_columns.names) > 1 else "label_column_name"
    named = list(label_columns.names) if len(label_columns.names) > 1 else label_columns.only
    return Splits(
        **checked,
        target=target.fitted(checked["train"].targets[checked["train"].counted]),
        columns={**selected.columns, setting: named, **target.data_settings()},
        samples=modality.samples,
        copies=modality.copies(checked),
        notes=notes,
        commit=loaded.info.commit if loaded.info else None,
        languages=loaded.info.languages if loaded.info else (),
    )


def refuse_unused_fractions(config: RunConfig, present: Mapping[str, object]) -> None:
    """Refuse a given fraction for a split that the data set has: it would have no effect.

    Raises:
        UserError: such a fraction is given.
    """
    for name in ("validation", "test"):
        setting = f"{name}_fraction"
        if name in present and any(one.name == setting for one in config.data.given()):
            raise user_error(
                expected=f"--{setting} with data that have no {name} split",
                found=f"a {name} split, with which --{setting} has no effect",
                do=f"leave --{setting} out, or remove that split",
            )
