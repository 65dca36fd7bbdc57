"""Which rows are cut off training is remembered: with the same result, and only for the same rows and settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pytest

from hf_transfer.checkpoints.kept import kept_in
from hf_transfer.data import cutting, verification
from hf_transfer.data.cutting import SPLIT_OF_EACH_ROW, cut_missing, cut_once
from hf_transfer.data.groups import Keys
from hf_transfer.data.splits import Split
from hf_transfer.modalities.image import ImageModality
from hf_transfer.settings.data import DataSettings
from hf_transfer.targets.classes import Classes
from tests.data.conftest import Settings

MISSING = ["test", "validation"]


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "FEWEST_REMEMBERED", 1)


def training() -> tuple[Split, Keys]:
    """Every second row of a data set, with a masked one, and their keys, of which some are equal."""
    rows = np.arange(1, 400, 2)
    data = datasets.Dataset.from_dict({"text": [str(row) for row in range(400)]})
    keys = np.random.default_rng(0).integers(1, 150, len(rows)).astype(np.uint64)
    return Split(data, rows, rows % 3, unreadable={7: "empty"}), keys


def settings(**chosen: Any) -> DataSettings:
    return DataSettings(dataset_name="data.csv", **chosen)


def same(first: Mapping[str, Split], second: Mapping[str, Split]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].fingerprint() == second[name].fingerprint() and first[name].unreadable == second[name].unreadable
        for name in first
    )


def test_a_cut_is_the_same_when_it_is_remembered(tmp_path: Path) -> None:
    (train, keys), target = training(), Classes(("a", "b", "c"))
    cut = cut_missing(train, MISSING, [keys], settings(), target)
    assert same(cut, cut_once(tmp_path, train, MISSING, [keys], settings(), target))
    with mock.patch.object(cutting, "cut_missing", side_effect=AssertionError("it was cut again")):
        assert same(cut, cut_once(tmp_path, train, MISSING, [keys], settings(), target))


def test_other_rows_keys_labels_and_settings_have_their_own_cut(tmp_path: Path) -> None:
    (train, keys), target = training(), Classes(("a", "b", "c"))
    other_labels = Split(train.dataset, train.rows, train.targets[::-1].copy(), train.unreadable)
    other_rows = Split(train.dataset, train.rows - 1, train.targets)
    cases: list[tuple[Split, list[str], list[Keys], DataSettings]] = [
        (train, MISSING, [keys], settings()),
        (train, MISSING, [keys[::-1].copy()], settings()),
        (train, MISSING, [keys, keys], settings()),
        (train, MISSING[:1], [keys], settings()),
        (train, MISSING, [keys], settings(split_seed=1)),
        (train, MISSING, [keys], settings(test_fraction=0.3)),
        (other_labels, MISSING, [keys], settings()),
        (other_rows, MISSING, [keys], settings()),
    ]
    for _ in range(2):
        for split, missing, columns, chosen in cases:
            expected = cut_missing(split, missing, columns, chosen, target)
            assert same(expected, cut_once(tmp_path, split, missing, columns, chosen, target))
    assert [store.what for store in kept_in(tmp_path)] == ["which rows were split off"] * len(cases)


def test_a_damaged_file_and_a_cache_that_cannot_be_written_to_do_no_harm(tmp_path: Path) -> None:
    (train, keys), target = training(), Classes(("a", "b", "c"))
    cut = cut_once(tmp_path, train, MISSING, [keys], settings(), target)
    (file,) = (tmp_path / "cuts").glob(f"*/{SPLIT_OF_EACH_ROW}")
    content = file.read_bytes()
    # A file that was cut, and one in which a row has moved to another split, or to none.
    for damaged in (content[:-1], bytes([(content[0] + 1) % 3]) + content[1:], b"\x7f" + content[1:]):
        file.write_bytes(damaged)
        assert same(cut, cut_once(tmp_path, train, MISSING, [keys], settings(), target))
        assert file.read_bytes() == content
    assert same(cut, cut_once(file, train, MISSING, [keys], settings(), target))


def test_the_keys_of_many_images_are_remembered(settings: Settings) -> None:
    """They are computed once, until an image changes."""
    features = datasets.Features({"image": datasets.Image(decode=False)})

    def split_of(contents: list[bytes]) -> Split:
        images = {"image": [{"bytes": content, "path": None} for content in contents]}
        data = datasets.Dataset.from_dict(images, features)
        return Split(data, np.arange(len(data)), np.zeros(len(data), dtype=np.int64))

    config, split = settings(verify_samples=0), split_of([b"one", b"three", b"one"])
    (keys,) = ImageModality().keys(split, config)
    assert keys[0] == keys[2] != keys[1]
    with mock.patch.object(verification, "key_of", side_effect=AssertionError("a key was computed")):
        assert np.array_equal(ImageModality().keys(split, config)[0], keys)
    (other,) = ImageModality().keys(split_of([b"two", b"three", b"one"]), config)
    assert other[0] != keys[0]
    assert other[1] == keys[1]
