"""Every test has an accelerator of its own: its state is shared by the whole process."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from hf_transfer.training import store as store_module
from tests.training.resumed_runs import CASES, weights, whole


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty samples are five chunks, the last of two."""
    monkeypatch.setattr(store_module, "CHUNK_SAMPLES", 7)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"A small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    # Later: what was read is still mapped into memory.
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The final weights of a case, by name; each is run once."""
    found: dict[str, bytes] = {}

    def of(name: str) -> bytes:
        if name not in found:
            out = tmp_path_factory.mktemp(name)
            assert whole(CASES[name], out, save_steps=0) == 0
            found[name] = weights(out)
        return found[name]

    return of
