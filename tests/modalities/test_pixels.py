"""From pictures to pixels: the checkpoint's own values, and a fingerprint that changes with every one of its steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hf_transfer.data.pictures import DECODING
from hf_transfer.modalities import pixels
from hf_transfer.modalities.pixels import PixelPreprocessing
from tests.data.conftest import noise, user_error_with

CROP = {"height": 32, "width": 32}
CLIP_MEAN, CLIP_STD = [0.481, 0.458, 0.408], [0.269, 0.261, 0.276]
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": CROP, "image_mean": [0.5, 0.4, 0.3]},
    "old vit": {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2},
    "swin": {"image_processor_type": "ViTImageProcessor", "size": CROP, "image_std": CLIP_STD, "resample": 3},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 40, "width": 40}, "crop_size": CROP},
    "beit": {"image_processor_type": "BeitImageProcessor", "size": CROP, "crop_size": CROP},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875},
    "large convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": CROP},
    "mobilenet": {
        "image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 40}, "crop_size": CROP,
    },
    "mobilevit": {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 40}, "crop_size": CROP},
    "clip": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": CROP,
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    },
    "efficientnet": {"image_processor_type": "EfficientNetImageProcessor", "size": CROP, "image_std": CLIP_STD},
    "efficientnet with offset": {
        "image_processor_type": "EfficientNetImageProcessor", "size": CROP, "rescale_offset": True,
        "rescale_factor": 1 / 127.5, "include_top": False,
    },
    "no values changed": {
        "image_processor_type": "ViTImageProcessor", "size": CROP, "do_rescale": False, "do_normalize": False,
    },
}  # fmt: skip


def processor_of(settings: dict[str, Any], folder: Path) -> Any:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.fixture
def preprocessing(tmp_path: Path) -> PixelPreprocessing:
    return PixelPreprocessing(processor_of({"image_processor_type": "ViTImageProcessor", "size": CROP}, tmp_path))


@pytest.mark.parametrize("name", PROCESSORS)
def test_inputs_equal_those_of_the_checkpoints_own_processor(name: str, tmp_path: Path) -> None:
    """Size, interpolation, crop, mean, standard deviation and order of the channels are the checkpoint's."""
    processor = processor_of(PROCESSORS[name], tmp_path)
    preprocessing = PixelPreprocessing(processor)
    for number, (width, height) in enumerate([(50, 70), (70, 50), (20, 24), (32, 32), (90, 33)]):
        picture = Image.fromarray(noise(height, width, 3, seed=number))
        ours = preprocessing.inputs([picture])["pixel_values"][0]
        theirs = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
        assert ours.shape == preprocessing.shape
        scale = max(1.0, float(np.abs(theirs).max()))
        assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * scale


def test_values_change_with_the_checkpoints_mean_and_standard_deviation(tmp_path: Path) -> None:
    """Against the formula (x / 255 - mean) / std itself, on a picture that needs no resizing."""
    mean, std = np.asarray([0.1, 0.2, 0.3]), np.asarray([0.4, 0.5, 0.6])
    settings = {"image_processor_type": "ViTImageProcessor", "size": CROP}
    processor = processor_of(settings | {"image_mean": mean.tolist(), "image_std": std.tolist()}, tmp_path)
    pixels = noise(32, 32, 3)
    ours = PixelPreprocessing(processor).inputs([Image.fromarray(pixels)])["pixel_values"][0].permute(1, 2, 0)
    assert np.abs(ours.numpy() - (pixels / 255 - mean) / std).max() < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": False},
        {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    ],
)
def test_a_processor_without_one_size_for_all_images_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """A batch needs one size; the message shows two that differ."""
    with user_error_with(
        expected="an image processor that resizes every image to one size",
        found="for a wide and a high image",
        do="use a checkpoint whose preprocessor_config.json crops or sets both height and width",
    ):
        PixelPreprocessing(processor_of(settings, tmp_path))


def test_a_processor_that_fails_on_a_plain_image_is_refused() -> None:
    class NoPixels:
        def __call__(self, images: Any, **kwargs: Any) -> dict[str, Any]:
            return {"patches": [images]}

        def save_pretrained(self, save_directory: Path) -> None: ...

    with user_error_with(
        expected="an image processor that turns an image into pixel_values",
        found="NoPixels, which failed on a plain image",
        do="choose another --model_name_or_path",
    ):
        PixelPreprocessing(NoPixels())


def test_the_example_has_two_pictures_of_the_models_size_and_is_always_the_same(
    preprocessing: PixelPreprocessing,
) -> None:
    first, second = preprocessing.example()["pixel_values"], preprocessing.example()["pixel_values"]
    assert first.shape == (2, 3, 32, 32)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    # ViT's mean and standard deviation of 1/2 bring [0, 255] to [-1, 1].
    assert -1 <= first.min() < -0.99
    assert 0.99 < first.max() <= 1


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "size before the crop": ({"size": {"shortest_edge": 40}}, {"size": {"shortest_edge": 41}}),
    "crop without resizing": ({}, {"do_resize": False}),
    "interpolation": ({"resample": 2}, {"resample": 3}),
    "mean": ({"image_mean": [0.5, 0.5, 0.5]}, {"image_mean": [0.5, 0.5, 0.51]}),
    "standard deviation": ({"image_std": [0.5, 0.5, 0.5]}, {"image_std": [0.5, 0.49, 0.5]}),
    "rescaling": ({"rescale_factor": 1 / 255}, {"rescale_factor": 1 / 256}),
    "without normalisation": ({}, {"do_normalize": False}),
}
CROPPED = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": CROP}


def fingerprint(settings: dict[str, Any], folder: Path) -> str:
    return PixelPreprocessing(processor_of(settings, folder)).fingerprint()


@pytest.mark.parametrize("name", CHANGES)
def test_the_fingerprint_changes_with_each_step_of_the_processor(name: str, tmp_path: Path) -> None:
    first, second = (CROPPED | settings for settings in CHANGES[name])
    assert fingerprint(first, tmp_path) == fingerprint(first, tmp_path)
    assert fingerprint(first, tmp_path) != fingerprint(second, tmp_path)


class Cropping:
    """A processor that only crops: pictures that are smaller than the crop lie on black.

    Args:
        corner: whether it crops the upper left corner; else the centre.
        least: pictures with a shorter side are never cropped at the corner.
    """

    def __init__(self, corner: bool, least: int = 0) -> None:
        self.corner, self.least = corner, least

    def __call__(self, images: Image.Image, **kwargs: Any) -> dict[str, Any]:
        left, top = (images.width - 32) // 2, (images.height - 32) // 2
        if self.corner and min(images.size) >= self.least:
            left = top = 0
        cropped = images.crop((left, top, left + 32, top + 32))
        return {"pixel_values": [np.asarray(cropped, dtype=np.float32).transpose(2, 0, 1)]}

    def save_pretrained(self, save_directory: Path) -> None: ...


@pytest.mark.parametrize("least", [0, 64])
def test_the_fingerprint_tells_processors_apart_that_crop_only_some_pictures_otherwise(least: int) -> None:
    """One of them crops other pixels of large pictures alone, which a small picture of noise would not show."""
    centre, corner = PixelPreprocessing(Cropping(False)), PixelPreprocessing(Cropping(True, least))
    assert centre.fingerprint() != corner.fingerprint()


@pytest.mark.parametrize("enlarge", [Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
def test_the_fingerprint_tells_apart_how_small_pictures_are_enlarged(enlarge: Image.Resampling) -> None:
    class Enlarging:
        def __init__(self, how: Image.Resampling) -> None:
            self.how = how

        def __call__(self, images: Image.Image, **kwargs: Any) -> dict[str, Any]:
            small = max(images.size) < 32
            resized = images.resize((32, 32), self.how if small else Image.Resampling.BICUBIC)
            return {"pixel_values": [np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)]}

        def save_pretrained(self, save_directory: Path) -> None: ...

    reference = PixelPreprocessing(Enlarging(Image.Resampling.BICUBIC))
    assert PixelPreprocessing(Enlarging(enlarge)).fingerprint() != reference.fingerprint()


def test_the_fingerprint_changes_with_how_pictures_are_decoded(
    preprocessing: PixelPreprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = preprocessing.fingerprint()
    monkeypatch.setattr(pixels, "DECODING", "another way")
    assert preprocessing.fingerprint() != before


def test_how_pictures_are_decoded_and_their_size_are_saved(preprocessing: PixelPreprocessing) -> None:
    assert preprocessing.description() == {"decoding": DECODING, "decoded_side": 64, "size": [32, 32]}
    assert "first frame, EXIF orientation applied, RGB" in DECODING
