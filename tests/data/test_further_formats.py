"""HEIC and AVIF: read where the installation can, else named with the command after which it can."""

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, features

from hf_transfer.data import pictures
from hf_transfer.data.checked import load_splits
from hf_transfer.data.pictures import SUFFIXES, BadImageError, check_header, decode, further_formats
from hf_transfer.modalities.image import ImageModality
from tests.data.conftest import Settings, encoded, noise, raw_bytes, raw_path, same, user_error_with

COLOURS = Image.fromarray(np.repeat(np.repeat(noise(4, 6, 3), 16, axis=0), 16, axis=1))
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="needs Pillow with AVIF")
needs_heif = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="needs the extra heif")
FORMATS = [pytest.param("AVIF", marks=needs_avif), pytest.param("HEIF", marks=needs_heif)]
# The start of such files, whose brand is all that is looked at.
HEADS = {brand: b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" for brand in (b"heic", b"heix", b"mif1", b"avif", b"avis")}


@pytest.fixture
def without_either(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation that reads neither."""
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    monkeypatch.setattr(features, "check", lambda name: False)
    further_formats.cache_clear()
    yield
    further_formats.cache_clear()


def written(picture: Image.Image, kind: str, **options: Any) -> bytes:
    # It registers the format.
    further_formats()
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_they_are_read_as_any_other_picture(kind: str, mode: str, tmp_path: Path) -> None:
    """The first picture, without its transparency; values differ a little, since it is compressed."""
    content = written(COLOURS.convert(mode), kind)
    (tmp_path / "a").write_bytes(content)
    check_header(raw_bytes(content))
    decoded = np.asarray(decode(raw_path(tmp_path / "a"))).astype(int)
    assert same(decode(raw_bytes(content)), decoded.astype(np.uint8))
    difference = np.abs(decoded - np.asarray(COLOURS.convert(mode).convert("RGB")).astype(int))
    assert decoded.shape == (64, 96, 3)
    assert difference.mean() < 12


@pytest.mark.parametrize("kind", FORMATS)
def test_they_are_rotated_as_a_camera_says(kind: str) -> None:
    """The file itself has the rotation, beside the EXIF tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(raw_bytes(written(COLOURS, kind, exif=exif.tobytes())))
    assert turned.size == (64, 96)
    straight = np.rot90(np.asarray(decode(raw_bytes(written(COLOURS, kind)))), -1)
    assert np.abs(np.asarray(turned).astype(int) - straight).mean() < 12


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_one_is_damaged(kind: str) -> None:
    content = written(Image.fromarray(noise(64, 64, 3)), kind)
    with pytest.raises(BadImageError, match=r"^damaged: |that are not a"):
        decode(raw_bytes(content[: len(content) // 2]))


@needs_avif
def test_the_first_picture_of_an_animation_is_read() -> None:
    content = written(COLOURS, "AVIF", save_all=True, append_images=[COLOURS.rotate(180)], quality=95)
    assert np.abs(np.asarray(decode(raw_bytes(content))).astype(int) - np.asarray(COLOURS)).mean() < 12


@pytest.mark.usefixtures("without_either")
@pytest.mark.parametrize(
    ("brand", "reason"),
    [
        (b"heic", "HEIC pictures can be read after pip install 'hf-transfer-learning[heif]'"),
        (b"heix", "HEIC pictures can be read after pip install 'hf-transfer-learning[heif]'"),
        (b"mif1", "HEIC pictures can be read after pip install 'hf-transfer-learning[heif]'"),
        (b"avif", "AVIF pictures can be read after pip install --upgrade pillow"),
        (b"avis", "AVIF pictures can be read after pip install --upgrade pillow"),
    ],
)
def test_without_them_the_command_is_named_whatever_the_file_is_called(
    brand: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(HEADS[brand])
    for raw in (raw_bytes(HEADS[brand]), raw_path(tmp_path / "a.jpg")):
        for check in (decode, check_header):
            with pytest.raises(BadImageError) as caught:
                check(raw)
            assert str(caught.value) == reason


@pytest.mark.usefixtures("without_either")
def test_without_them_a_run_stops_and_counts_them(settings: Settings) -> None:
    good = [encoded(Image.fromarray(picture)) for picture in noise(12, 9, 8, 3)]
    rows = {"image": [raw_bytes(one) for one in [*good, HEADS[b"heic"], HEADS[b"avif"]]], "label": [0, 1] * 7}
    types = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict(rows, features=types)
    with user_error_with(
        expected="images that can be read in split 'train'",
        found="2 that cannot be read: row 12 (HEIC pictures can be read after pip install",
        do="fix or remove them",
    ):
        load_splits(
            settings(), ImageModality(), datasets.DatasetDict({"train": data, "validation": data, "test": data})
        )


def test_a_broken_file_of_a_format_that_is_read_is_not_said_to_need_anything() -> None:
    for kind, head in (("AVIF", HEADS[b"avif"]), ("HEIC", HEADS[b"heic"])):
        if kind in further_formats():
            with pytest.raises(BadImageError) as caught:
                decode(raw_bytes(head))
            assert "can be read after" not in str(caught.value)


def test_their_suffixes_are_those_of_pictures_so_that_no_class_disappears() -> None:
    assert {".heic", ".heif", ".hif", ".avif", ".jfif", ".jpe", ".apng", ".dib", ".pbm", ".pnm"} <= SUFFIXES
