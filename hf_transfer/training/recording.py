"""What the frozen part of a model makes of every sample, computed chunk by chunk into a store."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_transfer.config import RunConfig
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.inputs import Batch, Loaders
from hf_transfer.training.store import Column, Store, raw_bytes

# What is made of a batch: a tensor for each column of a store.
Compute = Callable[[Batch], Sequence[Tensor]]


def stored_dtype(config: RunConfig) -> torch.dtype:
    """What floating-point activations are stored as."""
    if config.cache_dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.cache_dtype]
    return torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else torch.float32


def store_of(
    loaders: Loaders, config: RunConfig, split: str, view: int | None, columns: Sequence[Column],
    material: Mapping[str, Any], folder: Path | None = None,
) -> Store:  # fmt: skip
    """The store of a split, as an epoch of training sees it or (None) as evaluation does.

    Args:
        loaders: the batches of the run.
        config: where stores lie.
        split: train or validation.
        view: the epoch.
        columns: the tensors of a sample.
        material: what is computed, and with which weights.
        folder: elsewhere.
    """
    dataset = loaders.of(split).dataset
    content = {**material, "samples": loaders.fingerprint(split, view), "view": view}
    lengths = getattr(dataset, "lengths", None)
    return Store(folder or cache_folder(config.cache_dir) / "frozen", content, columns, len(dataset), lengths)


def identity(
    model: nn.Module, later: Sequence[str], accelerator: Accelerator, later_parameters: Set[str] = frozenset()
) -> dict[str, Any]:
    """What the work of a model's frozen part depends on: weights, settings, arithmetic, versions.

    Args:
        model: the model, not wrapped.
        later: names of the modules that are not part of it.
        accelerator: device and precision.
        later_parameters: names of further parameters that are not.
    """
    modules = tuple(f"{name}." for name in later)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name in later_parameters or name.startswith(modules):
            continue
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(raw_bytes(value.detach().cpu()))
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    # Neither its own name nor those of the classes change what a backbone computes.
    told = {key: value for key, value in settings.items() if "label" not in key and not key.startswith("_")}
    return {
        "weights": digest.hexdigest(),
        "settings": hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest(),
        "precision": str(accelerator.mixed_precision),
        "device": accelerator.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def fill(
    store: Store, compute: Compute, loaders: Loaders, split: str, view: int | None, accelerator: Accelerator,
    batch_size: int,
) -> float:  # fmt: skip
    """Compute and write what a store lacks, and whatever of it is damaged; the processes of a machine share the chunks.

    Returns:
        Seconds.
    """
    started = time.perf_counter()
    # Machines may have a disk each; where their processes are not told how many they are, each does all.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if accelerator.num_processes > 1 else 1
    own = accelerator.local_process_index % sharing
    missing = [number for number in range(len(store.chunks)) if number % sharing == own and not store.sound(number)]
    store.sweep()
    total = sum(len(store.chunks[number]) for number in missing)
    hidden = not accelerator.is_main_process or not sys.stderr.isatty() or not missing
    title = f"frozen layers, {split}" if view is None else f"frozen layers, {split}, view {view + 1}"
    with tqdm(total=total, desc=title, unit=" samples", leave=False, disable=hidden) as progress:
        for number, tensors, labels in computed(store, missing, compute, loaders, split, view, accelerator, batch_size):
            store.write(number, tensors, labels)
            progress.update(len(labels))
    accelerator.wait_for_everyone()
    return time.perf_counter() - started


def computed(
    store: Store, numbers: Sequence[int], compute: Compute, loaders: Loaders, split: str, view: int | None,
    accelerator: Accelerator, batch_size: int,
) -> Iterator[tuple[int, list[Tensor], Tensor]]:  # fmt: skip
    """Some chunks of a store, computed: number, columns, labels.

    Within a chunk, texts of like length share a batch. A batch never belongs to two chunks, so what a chunk holds does
    not depend on what else is missing.
    """
    source = loaders.of(split)
    batches = [batch for number in numbers for batch in store.batches(number, batch_size)]
    samples: DataLoader[Batch] = DataLoader(
        source.dataset,
        batch_sampler=batches,
        num_workers=source.num_workers,
        collate_fn=source.collate_fn,
        # Its own, because the model's dropout draws from torch's: the store must not change a run.
        generator=torch.Generator(),
    )
    produced, positions = iter(samples), iter(batches)
    for number in numbers:
        chunk = store.empty_chunk(number)
        while not chunk.full:
            inputs, labels, _ = loaders.to_inputs(next(produced), accelerator.device, split, view)
            with accelerator.autocast():
                tensors = compute(inputs)
            chunk.put(next(positions), tensors, labels, inputs.get("attention_mask"))
        yield number, chunk.tensors, chunk.labels
