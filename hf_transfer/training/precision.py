"""With how many digits a GPU multiplies numbers in float32: TF32 rounds the factors to 10 bits, the sums keep 23."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_transfer.errors import user_error

# The first GPUs with units for TF32 and bfloat16 (Ampere).
FIRST_CAPABILITY = 8


@contextmanager
def float32_products(tf32: bool | None, device: torch.device) -> Iterator[None]:
    """During a run, matrix products and convolutions in float32 use TF32, or not; afterwards it is as it was.

    Args:
        tf32: whether they do; None: where the GPU has it.
        device: on which the run computes; on others than NVIDIA's GPUs nothing is changed.

    Raises:
        UserError: TF32 is asked for, and the device does not have it.
    """
    available = has_tf32(device)
    if tf32 and not available:
        raise user_error(
            expected=f"a GPU for --tf32 true (of compute capability {FIRST_CAPABILITY}.0 or more)",
            found=_name(device),
            do="leave out --tf32: it is used where there is such a GPU",
        )
    if not available:
        yield
        return
    cudnn: Any = torch.backends.cudnn
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee" if tf32 is False else "tf32"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies in TF32."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= FIRST_CAPABILITY


def description(device: torch.device) -> str:
    """The precision of a run without settings for it on this device, and what else the device has."""
    if device.type != "cuda":
        return "float32"
    default = "float32 with TF32 products (--tf32 false: without)" if has_tf32(device) else "float32"
    fast = "--bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "--fp16"
    return f"{default}; {fast} is faster on this GPU"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"none (the device is {device.type})"
