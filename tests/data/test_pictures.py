"""One image: every colour mode decodes as transformers decodes it, and damage is named."""

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from transformers.image_utils import load_image

from hf_transfer.data.pictures import (
    BadImageError,
    check_header,
    content,
    content_size,
    decode,
    decode_picture,
    decode_with_levels,
)
from pictures import decode as decoded_by_the_demo
from tests.data.conftest import encoded, noise, png_by_hand, raw_bytes, raw_path, same

# Bytes that Pillow reads of a file at once.
BLOCK = 1 << 16
WIDTH, HEIGHT = 10, 12
COLOURS = Image.fromarray(noise(HEIGHT, WIDTH, 3))


def picture_of(mode: str) -> Image.Image:
    if mode in ("LA", "RGBA"):
        return Image.fromarray(noise(HEIGHT, WIDTH, len(mode), seed=1))
    return COLOURS.convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.png"), ("RGB", "a.jpg"), ("RGB", "a.webp"), ("RGB", "a.bmp"), ("RGB", "a.ppm"), ("RGB", "a.tif"),
        ("L", "a.png"), ("L", "a.jpg"), ("L", "a.pgm"), ("1", "a.png"), ("1", "a.tif"), ("LA", "a.png"),
        ("RGBA", "a.png"), ("RGBA", "a.webp"), ("P", "a.png"), ("P", "a.gif"), ("CMYK", "a.jpg"), ("CMYK", "a.tif"),
    ],
)  # fmt: skip
def test_ordinary_pictures_decode_as_transformers_decodes_them(mode: str, name: str, tmp_path: Path) -> None:
    """Predictions must see what training saw."""
    path = tmp_path / name
    picture_of(mode).save(path)
    ours = decode(raw_path(path))
    assert ours.mode == "RGB"
    assert same(ours, load_image(str(path)))
    assert same(ours, decode(raw_bytes(path.read_bytes())))


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes Pillow asks for each time that a JPEG is decoded."""
    asked: list[int] = []
    original = JpegImageFile.load_read

    def noted(picture: JpegImageFile, count: int) -> bytes:
        asked.append(count)
        return original(picture, count)

    monkeypatch.setattr(JpegImageFile, "load_read", noted)
    return asked


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("side", [None, 60])
def test_a_jpeg_in_memory_is_decoded_from_one_block_to_the_pixels_of_its_file(
    options: dict[str, Any], mode: str, side: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file Pillow reads blocks of 64 KiB, and takes up its work again at each of them."""
    path = tmp_path / "large.jpg"
    Image.fromarray(noise(400, 300, 3)).convert(mode).save(path, quality=95, **options)
    size = path.stat().st_size
    asked = asked_for(monkeypatch)
    from_blocks = decode(raw_path(path), None, side)
    assert len(asked) > 1
    asked.clear()
    assert same(decode(raw_bytes(path.read_bytes()), None, side), from_blocks)
    assert asked == [max(size, BLOCK)]


def test_a_jpeg_in_memory_that_ends_early_or_is_changed_is_as_bad_as_its_file(tmp_path: Path) -> None:
    """Whatever the place: Pillow's words, but for how many bytes it has left over, or the same pixels."""

    def seen(raw: dict[str, Any]) -> Any:
        try:
            return np.asarray(decode(raw))
        except BadImageError as error:
            return re.sub(r"\d+", "N", str(error))

    whole, random, kinds = encoded(Image.fromarray(noise(400, 400, 3)), "JPEG"), np.random.default_rng(0), set()
    assert len(whole) > BLOCK
    for number in range(40):
        data = bytearray(whole)
        if number % 2:
            data = data[: random.integers(1000, len(data))]
        data[random.integers(700, len(data))] ^= 1 + int(random.integers(255))
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        in_memory, in_file = seen(raw_bytes(bytes(data))), seen(raw_path(path))
        kinds.add(type(in_file))
        assert in_memory == in_file if isinstance(in_file, str) else same(in_memory, in_file)
    assert kinds == {str, np.ndarray}


@pytest.mark.parametrize("read", [decode, decode_with_levels])
def test_a_picture_that_is_rgb_already_is_not_copied(
    read: Callable[[dict[str, Any]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`convert` copies it, which for a photograph takes a third of the time of resizing it."""
    copied: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "copy", copied.append)
    raw = raw_bytes(encoded(Image.fromarray(noise(9, 7, 3)), "JPEG"))
    read(raw)
    assert copied == []


def test_a_palette_with_a_transparent_colour_keeps_the_colours_below_it(tmp_path: Path) -> None:
    picture = COLOURS.quantize(16)
    picture.save(tmp_path / "a.png", transparency=3)
    assert Image.open(tmp_path / "a.png").info["transparency"] == 3
    decoded = np.asarray(decode(raw_path(tmp_path / "a.png")))
    assert same(decoded, np.asarray(picture.convert("RGB")))
    assert same(decoded, load_image(str(tmp_path / "a.png")))


def test_a_transparent_picture_keeps_its_colour_values() -> None:
    pixels = noise(HEIGHT, WIDTH, 4)
    assert same(decode(raw_bytes(encoded(Image.fromarray(pixels)))), pixels[..., :3])


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda pixels: pixels),
        (2, lambda pixels: pixels[:, ::-1]),
        (3, lambda pixels: pixels[::-1, ::-1]),
        (4, lambda pixels: pixels[::-1]),
        (5, lambda pixels: pixels.swapaxes(0, 1)),
        (6, lambda pixels: np.rot90(pixels, -1)),
        (7, lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1)),
        (8, lambda pixels: np.rot90(pixels, 1)),
    ],
)
def test_a_picture_is_rotated_as_its_exif_tag_says(
    orientation: int, turn: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Against the eight cases of the EXIF standard, turned by numpy."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    COLOURS.save(tmp_path / "a.png", exif=exif)
    assert same(decode(raw_path(tmp_path / "a.png")), turn(np.asarray(COLOURS)))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled_to_eight_bits(name: str, tmp_path: Path) -> None:
    """Pillow alone would clip everything above 255 to white; the PGM opens in Pillow's other 16-bit mode."""
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    decoded = np.asarray(decode(raw_path(tmp_path / name)))
    for channel in range(3):
        assert same(decoded[..., channel], values // 256)


def test_sixteen_bit_colours_are_scaled_to_eight_bits() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype(">u2")
    data = png_by_hand(5, 4, depth=16, rows=[row.tobytes() for row in values])
    assert same(decode(raw_bytes(data)), values // 256)


def test_float_grey_between_zero_and_one_is_scaled(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((HEIGHT, WIDTH)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    expected = np.rint(values * np.float32(255))
    assert same(np.asarray(decode(raw_path(tmp_path / "a.tif")))[..., 0], expected)


@pytest.mark.parametrize(("name", "colours"), [("a.gif", 16), ("a.png", 0), ("a.webp", 0), ("a.tif", 0)])
def test_an_animation_gives_its_first_frame(name: str, colours: int, tmp_path: Path) -> None:
    first, second = COLOURS, Image.fromarray(255 - np.asarray(COLOURS))
    if colours:
        first, second = first.quantize(colours), second.quantize(colours)
    first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
    assert getattr(Image.open(tmp_path / name), "n_frames", 1) == 2
    assert same(decode(raw_path(tmp_path / name)), np.asarray(first.convert("RGB")))


def test_a_phones_multi_picture_jpeg_gives_its_first_picture(tmp_path: Path) -> None:
    COLOURS.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[COLOURS.rotate(180)])
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert same(decode(raw_path(tmp_path / "a.jpg")), load_image(str(tmp_path / "a.jpg")))


BOMB = png_by_hand(20_000, 20_000)
NOT_AN_IMAGE = [
    (b"", "the file is empty"),
    (b"these are only words", "20 bytes that are not a JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"),
    (BOMB, "it declares far too many pixels, and the limit is 50,000,000"),
    (png_by_hand(9_000, 9_000), "it declares 9000 x 9000 pixels, and the limit is 50,000,000"),
    (png_by_hand(0, 5), "bytes that are not a JPEG, PNG"),
]


@pytest.mark.parametrize("check", [decode, check_header])
@pytest.mark.parametrize(("data", "reason"), NOT_AN_IMAGE, ids=["empty", "text", "bomb", "81 MP", "no width"])
def test_the_header_alone_shows_what_is_no_usable_image(
    data: bytes, reason: str, check: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    """Embedded or in a file, the reason is the same, and a bomb is refused before a pixel is decoded."""
    (tmp_path / "a.png").write_bytes(data)
    for raw in (raw_bytes(data), raw_path(tmp_path / "a.png")):
        with pytest.raises(BadImageError) as caught:
            check(raw)
        assert reason in str(caught.value)


def test_the_bomb_of_this_test_is_tiny() -> None:
    assert len(BOMB) < 100


def test_the_largest_allowed_picture_passes_and_one_row_more_does_not() -> None:
    check_header(raw_bytes(png_by_hand(10_000, 5_000)))
    with pytest.raises(BadImageError, match="10000 x 5001 pixels"):
        check_header(raw_bytes(png_by_hand(10_000, 5_001)))


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.tif", "a.bmp"])
def test_a_truncated_picture_has_a_good_header_and_is_found_when_decoded(name: str, tmp_path: Path) -> None:
    """The header of such a file is whole, but for TIFF."""
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(whole, format={"tif": "TIFF"}.get(name[2:], name[2:]))
    (tmp_path / name).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    if name != "a.tif":  # whose directory comes last
        check_header(raw_path(tmp_path / name))
    with pytest.raises(BadImageError, match=r"^damaged: "):
        decode(raw_path(tmp_path / name))


def test_a_truncated_jpeg_is_damaged() -> None:
    data = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    check_header(raw_bytes(data[: len(data) * 3 // 4]))
    with pytest.raises(BadImageError, match=r"^damaged: .*truncated"):
        decode(raw_bytes(data[: len(data) * 3 // 4]))


@pytest.mark.parametrize("check", [decode, check_header])
def test_a_missing_file_is_named_as_such(check: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    for raw in (raw_path(tmp_path / "gone.png"), raw_path(tmp_path), {"bytes": None, "path": None}):
        with pytest.raises(BadImageError, match=r"^there is no such file$"):
            check(raw)


def test_formats_that_run_programs_are_never_opened(tmp_path: Path) -> None:
    """Pillow hands EPS files to Ghostscript; only formats of photographs are read."""
    COLOURS.save(tmp_path / "a.png", format="EPS")
    with pytest.raises(BadImageError, match="are not a JPEG"):
        check_header(raw_path(tmp_path / "a.png"))


def test_content_and_its_size_are_those_of_the_bytes_or_of_the_file(tmp_path: Path) -> None:
    """-1 is no size that a file can have."""
    (tmp_path / "a").write_bytes(b"12345")
    assert content(raw_path(tmp_path / "a")) == content(raw_bytes(b"12345")) == b"12345"
    assert content_size(raw_path(tmp_path / "a")) == content_size(raw_bytes(b"12345")) == 5
    assert content_size(raw_bytes(b"")) == 0
    assert content_size(raw_path(tmp_path / "gone")) == content_size({"bytes": None, "path": None}) == -1


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data by hand, of number, type, count and value of each tag: Pillow writes no tags of wrong types."""
    entries = b"".join(struct.pack("<HHI4s", *tag) for tag in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them_also_where_another_tag_has_a_wrong_type(
    orientation: int, tmp_path: Path
) -> None:
    """As broken software writes it: a resolution that is text, a unit that is too large."""
    picture, path = Image.fromarray(noise(12, 20, 3)), tmp_path / "one.jpg"
    turned = (0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    picture.save(path, exif=exif(turned), quality=95)
    expected = ImageOps.exif_transpose(Image.open(path))
    for wrong in ((0x011A, 2, 2, b"ab"), (0x0128, 4, 1, struct.pack("<I", 400_000)), (0x0100, 2, 4, b"abc")):
        picture.save(path, exif=exif(turned, wrong), quality=95)
        assert same(decode(raw_path(path)), expected)
        assert same(decode_with_levels(raw_path(path)).picture, expected)
        assert same(decode_picture(Image.open(path)), expected)
        assert same(decoded_by_the_demo(path), expected)
