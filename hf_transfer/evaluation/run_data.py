"""The data of a finished run, read again as they were for its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_transfer.data.checked import load_splits
from hf_transfer.data.levels import LARGEST_PIXEL_VALUE
from hf_transfer.modalities.table import modality_named

if TYPE_CHECKING:
    from hf_transfer.data.splits import Splits
    from hf_transfer.evaluation.results import Results
    from hf_transfer.settings.run import RunConfig


def splits_of_run(config: RunConfig, results: Results, columns: Mapping[str, Any]) -> Splits:
    """The splits of a finished run: of the same commit, with the same white, and without verifying samples again.

    Args:
        config: the settings of the run.
        results: of the run.
        columns: that were saved with its model: see `Preprocessing.columns`.

    Raises:
        UserError: the data cannot be loaded any more.
    """
    commit = results.commits.get("dataset_name")
    changes: dict[str, Any] = {"verify_samples": 0} | ({"dataset_revision": commit} if commit else {})
    if (white := columns.get(LARGEST_PIXEL_VALUE)) is not None:
        changes[LARGEST_PIXEL_VALUE] = white
    return load_splits(config.replaced(**changes), modality_named(config.recipe))
