"""Predictions for a split: every sample once, with any number of processes."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hf_transfer.data.batches import Batch, Loaders, in_parts
from hf_transfer.data.transfers import to_device
from hf_transfer.targets.predictions import Predictions


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


def _parts(loaders: Loaders, inputs: Batch, accelerator: Accelerator) -> int:
    """In how many parts a batch goes through the model: as many on all processes, since wrapped models communicate."""
    parts = loaders.parts_of(inputs)
    if loaders.tokens_at_once is None or accelerator.num_processes == 1:
        return parts
    gathered: Tensor = accelerator.gather(torch.tensor([parts], device=accelerator.device))
    return int(gathered.max())
