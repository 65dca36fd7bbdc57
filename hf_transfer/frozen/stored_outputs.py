"""Outputs of a saved model for validation, from the features that its head was solved on: they are not computed again.

A store is found by its key, a hash of the backbone's weights and of everything else that features depend on. So the
features that are found for a model that was loaded again are those of the weights in its file.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_transfer.frozen.columns import ColumnStores
from hf_transfer.frozen.features import store_columns
from hf_transfer.frozen.recording import Part, Passes, column_stores_of
from hf_transfer.frozen.taps import materials_of
from hf_transfer.models.taps import HEAD_INPUT, without_head
from hf_transfer.models.tracing import evaluating

VALIDATION: Part = ("validation", None)


class StoredOutputs(NamedTuple):
    """What the head of a model makes of stored features.

    Attributes:
        outputs: float32 [samples, outputs].
        targets: true values [samples, ...].
        counted: bool [samples], False for masked samples.
    """

    outputs: Tensor
    targets: Tensor
    counted: Tensor


@torch.no_grad()
def outputs_from_store(model: nn.Module, layer_name: str, passes: Passes) -> StoredOutputs | None:
    """The outputs for all samples of validation, in the order of their rows.

    Args:
        model: a finished classifier, not wrapped; it is moved to the device.
        layer_name: its last Linear layer.
        passes: the samples, and where features are stored.

    Returns:
        None where no such features are kept, one of them is damaged, or they or the outputs are rounded to half
        precision.
    """
    exact = passes.accelerator.mixed_precision == "no" and passes.dtype in (None, torch.float32)
    if not exact or passes.settings.cache_frozen == "off":
        return None
    model.to(passes.accelerator.device)
    with evaluating(model), without_head(model, layer_name) as layer:
        store = _store(model, layer, passes)
        if not all(store.check(number) for number in range(len(store.chunks))):
            return None
        parts = [_of_chunk(store, number, layer) for number in range(len(store.chunks))]
    return StoredOutputs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _store(backbone: nn.Module, layer: nn.Linear, passes: Passes) -> ColumnStores:
    materials = materials_of(backbone, [HEAD_INPUT], passes.accelerator)
    columns = store_columns([layer.in_features], passes)
    return column_stores_of(passes, [VALIDATION], columns, materials)[VALIDATION]


def _of_chunk(store: ColumnStores, number: int, layer: nn.Linear) -> StoredOutputs:
    features, targets, counted = store.chunk(number)
    return StoredOutputs(layer(features.to(layer.weight.device)).cpu(), targets, counted)
