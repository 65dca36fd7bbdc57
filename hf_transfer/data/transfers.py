"""Tensors between the host and a GPU, without a wait for what the GPU has still to compute."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the host goes on while it is copied.

    To a GPU it is copied from pinned memory: from any other the host would wait until the GPU has finished all earlier
    work.

    Args:
        tensor: on the host or on the device; the caller does not change it afterwards.
        device: where it is needed.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """Numbers that are on their way from a device to the host.

    Args:
        numbers: on the device, one dimension; the caller does not change them afterwards.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._arrived = numbers.detach(), None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers, after waiting until the device has computed them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(number) for number in self._numbers.tolist()]
