"""What is looked at before training, what is remembered of it, and what stops the run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_transfer.data import verification
from hf_transfer.data.splits import Split
from hf_transfer.data.verification import copies, refuse_bad_share
from hf_transfer.modalities.image import ImageModality
from hf_transfer.settings.run import VisionConfig
from tests.data.conftest import Settings, encoded, noise, png_by_hand, raw_bytes, user_error_with

WHOLE = encoded(Image.fromarray(noise(64, 64, 3)))
TRUNCATED = WHOLE[: len(WHOLE) // 2]


def split_of_files(folder: Path, contents: list[bytes]) -> Split:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.png" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": str(path)} for path in paths]},
        features=datasets.Features({"image": datasets.Image(decode=False)}),
    )
    return Split(data, np.arange(len(paths)), np.zeros(len(paths), dtype=np.int64))


def split_of_bytes(contents: list[bytes]) -> Split:
    data = datasets.Dataset.from_dict(
        {"image": [raw_bytes(content) for content in contents]},
        features=datasets.Features({"image": datasets.Image(decode=False)}),
    )
    return Split(data, np.arange(len(contents)), np.zeros(len(contents), dtype=np.int64))


def unreadable(split: Split, name: str, config: VisionConfig) -> dict[int, str]:
    """The rows that are masked."""
    return dict(ImageModality().checked(split, name, config).unreadable)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images were decoded, and of how many only the header was read."""
    counts = {"decoded_levels": 0, "check_header": 0}

    def counting(name: str) -> Callable[[dict[str, Any]], object]:
        original = getattr(verification, name)

        def wrapped(raw: dict[str, Any]) -> object:
            counts[name] += 1
            return original(raw)

        return wrapped

    for name in counts:
        monkeypatch.setattr(verification, name, counting(name))
    return counts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (TRUNCATED, "damaged: image file is truncated"),
        (b"only words", "10 bytes that are not a JPEG"),
        (png_by_hand(20_000, 20_000), "it declares far too many pixels"),
    ],
    ids=["empty", "truncated", "no image", "bomb"],
)
def test_a_bad_image_stops_the_run_with_its_path_and_reason(
    content: bytes, reason: str, settings: Settings, tmp_path: Path
) -> None:
    """Every part of the split is looked at, also its last row."""
    split = split_of_files(tmp_path / "data", [WHOLE] * 3 + [content])
    with user_error_with(
        expected="images that can be read in split 'train'",
        found=f"1 that cannot be read: {tmp_path}/data/0003.png ({reason}",
        do="fix or remove them",
    ):
        unreadable(split, "train", settings())


def test_an_embedded_image_is_named_by_its_row(settings: Settings) -> None:
    with user_error_with(expected="split 'test'", found="1 that cannot be read: row 1 (the file is empty)", do="fix"):
        unreadable(split_of_bytes([WHOLE, b"", WHOLE]), "test", settings())


def test_at_most_five_bad_images_are_listed_and_the_rest_counted(settings: Settings) -> None:
    with user_error_with(expected="images", found="row 4 (the file is empty); and 2 more", do="fix"):
        unreadable(split_of_bytes([b""] * 7), "train", settings())


def test_good_images_are_all_accepted(settings: Settings, looks: dict[str, int]) -> None:
    assert unreadable(split_of_bytes([WHOLE] * 9), "train", settings()) == {}
    assert looks == {"decoded_levels": 9, "check_header": 0}


def test_only_the_rows_of_the_split_are_looked_at(settings: Settings) -> None:
    whole = split_of_bytes([b"", WHOLE, b"", WHOLE])
    part = Split(whole.dataset, np.asarray([1, 3]), np.zeros(2, dtype=np.int64))
    assert unreadable(part, "train", settings()) == {}


def test_skipping_masks_up_to_one_percent_with_the_reason(settings: Settings) -> None:
    """Exactly 1 of 100 is allowed."""
    bad = unreadable(split_of_bytes([*[WHOLE] * 99, b""]), "train", settings(on_bad_sample="skip"))
    assert bad == {99: "the file is empty"}


def test_more_than_one_percent_stops_the_run_even_when_skipping(settings: Settings) -> None:
    """Masking is for accidents; two in a hundred are none."""
    split = split_of_bytes([*[WHOLE] * 98, b"", b""])
    with user_error_with(
        expected="at most 1% bad samples in split 'validation' with --on_bad_sample skip",
        found="2 of 100: row 98 (the file is empty); row 99 (the file is empty)",
        do="fix or remove these samples",
    ):
        unreadable(split, "validation", settings(on_bad_sample="skip"))


def test_the_share_is_of_the_split_and_not_of_the_data_set() -> None:
    whole = split_of_bytes([WHOLE] * 10)
    part = Split(whole.dataset, np.arange(3), np.zeros(3, dtype=np.int64))
    with user_error_with(expected="at most 1%", found="1 of 3", do="fix"):
        refuse_bad_share({0: "empty"}, part, "train")


def test_verify_samples_bounds_decoding_but_every_header_is_read(settings: Settings, looks: dict[str, int]) -> None:
    """A damaged body may go unseen, a damaged header never."""
    assert unreadable(split_of_bytes([WHOLE] * 50), "train", settings(verify_samples=20)) == {}
    assert looks == {"decoded_levels": 20, "check_header": 30}


def test_without_decoding_a_truncated_image_passes_and_an_empty_one_does_not(settings: Settings) -> None:
    unseen = unreadable(split_of_bytes([TRUNCATED, WHOLE]), "train", settings(verify_samples=0))
    assert unseen == {}
    with user_error_with(expected="images", found="row 0 (the file is empty)", do="fix"):
        unreadable(split_of_bytes([b"", WHOLE]), "train", settings(verify_samples=0))


def test_the_drawn_part_is_the_same_in_every_run_and_not_the_first_rows(settings: Settings) -> None:
    """The draw depends on the split seed alone, and damage is not always at the end."""
    contents = [TRUNCATED] * 200
    chosen = settings(verify_samples=3, on_bad_sample="skip", cache_dir=None)
    drawn = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verification, "refuse_bad_share", lambda *_: None)
            drawn.append(unreadable(split_of_bytes(contents), "train", chosen))
    assert len(drawn[0]) == 3
    assert drawn[0].keys() == drawn[1].keys()
    assert sorted(drawn[0]) != [0, 1, 2]


def test_unchanged_images_are_not_looked_at_again(settings: Settings, looks: dict[str, int], tmp_path: Path) -> None:
    """Good ones and bad ones alike; in another cache they are."""
    split = split_of_files(tmp_path / "data", [WHOLE] * 100 + [b""])
    chosen = settings(on_bad_sample="skip")
    first = unreadable(split, "train", chosen)
    assert looks["decoded_levels"] == 101
    assert unreadable(split, "train", chosen) == first == {100: "the file is empty"}
    assert looks["decoded_levels"] == 101
    unreadable(split, "train", settings(on_bad_sample="skip", cache_dir=str(tmp_path / "other")))
    assert looks["decoded_levels"] == 202


def test_what_was_remembered_as_bad_stops_the_next_run_too(settings: Settings, tmp_path: Path) -> None:
    split = split_of_files(tmp_path / "data", [WHOLE, b""])
    for _ in range(2):
        with user_error_with(expected="images", found="0001.png (the file is empty)", do="fix"):
            unreadable(split, "train", settings())


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_changed_in_place_is_looked_at_again(same_size: bool, settings: Settings, tmp_path: Path) -> None:
    """The data set's fingerprint does not change with its files: the size and the time of change tell."""
    split = split_of_files(tmp_path / "data", [WHOLE, WHOLE])
    assert unreadable(split, "train", settings()) == {}
    path = tmp_path / "data" / "0001.png"
    path.write_bytes(TRUNCATED + bytes(len(WHOLE) - len(TRUNCATED)) if same_size else TRUNCATED)
    if same_size:
        os.utime(path, ns=(1, 1))
    with user_error_with(expected="images", found="0001.png (damaged", do="fix"):
        unreadable(split, "train", settings())


def test_an_image_within_a_file_of_data_that_changed_is_looked_at_again(settings: Settings) -> None:
    """Should a fingerprint not tell them apart, the size does."""
    split, changed = split_of_bytes([WHOLE]), split_of_bytes([TRUNCATED])
    changed.dataset._fingerprint = split.dataset._fingerprint
    assert unreadable(split, "train", settings()) == {}
    with user_error_with(expected="images", found="row 0 (damaged", do="fix"):
        unreadable(changed, "train", settings())


def test_a_file_that_was_mended_is_accepted(settings: Settings, tmp_path: Path) -> None:
    split = split_of_files(tmp_path / "data", [WHOLE, b""])
    with user_error_with(expected="images", found="0001.png", do="fix"):
        unreadable(split, "train", settings())
    (tmp_path / "data" / "0001.png").write_bytes(WHOLE)
    assert unreadable(split, "train", settings()) == {}


def test_more_verified_samples_than_remembered_are_looked_at_again(settings: Settings) -> None:
    """Else `--verify_samples 0` would hide damage from every later run."""
    split = split_of_bytes([TRUNCATED, WHOLE])
    assert unreadable(split, "train", settings(verify_samples=0)) == {}
    with user_error_with(expected="images", found="row 0 (damaged", do="fix"):
        unreadable(split, "train", settings(verify_samples=10))


def test_copies_are_counted_by_content_against_training(tmp_path: Path) -> None:
    """Equal size alone is no copy; a copy within one split or between validation and test is none either."""
    pictures = [bytes([number]) * 10 for number in range(8)]
    splits = {
        "train": split_of_files(tmp_path / "train", pictures[:4]),
        "validation": split_of_bytes([pictures[0], pictures[0], pictures[5], pictures[5], b"other size"[:3]]),
        "test": split_of_bytes([pictures[5], pictures[3], pictures[6]]),
    }
    assert copies(splits) == {"validation": 2, "test": 1}


def test_masked_images_are_no_copies_of_each_other() -> None:
    """Two empty files are equal, byte for byte, and still no leak of training into test."""
    empty = split_of_bytes([b"", b"x"])
    masked = Split(empty.dataset, empty.rows, empty.targets, unreadable={0: "the file is empty"})
    assert copies({"train": masked, "validation": masked, "test": masked}) == {
        "validation": 1,
        "test": 1,
    }
