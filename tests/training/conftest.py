"""Every test has an accelerator of its own: its state is shared by the whole process."""

import gc
from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState

from hf_transfer.training import store as store_module


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty samples are five chunks, the last of two."""
    monkeypatch.setattr(store_module, "CHUNK_SAMPLES", 7)


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Each stage ends with a collection of garbage, which would go through all that was ever imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
