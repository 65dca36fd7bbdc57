"""Outputs of frozen layers, computed chunk by chunk into a store, and what that costs and saves."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_transfer.data.batches import Batch, Loaders, in_parts
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.workers import end_workers
from hf_transfer.frozen.columns import ColumnStores
from hf_transfer.frozen.store import Chunk, Column, Store, digest_of
from hf_transfer.interruption import ignore_signals
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.store import StoreSettings
from hf_transfer.targets.table import SAVED_SETTINGS
from hf_transfer.versions import versions

# Computes the columns of a store from the model inputs of a batch.
Compute = Callable[[Batch], Sequence[Tensor]]
# Gives what computes some columns of a store, by their positions.
ComputeOf = Callable[[Sequence[int]], Compute]
# In the material of a column: the part of each sample that it is computed from, if not from all of it.
SAMPLE_PART = "part"
# A split, and the epoch of training as in which its samples are seen; None: as in evaluation.
Part = tuple[str, int | None]
Answer = TypeVar("Answer")
# Any other package may change pixels, tokens or activations: another version of it makes another store.
UNRELATED = ("python", "accelerate", "datasets", "peft", "scikit-learn", "scipy")
# Settings of a model that belong to its head: a saved model has other ones than what it was trained from.
OF_A_TASK = ("architectures", "problem_type", *SAVED_SETTINGS)
# By the names in --cache_dtype; "auto" keeps the type in which a tensor was computed.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Batches on which costs are measured.
BATCHES_MEASURED = 3


@dataclass(frozen=True)
class Passes:
    """What forward passes over the samples of a run need, and where their outputs are stored.

    Attributes:
        loaders: the batches of the run.
        accelerator: device, precision, and the processes that share the work.
        batch_size: samples in a batch.
        settings: whether outputs are stored, where, and in which type.
    """

    loaders: Loaders
    accelerator: Accelerator
    batch_size: int
    settings: StoreSettings

    @classmethod
    def of(cls, loaders: Loaders, accelerator: Accelerator, config: RunConfig) -> Passes:
        """The passes of a run with these settings."""
        return cls(loaders, accelerator, config.training.evaluation_batch_size(accelerator.device.type), config.store)

    @property
    def folder(self) -> Path:
        """Where stores are kept from run to run."""
        return cache_folder(self.settings.cache_dir) / "frozen"

    @property
    def dtype(self) -> torch.dtype | None:
        """The type in which floating-point activations are stored; None: as they are computed, without rounding."""
        return DTYPES.get(self.settings.cache_dtype)


def from_main_process(accelerator: Accelerator, compute: Callable[[], Answer]) -> Answer:
    """What one process computes, on all of them: each might measure otherwise, or round otherwise."""
    answers: list[Answer] = broadcast_object_list([compute() if accelerator.is_main_process else None])
    return answers[0]


def stores_of(
    passes: Passes, parts: Iterable[Part], columns: Sequence[Column], material: Mapping[str, Any]
) -> dict[Part, Store]:
    """The stores of parts of the samples.

    Args:
        passes: the samples, and where stores are kept.
        parts: of training and validation.
        columns: the tensors of a sample.
        material: what is computed, and with which weights.
    """
    return {part: _store_maker(passes, part)(columns, material) for part in parts}


def column_stores_of(
    passes: Passes, parts: Iterable[Part], columns: Sequence[Column], materials: Sequence[Mapping[str, Any]]
) -> dict[Part, ColumnStores]:
    """The same, with a store for each column; `materials` are those of the columns, and may name a `SAMPLE_PART`."""
    stores = {}
    for part in parts:
        # What is common to all columns takes a while: the data are hashed.
        make = _store_maker(passes, part, same_chunks=True)
        stores[part] = ColumnStores([make([one], material) for one, material in zip(columns, materials, strict=True)])
    return stores


def _store_maker(
    passes: Passes, part: Part, *, same_chunks: bool = False
) -> Callable[[Sequence[Column], Mapping[str, Any]], Store]:
    """Makes the stores of a part of the samples, by their columns and material."""
    split, view = part
    dataset, samples = passes.loaders.of(split).dataset, cache(partial(passes.loaders.fingerprint, split, view))
    related = {name: version for name, version in versions().items() if name not in UNRELATED}
    lengths, targets = getattr(dataset, "lengths", None), torch.tensor(dataset.split.targets[:1])
    target = Column(tuple(targets.shape[1:]), targets.dtype)

    def make(columns: Sequence[Column], material: Mapping[str, Any]) -> Store:
        content = {**material, "versions": related, "samples": samples(material.get(SAMPLE_PART, "")), "view": view}
        return Store(passes.folder, content, columns, len(dataset), lengths, target=target, same_chunks=same_chunks)

    return make


def identity(model: nn.Module, later: Collection[str], accelerator: Accelerator) -> dict[str, Any]:
    """What the outputs of a model's first layers depend on, beside versions: weights, settings, arithmetic.

    Args:
        model: the model, not wrapped.
        later: names of the modules, and of single parameters, that do not belong to these layers.
        accelerator: device and precision.
    """
    modules, state = tuple(f"{name}." for name in later), model.state_dict()
    first = {name: value for name, value in state.items() if name not in later and not name.startswith(modules)}
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    # A backbone computes the same whatever its name and those of the classes are, and whatever a target has saved.
    names = (name for name in settings if "label" not in name and not name.startswith("_"))
    relevant = {name: settings[name] for name in names if name not in OF_A_TASK}
    return {
        "weights": digest_of(first),
        "settings": hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest(),
        "precision": str(accelerator.mixed_precision),
        "device": accelerator.device.type,
    }


def fill(stores: Mapping[Part, Store | ColumnStores], compute_of: ComputeOf, passes: Passes) -> float:
    """Compute and write the missing and the damaged chunks of stores; the processes of a machine share them.

    Args:
        stores: of parts of the samples.
        compute_of: gives what computes some of their columns: those that an earlier run has stored are not computed.
        passes: the samples.

    Returns:
        Seconds.
    """
    started, accelerator = time.perf_counter(), passes.accelerator
    # Each machine may have a disk of its own. Without LOCAL_WORLD_SIZE the processes of a machine cannot divide the
    # chunks, so each computes all of them.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if accelerator.num_processes > 1 else 1
    rank = accelerator.local_process_index % sharing
    for (split, view), store in stores.items():
        missing = store.missing(range(rank, len(store.chunks), sharing))
        store.sweep()
        total = sum(len(store.chunks[number]) for numbers in missing.values() for number in numbers)
        hidden = not accelerator.is_main_process or not sys.stderr.isatty() or not missing
        title = f"frozen layers, {split}" if view is None else f"frozen layers, {split}, view {view + 1}"
        with tqdm(total=total, desc=title, unit=" samples", leave=False, disable=hidden) as progress:
            for columns, numbers in missing.items():
                incomplete = store.of(columns)
                with closing(computed(incomplete, numbers, compute_of(columns), passes, (split, view))) as chunks:
                    for number, tensors in chunks:
                        incomplete.write(number, tensors)
                        progress.update(len(store.chunks[number]))
        accelerator.wait_for_everyone()
    return time.perf_counter() - started


def computed(
    store: Store | ColumnStores, numbers: Sequence[int], compute: Compute, passes: Passes, part: Part
) -> Generator[tuple[int, list[Tensor]], None, None]:
    """Compute chunks of a store: the number and the columns of each.

    Within a chunk, texts of similar length share a batch. No batch belongs to two chunks, so the content of a chunk
    does not depend on which others are missing.
    """
    loaders, accelerator, (split, view) = passes.loaders, passes.accelerator, part
    source = loaders.of(split)
    batches = {number: store.batches(number, passes.batch_size) for number in numbers}
    samples: DataLoader[Batch] = DataLoader(
        source.dataset,
        batch_sampler=[positions for batches_of_chunk in batches.values() for positions in batches_of_chunk],
        num_workers=source.num_workers,
        collate_fn=source.collate_fn,
        worker_init_fn=ignore_signals,
        # Without a generator the loader draws from torch's global one, as dropout does: the store would change a run.
        generator=torch.Generator(),
    )
    collated = iter(samples)
    try:
        for number, batches_of_chunk in batches.items():
            chunk = Chunk(store.columns)
            for positions in batches_of_chunk:
                inputs, targets, counted, _ = loaders.to_inputs(next(collated), accelerator.device, split, view)
                with accelerator.autocast():
                    tensors = in_parts(compute, inputs, loaders.parts_of(inputs))
                chunk.put(positions, [*tensors, targets, counted], inputs.get("attention_mask"))
            yield number, chunk.in_order()
    finally:
        end_workers(collated)


def measured_costs(store: Store, compute: Compute, passes: Passes) -> tuple[float, float, float]:
    """Measure the costs of a store of training samples, with a temporary store of its first samples.

    Returns:
        Seconds for one sample: to compute the frozen groups, to write their outputs to disk, and to read them.

    Raises:
        UserError: the folder of the store cannot be written to.
    """
    count = min(store.samples, BATCHES_MEASURED * passes.batch_size)
    trial = store.first_samples(count)
    try:
        # The second pass counts: later epochs, too, may find decoded samples in a cache.
        for _ in range(2):
            started = time.perf_counter()
            chunks = list(computed(trial, range(len(trial.chunks)), compute, passes, ("train", 0)))
            compute_seconds = time.perf_counter() - started
        started = time.perf_counter()
        for number, tensors in chunks:
            trial.write(number, tensors)
        write_seconds = time.perf_counter() - started
        started = time.perf_counter()
        for batch in np.array_split(np.arange(count)[::-1], BATCHES_MEASURED):
            trial.read(batch)
        read_seconds = time.perf_counter() - started
    finally:
        trial.remove()
    return compute_seconds / count, write_seconds / count, read_seconds / count
