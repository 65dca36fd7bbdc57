"""Fixtures: a fresh accelerator for each test, small chunks, and a small disk."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState

from hf_transfer.frozen import store as store_module
from tests.checkpoints.conftest import small_disk

__all__ = ["fresh_accelerator", "small_chunks", "small_disk"]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate's state belongs to the process: each test begins without one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty samples are five chunks, the last of two."""
    monkeypatch.setattr(store_module, "CHUNK_SAMPLES", 7)
