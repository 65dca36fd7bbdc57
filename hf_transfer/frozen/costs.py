"""What stored activations cost and save, measured on a few batches."""

import time
from typing import NamedTuple

import numpy as np

from hf_transfer.frozen.recording import Compute, Passes, computed
from hf_transfer.frozen.store import Store

BATCHES_MEASURED = 3


class Costs(NamedTuple):
    """Seconds for one sample: to compute the frozen groups, to write their outputs, and to read them.

    Attributes:
        compute: one pass through the frozen groups.
        write: to disk.
        read: from disk.
    """

    compute: float
    write: float
    read: float


def measured_costs(store: Store, compute: Compute, passes: Passes) -> Costs:
    """Measure the costs of a store of training samples, with a temporary store of its first samples.

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
    return Costs(compute_seconds / count, write_seconds / count, read_seconds / count)
