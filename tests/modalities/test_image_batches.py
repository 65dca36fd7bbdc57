"""From images to batches: a pure order, augmentation by row, masked samples in their places, whatever the target."""

import dataclasses
import math
import multiprocessing
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.data.batches import LabelledInputs, LabelRows, Loaders
from hf_transfer.data.rows import encoded_image
from hf_transfer.data.splits import Split, Splits
from hf_transfer.modalities import augmentation, image_batches
from hf_transfer.modalities.augmentation import Augmentation
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.image_batches import ImageInputs, ImageRows
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.settings.run import VisionConfig
from hf_transfer.targets.classes import Classes
from tests.data.conftest import Settings, encoded, noise, raw_bytes, user_error_with


def processor(**settings: Any) -> Any:
    """An image processor to 32 x 32 pixels."""
    return ViTImageProcessorPil(size={"height": 32, "width": 32}, **settings)


@pytest.fixture
def preprocessing() -> PixelPreprocessing:
    return PixelPreprocessing(processor())


def embedded(contents: list[bytes], *, unreadable: dict[int, str] | None = None) -> Split:
    data = datasets.Dataset.from_dict(
        {"image": [raw_bytes(content) for content in contents]},
        features=datasets.Features({"image": datasets.Image(decode=False)}),
    )
    return Split(data, np.arange(len(contents)), np.arange(len(contents)) % 3, unreadable=unreadable or {})


def good(count: int, seed: int) -> list[bytes]:
    return [encoded(Image.fromarray(picture)) for picture in noise(count, 20, 24, 3, seed=seed)]


def splits_of(train: Split) -> Splits:
    return Splits(
        train=train, validation=embedded(good(7, 1)), test=embedded(good(5, 2)), target=Classes(("a", "b", "c")),
        columns={"image_column_name": "image"}, samples="images", copies={}, notes=[],
    )  # fmt: skip


def loaders_of(splits: Splits, preprocessing: PixelPreprocessing, config: VisionConfig, **kwargs: bool) -> Loaders:
    options = {"frozen_prefix": False} | kwargs
    return ImageModality().loaders(splits, preprocessing, config, Accelerator(cpu=True), **options)


def one_pass(loaders: Loaders, name: str, epoch: int | None) -> LabelledInputs:
    """All batches of a pass in one."""
    if epoch is not None:
        loaders.train.set_epoch(epoch)
    steps = [loaders.to_inputs(batch, torch.device("cpu"), name, epoch) for batch in loaders.of(name)]
    pixels = {"pixel_values": torch.cat([step.inputs["pixel_values"] for step in steps])}
    columns = zip(*((step.targets, step.counted, step.rows) for step in steps), strict=True)
    return LabelledInputs(pixels, *(torch.cat(column) for column in columns))


def same_pass(first: LabelledInputs, second: LabelledInputs) -> bool:
    """Whether two passes have equal samples in the same order."""
    pixels = torch.equal(first.inputs["pixel_values"], second.inputs["pixel_values"])
    return pixels and all(torch.equal(one, other) for one, other in zip(first[1:], second[1:], strict=True))


@pytest.mark.parametrize("kind", ["none", "light", "standard", "trivial"])
def test_workers_change_nothing_in_the_batches(
    kind: str, settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    splits = splits_of(embedded(good(19, 0)))
    passes = []
    for workers in (0, 2):
        config = settings(augmentation=kind, dataloader_num_workers=workers, per_device_train_batch_size=4)
        loaders = loaders_of(splits, preprocessing, config)
        passes.append([one_pass(loaders, "train", epoch) for epoch in (0, 1)])
        loaders.close()
    for without_workers, with_workers in zip(*passes, strict=True):
        assert same_pass(without_workers, with_workers)
    # The epochs differ in order, and each sees every row once.
    assert passes[0][0].rows.tolist() != passes[0][1].rows.tolist()
    assert sorted(passes[0][0].rows.tolist()) == list(range(19))


def test_the_batch_size_changes_no_image(settings: Settings, preprocessing: PixelPreprocessing) -> None:
    splits = splits_of(embedded(good(19, 0)))
    small, large = (
        one_pass(
            loaders_of(splits, preprocessing, settings(augmentation="trivial", per_device_train_batch_size=size)),
            "train",
            2,
        )
        for size in (1, 19)
    )
    assert same_pass(small, large)


def test_evaluation_is_in_order_and_never_augmented(settings: Settings, preprocessing: PixelPreprocessing) -> None:
    """Against the processor, in the order of the rows; training on the same images differs."""
    splits = splits_of(embedded(good(5, 2)))
    loaders = loaders_of(splits, preprocessing, settings(augmentation="standard", per_device_eval_batch_size=2))
    pictures = noise(5, 20, 24, 3, seed=2)
    expected = np.stack(
        [preprocessing.processor(Image.fromarray(p), return_tensors="np")["pixel_values"][0] for p in pictures]
    )
    tested = one_pass(loaders, "test", None)
    assert np.abs(tested.inputs["pixel_values"].numpy() - expected).max() < 1e-5
    assert tested.targets.tolist() == [0, 1, 2, 0, 1]
    assert tested.rows.tolist() == [0, 1, 2, 3, 4]
    trained = one_pass(loaders, "train", 0)
    assert np.abs(trained.inputs["pixel_values"].numpy() - expected[trained.rows]).max() > 0.1


def test_training_without_augmentation_sees_the_processors_pixels(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    loaders = loaders_of(splits_of(embedded(good(5, 0))), preprocessing, settings(augmentation="none"))
    trained = one_pass(loaders, "train", 0)
    for values, row in zip(trained.inputs["pixel_values"], trained.rows.tolist(), strict=True):
        picture = Image.fromarray(noise(5, 20, 24, 3, seed=0)[row])
        assert (
            np.abs(values.numpy() - preprocessing.processor(picture, return_tensors="np")["pixel_values"][0]).max()
            < 1e-5
        )


@pytest.mark.parametrize(("cache_views", "frozen", "round_of"), [(None, True, 4), (2, False, 2), (1, True, 1)])
def test_views_repeat_behind_a_frozen_prefix_or_as_set(
    cache_views: int | None, frozen: bool, round_of: int, settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    """Four views behind a frozen prefix, so that their activations can be stored."""
    loaders = loaders_of(
        splits_of(embedded(good(6, 0))), preprocessing, settings(cache_views=cache_views), frozen_prefix=frozen
    )

    def images(epoch: int) -> Tensor:
        trained = one_pass(loaders, "train", epoch)
        return trained.inputs["pixel_values"][trained.rows.argsort()]

    epochs = [images(epoch) for epoch in range(round_of + 1)]
    assert torch.equal(epochs[0], epochs[round_of])
    assert all(not torch.equal(epochs[0], other) for other in epochs[1:round_of])


@pytest.mark.parametrize(
    ("setting", "name", "flips"),
    [(None, "mine", True), (None, "sample:digits", False), (True, "sample:digits", True), (False, "mine", False)],
)
def test_the_data_decide_on_mirroring_unless_the_user_does(
    setting: bool | None, name: str, flips: bool, settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    splits = splits_of(embedded(good(3, 0)))
    to_inputs = loaders_of(splits, preprocessing, settings(dataset_name=name, horizontal_flip=setting)).to_inputs
    assert isinstance(to_inputs, ImageInputs)
    assert to_inputs.augmentation.flip is flips


def test_a_masked_row_keeps_its_place_and_its_target_with_black_pixels_and_does_not_count(
    preprocessing: PixelPreprocessing,
) -> None:
    split = embedded([*good(2, 0), b""], unreadable={2: "the file is empty"})
    rows = ImageRows(split, preprocessing, keep_bytes=10**6)
    assert len(rows) == 3
    assert [rows[position]["target"].item() for position in range(3)] == [0, 1, 2]
    assert [rows[position]["counted"].item() for position in range(3)] == [True, True, False]
    assert [rows[position]["index"].item() for position in range(3)] == [0, 1, 2]
    assert [bool(rows[position]["pixel_values"].any()) for position in range(3)] == [True, True, False]


def test_a_row_known_to_be_unreadable_is_masked_without_an_error(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    splits = splits_of(embedded([*good(5, 0), b""], unreadable={5: "the file is empty"}))
    trained = one_pass(loaders_of(splits, preprocessing, settings()), "train", 0)
    assert trained.rows[~trained.counted].tolist() == [5]
    assert trained.targets[~trained.counted].tolist() == [2]


def test_an_unreadable_row_that_is_found_late_stops_the_run_and_is_named(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    """Beyond `--verify_samples` only headers were read."""
    picture = good(1, 3)[0]
    splits = splits_of(embedded([*good(5, 0), picture[: len(picture) // 2]]))
    with user_error_with(
        expected="images that can be read in split 'train'",
        found="row 5: damaged: image file is truncated",
        do="mask such images with --on_bad_sample skip",
    ):
        one_pass(loaders_of(splits, preprocessing, settings(on_bad_sample="error")), "train", 0)


@pytest.mark.parametrize("bad", [1, 2])
def test_unreadable_rows_that_are_found_late_are_masked_up_to_one_percent_and_keep_their_targets(
    bad: int, settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    """Counted over the whole run: a second pass over the same row adds nothing."""
    splits = splits_of(embedded([*good(100 - bad, 0), *[b"no image"] * bad]))
    loaders = loaders_of(splits, preprocessing, settings(on_bad_sample="skip"))
    if bad == 1:
        for epoch in (0, 1):
            trained = one_pass(loaders, "train", epoch)
            assert trained.rows[~trained.counted].tolist() == [99]
            assert trained.targets.tolist() == (trained.rows % 3).tolist()
        return
    with user_error_with(expected="at most 1% bad samples in split 'train'", found="2 of 100", do="fix"):
        one_pass(loaders, "train", 0)


def test_decoded_pixels_are_kept_up_to_the_given_room(
    preprocessing: PixelPreprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two images: the third is decoded again."""
    rows = ImageRows(embedded(good(3, 0)), preprocessing, keep_bytes=2 * math.prod(preprocessing.shape) + 1)
    first = [rows[position]["pixel_values"] for position in range(3)]
    decoded: list[int] = []

    def counted(split: Split, row: int) -> dict[str, Any]:
        decoded.append(row)
        return encoded_image(split, row)

    monkeypatch.setattr(image_batches, "encoded_image", counted)
    assert all(torch.equal(rows[position]["pixel_values"], first[position]) for position in range(3))
    assert decoded == [2]


def test_batches_augment_by_row_number_and_not_by_position(preprocessing: PixelPreprocessing) -> None:
    """A row changes in the same way in a part of a split as in the whole."""
    whole = embedded(good(6, 0))
    part = Split(whole.dataset, whole.rows[3:], whole.targets[3:])
    to_inputs = ImageInputs(preprocessing, Augmentation("standard", flip=True, seed=0), splits_of(whole), mask=False)
    cpu = torch.device("cpu")

    def batch(split: Split) -> dict[str, Tensor]:
        rows = ImageRows(split, preprocessing, keep_bytes=0)
        samples = [rows[position] for position in range(len(rows))]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    all_rows = to_inputs(batch(whole), cpu, "train", 1).inputs["pixel_values"]
    some_rows = to_inputs(batch(part), cpu, "train", 1).inputs["pixel_values"]
    assert torch.equal(some_rows, all_rows[3:])


VECTORS = np.random.default_rng(3).normal(size=(9, 4)) * 100


def with_vectors(split: Split) -> Split:
    """The same rows with float vectors as targets, one of which is torch's own mark for samples to ignore."""
    vectors = VECTORS[: len(split)].copy()
    vectors[0, 1] = -100
    return dataclasses.replace(split, targets=vectors)


@pytest.mark.parametrize("blank", [False, True])
def test_targets_that_are_no_class_numbers_reach_the_model_unchanged(
    blank: bool, settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    """Also where the images are not read, and of rows that do not count."""
    splits = splits_of(embedded([*good(8, 0), b""], unreadable={8: "the file is empty"}))
    train, validation, test = (with_vectors(split) for _, split in splits.items())
    splits = dataclasses.replace(splits, train=train, validation=validation, test=test)
    loaders = loaders_of(splits, preprocessing, settings(per_device_train_batch_size=4))
    if blank:
        assert loaders.without_first_layers is not None
        loaders = loaders.without_first_layers()
    for name, split in splits.items():
        seen = one_pass(loaders, name, 0 if name == "train" else None)
        assert seen.targets.dtype == torch.float64
        assert np.array_equal(seen.targets.numpy(), split.targets[seen.rows.numpy()])
        assert seen.rows[~seen.counted].tolist() == ([8] if name == "train" else [])


def test_blank_loaders_have_the_same_samples_in_the_same_order_and_read_no_image(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    loaders = loaders_of(splits_of(embedded(good(7, 0))), preprocessing, settings(per_device_train_batch_size=3))
    assert loaders.without_first_layers is not None
    blank = loaders.without_first_layers()
    assert isinstance(blank.train.dataset, LabelRows)
    for epoch in (0, 1):
        whole, light = one_pass(loaders, "train", epoch), one_pass(blank, "train", epoch)
        assert all(torch.equal(one, other) for one, other in zip(whole[1:], light[1:], strict=True))
        assert light.inputs["pixel_values"].shape == whole.inputs["pixel_values"].shape
        assert not light.inputs["pixel_values"].any()
    assert blank.fingerprint("train", 1) == loaders.fingerprint("train", 1)


def test_the_epoch_that_is_set_for_loaders_does_not_change_the_order_of_blank_ones(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    """What is recorded for a later stage has the rounding of its batches."""
    loaders = loaders_of(splits_of(embedded(good(50, 0))), preprocessing, settings())
    assert loaders.without_first_layers is not None
    before = loaders.without_first_layers()
    loaders.train.set_epoch(5)
    for blank in (before, loaders.without_first_layers()):
        order = [batch["index"].tolist() for batch in blank.train]
        blank.train.set_epoch(5)
        assert order != [batch["index"].tolist() for batch in blank.train]


def fingerprints(
    splits: Splits, preprocessing: PixelPreprocessing, config: VisionConfig, epochs: tuple[int | None, ...] = (None, 0)
) -> list[str]:
    """Of training, as evaluation sees it and as an epoch does."""
    loaders = loaders_of(splits, preprocessing, config)
    return [loaders.fingerprint("train", epoch) for epoch in epochs]


def test_the_fingerprint_is_the_same_in_another_process_that_reads_the_same_samples(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    first, second = (
        fingerprints(splits_of(embedded(good(5, 0))), preprocessing, settings(augmentation="standard")) for _ in "ab"
    )
    assert first == second
    assert len(set(first)) == 2


def test_the_fingerprint_changes_with_pictures_targets_mask_and_processor(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    split, config = embedded(good(6, 0)), settings(augmentation="standard")
    variants = [
        fingerprints(splits_of(split), preprocessing, config),
        fingerprints(splits_of(embedded(good(6, 9))), preprocessing, config),
        fingerprints(splits_of(dataclasses.replace(split, targets=split.targets[::-1].copy())), preprocessing, config),
        fingerprints(splits_of(dataclasses.replace(split, targets=split.targets * 1.0)), preprocessing, config),
        fingerprints(splits_of(dataclasses.replace(split, unreadable={1: "damaged"})), preprocessing, config),
        fingerprints(splits_of(split), PixelPreprocessing(processor(image_mean=[0.1, 0.2, 0.3])), config),
    ]
    assert len({one for variant in variants for one in variant}) == 2 * len(variants)


@pytest.mark.parametrize("setting", [{"augmentation": "light"}, {"seed": 1}, {"horizontal_flip": True}])
def test_the_fingerprint_of_augmented_images_changes_with_each_setting_of_augmentation(
    setting: dict[str, object], settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    """That of images as evaluation sees them does not."""
    splits, standard = splits_of(embedded(good(5, 0))), {"augmentation": "standard"}
    before = fingerprints(splits, preprocessing, settings(**standard))
    after = fingerprints(splits, preprocessing, settings(**(standard | setting)))
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_the_fingerprint_of_augmented_images_changes_when_the_code_crops_otherwise(
    settings: Settings, preprocessing: PixelPreprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting shows such a change, and activations of the old crops must not be used again."""
    splits, config = splits_of(embedded(good(5, 0))), settings(augmentation="standard")
    before = fingerprints(splits, preprocessing, config)
    original = augmentation._crop_matrices
    monkeypatch.setattr(augmentation, "_crop_matrices", lambda *arguments: original(*arguments) * 0.97)
    after = fingerprints(splits, preprocessing, config)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_the_fingerprint_tells_the_views_of_a_sample_apart(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    splits, config = splits_of(embedded(good(5, 0))), settings(cache_views=3)
    views = fingerprints(splits, preprocessing, config, (0, 1, 2, 3))
    assert len(set(views[:3])) == 3
    assert views[3] == views[0]


def test_closing_the_loaders_ends_their_workers_while_references_remain(
    settings: Settings, preprocessing: PixelPreprocessing
) -> None:
    """Used again, they start new ones, which read the same samples."""
    before = set(multiprocessing.active_children())
    loaders = loaders_of(splits_of(embedded(good(5, 0))), preprocessing, settings(dataloader_num_workers=2))
    for _ in range(2):
        first = one_pass(loaders, "train", 0)
        one_pass(loaders, "test", None)
        assert len(set(multiprocessing.active_children()) - before) == 4
        loaders.close()
        assert not set(multiprocessing.active_children()) - before
    assert same_pass(first, one_pass(loaders, "train", 0))
    loaders.close()
    loaders.close()
