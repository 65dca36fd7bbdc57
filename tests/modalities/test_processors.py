"""Processors of transformers with their own defaults: model inputs are theirs, whatever the picture is."""

from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from hf_transfer.data.pictures import decode
from hf_transfer.data.splits import Split, Splits
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pixels import TOLERANCE, PixelPreprocessing
from hf_transfer.settings.run import VisionConfig
from hf_transfer.targets.classes import Classes
from tests.data.conftest import encoded, noise, raw_bytes, raw_path
from tests.modalities.test_pixels import processor_of

SMALL = {"height": 48, "width": 48}
PADDED: dict[str, Any] = {"do_pad": True, "pad_size": {"height": 256, "width": 256}}
# Their names, with settings beside their defaults.
PROCESSORS: dict[str, dict[str, Any]] = {
    "BeitImageProcessor": {},
    "BitImageProcessor": {},
    "BlipImageProcessor": {},
    "CLIPImageProcessor": {},
    "ChineseCLIPImageProcessor": {},
    "ConvNextImageProcessor": {"crop_pct": 0.9, "size": {"shortest_edge": 224}},
    "DPTImageProcessor": {},
    "DeiTImageProcessor": {},
    "EfficientNetImageProcessor": {},
    "FlavaImageProcessor": {},
    "LevitImageProcessor": {},
    "LlavaImageProcessor": {"do_pad": True},
    "MobileNetV1ImageProcessor": {},
    "MobileNetV2ImageProcessor": {},
    "MobileViTImageProcessor": {},
    "Owlv2ImageProcessor": {"size": SMALL},
    "PerceiverImageProcessor": {},
    "PoolFormerImageProcessor": {},
    "PvtImageProcessor": {},
    "SamImageProcessor": {"size": {"longest_edge": 48}, "pad_size": {"height": 64, "width": 64}},
    "SegformerImageProcessor": {},
    "SiglipImageProcessor": {},
    "ViTImageProcessor": {},
}
WITH_PADDING = ("BitImageProcessor", "CLIPImageProcessor", "DeiTImageProcessor", "LevitImageProcessor",
                "PvtImageProcessor", "SiglipImageProcessor", "ViTImageProcessor")  # fmt: skip
CASES = {**PROCESSORS, **{f"{name}, padded": PADDED for name in WITH_PADDING}}
# What pads with a value that no picture has at this place, or pads before it resizes.
NOT_IN_TWO_STEPS = {"Owlv2ImageProcessor", "SamImageProcessor", *(f"{name}, padded" for name in WITH_PADDING)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of grey, transparent and palette pictures, and of wide, tall, small and large ones."""
    folder = tmp_path_factory.mktemp("pictures")
    colours = Image.fromarray(noise(70, 50, 3))
    kept = {
        "grey": colours.convert("L"),
        "transparent": Image.fromarray(noise(70, 50, 4)),
        "grey and transparent": Image.fromarray(noise(70, 50, 2)),
        "palette": colours.quantize(16),
        "black and white": colours.convert("1"),
        "wide": Image.fromarray(noise(20, 300, 3)),
        "tall": Image.fromarray(noise(300, 20, 3)),
        "small": Image.fromarray(noise(5, 4, 3)),
        "large": Image.fromarray(noise(500, 640, 3)),
    }
    for name, picture in kept.items():
        picture.save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in kept}


@pytest.fixture(scope="module")
def preprocessing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The processor of a case, and our preprocessing; each is made once."""

    @cache
    def make(name: str) -> tuple[Any, PixelPreprocessing]:
        settings = {"image_processor_type": name.partition(",")[0], **CASES[name]}
        processor = processor_of(settings, tmp_path_factory.mktemp("processor"))
        return processor, PixelPreprocessing(processor)

    return make


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_those_of_the_processor(name: str, preprocessing: Any, pictures: dict[str, Path]) -> None:
    """From the file itself, as a pipeline of transformers reads it."""
    processor, pixels = preprocessing(name)
    for path in pictures.values():
        expected = np.asarray(processor(load_image(str(path)), return_tensors="np")["pixel_values"][0])
        made = pixels.inputs([decode(raw_path(path))])["pixel_values"][0].numpy()
        assert made.shape == expected.shape == pixels.shape
        assert np.abs(made - expected).max() <= TOLERANCE * max(1.0, float(np.abs(expected).max())), path.stem


def test_only_where_two_steps_give_other_values_the_processor_itself_is_used(preprocessing: Any) -> None:
    """Pixels of 8 bits take a quarter of the memory."""
    assert {name for name in CASES if not preprocessing(name)[1].in_two_steps} == NOT_IN_TWO_STEPS


@pytest.mark.parametrize("name", ["ViTImageProcessor", "ViTImageProcessor, padded", "SamImageProcessor"])
def test_black_pixels_are_those_of_a_black_picture(name: str, preprocessing: Any) -> None:
    """In the type of all others: they share batches."""
    _, pixels = preprocessing(name)
    picture = pixels.resize(Image.new("RGB", (64, 64)))
    assert pixels.black().dtype == picture.dtype
    assert pixels.black().shape == picture.shape
    assert not pixels.black().any()


@pytest.mark.parametrize("name", ["ViTImageProcessor, padded", "SamImageProcessor"])
@pytest.mark.parametrize("augmentation", ["none", "light"])
def test_batches_of_a_processor_that_pads_are_its_own(name: str, augmentation: str, preprocessing: Any) -> None:
    """A masked picture is among them; augmented ones stay in the range of the pixels."""
    processor, pixels = preprocessing(name)
    contents = [encoded(Image.fromarray(picture)) for picture in noise(5, 20, 24, 3)]
    split = split_of([*contents, b""])
    splits = Splits(split, split, split, Classes(("a", "b")), columns={}, samples="images", copies={}, notes=[])
    config = VisionConfig.of(
        model_name_or_path="sample:vit-glyphs", dataset_name="sample:digits", output_dir="out",
        augmentation=augmentation, on_bad_sample="skip",
    )  # fmt: skip
    loaders = ImageModality().loaders(splits, pixels, config, Accelerator(cpu=True), frozen_prefix=False)
    batch = next(iter(loaders.test))
    made = loaders.to_inputs(batch, torch.device("cpu"), "test", None).inputs["pixel_values"]
    for position, content in enumerate(contents):
        expected = processor(decode(raw_bytes(content)), return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(made[position], expected, atol=TOLERANCE)
    assert batch["counted"].tolist() == [True] * 5 + [False]
    augmented = loaders.to_inputs(batch, torch.device("cpu"), "train", 0).inputs["pixel_values"]
    assert augmented.isfinite().all()
    assert augmented.max() <= made.max() + 0.01
    assert augmented.min() >= made.min() - 0.01


def split_of(contents: list[bytes]) -> Split:
    data = datasets.Dataset.from_dict(
        {"image": [raw_bytes(content) for content in contents]},
        features=datasets.Features({"image": datasets.Image(decode=False)}),
    )
    rows = np.arange(len(contents))
    return Split(data, rows, rows % 2, unreadable={len(contents) - 1: "the file is empty"})


def test_a_processor_that_brings_each_picture_to_the_same_mean_keeps_its_values() -> None:
    """Black and white then have the same outputs, from which no scale can be read."""

    class Standardising:
        def __call__(self, images: Image.Image, **kwargs: Any) -> dict[str, Any]:
            pixels = np.asarray(images.resize((16, 16)), dtype=np.float32).transpose(2, 0, 1) / 255
            return {"pixel_values": [(pixels - pixels.mean()) / (pixels.std() + 1)]}

        def save_pretrained(self, save_directory: Path) -> None: ...

    pixels, picture = PixelPreprocessing(Standardising()), Image.fromarray(noise(30, 20, 3))
    expected = Standardising()(picture)["pixel_values"][0]
    assert np.abs(pixels.inputs([picture])["pixel_values"][0].numpy() - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["Qwen2VLImageProcessor", "Siglip2ImageProcessor", "VideoMAEImageProcessor"])
def test_a_processor_of_patches_or_videos_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="an image processor that turns an image into pixel_values"):
        PixelPreprocessing(processor_of({"image_processor_type": name}, tmp_path))


def test_the_processors_are_those_that_a_checkpoint_loads(tmp_path: Path) -> None:
    for name in PROCESSORS:
        processor = processor_of({"image_processor_type": name}, tmp_path)
        assert type(processor).__name__ == f"{name}Pil"
        assert isinstance(AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), type(processor))
