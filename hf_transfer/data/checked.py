"""From a loaded data set to checked splits: columns, targets, missing splits, unreadable samples, copies."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import datasets
import numpy as np

from hf_transfer.data import columns, verification
from hf_transfer.data.accounting import account, sources_of
from hf_transfer.data.cutting import cut_missing, cut_sample, where_from
from hf_transfer.data.groups import Groups, Keys, read_groups
from hf_transfer.data.levels import Levels
from hf_transfer.data.samples import is_sample
from hf_transfer.data.sources import Loaded, load, read_files, rename_splits, unused_files
from hf_transfer.data.split_names import SPLIT_NAMES
from hf_transfer.data.splits import Rows, Split, Splits, few_of_each
from hf_transfer.errors import user_error
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.table import target_of
from hf_transfer.targets.target import OPTIONAL_SETTINGS, Target

# The settings that name columns which are read as they are written, of all modalities.
TEXT_SETTINGS = (
    "label_column_name", "text_column_name", "text_pair_column_name", "image_column_name", "group_column_name"
)  # fmt: skip


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

    def levels(self, split: Split, config: Config) -> Mapping[int, Levels]:  # noqa: ARG002
        """The values of the pictures that have more than 8 bits for each channel, by row."""
        return {}

    def measured(self, train: Split, config: Config) -> dict[str, Any]:  # noqa: ARG002
        """Settings that are saved with the model: as they are given or, if left open, as training samples tell."""
        return {}

    def checked(self, split: Split, name: str, config: Config) -> Split:
        """The split with its bad rows masked.

        Raises:
            UserError: there are some, and they are not to be masked, or they are too many.
        """
        bad = self.bad_rows(split, config)
        verification.refuse_bad_rows(bad, split, name, config.data, usable=self.usable, unusable=self.unusable)
        return replace(split, unreadable=bad, levels=self.levels(split, config))

    def notes_on_samples(self, splits: Mapping[str, Split], columns: Mapping[str, Any]) -> list[str]:  # noqa: ARG002
        """Notes on the checked samples.

        Args:
            splits: of the data set.
            columns: the columns that were chosen, by the setting that names each, and what was `measured`.

        Raises:
            UserError: together they are no data to train on.
        """
        return []

    def copies(self, splits: Mapping[str, Split]) -> dict[str, int]:
        """For each split but training: how many rows have an exact copy in training."""
        return verification.copies(splits)

    def keys(self, split: Split, config: Config) -> list[Keys]:
        """By what rows belong together when a split is cut: those that share a key of a column stay together.

        The first column has a key for each row: of its content. A modality that knows near-duplicates adds a column.
        """
        return [verification.content_keys(split, config)]


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
    groups = None if config.data.group_column_name is None else read_groups(data, config.data.group_column_name)
    without_groups = _without_groups(data, config)
    selected, label_columns = columns.together(
        lambda: modality.select(without_groups, config), lambda: columns.label_columns(data["train"], config.data)
    )
    notes += columns.notes_on_choice(selected.columns, label_columns.names, config.flat())
    if "text_column_name" in selected.columns:
        used = (*selected.columns.values(), *label_columns.names, config.data.group_column_name or "")
        notes += columns.unused_texts(data["train"], used)
    kind, reasons = target_of(config.data.problem_type, data["train"], label_columns)
    notes += reasons
    Ranking.of(kind, config.training.metric_for_best_model)
    config.refuse(OPTIONAL_SETTINGS - kind.supported_settings, f"the problem type {kind.problem_type}")
    target, values = kind.read(data, label_columns)

    missing = [name for name in reversed(SPLIT_NAMES) if name not in data]
    refuse_unused_fractions(config, data)
    target.check(values, splits_to_cut=len(missing))
    given_splits = {name: Split(rows, np.arange(len(rows)), values[name]) for name, rows in selected.splits.items()}
    divided = _divided(given_splits, missing, groups, config, modality, target)
    checked, measured = divided.splits, divided.measured
    sources = sources_of(loaded.data, data, missing, loaded.origins)
    notes += [] if groups is None else groups.notes()
    notes += modality.notes_on_samples(checked, {**selected.columns, **measured})
    notes += target.notes({name: split.targets[split.counted] for name, split in checked.items()})
    setting = "label_column_names" if len(label_columns.names) > 1 else "label_column_name"
    named = list(label_columns.names) if len(label_columns.names) > 1 else label_columns.only
    return Splits(
        **checked,
        target=target.fitted(checked["train"].targets[checked["train"].counted]),
        columns={**selected.columns, setting: named, **target.data_settings(), **measured},
        samples=modality.samples,
        copies=_copies(checked, missing, config, modality),
        notes=notes,
        commit=loaded.info.commit if loaded.info else None,
        languages=loaded.info.languages if loaded.info else (),
        where_from=where_from(sources, missing, config.data, target),
        rows_as_read=account(sources, checked, divided.limited, dropped={}),
    )


def _without_groups(data: datasets.DatasetDict, config: RunConfig) -> datasets.DatasetDict:
    """The data without the names of groups, so that they are not taken for the texts, unless they are these."""
    name, named = config.data.group_column_name, config.flat()
    settings = [one for one in TEXT_SETTINGS if one != "group_column_name"]
    if name is None or columns.is_usual(name) or name in [named.get(one) for one in settings]:
        return data
    return datasets.DatasetDict({
        split: rows.remove_columns(name) if columns.is_text(rows.features.get(name)) else rows
        for split, rows in data.items()
    })  # fmt: skip


class _Divided(NamedTuple):
    """All three splits.

    Attributes:
        splits: checked, by name.
        limited: the rows of training that `max_train_samples_per_class` leaves out.
        measured: settings that training samples tell; see `SampleColumns.measured`.
    """

    splits: dict[str, Split]
    limited: Rows
    measured: dict[str, Any]


def _divided(
    splits: dict[str, Split], missing: list[str], groups: Groups | None, config: RunConfig,
    modality: SampleColumns[Any], target: Target,
) -> _Divided:  # fmt: skip
    """All three splits, of which those that are missing are cut off training."""
    if missing:
        # As a whole: its content is read once, for the checks and to divide it.
        train = modality.checked(splits["train"], "train", config)
        measured = modality.measured(train, config)
        if is_sample(config.data.dataset_name):
            splits = splits | cut_sample(train, missing, config.data, target)
        else:
            keys = modality.keys(train, config)
            group = [] if groups is None else groups.columns(train.rows, keys[0])
            splits = splits | cut_missing(train, missing, [*group, *keys], config.data, target)
    all_of_train = splits["train"]
    if (limit := config.data.max_train_samples_per_class) is not None:
        splits = splits | {"train": few_of_each(all_of_train, limit, config.training.seed, target)}
    if not missing:
        splits = splits | {"train": modality.checked(splits["train"], "train", config)}
        measured = modality.measured(splits["train"], config)
    config = config.replaced(**measured)
    cut_off = ("train", *missing)
    checked = {
        name: splits[name] if name in cut_off else modality.checked(splits[name], name, config) for name in SPLIT_NAMES
    }
    return _Divided(checked, np.setdiff1d(all_of_train.rows, checked["train"].rows), measured)


def _copies(
    checked: Mapping[str, Split], missing: list[str], config: RunConfig, modality: SampleColumns[Any]
) -> dict[str, int]:
    """Copies of training in validation and test; splits that were cut by content have none."""
    apart = [] if is_sample(config.data.dataset_name) else missing
    counts = modality.copies({name: split for name, split in checked.items() if name not in apart})
    return {name: counts.get(name, 0) for name in ("validation", "test")}


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
