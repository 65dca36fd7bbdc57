"""Rows of pictures whose pixels are kept on disk: right and decoded once, whatever happens to the files meanwhile."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.data import verification
from hf_transfer.data.levels import Levels
from hf_transfer.data.pictures import decoded_levels, decoders
from hf_transfer.data.splits import Split
from hf_transfer.modalities.image_batches import ImageRows
from hf_transfer.modalities.kept_pixels import KeptPixels
from hf_transfer.modalities.pixels import PixelPreprocessing
from tests.data.conftest import Settings, encoded, noise
from tests.data.deep_pictures import grey, png16
from tests.data.test_verification import split_of_files

PLENTY = 10**9
Raw = dict[str, Any]


def preprocessing() -> PixelPreprocessing:
    processor: Any = ViTImageProcessorPil(size={"height": 8, "width": 8})
    return PixelPreprocessing(processor)


def split_of(folder: Path, seeds: range) -> Split:
    return split_of_files(folder, [encoded(Image.fromarray(noise(20, 20, 3, seed=seed))) for seed in seeds])


def pixels_of(rows: ImageRows) -> list[Tensor]:
    return [rows[position]["pixel_values"] for position in range(len(rows))]


def rows_of(split: Split, kept: KeptPixels | None, white: float | None = None) -> ImageRows:
    return ImageRows(split, preprocessing(), keep_bytes=PLENTY, white=white, kept=kept)


def same_pixels(rows: ImageRows) -> bool:
    """Whether they are those of the same pictures without a store."""
    return all(map(torch.equal, pixels_of(rows), pixels_of(rows_of(rows.split, None, rows._white))))


def test_rows_keep_their_pixels_when_those_of_other_splits_get_places(tmp_path: Path) -> None:
    kept = KeptPixels(preprocessing(), tmp_path, PLENTY)
    every = []
    for number in range(6):
        every.append(rows_of(split_of(tmp_path / str(number), range(10 * number, 10 * number + 4)), kept))
        pixels_of(every[-1])
    assert [same_pixels(rows) for rows in every] == [True] * 6


def test_rows_of_deep_pictures_keep_theirs_when_others_get_places_for_another_white(tmp_path: Path) -> None:
    kept = KeptPixels(preprocessing(), tmp_path, PLENTY)
    contents = [png16(grey((20, 20), 4000, seed=seed)) for seed in range(4)]
    every = []
    for number, white in enumerate([4095.0, 65535.0, 16383.0, 4095.0]):
        every.append(rows_of(split_of_files(tmp_path / str(number), contents), kept, white))
        pixels_of(every[-1])
    again = [rows_of(rows.split, kept, white) for rows in every for white in (65535.0, 4095.0)]
    assert [same_pixels(rows) for rows in (*every, *again)] == [True] * 12


@pytest.mark.parametrize("filled", [0, 2, 4])
def test_pictures_of_a_store_that_another_run_deletes_are_decoded_once_more_at_most(
    filled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are then kept in memory."""
    decoded: list[Image.Image] = []
    resize = PixelPreprocessing.resize

    def counted(self: PixelPreprocessing, picture: Image.Image) -> Tensor:
        decoded.append(picture)
        return resize(self, picture)

    kept = KeptPixels(preprocessing(), tmp_path / "cache", PLENTY)
    rows = rows_of(split_of(tmp_path / "data", range(4)), kept)
    expected = pixels_of(rows_of(rows.split, None))
    monkeypatch.setattr(PixelPreprocessing, "resize", counted)
    for position in range(filled):
        rows[position]
    assert len(decoded) == filled
    shutil.rmtree(tmp_path / "cache")
    for _ in range(3):
        assert all(map(torch.equal, pixels_of(rows), expected))
    assert len(decoded) == 4


def test_a_picture_that_is_removed_during_a_run_is_read_from_the_store(tmp_path: Path) -> None:
    kept = KeptPixels(preprocessing(), tmp_path / "cache", PLENTY)
    rows = rows_of(split_of(tmp_path / "data", range(4)), kept)
    expected = pixels_of(rows)
    shutil.rmtree(tmp_path / "data")
    assert all(map(torch.equal, pixels_of(rows), expected))
    [counted] = {bool(rows[position]["counted"]) for position in range(4)}
    assert counted


def test_a_picture_whose_file_cannot_be_read_during_a_run_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it stops the run is decided where its row is known."""
    rows = rows_of(split_of(tmp_path / "data", range(2)), KeptPixels(preprocessing(), tmp_path / "cache", PLENTY))

    def read_bytes(path: Path) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert [bool(rows[position]["counted"]) for position in range(2)] == [False, False]
    assert not np.any(rows[0]["pixel_values"].numpy())


def test_another_version_of_a_decoder_looks_again_and_keeps_pixels_of_its_own(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(decoders.cache_clear)
    split = split_of(tmp_path / "data", range(3))
    looks: list[Raw] = []

    def counted(raw: Raw) -> Levels | None:
        looks.append(raw)
        return decoded_levels(raw)

    monkeypatch.setattr(verification, "decoded_levels", counted)
    for number, version in enumerate(["1.0", "1.0", "2.0"]):
        monkeypatch.setattr(PIL, "__version__", version)
        decoders.cache_clear()
        verification.look_at_images(split, settings())
        pixels_of(rows_of(split, KeptPixels(preprocessing(), tmp_path / "cache", PLENTY)))
        assert len(looks) == (3, 3, 6)[number]
        assert len(list((tmp_path / "cache/pixels").glob("1-*"))) == (1, 1, 2)[number]
