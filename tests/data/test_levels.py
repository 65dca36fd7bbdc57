"""Pictures of more than 8 bits: all of their bits are read, and scaled by what is white."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_transfer.data.levels import SAMPLED_PIXELS, LevelsError, deep_picture, white_level
from hf_transfer.data.pictures import BadImageError, check_header, decode, decode_picture, decoded_levels
from tests.data.conftest import encoded, noise, raw_bytes, raw_path, same
from tests.data.deep_pictures import grey, png16, tiff, tiff16

KINDS: dict[str, tuple[tuple[int, ...], Callable[[Any], bytes]]] = {
    "grey PNG": ((12, 10), png16),
    "grey PNG with transparency": ((12, 10, 2), png16),
    "colour PNG": ((12, 10, 3), png16),
    "colour PNG with transparency": ((12, 10, 4), png16),
    "grey TIFF": ((12, 10), tiff),
    "grey TIFF of 32 bits": ((12, 10), lambda values: tiff(values.astype(np.int32))),
    "colour TIFF": ((12, 10, 3), tiff16),
    "colour TIFF, the other order of bytes": ((12, 10, 3), lambda values: tiff16(values, order=">")),
    "compressed colour TIFF": ((12, 10, 3), lambda values: tiff16(values, compressed=True)),
    "compressed colour TIFF with transparency": ((12, 10, 4), lambda values: tiff16(values, compressed=True)),
}


def colours_of(values: Any) -> Any:
    """Red, green and blue of values with any channels."""
    if values.ndim == 2 or values.shape[2] == 2:
        values = np.repeat(values.reshape(*values.shape[:2], -1)[..., :1], 3, axis=2)
    return values[..., :3]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("white", "bits"), [(255, 8), (1023, 10), (4095, 12), (16383, 14), (65535, 16)])
def test_the_upper_eight_of_the_bits_that_are_used_are_kept(name: str, white: int, bits: int) -> None:
    """8 and 12 bits in 16 would otherwise be black or have 16 shades; all bits are those that Pillow keeps, too."""
    shape, write = KINDS[name]
    values = grey(shape, white)
    expected = colours_of(values) >> (bits - 8)
    content = write(values)
    assert check_header(raw_bytes(content))
    assert same(decode(raw_bytes(content), white), expected)
    # The picture alone tells how many bits are used.
    assert same(decode(raw_bytes(content)), expected)


@pytest.mark.parametrize("name", KINDS)
def test_a_dark_picture_stays_dark_beside_others(name: str) -> None:
    """As the data set says what is white; by its own largest value it would be 16 times as bright."""
    shape, write = KINDS[name]
    values = grey(shape, 250)
    assert same(decode(raw_bytes(write(values)), 4095.0), colours_of(values) >> 4)
    assert same(decode(raw_bytes(write(values))), colours_of(values))


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_that_is_opened_already_has_the_same_pixels(name: str, tmp_path: Path) -> None:
    shape, write = KINDS[name]
    (tmp_path / "a").write_bytes(write(grey(shape, 3000)))
    expected = np.asarray(decode(raw_path(tmp_path / "a"), 4095.0))
    with Image.open(tmp_path / "a") as picture:
        assert same(decode_picture(picture, 4095.0), expected)


@pytest.mark.parametrize(("largest", "white"), [(0.5, 1), (1, 1), (1.5, 255), (254.5, 255), (3000, 4095)])
def test_floats_end_at_one_or_at_a_number_of_bits(largest: float, white: float) -> None:
    values = np.linspace(0, largest, 120, dtype=np.float32).reshape(10, 12)
    expected = np.rint(values * np.float32(255 / white))
    assert same(np.asarray(decode(raw_bytes(tiff(values))))[..., 0], expected)


def test_a_value_that_is_named_as_white_need_be_no_number_of_bits() -> None:
    values = np.asarray([[0, 1000, 2000, 4000]], dtype=np.uint16)
    assert np.asarray(decode(raw_bytes(tiff(values)), 4000.0))[0, :, 0].tolist() == [0, 63, 127, 255]
    values = np.asarray([[0.0, 1.0, 2.0]], dtype=np.float32)
    assert np.asarray(decode(raw_bytes(tiff(values)), 2.0))[0, :, 0].tolist() == [0, 128, 255]
    millions = np.asarray([[0, 500_000, 2_000_000]], dtype=np.int32)
    assert np.asarray(decode(raw_bytes(tiff(millions)), 2e6))[0, :, 0].tolist() == [0, 63, 255]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.asarray([[-5, 3]], dtype=np.int32), "it has values below 0, such as -5"),
        (np.asarray([[-0.25, 0.5]], dtype=np.float32), "it has values below 0, such as -0.25"),
        (np.asarray([[np.nan, 0.5]], dtype=np.float32), "it has values that are NaN or infinite"),
        (np.asarray([[np.inf, 0.5]], dtype=np.float32), "it has values that are NaN or infinite"),
        (np.asarray([[0, 70_000]], dtype=np.int32), "its values go up to 70,000, more than 16 bits"),
        (np.asarray([[0, 1e6]], dtype=np.float32), "its values go up to 1e+06, more than 16 bits"),
    ],
)
def test_values_that_are_no_shades_are_refused(values: Any, reason: str) -> None:
    for read in (decode, lambda raw: decode_picture(Image.open(io.BytesIO(raw["bytes"])))):
        with pytest.raises(BadImageError) as caught:
            read(raw_bytes(tiff(values)))
        assert str(caught.value) == reason


@pytest.mark.parametrize("name", KINDS)
def test_values_above_white_are_refused(name: str) -> None:
    shape, write = KINDS[name]
    with pytest.raises(BadImageError, match=r"^its values go up to 5,000, above 4,095, which is white$"):
        decode(raw_bytes(write(grey(shape, 5000))), 4095.0)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("compressed", [False, True])
def test_both_bytes_of_colours_are_rotated_alike(orientation: int, compressed: bool) -> None:
    values = grey((7, 5, 3), 3000)
    turned = np.rot90(values, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    content = tiff16(values, orientation=orientation, compressed=compressed)
    assert same(decode(raw_bytes(content), 4095.0), turned >> 4)


def test_the_first_of_several_pages_is_read() -> None:
    pages = [Image.fromarray(grey((6, 5), 1000, seed)) for seed in range(2)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    assert same(np.asarray(decode(raw_bytes(buffer.getvalue()), 1023.0))[..., 0], np.asarray(pages[0]) >> 2)


def test_ink_of_which_only_the_lower_bits_are_used_is_refused() -> None:
    """Pillow reads the upper 8 bits of it, and the lower ones in no way."""
    ink = grey((4, 5, 4), 255)
    # No ink is white: of 16 bits, 255 is almost none.
    with pytest.raises(BadImageError, match="upper 8 bits of its 16-bit colours are all 0"):
        decode(raw_bytes(tiff16(ink, photometric=5)))
    full = grey((4, 5, 4), 65535)
    assert same(decode(raw_bytes(tiff16(full, photometric=5))), np.asarray(_ink(full >> 8)))


def _ink(values: Any) -> Image.Image:
    return Image.frombytes("CMYK", values.shape[1::-1], values.astype(np.uint8).tobytes()).convert("RGB")


def test_the_levels_are_those_of_all_pixels_and_of_a_sample() -> None:
    values = np.arange(200 * 300, dtype=np.uint16).reshape(200, 300)
    levels = decoded_levels(raw_bytes(tiff(values)))
    assert levels is not None
    assert (levels.smallest, levels.largest, levels.range, levels.whole) == (0, 59_999, 59_999, True)
    assert SAMPLED_PIXELS // 2 < levels.distinct <= SAMPLED_PIXELS
    floats = decoded_levels(raw_bytes(tiff(np.asarray([[0.25, 0.5]], dtype=np.float32))))
    assert floats is not None
    assert (floats.smallest, floats.largest, floats.distinct, floats.whole) == (0.25, 0.5, 2, False)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_pictures_of_eight_bits_have_no_levels_and_are_never_scaled(mode: str) -> None:
    picture = Image.fromarray(noise(12, 10, 3)).convert(mode)
    content = encoded(picture, "TIFF")
    assert not check_header(raw_bytes(content))
    assert decoded_levels(raw_bytes(content)) is None
    assert same(decode(raw_bytes(content), 4095.0), decode(raw_bytes(content)))


def test_pixels_that_have_been_read_already_are_those_of_eight_bits() -> None:
    with Image.open(io.BytesIO(png16(grey((4, 5, 3), 65535)))) as picture:
        picture.load()
        assert deep_picture(picture) is None


def test_no_number_of_bits_has_no_room_for_its_own_largest_value() -> None:
    for white in (255, 1023, 4095, 16383, 65535):
        assert white_level(white, whole=True) == white
    with pytest.raises(LevelsError):
        white_level(65535.5, whole=False)
