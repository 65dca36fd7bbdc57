"""A script for two processes: predicts texts, the longest first, so that batches of the processes differ in length.

The main process writes what was predicted to `outputs.safetensors`, and how many calls of the model each process made
to `calls.json`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from hf_transfer.data.batches import Batch, Loaders
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.predictions import predict_split
from tests.training.toy_task import TextRows, loaders_of, settings, tiny

BATCH_SIZE, AT_ONCE = 2, 8


def trimmed(samples: list[Batch]) -> Batch:
    """A batch that is padded to its longest text."""
    batch: Batch = default_collate(samples)
    longest = int(batch["attention_mask"].sum(1).max())
    return batch | {name: batch[name][:, :longest] for name in ("input_ids", "attention_mask")}


def longest_first(size: int) -> TextRows:
    """Texts of 8 to 4 tokens, sorted."""
    rows = TextRows(size)
    order = torch.from_numpy(np.argsort(-rows.lengths, kind="stable"))
    rows.inputs = {name: column[order] for name, column in rows.inputs.items()}
    return rows


def loaders_with_lengths(accelerator: Accelerator, rows: TextRows, tokens_at_once: int | None) -> Loaders:
    """The loaders of the toy task, with validation padded batch by batch."""
    batches = DataLoader(rows, batch_size=BATCH_SIZE, collate_fn=trimmed, generator=torch.Generator())
    validation = accelerator.prepare_data_loader(batches, device_placement=False)
    loaders = loaders_of(accelerator, rows, rows, BATCH_SIZE)
    return replace(loaders, validation=validation, tokens_at_once=tokens_at_once)


class Calls:
    """Counts the tokens of each call of a model in evaluation, with padding."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens: list[int] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: nn.Module, _: object, arguments: dict[str, Tensor]) -> None:
        if not model.training:
            self.tokens.append(arguments["input_ids"].numel())


def main(folder: Path) -> None:
    """Predict with a model that is wrapped, as in the evaluation of an epoch."""
    model, *_ = tiny("bert")
    calls = Calls(model)
    with start_accelerator(settings()) as accelerator:
        loaders = loaders_with_lengths(accelerator, longest_first(8), AT_ONCE)
        outputs = predict_split(accelerator.prepare_model(model), loaders, "validation", accelerator).outputs
        counts: Tensor = accelerator.gather(torch.tensor([len(calls.tokens)]))
        if accelerator.is_main_process:
            save_file({"outputs": outputs}, folder / "outputs.safetensors")
            (folder / "calls.json").write_text(json.dumps(counts.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
