"""How much memory a solver takes with few and with many samples, whose features are mapped from a file."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.large_store import anonymous_bytes
from hf_transfer.frozen import standardised
from hf_transfer.frozen.standardised import Blocks
from tests.training.memory import in_a_process

MEGABYTE = 1 << 20
BLOCK = 2_048


def print_largest(path: str, targets: Callable[[int], Tensor], solve: Callable[[Blocks], object]) -> None:
    """In a separate process: print the largest anonymous memory while solving with few and with many samples."""
    features = np.load(path, mmap_mode="c")
    values = targets(len(features))
    levels: list[int] = []

    def blocks(times: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in [*range(0, len(features), BLOCK)] * times:
            levels.append(anonymous_bytes())
            yield torch.from_numpy(features[start : start + BLOCK]), values[start : start + BLOCK]

    largest = []
    for times in (1, 3):
        levels.clear()
        solve(partial(blocks, times))
        largest.append(max(levels))
    print(json.dumps(largest))


def megabytes_of_more_samples(module: str, folder: Path) -> float:
    """How much more memory `solve_mapped` of a module takes with three times the samples: 70 MB, if it kept them."""
    features = np.random.default_rng(0).normal(size=(17_000, 256)).astype(np.float32)
    assert features.size * 8 > standardised.KEPT_BYTES
    np.save(folder / "features.npy", features)
    few, many = in_a_process(module, f"solve_mapped({str(folder / 'features.npy')!r})")
    return float(many - few) / MEGABYTE
