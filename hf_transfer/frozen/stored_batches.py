"""Batches of stored activations, in the place of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hf_transfer.data.batches import Batch, InputMaker, LabelledInputs, Loaders
from hf_transfer.data.splits import Rows
from hf_transfer.data.transfers import to_device
from hf_transfer.frozen.recording import Part
from hf_transfer.frozen.store import Store
from hf_transfer.models.stubs import Crossing, with_stored


class StoredInputs(InputMaker):
    """Makes model inputs of stored activations; samples are not read.

    Args:
        light: makes the inputs that the groups behind the cut need beside the activations.
        crossing: the tensors that are stored.
        stores: of training one for each view, and one of validation.
        rows: row numbers by split.
    """

    def __init__(
        self, light: InputMaker, crossing: Sequence[Crossing], stores: Mapping[Part, Store], rows: Mapping[str, Rows]
    ) -> None:
        self._light, self._crossing, self._stores, self._rows = light, crossing, stores, rows
        self._views = len(stores) - 1

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`."""
        labelled = self._light(batch, device, split, epoch)
        store = self._stores[split, None if epoch is None else epoch % self._views]
        *columns, targets, counted = store.read(np.searchsorted(self._rows[split], batch["index"].numpy()))
        tensors = []
        for crossing, column in zip(self._crossing, columns, strict=True):
            values = to_device(column, device).to(crossing.dtype)
            tensors.append(_padded(values, batch["attention_mask"]) if crossing.by_token else values)
        targets, counted = (to_device(part, device) for part in (targets, counted))
        return LabelledInputs(with_stored(labelled.inputs, tensors), targets, counted, labelled.rows)

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        return self._light.fingerprint(split, epoch)


def stored_loaders(
    loaders: Loaders, crossing: Sequence[Crossing], stores: Mapping[Part, Store], *, images: bool
) -> Loaders:
    """Loaders of the same batches in the same order, with stored activations.

    Args:
        loaders: of the run.
        crossing: the tensors that are stored.
        stores: of training one for each view, and one of validation.
        images: whether the layers that look at pixels are skipped: then images are not even read.
    """
    light = loaders.without_first_layers() if loaders.without_first_layers and images else loaders
    rows = {split: loaders.of(split).dataset.split.rows for split, _ in stores}
    return replace(light, to_inputs=StoredInputs(light.to_inputs, crossing, stores, rows))


def _padded(tokens: Tensor, mask: Tensor) -> Tensor:
    """Concatenated tokens [tokens of all samples, ...] as a padded batch [samples, tokens of the longest, ...].

    Args:
        tokens: on the device.
        mask: on the CPU: a GPU would have to say how many places it has, and the host to wait for that.
    """
    places = to_device(mask.flatten().nonzero()[:, 0], tokens.device)
    batch = tokens.new_zeros(mask.numel(), *tokens.shape[1:])
    return batch.index_copy_(0, places, tokens).view(*mask.shape, *tokens.shape[1:])
