"""The samples on which a finished model is judged: all that the data set has for it, matched by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.data import columns
from hf_transfer.data.accounting import account, sources_of
from hf_transfer.data.checked import checked_unlabelled, named_columns, with_unlabelled
from hf_transfer.data.labelled import read_labelled
from hf_transfer.data.sample_columns import SampleColumns, read_data
from hf_transfer.data.sources import origins_by_split, rename_splits
from hf_transfer.data.splits import Split, Splits, part_of
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.class_names import shown_names
from hf_transfer.targets.table import TARGETS, target_of, target_of_model
from hf_transfer.targets.target import OPTIONAL_SETTINGS

if TYPE_CHECKING:
    import datasets


def load_judged(
    config: RunConfig, modality: SampleColumns[Any], model_config: Any, given: datasets.DatasetDict | None = None
) -> Splits:
    """Load and check the samples on which a finished model is judged; nothing is split off.

    The model is judged on the test split, and on validation if there is one. Without a test split, validation takes
    its place, and without both, all other rows. A training split beside others serves the baseline alone.

    Args:
        config: the settings of the run.
        modality: what a sample is.
        model_config: of the model, as transformers has it: its outputs are matched by name.
        given: data in memory; None: what `dataset_name` names.

    Raises:
        UserError: anything that a person must fix in the data or in the settings about them.
    """
    loaded = read_data(config, modality, given)
    data, notes = rename_splits(loaded.data, needs_training=False)
    notes = [*loaded.notes, *notes]
    first = columns.first_split(data)
    config, lacking = _with_present_columns(config, first)
    selected, label_columns = columns.together(
        lambda: modality.select(data, config), lambda: columns.label_columns(first, config.data)
    )
    kind, reasons = target_of(config.data.problem_type or _problem_type(model_config), first, label_columns)
    config.refuse(OPTIONAL_SETTINGS - kind.supported_settings, f"the problem type {kind.problem_type}")
    target = target_of_model(model_config, kind.problem_type)
    outputs = label_columns._replace(outputs=tuple(target.names))
    labelled = read_labelled(data, selected.splits, kind, outputs, config.data, origins_by_split(loaded, data))
    judged, sentence = _judged(labelled.splits)
    checked = {name: modality.checked(split, name, config) for name, split in judged.items()}
    notes = [*labelled.notes, sentence, *lacking, *notes, *reasons]
    measured = modality.measured(checked["test"], config)
    notes += modality.notes_on_samples(checked, {**selected.columns, **measured})
    notes += target.notes({name: split.targets[split.counted] for name, split in checked.items()})
    unlabelled = checked_unlabelled(labelled.unlabelled, modality, config)
    # By the names under which they are judged.
    names = {next(one for one, split in labelled.splits.items() if split is of): name for name, of in judged.items()}
    used = {names.get(name, name): rows for name, rows in labelled.as_read(data).items()}
    dropped = {names[name]: rows for name, rows in labelled.dropped.items()}
    sources = sources_of(loaded.data, used, (), loaded.origins)
    nothing = part_of(checked["test"], np.empty(0, dtype=np.int64))
    return Splits(
        train=checked.get("train", nothing),
        validation=checked.get("validation", nothing),
        test=checked["test"],
        target=target,
        columns={**named_columns(selected, label_columns, target), **measured},
        samples=modality.samples,
        copies=modality.copies(checked),
        notes=notes,
        names=labelled.names,
        commit=loaded.info.commit if loaded.info else None,
        languages=loaded.info.languages if loaded.info else (),
        rows_as_read=account(sources, with_unlabelled(checked, unlabelled), nothing.rows, dropped),
        unlabelled=unlabelled,
        dropped=labelled.dropped,
    )


def _problem_type(model_config: Any) -> str | None:
    """As a model's configuration says; None: it does not, and the data tell."""
    stated = getattr(model_config, "problem_type", None)
    return stated if stated in TARGETS else None


def _with_present_columns(config: Any, rows: datasets.Dataset) -> tuple[Any, list[str]]:
    """The settings without label columns that the data lack, and a note on these: the model may have more labels."""
    named = config.data.label_column_names
    present = [name for name in named if name in rows.column_names]
    if not present or len(present) == len(named):
        return config, []
    lacking = shown_names([name for name in named if name not in present])
    return config.replaced(label_column_names=present), [f"Not judged, since the data have no such column: {lacking}."]


def _judged(splits: Mapping[str, Split]) -> tuple[dict[str, Split], str]:
    """The splits under the names by which they are judged, and a sentence on which rows these are."""
    counts = {name: f"{len(split):,} rows of split {name}" for name, split in splits.items()}
    if "test" in splits:
        parts = [counts[name] for name in ("test", "validation") if name in splits]
        also = "; split train serves the baseline alone" if "train" in splits else ""
        return dict(splits), f"Judged: all {' and all '.join(parts)}{also}."
    if "validation" in splits:
        renamed = {"test" if name == "validation" else name: split for name, split in splits.items()}
        also = "; split train serves the baseline alone" if "train" in splits else ""
        return renamed, f"Judged: all {counts['validation']}, in the place of test, which the data lack{also}."
    warning = "if the model was trained on some of them, the figures are too good"
    return {"test": splits["train"]}, f"Judged: all {counts['train']}, the only one; {warning}."
