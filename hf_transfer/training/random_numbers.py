"""The global random number generators of Python, numpy and torch: what a checkpoint holds of them."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The present state of all generators.

    Returns:
        That of Python and numpy, as JSON; that of torch on the CPU and, if there is one, on the accelerator.
    """
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numpy_state
    tensors = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        tensors[device.type] = torch.get_device_module(device).get_rng_state()
    return {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest)}, tensors


def set_random_state(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Go back to an earlier state, also one that was written to JSON and read again."""
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(plain["numpy"])
    torch.set_rng_state(tensors["cpu"])
    for kind in tensors.keys() - {"cpu"}:
        torch.get_device_module(kind).set_rng_state(tensors[kind])


@contextmanager
def unchanged_random_state(device: torch.device) -> Iterator[None]:
    """Afterwards, also after an error, the generators are as they were."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(*before)
