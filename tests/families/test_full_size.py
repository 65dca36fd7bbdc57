"""ResNet-50, ViT-B and BERT-base of full size."""

from pathlib import Path

import pytest

from benchmarks.random_models import random_weights
from tests.families.full_size import assert_trains_and_is_probed


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "recipe"), [("resnet", "vision"), ("vit", "vision"), ("bert", "text")])
def test_a_model_of_full_size_trains_and_is_probed(shape: str, recipe: str, tmp_path: Path) -> None:
    assert_trains_and_is_probed(random_weights(shape, tmp_path / "model"), recipe, tmp_path)
