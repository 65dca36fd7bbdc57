"""From splits to batches: the checkpoint's own pixels, a pure order, masks in place."""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from hf_transfer.config import VisionConfig
from hf_transfer.data.augmentation import Augmentation
from hf_transfer.data.inputs import (
    MASKED,
    EpochSampler,
    ImageBatches,
    ImageRows,
    Loaders,
    PixelPipeline,
    image_loaders,
)
from hf_transfer.data.sources import Splits
from hf_transfer.data.splits import Split
from tests.data.conftest import Settings, encoded, mistake_saying, noise, raw_bytes

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
def pipeline(tmp_path: Path) -> PixelPipeline:
    return PixelPipeline(processor_of({"image_processor_type": "ViTImageProcessor", "size": CROP}, tmp_path))


@pytest.mark.parametrize("name", PROCESSORS)
def test_inputs_equal_those_of_the_checkpoints_own_processor(name: str, tmp_path: Path) -> None:
    """Size, interpolation, crop, mean, standard deviation and order of the channels are the checkpoint's."""
    processor = processor_of(PROCESSORS[name], tmp_path)
    pipeline = PixelPipeline(processor)
    for number, (width, height) in enumerate([(50, 70), (70, 50), (20, 24), (32, 32), (90, 33)]):
        picture = Image.fromarray(noise(height, width, 3, seed=number))
        ours = pipeline.inputs([picture])["pixel_values"][0]
        theirs = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
        assert ours.shape == pipeline.shape
        scale = max(1.0, float(np.abs(theirs).max()))
        assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * scale


def test_values_change_with_the_checkpoints_mean_and_standard_deviation(tmp_path: Path) -> None:
    """Against the formula (x / 255 - mean) / std itself, on a picture that needs no resizing."""
    mean, std = np.asarray([0.1, 0.2, 0.3]), np.asarray([0.4, 0.5, 0.6])
    settings = {"image_processor_type": "ViTImageProcessor", "size": CROP}
    processor = processor_of(settings | {"image_mean": mean.tolist(), "image_std": std.tolist()}, tmp_path)
    pixels = noise(32, 32, 3)
    ours = PixelPipeline(processor).inputs([Image.fromarray(pixels)])["pixel_values"][0].permute(1, 2, 0)
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
    with mistake_saying(
        expected="an image processor that brings every image to one size",
        found="for a wide and a high image",
        do="use a checkpoint whose preprocessor_config.json crops or sets both height and width",
    ):
        PixelPipeline(processor_of(settings, tmp_path))


def test_a_processor_that_fails_on_a_plain_image_is_refused() -> None:
    class NoPixels:
        def __call__(self, images: Any, **kwargs: Any) -> dict[str, Any]:
            return {"patches": [images]}

        def save_pretrained(self, save_directory: Path) -> None: ...

    with mistake_saying(
        expected="an image processor that turns an image into pixel_values",
        found="NoPixels, which failed on a plain image",
        do="choose another --model_name_or_path",
    ):
        PixelPipeline(NoPixels())


def test_the_example_has_two_pictures_of_the_models_size_and_is_always_the_same(pipeline: PixelPipeline) -> None:
    first, second = pipeline.example()["pixel_values"], pipeline.example()["pixel_values"]
    assert first.shape == (2, 3, 32, 32)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    # ViT's mean and standard deviation of 1/2 bring [0, 255] to [-1, 1].
    assert -1 <= first.min() < -0.99
    assert 0.99 < first.max() <= 1


@given(st.integers(1, 200), st.integers(0, 2**32), st.integers(0, 10**4))
def test_the_order_of_an_epoch_is_a_permutation_and_pure_in_seed_and_epoch(size: int, seed: int, epoch: int) -> None:
    """A fresh sampler that jumps to the epoch gives what one gives that went through all."""
    fresh, used = EpochSampler(size, seed), EpochSampler(size, seed)
    used.set_epoch(epoch + 1)
    list(used)
    for sampler in (fresh, used):
        sampler.set_epoch(epoch)
    order = list(fresh)
    assert order == list(used) == list(fresh)
    assert sorted(order) == list(range(size))
    assert len(fresh) == size


def test_another_epoch_and_another_seed_give_another_order() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sampler = EpochSampler(100, seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 4


def embedded(contents: list[bytes], *, bad: dict[int, str] | None = None) -> Split:
    data = datasets.Dataset.from_dict(
        {"image": [raw_bytes(content) for content in contents]},
        features=datasets.Features({"image": datasets.Image(decode=False)}),
    )
    return Split(data, np.arange(len(contents)), np.arange(len(contents)) % 3, bad=bad or {})


def good(count: int, seed: int) -> list[bytes]:
    return [encoded(Image.fromarray(picture)) for picture in noise(count, 20, 24, 3, seed=seed)]


def splits_of(train: Split) -> Splits:
    return Splits(
        train=train, validation=embedded(good(7, 1)), test=embedded(good(5, 2)), samples="images",
        label_names=["a", "b", "c"], duplicates={}, notes=[],
    )  # fmt: skip


def loaders_of(splits: Splits, pipeline: PixelPipeline, config: VisionConfig, **kwargs: bool) -> Loaders:
    return image_loaders(splits, pipeline, config, Accelerator(cpu=True), **({"frozen_prefix": False} | kwargs))


def one_pass(loaders: Loaders, name: str, epoch: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and row numbers of a whole pass."""
    if epoch is not None:
        loaders.train.set_epoch(epoch)
    cpu = torch.device("cpu")
    steps = [loaders.to_inputs(batch, cpu, name, epoch) for batch in loaders.of(name)]
    pixels = torch.cat([inputs["pixel_values"] for inputs, _, _ in steps])
    return pixels, torch.cat([labels for _, labels, _ in steps]), torch.cat([rows for _, _, rows in steps])


@pytest.mark.parametrize("kind", ["none", "light", "standard", "trivial"])
def test_workers_change_nothing_in_the_batches(kind: str, settings: Settings, pipeline: PixelPipeline) -> None:
    splits = splits_of(embedded(good(19, 0)))
    passes = []
    for workers in (0, 2):
        config = settings(augmentation=kind, dataloader_num_workers=workers, per_device_train_batch_size=4)
        loaders = loaders_of(splits, pipeline, config)
        passes.append([one_pass(loaders, "train", epoch) for epoch in (0, 1)])
    for alone, helped in zip(*passes, strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(alone, helped, strict=True))
    # The epochs differ in order, and each sees every row once.
    assert passes[0][0][2].tolist() != passes[0][1][2].tolist()
    assert sorted(passes[0][0][2].tolist()) == list(range(19))


def test_the_batch_size_changes_no_image(settings: Settings, pipeline: PixelPipeline) -> None:
    splits = splits_of(embedded(good(19, 0)))
    small, large = (
        one_pass(
            loaders_of(splits, pipeline, settings(augmentation="trivial", per_device_train_batch_size=size)), "train", 2
        )
        for size in (1, 19)
    )
    assert all(torch.equal(one, other) for one, other in zip(small, large, strict=True))


def test_evaluation_is_in_order_and_never_augmented(settings: Settings, pipeline: PixelPipeline) -> None:
    """Against the processor, in the order of the rows; training on the same images differs."""
    splits = splits_of(embedded(good(5, 2)))
    loaders = loaders_of(splits, pipeline, settings(augmentation="standard", per_device_eval_batch_size=2))
    pictures = noise(5, 20, 24, 3, seed=2)
    expected = np.stack(
        [pipeline.processor(Image.fromarray(p), return_tensors="np")["pixel_values"][0] for p in pictures]
    )
    pixels, labels, rows = one_pass(loaders, "test", None)
    assert np.abs(pixels.numpy() - expected).max() < 1e-5
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert rows.tolist() == [0, 1, 2, 3, 4]
    trained, _, order = one_pass(loaders, "train", 0)
    assert np.abs(trained.numpy() - expected[order]).max() > 0.1


def test_training_without_augmentation_sees_the_processors_pixels(settings: Settings, pipeline: PixelPipeline) -> None:
    loaders = loaders_of(splits_of(embedded(good(5, 0))), pipeline, settings(augmentation="none"))
    pixels, _, rows = one_pass(loaders, "train", 0)
    for values, row in zip(pixels, rows.tolist(), strict=True):
        picture = Image.fromarray(noise(5, 20, 24, 3, seed=0)[row])
        assert np.abs(values.numpy() - pipeline.processor(picture, return_tensors="np")["pixel_values"][0]).max() < 1e-5


@pytest.mark.parametrize(("cache_views", "frozen", "round_of"), [(None, True, 4), (2, False, 2), (1, True, 1)])
def test_views_come_round_behind_a_frozen_prefix_or_as_set(
    cache_views: int | None, frozen: bool, round_of: int, settings: Settings, pipeline: PixelPipeline
) -> None:
    """Four views behind a frozen prefix, so that their activations can be stored."""
    loaders = loaders_of(
        splits_of(embedded(good(6, 0))), pipeline, settings(cache_views=cache_views), frozen_prefix=frozen
    )

    def images(epoch: int) -> Tensor:
        pixels, _, rows = one_pass(loaders, "train", epoch)
        return pixels[rows.argsort()]

    epochs = [images(epoch) for epoch in range(round_of + 1)]
    assert torch.equal(epochs[0], epochs[round_of])
    assert all(not torch.equal(epochs[0], other) for other in epochs[1:round_of])


@pytest.mark.parametrize(
    ("setting", "name", "flips"),
    [(None, "mine", True), (None, "sample:digits", False), (True, "sample:digits", True), (False, "mine", False)],
)
def test_the_data_decide_on_mirroring_unless_the_user_does(
    setting: bool | None, name: str, flips: bool, settings: Settings, pipeline: PixelPipeline
) -> None:
    splits = splits_of(embedded(good(3, 0)))
    to_inputs = loaders_of(splits, pipeline, settings(dataset_name=name, horizontal_flip=setting)).to_inputs
    assert isinstance(to_inputs, ImageBatches)
    assert to_inputs.augmentation.flip is flips


def test_a_masked_row_keeps_its_place_with_black_pixels_and_no_label(
    settings: Settings, pipeline: PixelPipeline
) -> None:
    """The loss leaves out -100, and positions stay what they were."""
    rows = ImageRows(embedded([*good(2, 0), b""], bad={2: "the file is empty"}), pipeline, keep_bytes=10**6)
    assert len(rows) == 3
    assert rows[2]["labels"].item() == MASKED == -100
    assert rows[2]["index"].item() == 2
    assert rows[2]["pixel_values"].max().item() == 0
    assert [rows[position]["labels"].item() for position in (0, 1)] == [0, 1]


def test_a_row_known_to_be_bad_is_masked_silently(settings: Settings, pipeline: PixelPipeline) -> None:
    splits = splits_of(embedded([*good(5, 0), b""], bad={5: "the file is empty"}))
    _, labels, rows = one_pass(loaders_of(splits, pipeline, settings()), "train", 0)
    assert rows[labels == MASKED].tolist() == [5]


def test_a_bad_row_that_is_found_late_stops_the_run_by_its_name(settings: Settings, pipeline: PixelPipeline) -> None:
    """Beyond `--verify_samples` only headers were read."""
    picture = good(1, 3)[0]
    splits = splits_of(embedded([*good(5, 0), picture[: len(picture) // 2]]))
    with mistake_saying(
        expected="images that can be read in split 'train'",
        found="row 5: damaged: image file is truncated",
        do="mask such images with --on_bad_sample skip",
    ):
        one_pass(loaders_of(splits, pipeline, settings(on_bad_sample="error")), "train", 0)


@pytest.mark.parametrize("bad", [1, 2])
def test_bad_rows_that_are_found_late_are_masked_up_to_one_percent(
    bad: int, settings: Settings, pipeline: PixelPipeline
) -> None:
    """Counted over the whole run: a second pass over the same row adds nothing."""
    splits = splits_of(embedded([*good(100 - bad, 0), *[b"no image"] * bad]))
    loaders = loaders_of(splits, pipeline, settings(on_bad_sample="skip"))
    if bad == 1:
        for epoch in (0, 1):
            _, labels, rows = one_pass(loaders, "train", epoch)
            assert rows[labels == MASKED].tolist() == [99]
        return
    with mistake_saying(expected="at most 1% bad samples in split 'train'", found="2 of 100", do="mend"):
        one_pass(loaders, "train", 0)


def test_decoded_pixels_are_kept_up_to_the_given_room(pipeline: PixelPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two images: the third is decoded again."""
    rows = ImageRows(embedded(good(3, 0)), pipeline, keep_bytes=2 * math.prod(pipeline.shape) + 1)
    first = [rows[position]["pixel_values"] for position in range(3)]
    decoded: list[int] = []
    original = rows._pixels

    def counted(row: int) -> Tensor:
        decoded.append(row)
        return original(row)

    monkeypatch.setattr(rows, "_pixels", counted)
    assert all(torch.equal(rows[position]["pixel_values"], first[position]) for position in range(3))
    assert decoded == [2]


def test_batches_augment_by_row_number_and_not_by_position(pipeline: PixelPipeline) -> None:
    """A row of a thinned split is changed as in the whole one."""
    whole = embedded(good(6, 0))
    part = Split(whole.dataset, whole.rows[3:], whole.labels[3:])
    to_inputs = ImageBatches(pipeline, Augmentation("standard", flip=True, seed=0), splits_of(whole), skip=False)
    cpu = torch.device("cpu")

    def batch(split: Split) -> dict[str, Tensor]:
        rows = ImageRows(split, pipeline, keep_bytes=0)
        samples = [rows[position] for position in range(len(rows))]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    all_rows, _, _ = to_inputs(batch(whole), cpu, "train", 1)
    some_rows, _, _ = to_inputs(batch(part), cpu, "train", 1)
    assert torch.equal(some_rows["pixel_values"], all_rows["pixel_values"][3:])
