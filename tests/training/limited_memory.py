"""A script: the text recipe with a limit on the memory that training may take.

Arguments: the folders of data, checkpoint and output, and the bytes that are allowed. Of two processes that train
together, the first accepts nine samples in a batch, the second five.
"""

import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForSequenceClassification

from hf_transfer.settings.run import TextConfig
from hf_transfer.strategies.choice import Prepared
from hf_transfer.training import batch_size
from tests.conftest import load_recipe
from tests.tiny_text_models import VOCABULARY, save_text_checkpoint, tiny_text_model
from tests.training.trials import refusing


def save_wide(folder: Path) -> Path:
    """A checkpoint with large activations: 20 MB for each text of 32 tokens, and 16 MB of weights."""
    save_text_checkpoint(folder, "bert")
    settings = tiny_text_model("bert").config.to_dict() | {"intermediate_size": 40_000, "num_hidden_layers": 2}
    torch.manual_seed(0)
    settings |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
    BertForSequenceClassification(BertConfig(**settings)).save_pretrained(folder)
    return folder


def limit(allowed: int) -> None:
    """From now on, this process can allocate only so many more bytes."""
    status = Path("/proc/self/status").read_text()
    most = int(status.split("VmData:")[1].split()[0]) * 1024 + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def run(data: str, checkpoint: str, out: str, allowed: int) -> None:
    """Train; the limit is set at the first trial, after all imports."""
    measured = batch_size._measured

    def in_little_memory(prepared: Prepared, *rest: Any) -> list[int]:
        accelerator: Accelerator = rest[-2]
        if accelerator.num_processes > 1:
            refusing(prepared.model, train=(9, 5)[accelerator.process_index], evaluation=64)
            return measured(prepared, *rest)
        # The first step allocates threads and arenas, which must not count.
        prepared.model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
        prepared.model.zero_grad(set_to_none=True)
        limit(allowed)
        return measured(prepared, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_size, "_measured", in_little_memory)
        load_recipe("text").main(
            TextConfig.of(
                model_name_or_path=checkpoint, dataset_name=data, output_dir=out, strategy="full", num_train_epochs=1,
                per_device_train_batch_size=8, gradient_accumulation_steps=2, auto_batch_size=True,
                rdrop_alpha=0.0,
            )
        )  # fmt: skip


if __name__ == "__main__":
    data, checkpoint, out, allowed = sys.argv[1:]
    run(data, checkpoint, out, int(allowed))
