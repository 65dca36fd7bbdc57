"""From a loaded data set to checked splits: columns, targets, missing splits, unreadable samples, copies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_transfer.data import columns
from hf_transfer.data.accounting import account, sources_of
from hf_transfer.data.cutting import cut_once, cut_sample, where_from
from hf_transfer.data.groups import Groups, Keys, Units, read_groups, units_of
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.labelled import read_labelled
from hf_transfer.data.sample_columns import TEXT_SETTINGS, SampleColumns, Selected, read_data
from hf_transfer.data.samples import is_sample
from hf_transfer.data.sources import Loaded, origins_by_split, rename_splits
from hf_transfer.data.split_names import SPLIT_NAMES
from hf_transfer.data.splits import UNLABELLED, Rows, Split, Splits, Unlabelled, few_of_each
from hf_transfer.errors import user_error
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.table import target_of
from hf_transfer.targets.target import OPTIONAL_SETTINGS, LabelColumns, Target

if TYPE_CHECKING:
    import datasets

    from hf_transfer.data.batches import Loaders


class Opened(NamedTuple):
    """A data set that was found and read, and of which the columns are known; its samples are not checked yet.

    Attributes:
        loaded: as it was read.
        data: its splits, by the names that a run uses.
        groups: the rows that stay together, if a column names them.
        selected: the samples.
        label_columns: where the labels are.
        notes: what was decided, in sentences.
    """

    loaded: Loaded
    data: datasets.DatasetDict
    groups: Groups | None
    selected: Selected
    label_columns: LabelColumns
    notes: list[str]


def load_splits(config: RunConfig, modality: SampleColumns[Any], given: datasets.DatasetDict | None = None) -> Splits:
    """Load, check and divide the samples that the settings name: see `open_data` and `splits_of`."""
    return splits_of(open_data(config, modality, given), config, modality)


def open_data(config: RunConfig, modality: SampleColumns[Any], given: datasets.DatasetDict | None = None) -> Opened:
    """Find and read the data set that the settings name, and choose its columns.

    Args:
        config: the settings of the run.
        modality: what a sample is.
        given: data in memory; None: what `dataset_name` names.

    Raises:
        UserError: there is no such data set, it cannot be read, or a column is missing.
    """
    loaded = read_data(config, modality, given)
    data, notes = rename_splits(loaded.data)
    notes = [*loaded.notes, *notes]
    groups = None if config.data.group_column_name is None else read_groups(data, config.data.group_column_name)
    without_groups = _without_groups(data, config)
    selected, label_columns = columns.together(
        lambda: modality.select(without_groups, config), lambda: columns.label_columns(data["train"], config.data)
    )
    notes += columns.notes_on_choice(selected.columns, label_columns.names, config.flat())
    if "text_column_name" in selected.columns:
        used = (*selected.columns.values(), *label_columns.names, config.data.group_column_name or "")
        notes += columns.unused_texts(data["train"], used)
    return Opened(loaded, data, groups, selected, label_columns, notes)


def splits_of(opened: Opened, config: RunConfig, modality: SampleColumns[Any], unread: Collection[str] = ()) -> Splits:
    """Check and divide the samples of a data set.

    Args:
        opened: of `open_data`.
        config: the settings of the run.
        modality: what a sample is.
        unread: splits whose samples and labels are not read, if the data set has them: they get no rows.

    Raises:
        UserError: anything that a person must fix in the data or in the settings about them.
    """
    loaded, data, groups, selected, label_columns, notes = opened
    kind, reasons = target_of(config.data.problem_type, data["train"], label_columns)
    notes = [*notes, *reasons]
    Ranking.of(kind, config.training.metric_for_best_model)
    config.refuse(OPTIONAL_SETTINGS - kind.supported_settings, f"the problem type {kind.problem_type}")
    origins = origins_by_split(loaded, data)
    labelled = read_labelled(data, selected.splits, kind, label_columns, config.data, origins, unread)
    target, splits = labelled.target, labelled.splits
    notes = [*labelled.notes, *notes]

    missing = [name for name in reversed(SPLIT_NAMES) if name not in splits]
    refuse_unused_fractions(config, splits)
    target.check({name: split.targets for name, split in splits.items()}, splits_to_cut=len(missing))
    divided = _divided(splits, missing, groups, config, modality, target)
    checked, measured = divided.splits, divided.measured
    unlabelled = checked_unlabelled(labelled.unlabelled, modality, config.replaced(**measured))
    sources = sources_of(loaded.data, labelled.as_read(data), missing, loaded.origins)
    notes += [] if groups is None else groups.notes()
    notes += modality.notes_on_samples(checked, {**selected.columns, **measured})
    notes += target.notes({name: split.targets[split.counted] for name, split in checked.items() if len(split)})
    return Splits(
        **checked,
        target=target.fitted(checked["train"].targets[checked["train"].counted]),
        columns={**named_columns(selected, label_columns, target), **measured},
        samples=modality.samples,
        copies=_copies(checked, missing, config, modality),
        notes=notes,
        names=labelled.names,
        commit=loaded.info.commit if loaded.info else None,
        languages=loaded.info.languages if loaded.info else (),
        where_from=where_from(sources, missing, config.data, target),
        rows_as_read=()
        if unread
        else account(sources, with_unlabelled(checked, unlabelled), divided.limited, labelled.dropped),
        unlabelled=unlabelled,
        dropped=labelled.dropped,
        groups=groups,
    )


def units_of_rows(split: Split, groups: Groups | None, config: RunConfig, modality: SampleColumns[Any]) -> Units:
    """Which rows of training belong together, by content and by group.

    Args:
        split: some rows of training.
        groups: of the data set, if a column names them.
        config: the settings of the run.
        modality: what a sample is.
    """
    return units_of(_keys(split, groups, config, modality))


def with_units(loaders: Loaders, splits: Splits, config: RunConfig, modality: SampleColumns[Any]) -> Loaders:
    """The loaders of a run, which know the units of its rows; these are computed when folds are asked for."""
    units_of_split = partial(units_of_rows, groups=splits.groups, config=config, modality=modality)
    return replace(loaders, units_of=units_of_split, fold_seed=config.training.seed)


def _keys(split: Split, groups: Groups | None, config: RunConfig, modality: SampleColumns[Any]) -> list[Keys]:
    keys = modality.keys(split, config)
    return keys if groups is None else [*groups.columns(split.rows, keys[0]), *keys]


def named_columns(selected: Selected, labels: LabelColumns, target: Target) -> dict[str, Any]:
    """The columns that were chosen, by the setting that names them, and the settings with which labels were read."""
    setting = "label_column_names" if len(labels.names) > 1 else "label_column_name"
    named = list(labels.names) if len(labels.names) > 1 else labels.only
    return {**selected.columns, setting: named, **target.data_settings()}


def with_unlabelled(splits: Mapping[str, Split], unlabelled: Unlabelled | None) -> dict[str, Split]:
    """The splits by their names, and the samples without labels."""
    return dict(splits) if unlabelled is None else {**splits, UNLABELLED: unlabelled.split}


def checked_unlabelled(
    unlabelled: Unlabelled | None, modality: SampleColumns[Any], config: RunConfig
) -> Unlabelled | None:
    """Samples without labels, with their bad rows masked: see `SampleColumns.checked`."""
    if unlabelled is None:
        return None
    return replace(unlabelled, split=modality.checked(unlabelled.split, unlabelled.name, config))


def _without_groups(data: datasets.DatasetDict, config: RunConfig) -> datasets.DatasetDict:
    """The data without the names of groups, so that they are not taken for the texts, unless they are these."""
    import datasets

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
            keys = _keys(train, groups, config, modality)
            splits = splits | cut_once(cache_folder(config.store.cache_dir), train, missing, keys, config.data, target)
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
    limited = all_of_train.rows[~np.isin(all_of_train.rows, checked["train"].rows, kind="table")]
    return _Divided(checked, limited, measured)


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
