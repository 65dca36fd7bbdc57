"""The inputs of a run that trains: found and read before torch is imported, so that wrong names are known at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_transfer.data.checked import Opened, open_data
from hf_transfer.modalities.table import modality_named
from hf_transfer.models.locating import locate_before_download
from hf_transfer.settings.run import RunConfig

if TYPE_CHECKING:
    import datasets


def open_inputs(config: RunConfig, data: datasets.DatasetDict | None = None) -> Opened:
    """Find the pretrained models, of which nothing is read, and read the data set.

    Args:
        config: the settings.
        data: a data set in memory; None: what the settings name.

    Raises:
        UserError: a model or the data set does not exist, the data cannot be read, or a column is missing.
    """
    locate_before_download(config)
    return open_data(config, modality_named(config.recipe), data)
