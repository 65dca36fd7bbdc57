"""These tests run where timm and torchvision are: `make test` puts both, and `start/`, on Python's path for them."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import Recipe

collect_ignore_glob = [] if find_spec("timm") else ["test_*.py"]


@pytest.fixture
def finished(vision: Recipe, tmp_path: Path) -> Path:
    """The folder of a finished run: a solved head on a small ResNet of timm."""
    from tests.with_timm.tiny_timm import save_timm

    checkpoint = save_timm(tmp_path / "timm", input_size=(3, 65, 65), mean=(0.4, 0.5, 0.6), crop_pct=0.9)
    assert vision(model_name_or_path=checkpoint, strategy="linear_probe").code == 0
    return tmp_path / "out"
