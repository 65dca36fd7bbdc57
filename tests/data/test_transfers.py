"""Copies between the host and a GPU: from and to pinned memory, read only once they have arrived.

There is no GPU here: the calls that need one are noted, in their order, and everything stays on the CPU.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_transfer.data.transfers import HostCopy, to_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, CPU) is tensor
    assert HostCopy(torch.tensor([0.0, 15.0, 1.0])).read() == [0.0, 15.0, 1.0]


@pytest.mark.parametrize("pinned", [False, True])
def test_to_a_gpu_a_tensor_is_copied_from_pinned_memory_without_a_wait(pinned: bool) -> None:
    calls: list[str] = []

    class Noting:
        device = CPU

        def is_pinned(self) -> bool:
            return pinned

        def pin_memory(self) -> "Noting":
            calls.append("pin")
            return self

        def to(self, device: torch.device, *, non_blocking: bool) -> str:
            calls.append(f"copy to {device}, non_blocking={non_blocking}")
            return "copy"

    tensor: Any = Noting()
    copied: Any = to_device(tensor, GPU)
    assert copied == "copy"
    assert calls == [*([] if pinned else ["pin"]), "copy to cuda, non_blocking=True"]


def test_numbers_from_a_gpu_are_read_after_they_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy and the event behind it are asked for at once, and nobody waits before `read`."""
    calls: list[str] = []
    on_gpu = torch.tensor([1.0, 2.0])
    empty = torch.empty

    class Event:
        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("wait")

    def pinned(*shape: Any, pin_memory: bool, **more: Any) -> Any:
        assert pin_memory
        buffer = empty(*shape, **more)
        copy = buffer.copy_

        def copy_later(source: torch.Tensor, *, non_blocking: bool) -> None:
            assert non_blocking
            calls.append("copy")
            copy(source)

        return SimpleNamespace(copy_=copy_later, tolist=buffer.tolist)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    numbers: Any = SimpleNamespace(device=GPU, shape=on_gpu.shape, dtype=on_gpu.dtype, detach=lambda: on_gpu)
    copy = HostCopy(numbers)
    assert calls == ["copy", "record"]
    assert copy.read() == [1.0, 2.0]
    assert calls == ["copy", "record", "wait"]
