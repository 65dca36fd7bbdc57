"""VGG16, Inception v3 and Inception v4 of full size."""

from pathlib import Path

import pytest

from benchmarks.timm_store import random_weights
from tests.families.full_size import assert_trains_and_is_probed


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["vgg16", "inception_v3", "inception_v4"])
def test_a_model_of_timm_of_full_size_trains_and_is_probed(architecture: str, tmp_path: Path) -> None:
    assert_trains_and_is_probed(random_weights(architecture, tmp_path / "model"), "vision", tmp_path)
