"""The samples made of handwritten digits: what a picture shows is what its labels, or its number, say."""

import hashlib
import itertools
import json
from collections import Counter

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hf_transfer.data import samples
from hf_transfer.data.digit_samples import handwriting_slants
from hf_transfer.data.pictures import decode

Grey = npt.NDArray[np.uint8]
SPLITS = ("train", "validation", "test")


def grey_pictures(data: datasets.Dataset) -> list[Grey]:
    encoded = data.cast_column("image", datasets.Image(decode=False))
    return [np.asarray(decode(image))[..., 0] for image in encoded["image"][:]]


def handwritten() -> tuple[Grey, list[int]]:
    """Those of scikit-learn, from 0 to 255, and which digit each is."""
    reference = load_digits()
    return np.rint(reference.images * 255 / 16).astype(np.uint8), reference.target.tolist()


@pytest.fixture(scope="module")
def sets() -> datasets.DatasetDict:
    return samples.load_sample("sample:digit-sets")


@pytest.fixture(scope="module")
def slants() -> datasets.Dataset:
    return samples.load_sample("sample:digit-slants")["train"]


def cells_of(picture: Grey) -> list[Grey]:
    """Its four corners without the grain of the background, which is fainter than any ink."""
    ink = np.where(picture >= 16, picture, 0)
    return [ink[top : top + 8, left : left + 8] for top, left in itertools.product((0, 8), repeat=2)]


def digits_in(data: datasets.Dataset) -> list[list[int]]:
    """For each picture, the numbers in scikit-learn of the handwritten digits that its corners show."""
    place = {digit.tobytes(): number for number, digit in enumerate(handwritten()[0])}
    return [
        [place[cell.tobytes()] for cell in cells_of(picture) if cell.any()] for picture in grey_pictures(data)
    ]  # fmt: skip


def test_the_labels_of_a_picture_are_the_digits_that_its_corners_show(sets: datasets.DatasetDict) -> None:
    digits = handwritten()[1]
    for split in SPLITS:
        shown = [sorted({digits[number] for number in numbers}) for numbers in digits_in(sets[split])]
        assert sets[split]["labels"][:] == shown
        assert sets[split].features["labels"] == datasets.List(
            datasets.ClassLabel(names=[str(digit) for digit in range(10)])
        )


def test_no_handwritten_digit_is_used_twice(sets: datasets.DatasetDict) -> None:
    """So that none is in two splits."""
    used = [number for split in SPLITS for numbers in digits_in(sets[split]) for number in numbers]
    assert len(set(used)) == len(used) == 1_786


def test_some_pictures_are_empty_and_some_show_a_digit_repeatedly(sets: datasets.DatasetDict) -> None:
    """One in ten is empty, in every split."""
    assert {split: len(sets[split]) for split in SPLITS} == {"train": 600, "validation": 150, "test": 300}
    for split, empty in (("train", 60), ("validation", 15), ("test", 30)):
        numbers, labels = digits_in(sets[split]), sets[split]["labels"][:]
        assert sum(not shown for shown in numbers) == empty
        assert Counter(map(len, numbers)).keys() == {0, 1, 2, 3, 4}
        assert any(len(names) < len(shown) for names, shown in zip(labels, numbers, strict=True))


def test_every_digit_occurs_in_every_split_and_in_every_corner(sets: datasets.DatasetDict) -> None:
    for split, fewest in (("train", 80), ("validation", 15), ("test", 35)):
        counts = Counter(label for labels in sets[split]["labels"] for label in labels)
        assert counts.keys() == set(range(10))
        assert min(counts.values()) >= fewest
    corners = np.mean([[cell.any() for cell in cells_of(picture)] for picture in grey_pictures(sets["train"])], axis=0)
    assert np.all(np.abs(corners - 1_020 / 600 / 4) < 0.05)


def test_no_two_pictures_are_the_same_although_some_are_empty(sets: datasets.DatasetDict) -> None:
    """Copies across splits would be taken for a leak."""
    pictures = [picture.tobytes() for split in SPLITS for picture in grey_pictures(sets[split])]
    assert len(set(pictures)) == len(pictures) == 1_050


def test_a_slant_is_that_of_the_line_through_the_ink_compared_with_the_same_digit(slants: datasets.Dataset) -> None:
    """The line is fitted by weighted least squares, column by height: its slope is the shear."""
    pictures, digits = handwritten()
    rows, columns = np.mgrid[:8, :8]
    angles = np.array([
        np.degrees(np.arctan(np.polyfit(-rows.ravel(), columns.ravel(), 1, w=np.sqrt(picture.ravel()))[0]))
        for picture in pictures.astype(np.float64)
    ])  # fmt: skip
    average = {digit: angles[np.equal(digits, digit)].mean() for digit in range(10)}
    expected = [angle - average[digit] for angle, digit in zip(angles, digits, strict=True)]
    assert np.abs(np.array(slants["slant"][:]) - expected).max() < 0.0501
    for picture, original in zip(grey_pictures(slants), pictures, strict=True):
        assert np.array_equal(picture, original)


def test_a_positive_slant_leans_to_the_right() -> None:
    """A slash, an upright bar and a backslash, as if all were a 0: the one leans as far as the other."""
    slash = Image.new("L", (8, 8))
    for step in range(8):
        slash.putpixel((7 - step, step), 255)
    bar = np.zeros((8, 8), dtype=np.uint8)
    bar[:, 3] = 255
    pixels = np.stack([np.asarray(slash), bar, np.asarray(slash)[:, ::-1]])
    assert handwriting_slants(pixels, np.zeros(3, dtype=np.int64)).tolist() == [45.0, 0.0, -45.0]


def test_slants_spread_to_both_sides_and_say_nothing_of_which_digit_it_is(slants: datasets.Dataset) -> None:
    values, digits = np.array(slants["slant"][:]), np.array(handwritten()[1])
    assert slants.features["slant"] == datasets.Value("float64")
    assert len(values) == 1_797
    assert values.std() == pytest.approx(4.95, abs=0.01)
    assert (values.min(), values.max()) == (-17.0, 19.1)
    assert 0.45 < np.mean(values > 0) < 0.55
    assert all(abs(values[digits == digit].mean()) < 0.01 for digit in range(10))


def test_the_samples_of_digits_are_the_same_on_every_machine(
    sets: datasets.DatasetDict, slants: datasets.Dataset
) -> None:
    digest = hashlib.sha256()
    for split in SPLITS:
        for picture in grey_pictures(sets[split]):
            digest.update(picture.tobytes())
        digest.update(json.dumps(sets[split]["labels"][:]).encode())
    assert digest.hexdigest()[:16] == "560f980fbbefe2f8"
    tenths = json.dumps([round(10 * value) for value in slants["slant"]]).encode()
    assert hashlib.sha256(tenths).hexdigest()[:16] == "d6348a05504960ca"


@pytest.mark.parametrize("name", ["sample:digits", "sample:digit-sets", "sample:digit-slants"])
def test_pictures_of_digits_are_not_mirrored(name: str) -> None:
    assert name in samples.NOT_TO_BE_MIRRORED
