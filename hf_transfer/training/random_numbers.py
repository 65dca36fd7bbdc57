"""The global random number generators of Python, numpy and torch: what a checkpoint holds of them."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class RandomState(NamedTuple):
    """The state of all generators.

    Attributes:
        plain: of Python and numpy, as JSON.
        tensors: of torch: on the CPU and, if there is one, on the accelerator.
    """

    plain: dict[str, Any]
    tensors: dict[str, Tensor]


def random_state(device: torch.device) -> RandomState:
    """The present state."""
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = numpy_state
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        tensors["mps"] = torch.mps.get_rng_state()
    return RandomState(
        {"python": random.getstate(), "numpy": (name, keys.tolist(), position, has_gauss, gauss)}, tensors
    )


def set_random_state(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to an earlier state, also one that was written to JSON and read again."""
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = plain["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    if "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])


@contextmanager
def unchanged_random_state(device: torch.device) -> Iterator[None]:
    """Afterwards, also after an error, the generators are as they were."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(*before, device)
