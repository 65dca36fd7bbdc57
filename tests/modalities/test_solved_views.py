"""How many augmented views a solved head sees: each is a pass through the backbone, and helps only with few images."""

from typing import Any

import pytest

from hf_transfer.modalities.image_batches import image_inputs
from hf_transfer.modalities.pixels import PixelPreprocessing
from tests.data.conftest import Settings
from tests.modalities.test_image_batches import embedded, good, processor, splits_of


@pytest.mark.parametrize(
    ("samples", "settings_given", "views"),
    [
        (24, {}, 4),
        (25, {}, 0),
        (25, {"cache_views": 2}, 2),
        (25, {"cache_views": 0}, 0),
        (24, {"augmentation": "none"}, 0),
    ],
)
def test_a_solved_head_sees_augmented_views_of_few_samples_or_as_set(
    samples: int, settings_given: dict[str, Any], views: int, settings: Settings
) -> None:
    """Of three classes; with more than 8 samples for each the views cost more than they bring."""
    splits = splits_of(embedded(good(samples, 0)))
    inputs = image_inputs(splits, PixelPreprocessing(processor()), settings(**settings_given), frozen_prefix=True)
    assert inputs.views == views
