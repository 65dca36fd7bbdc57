"""Pictures become what timm makes of them, without torchvision, in training, prediction and in a pipeline."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torch import Tensor

from hf_transfer.data.pictures import decode
from hf_transfer.errors import UserError
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.timm_models import TimmProcessor
from tests.with_timm.tiny_timm import save_timm

SIZES = [(1, 1), (1, 300), (300, 1), (7, 5), (31, 500), (64, 64), (65, 64), (224, 225), (299, 301), (640, 427)]
MODES = ["RGB", "L", "RGBA", "P", "I;16"]
# Sizes and filters that timm's weights have: Inception, EfficientNet, a crop of the whole, a crop that is padded.
CONFIGURATIONS: list[dict[str, Any]] = [
    {"input_size": (3, 64, 64), "crop_pct": 0.875, "interpolation": "bilinear"},
    {"input_size": (3, 75, 75), "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    {"input_size": (3, 61, 61), "crop_pct": 0.95, "interpolation": "lanczos"},
    {"input_size": (3, 64, 64), "crop_pct": 1.0, "interpolation": "nearest", "mean": (0.0,) * 3, "std": (1.0,) * 3},
    {"input_size": (3, 64, 64), "crop_pct": 1.3, "interpolation": "bicubic"},
    {"tag": "without settings"},
]


def pictures() -> Iterator[Image.Image]:
    """Fifty pictures of unusual sizes and modes, decoded as in a run."""
    generator = np.random.default_rng(0)
    for width, height in SIZES:
        colours = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        grey = Image.fromarray(generator.integers(0, 2**16, (height, width), dtype=np.uint16))
        for mode in MODES:
            buffer = io.BytesIO()
            (grey if mode == "I;16" else colours.convert(mode)).save(buffer, "PNG")
            yield decode({"bytes": buffer.getvalue(), "path": None})


def by_timm(pretrained_cfg: dict[str, Any], picture: Image.Image) -> Tensor:
    """As `TimmWrapperImageProcessor` of transformers calls timm."""
    data: Any = timm.data
    settings = data.resolve_data_config(pretrained_cfg, model=None, verbose=False)
    result: Tensor = data.create_transform(**settings, is_training=False)(picture)
    return result


@pytest.mark.parametrize("pretrained_cfg", CONFIGURATIONS)
def test_the_values_are_those_of_timm_to_the_bit(pretrained_cfg: dict[str, Any]) -> None:
    processor = TimmProcessor("a model", pretrained_cfg)
    compared = 0
    for picture in pictures():
        prepared = torch.from_numpy(processor(picture)["pixel_values"][0])
        assert torch.equal(prepared, by_timm(pretrained_cfg, picture)), picture.size
        compared += 1
    assert compared == 50


@pytest.mark.parametrize("pretrained_cfg", CONFIGURATIONS[:-1])
def test_they_go_the_short_way_of_all_pictures(pretrained_cfg: dict[str, Any]) -> None:
    """Bytes that are resized by Pillow alone and kept, then a scale and a shift: rounded otherwise in the last bit."""
    preprocessing = PixelPreprocessing(TimmProcessor("a model", pretrained_cfg))
    assert preprocessing.in_two_steps
    assert preprocessing.least_side is not None
    for picture in pictures():
        pixels = preprocessing.resize(picture)
        assert pixels.dtype == torch.uint8
        values = preprocessing.normalise(pixels[None].float())[0]
        torch.testing.assert_close(values, by_timm(pretrained_cfg, picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("pretrained_cfg", "found"),
    [
        ({"crop_mode": "squash"}, "crop_mode squash"),
        ({"crop_mode": "border"}, "crop_mode border"),
        ({"input_size": [3, 64, 96]}, "input_size [3, 64, 96]"),
        ({"input_size": [1, 64, 64]}, "input_size [1, 64, 64]"),
        ({"interpolation": "random"}, "random"),
        ({"mean": 0.5}, "mean 0.5"),
        ({"std": [0.2, "0.2", 0.2]}, "std [0.2, '0.2', 0.2]"),
    ],
)
def test_a_model_that_takes_other_pictures_is_refused(
    pretrained_cfg: dict[str, Any], found: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(str(save_timm(tmp_path / "timm", **pretrained_cfg)))
    with pytest.raises(UserError) as caught:
        checkpoint.processor()
    assert f"{found} in its pretrained_cfg" in str(caught.value)
    assert "Do this:  use another checkpoint of this architecture" in str(caught.value)


def test_the_saved_model_carries_its_preprocessing(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "input_size": [3, 75, 75],
        "crop_pct": 0.9,
        "mean": [0.4, 0.5, 0.6],
        "interpolation": "lanczos",
    }
    checkpoint = Checkpoint(str(save_timm(tmp_path / "timm", **given)))
    checkpoint.finished_classifier().save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())["pretrained_cfg"]
    assert {name: saved[name] for name in given} == given
    before, after = (PixelPreprocessing(Checkpoint(str(tmp_path / name)).processor()) for name in ("timm", "saved"))
    assert before.fingerprint() == after.fingerprint()
