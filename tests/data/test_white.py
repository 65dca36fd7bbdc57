"""What is white in pictures of more than 8 bits is measured on training, and holds for every split."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate import Accelerator

from hf_transfer.data import verification
from hf_transfer.data.checked import load_splits
from hf_transfer.data.splits import Splits
from hf_transfer.errors import UserError
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.image_batches import image_rows
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.pixels import PixelPreprocessing
from tests.data.conftest import PairSettings, Settings, raw_bytes, user_error_with
from tests.data.deep_pictures import grey, png16, tiff
from tests.modalities.test_image_batches import processor

Contents = Sequence[bytes]


def data_of(train: Contents, test: Contents, **columns: str) -> datasets.DatasetDict:
    """Pictures of two classes, half of each; further columns have the same value in each row."""
    splits = {}
    for name, contents in (("train", train), ("test", test)):
        rows = {"image": [raw_bytes(content) for content in contents], "label": [n % 2 for n in range(len(contents))]}
        rows |= {column: [value] * len(contents) for column, value in columns.items()}
        texts = {column: datasets.Value("string") for column in columns}
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), **texts}
        splits[name] = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return datasets.DatasetDict(splits)


def several(largest: int, count: int = 12, seed: int = 0) -> list[bytes]:
    return [png16(grey((20, 18), largest, seed + number)) for number in range(count)]


def loaded(config: Any, train: Contents, test: Contents) -> Splits:
    return load_splits(config, ImageModality(), data_of(train, test))


@pytest.mark.parametrize(("largest", "white"), [(200, 255), (900, 1023), (3000, 4095), (9000, 16383), (40_000, 65535)])
def test_white_is_the_largest_training_value_rounded_up_to_a_number_of_bits(
    largest: int, white: float, settings: Settings
) -> None:
    """The test split does not count; the value is saved among the columns."""
    splits = loaded(settings(), several(largest), several(100))
    assert splits.columns["largest_pixel_value"] == white
    assert f"In pictures of more than 8 bits for each channel 0 is black and {white:,g} is white." in splits.notes


def test_floats_up_to_one_are_white_at_one(settings: Settings) -> None:
    floats = [tiff(grey((9, 8), 65535, seed).astype(np.float32) / 70_000) for seed in range(12)]
    assert loaded(settings(), floats, floats).columns["largest_pixel_value"] == 1.0


def test_a_picture_has_the_same_pixels_whatever_split_it_is_in(settings: Settings) -> None:
    """A dark test picture is not made brighter than training pictures."""
    dark = several(250, seed=50)
    splits = loaded(settings(), [*several(3000), *dark], dark)
    rows = image_rows(splits, PixelPreprocessing(processor()), workers=0)
    pixels = {
        name: {one["pixel_values"].numpy().tobytes() for one in (rows[name][n] for n in range(len(rows[name])))}
        for name in rows
    }
    assert pixels["test"] <= pixels["train"] | pixels["validation"]
    assert max(rows["test"][n]["pixel_values"].max() for n in range(12)) <= 250 >> 4


def test_the_given_value_is_white_and_is_saved(settings: Settings) -> None:
    splits = loaded(settings(largest_pixel_value=5000.0), several(900), several(900))
    assert splits.columns["largest_pixel_value"] == 5000.0


def test_pictures_of_eight_bits_have_nothing_to_save(settings: Settings, picture_table: Any) -> None:
    table = picture_table([0, 1] * 8)
    splits = load_splits(settings(), ImageModality(), datasets.DatasetDict({"train": table, "test": table}))
    assert "largest_pixel_value" not in splits.columns
    assert not [note for note in splits.notes if "white" in note]


def test_a_finished_model_that_saw_no_such_pictures_measures_none(settings: Settings) -> None:
    """One picture alone must be decoded as it is beside others."""
    config = settings(evaluate_only=True, model_name_or_path="sample:vit-glyphs")
    assert "largest_pixel_value" not in loaded(config, several(900), several(900)).columns


def test_a_test_picture_above_white_is_refused_by_its_row(settings: Settings) -> None:
    with user_error_with(
        expected="images that can be read in split 'test'",
        found="1 that cannot be read: row 5 (its values go up to 5,000, above 4,095, which is white in these data)",
        do="fix or remove them",
    ):
        loaded(settings(), several(3000), [*several(3000, 5), *several(5000, 1)])


def test_a_test_picture_above_white_can_be_masked(settings: Settings) -> None:
    splits = loaded(settings(on_bad_sample="skip"), several(3000), [*several(3000, 100), *several(5000, 1)])
    assert splits.test.unreadable == {100: "its values go up to 5,000, above 4,095, which is white in these data"}


def test_more_than_sixteen_bits_need_the_value_that_is_white(settings: Settings) -> None:
    """The advice works."""
    large = [tiff(grey((9, 8), 65535, seed).astype(np.int32) * 10) for seed in range(12)]
    with user_error_with(expected="images", found="--largest_pixel_value says which value is white", do="fix"):
        loaded(settings(), large, large)
    splits = loaded(settings(largest_pixel_value=655_350.0), large, large)
    assert splits.columns["largest_pixel_value"] == 655_350.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_shades_stop_the_run(value: float, settings: Settings) -> None:
    values = np.asarray([[value, 0.5]], dtype=np.float32)
    with user_error_with(expected="images that can be read in split 'train'", found="row 12 (it has values", do="fix"):
        loaded(settings(), [*several(900), tiff(values)], several(900))


def test_pictures_of_which_hardly_any_shades_are_left_are_reported(settings: Settings) -> None:
    """8 bits beside 16: scaled alike they are almost black."""
    notes = loaded(settings(), several(65535), [*several(65535, 4), *several(255, 3)]).notes
    assert notes[-1] == (
        "Warning: of 3 such pictures fewer than 32 shades are left, as of row 4 with values from 0 to 255. Save all "
        "pictures with the same number of bits, or name the value that is white in --largest_pixel_value."
    )


def test_pictures_of_few_values_are_no_reason_to_warn(settings: Settings) -> None:
    """Masks and line drawings have two values in their files, too."""
    drawing = np.zeros((9, 8), dtype=np.uint16)
    drawing[::2] = 255
    notes = loaded(settings(), several(65535), [*several(65535, 4), png16(drawing)]).notes
    assert not [note for note in notes if note.startswith("Warning")]


@pytest.mark.parametrize("verified", [0, 5])
def test_white_is_measured_however_few_pictures_are_verified(verified: int, settings: Settings) -> None:
    splits = loaded(settings(verify_samples=verified), several(3000), several(3000))
    assert splits.columns["largest_pixel_value"] == 4095


def test_of_many_pictures_only_some_are_measured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MEASURED_IMAGES", 7)
    splits = loaded(settings(verify_samples=3), several(3000, 30), several(3000))
    # Validation is split off what was read as training.
    assert len(splits.train.levels) + len(splits.validation.levels) == len(splits.test.levels) == 7


def test_what_was_measured_is_remembered(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loaded(settings(), several(3000), several(3000))
    monkeypatch.setattr(verification, "decoded_levels", lambda raw: pytest.fail("looked again"))
    again = loaded(settings(), several(3000), several(3000))
    assert again.columns == first.columns
    assert again.test.levels == first.test.levels


def test_what_is_white_belongs_to_the_fingerprint_of_a_split(settings: Settings) -> None:
    """Stored activations of pixels that were scaled otherwise must not be used."""
    splits, pixels = loaded(settings(), several(900), several(900)), PixelPreprocessing(processor())
    fingerprints = set()
    for white in (1023.0, 4095.0, None):
        columns = {**splits.columns, "largest_pixel_value": white}
        maker = ImageModality().loaders(
            replace(splits, columns=columns), pixels, settings(), Accelerator(cpu=True), frozen_prefix=False
        )
        fingerprints.add(maker.to_inputs.fingerprint("train", None))
    assert len(fingerprints) == 3


def test_pairs_are_measured_as_images_are(pair_settings: PairSettings) -> None:
    """Also where some pairs have no image."""
    data = data_of(several(3000, 13), several(100), text="red")
    data["train"] = datasets.Dataset.from_list(
        [{**row, "image": None if number == 12 else row["image"]} for number, row in enumerate(
            data["train"].cast_column("image", datasets.Image(decode=False)))],
        features=data["train"].features,
    )  # fmt: skip
    splits = load_splits(pair_settings(), PairModality(), data)
    assert splits.columns["largest_pixel_value"] == 4095
    assert [note for note in splits.notes if note.endswith("0 is black and 4,095 is white.")]
    with pytest.raises(UserError, match="above 4,095"):
        load_splits(pair_settings(), PairModality(), data_of(several(3000), several(9000), text="red"))
