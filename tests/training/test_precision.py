"""TF32: on for a run where the GPU has it, as asked for, and as before after the run."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hf_transfer.errors import UserError
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.precision import description, float32_products, has_tf32
from tests.training.toy_task import settings

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CUDNN: Any = torch.backends.cudnn
KINDS: tuple[Any, ...] = (torch.backends.cuda.matmul, CUDNN.conv, CUDNN.rnn)


def precisions() -> list[str]:
    return [kind.fp32_precision for kind in KINDS]


@pytest.fixture(autouse=True)
def unlike_each_other() -> Iterator[None]:
    """The settings of the process are those of a caller who has chosen each."""
    before = precisions()
    for kind, value in zip(KINDS, ("ieee", "tf32", "ieee"), strict=True):
        kind.fp32_precision = value
    yield
    for kind, value in zip(KINDS, before, strict=True):
        kind.fp32_precision = value


@pytest.fixture
def with_capability(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A build of torch for CUDA; the GPU is an A100."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    return monkeypatch


@pytest.mark.parametrize(("tf32", "during"), [(None, "tf32"), (True, "tf32"), (False, "ieee")])
def test_a_gpu_that_has_it_uses_it_unless_told_not_to(
    tf32: bool | None, during: str, with_capability: pytest.MonkeyPatch
) -> None:
    with float32_products(tf32, GPU):
        assert precisions() == [during] * 3
    assert precisions() == ["ieee", "tf32", "ieee"]


def test_after_an_error_it_is_as_before(with_capability: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), float32_products(None, GPU):
        raise ZeroDivisionError
    assert precisions() == ["ieee", "tf32", "ieee"]


@pytest.mark.parametrize("tf32", [None, False])
def test_on_a_cpu_nothing_is_changed(tf32: bool | None) -> None:
    with float32_products(tf32, CPU):
        assert precisions() == ["ieee", "tf32", "ieee"]


def test_an_older_gpu_does_not_have_it(with_capability: pytest.MonkeyPatch) -> None:
    with_capability.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not has_tf32(GPU)
    with (
        pytest.raises(UserError, match=r"compute capability 8.0 or more\)\nFound:    A100"),
        float32_products(True, GPU),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_asking_for_it_without_a_gpu_is_refused_before_anything_slow() -> None:
    with (
        pytest.raises(
            UserError, match=r"a GPU for --tf32 true.*\nFound:    none \(the device is cpu\)\nDo this:  leave"
        ),
        start_accelerator(settings(tf32=True)),
    ):
        pass


def test_doctor_says_what_a_run_uses(with_capability: pytest.MonkeyPatch) -> None:
    assert description(CPU) == "float32"
    assert description(GPU) == "float32 with TF32 products (--tf32 false: without); --bf16 is faster on this GPU"
    with_capability.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with_capability.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert description(GPU) == "float32; --fp16 is faster on this GPU"
