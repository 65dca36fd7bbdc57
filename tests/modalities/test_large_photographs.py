"""Large photographs: JPEG decoded at a fraction of its size, and resized by Pillow alone."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from transformers import AutoImageProcessor, pipeline

import hf_transfer as ht
from hf_transfer.data.pictures import BadImageError, decode
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.modality import read_description
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.models.pretrained import Checkpoint
from pictures import decode as decoded_by_the_demo
from tests.data.conftest import PairSettings, Settings, noise, raw_bytes, same, user_error_with
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import tiny_tokenizer

LARGE = (1200, 900)
SIDE = 200


def photograph(width: int = LARGE[0], height: int = LARGE[1]) -> Image.Image:
    """Shapes with some noise, as a camera sees them."""
    coarse = Image.fromarray(noise(9, 12, 3)).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(1).normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def pixels_for(folder: Path, saved: dict[str, Any] | None = None, **settings: Any) -> PixelPreprocessing:
    content = {"image_processor_type": "ViTImageProcessor", "size": {"height": 100, "width": 100}} | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return PixelPreprocessing(AutoImageProcessor.from_pretrained(folder, backend="pil"), saved=saved)


@pytest.mark.parametrize(
    ("least_side", "size"), [(SIDE, (300, 225)), (225, (300, 225)), (226, (600, 450)), (451, LARGE), (None, LARGE)]
)
def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_keeps_enough_of_both_sides(
    least_side: int | None, size: tuple[int, int]
) -> None:
    assert decode(raw_bytes(jpeg(photograph())), least_side=least_side).size == size


def test_an_orientation_in_the_file_turns_the_small_picture_as_it_turns_the_whole_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = jpeg(photograph(), exif=exif)
    small, whole = decode(raw_bytes(content), least_side=SIDE), decode(raw_bytes(content))
    assert (small.size, whole.size) == ((225, 300), LARGE[::-1])
    difference = np.asarray(whole.resize(small.size, Image.Resampling.BOX), float) - np.asarray(small, float)
    assert np.abs(difference).mean() < 2


def test_grey_and_cmyk_become_rgb_at_a_fraction_of_their_size_too() -> None:
    for mode in ("L", "CMYK"):
        content = jpeg(photograph().convert(mode))
        small, whole = decode(raw_bytes(content), least_side=SIDE), decode(raw_bytes(content))
        assert (small.mode, small.size) == ("RGB", (300, 225))
        difference = np.asarray(whole.resize(small.size, Image.Resampling.BOX), float) - np.asarray(small, float)
        assert np.abs(difference).mean() < 2


def test_several_pictures_in_one_file_give_the_first_at_a_fraction_of_its_size() -> None:
    """Phones write such files: the photograph, and further ones for depth or in small."""
    buffer = io.BytesIO()
    photograph().save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    assert Image.open(io.BytesIO(buffer.getvalue())).format == "MPO"
    assert decode(raw_bytes(buffer.getvalue()), least_side=SIDE).size == (300, 225)


def test_other_formats_are_decoded_as_they_are() -> None:
    buffer = io.BytesIO()
    photograph().save(buffer, "PNG")
    assert same(decode(raw_bytes(buffer.getvalue()), least_side=SIDE), photograph())


def test_a_truncated_file_is_found_at_a_fraction_of_its_size_too() -> None:
    content = jpeg(photograph())
    with pytest.raises(BadImageError, match="truncated"):
        decode(raw_bytes(content[: len(content) * 3 // 4]), least_side=SIDE)


def test_the_model_gets_almost_the_pixels_of_the_whole_picture(tmp_path: Path) -> None:
    """With two pixels for each one of the model they differ by a third of a grey level; docs/benchmarks.md has more."""
    preprocessing = pixels_for(tmp_path)
    content = jpeg(photograph())
    ours, whole = preprocessing.read(raw_bytes(content)), preprocessing.resize(decode(raw_bytes(content)))
    difference = (ours.int() - whole.int()).abs()
    assert 0 < difference.float().mean() < 0.5
    assert difference.max() <= 6


def test_small_pictures_give_the_pixels_of_the_processor_itself(tmp_path: Path) -> None:
    preprocessing = pixels_for(tmp_path)
    content = jpeg(photograph(380, 390).filter(ImageFilter.SHARPEN))
    theirs = preprocessing.processor(Image.open(io.BytesIO(content)), return_tensors="np")["pixel_values"][0]
    ours = preprocessing.normalise(preprocessing.read(raw_bytes(content)).float())
    assert np.abs(ours.numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({}, SIDE),
        ({"size": {"height": 60, "width": 80}}, 160),
        ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 90}, "crop_size": 80}, 180),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 70}, "crop_pct": 0.875}, 160),
    ],
    ids=["both sides", "two lengths", "crop", "share"],
)
def test_both_sides_keep_twice_what_the_processor_resizes_to(
    settings: dict[str, Any], side: int, tmp_path: Path
) -> None:
    assert pixels_for(tmp_path, **settings).least_side == side


def test_a_processor_that_does_more_than_resize_and_crop_gets_whole_pictures(tmp_path: Path) -> None:
    """One that only crops, and one that changes the order of the channels, beside its size."""
    cropping = {"image_processor_type": "BitImageProcessor", "do_resize": False, "crop_size": 80}
    swapping = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 90}, "crop_size": 80}
    each: list[dict[str, Any]] = [cropping, swapping]
    for settings in each:
        assert pixels_for(tmp_path, **settings).least_side is None


def test_a_processor_that_only_resizes_is_not_called_for_each_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = pixels_for(tmp_path)
    expected = preprocessing.processor(photograph(), return_tensors="np")["pixel_values"][0]
    monkeypatch.setattr(preprocessing, "processor", lambda *_, **__: pytest.fail("called"))
    ours = preprocessing.normalise(preprocessing.resize(photograph()).float())
    assert np.abs(ours.numpy() - expected).max() < 1e-5


def test_a_finished_model_decodes_as_its_training_did(tmp_path: Path) -> None:
    """Also one of an earlier version, which decoded all pixels."""
    saved = pixels_for(tmp_path).description()
    assert saved["decoded_side"] == SIDE
    assert pixels_for(tmp_path, saved | {"decoded_side": 300}).least_side == 300
    del saved["decoded_side"]
    assert pixels_for(tmp_path, saved).least_side is None
    assert pixels_for(tmp_path, saved).description() == saved


def test_a_model_that_was_not_trained_here_gets_all_pixels_as_a_pipeline_gives_it(tmp_path: Path) -> None:
    """Nothing was saved with it that says how its training decoded pictures."""
    model, path = save_checkpoint(tmp_path / "model"), tmp_path / "one.jpg"
    path.write_bytes(jpeg(photograph()))
    [predicted] = ht.load(model)([path])
    in_pipeline = pipeline("image-classification", str(model))(str(path), top_k=None)
    assert predicted == pytest.approx({one["label"]: one["score"] for one in in_pipeline[: len(predicted)]}, abs=1e-6)


def test_only_a_run_that_trains_decodes_fewer_pixels(
    settings: Settings, pair_settings: PairSettings, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "model")
    checkpoint, images, pairs = Checkpoint(str(folder)), ImageModality(), PairModality()
    assert images.preprocessing(checkpoint, settings(), {}).least_side is not None
    judging = settings(model_name_or_path=str(folder), evaluate_only=True)
    assert images.preprocessing(checkpoint, judging, {}).least_side is None
    assert images.saved_preprocessing(checkpoint).least_side is None
    tiny_tokenizer().save_pretrained(folder)
    assert pairs.preprocessing(checkpoint, pair_settings(), {}).least_side is not None
    judging_pairs = pair_settings(
        model_name_or_path=str(folder), evaluate_only=True, image_model_name_or_path=None, text_model_name_or_path=None
    )
    assert pairs.preprocessing(checkpoint, judging_pairs, {}).least_side is None
    assert pairs.saved_preprocessing(checkpoint).least_side is None


@pytest.mark.parametrize("side", [0, -5, "many"])
def test_a_side_that_is_no_number_of_pixels_is_refused(side: Any, tmp_path: Path) -> None:
    path = tmp_path / "preprocessing.json"
    path.write_text(json.dumps({"schema": 1, "columns": {}, "decoded_side": side}))
    with user_error_with(expected="a preprocessing.json", found="ValueError", do="restore that file"):
        read_description(path, "a model")


def test_the_demo_decodes_photographs_as_training_does(tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    path.write_bytes(jpeg(photograph()))
    raw = {"bytes": None, "path": str(path)}
    assert same(decoded_by_the_demo(path, least_side=SIDE), decode(raw, least_side=SIDE))
    assert same(decoded_by_the_demo(path), decode(raw))
