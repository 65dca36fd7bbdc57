"""Predictions for a split: every sample once, with any number of processes."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hf_transfer.data.batches import Batch, Loaders, in_parts
from hf_transfer.data.transfers import to_device
from hf_transfer.frozen.recording import Passes
from hf_transfer.frozen.stored_outputs import StoredOutputs, outputs_from_store
from hf_transfer.modalities.tokens import ROUNDING
from hf_transfer.models.tracing import evaluating
from hf_transfer.targets.predictions import Predictions

SAMPLES_COMPARED = 4


@torch.no_grad()
def predict_split(
    model: nn.Module, loaders: Loaders, split: str, accelerator: Accelerator, poll: Callable[[], object] = bool
) -> Predictions:
    """Outputs for every sample of a split, computed by all processes together.

    Args:
        model: wrapped or not.
        loaders: the loaders of the run.
        split: train, validation or test.
        accelerator: devices and processes.
        poll: called before each batch, on all processes.
    """
    model.eval()
    # A sharded model is on its device already, and must not be moved.
    if not isinstance(model, FSDPModule):
        model.to(accelerator.device)

    def outputs_of(inputs: Batch) -> list[Tensor]:
        return [model(**inputs).logits.float()]

    loader = loaders.of(split)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for batch in loader:
        poll()
        inputs, targets, counted, index = loaders.to_inputs(batch, accelerator.device, split, None)
        with accelerator.autocast():
            (outputs,) = in_parts(outputs_of, inputs, _parts(loaders, inputs, accelerator))
        gathered = accelerator.gather_for_metrics((outputs, targets, counted, to_device(index, accelerator.device)))
        parts.append(tuple(part.cpu() for part in gathered))
    outputs, targets, counted, index = (torch.cat(columns) for columns in zip(*parts, strict=True))
    rows = loader.dataset.split.rows
    assert sorted(index.tolist()) == rows.tolist(), "evaluation must see every sample exactly once"
    order = index.argsort()
    kept = order[counted[order]]
    return Predictions(
        loaders.target, outputs[kept], targets[kept].numpy(), index[kept].numpy(), masked=len(order) - len(kept)
    )


def predict_judged(
    model: nn.Module, splits: Sequence[str], solved_layer: str | None, passes: Passes
) -> dict[str, Predictions]:
    """Outputs of a saved model for some splits.

    Those for validation are what a solved head makes of the features that it was solved on. The first samples go
    through the whole model as well, and have to come to the same. Otherwise, and where no features of this backbone are
    stored, all samples do.

    Args:
        model: as it was loaded from its files.
        splits: their names.
        solved_layer: its last Linear layer, if it was solved.
        passes: the samples, and where features are stored.
    """
    stored = _stored(model, solved_layer, passes) if solved_layer and "validation" in splits else None
    return {
        split: stored
        if stored and split == "validation"
        else predict_split(model, passes.loaders, split, passes.accelerator)
        for split in splits
    }


def _stored(model: nn.Module, layer_name: str, passes: Passes) -> Predictions | None:
    loaders, accelerator = passes.loaders, passes.accelerator
    stored = outputs_from_store(model, layer_name, passes)
    usable = torch.tensor([stored is not None and _agrees(model, stored, passes)], device=accelerator.device)
    # All processes ask all others: each machine may have a disk of its own.
    all_usable = bool(accelerator.gather(usable).all())
    if stored is None or not all_usable:
        return None
    counted, rows = stored.counted, loaders.validation.dataset.split.rows
    return Predictions(
        loaders.target, stored.outputs[counted], stored.targets[counted].numpy(), rows[counted.numpy()],
        masked=int((~counted).sum()),
    )  # fmt: skip


@torch.no_grad()
def _agrees(model: nn.Module, stored: StoredOutputs, passes: Passes) -> bool:
    """Whether the whole model gives the stored outputs for the first samples."""
    loaders, accelerator = passes.loaders, passes.accelerator
    rows = range(min(SAMPLES_COMPARED, len(stored.outputs)))
    inputs = loaders.some_samples("validation", rows, None, accelerator.device).inputs
    with evaluating(model), accelerator.autocast():
        live = model(**inputs).logits.float().cpu()
    return bool((live - stored.outputs[: len(live)]).abs().max() <= ROUNDING * live.abs().max())


def _parts(loaders: Loaders, inputs: Batch, accelerator: Accelerator) -> int:
    """In how many parts a batch goes through the model: as many on all processes, since wrapped models communicate."""
    parts = loaders.parts_of(inputs)
    if loaders.tokens_at_once is None or accelerator.num_processes == 1:
        return parts
    gathered: Tensor = accelerator.gather(torch.tensor([parts], device=accelerator.device))
    return int(gathered.max())
