"""The embedded samples: what they hold, and that they are the same on every machine."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hf_transfer.data import sample_data, sample_models, samples
from hf_transfer.data.pictures import decode
from tests.data.conftest import same, user_error_with


def test_the_digits_are_those_of_scikit_learn() -> None:
    """Its values run from 0 to 16, ours from 0 to 255."""
    import datasets

    train = samples.load_sample("sample:digits")["train"]
    reference = load_digits()
    assert train.features["label"].names == [str(digit) for digit in range(10)]
    assert train["label"][:] == reference.target.tolist()
    encoded = train.cast_column("image", datasets.Image(decode=False))
    for row in range(0, len(train), 97):
        grey = np.asarray(decode(encoded[row]["image"]))[..., 0]
        assert same(grey, np.rint(reference.images[row] * 255 / 16))


def test_no_glyph_is_a_digit_and_none_comes_twice() -> None:
    """The source task must not know the target's classes."""
    assert not any(character.isdigit() for character in sample_data.GLYPH_CHARACTERS)
    assert len(set(sample_data.GLYPH_CHARACTERS)) == len(sample_data.GLYPH_CHARACTERS)


def test_all_fonts_of_the_glyphs_come_with_matplotlib_and_draw_every_character() -> None:
    """A font without a character would draw its box for 'missing' instead."""
    from matplotlib import font_manager, get_data_path

    for name in sample_data.GLYPH_FONTS:
        font = font_manager.get_font(f"{get_data_path()}/fonts/ttf/{name}.ttf")
        known = font.get_charmap()
        assert all(ord(character) in known for character in sample_data.GLYPH_CHARACTERS), name


def test_a_glyph_is_a_pure_function_of_its_generator() -> None:
    first, again, other = (
        sample_data.render_glyph("R", "DejaVuSans", np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert isinstance(first, Image.Image)
    assert first.mode == "L"
    assert first.size[0] == first.size[1]
    assert first.size[0] in sample_data.GLYPH_SIZES
    assert same(first, again)
    assert first.size != other.size or not same(first, other)


def test_a_glyph_is_light_on_dark() -> None:
    for seed in range(20):
        pixels = np.asarray(sample_data.render_glyph("I", "DejaVuSans", np.random.default_rng(seed)), dtype=float)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert pixels.max() > 150
        assert np.median(border) < pixels.max() / 2


@pytest.mark.parametrize(("name", "nearest"), [("sample:digit", "sample:digits"), ("sample:gliphs", "sample:glyphs")])
def test_an_unknown_sample_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with user_error_with(
        expected="for --dataset_name one of sample:digits, sample:glyphs", found=name, do=f"use {nearest}"
    ):
        samples.load_sample(name)


def test_an_unknown_backbone_is_answered_with_those_there_are() -> None:
    with user_error_with(
        expected="for --model_name_or_path one of sample:resnet-glyphs, sample:vit-glyphs, sample:efficientnet-lite0, "
        "sample:minilm",
        found="sample:vit-glyph",
        do="use sample:vit-glyphs",
    ):
        sample_models.backbone_folder("sample:vit-glyph")


@pytest.mark.parametrize(
    "name", ["sample:..", "sample:.", "sample:/elsewhere/vit-glyphs", "sample:../other/vit-glyphs"]
)
def test_a_sample_name_cannot_lead_out_of_its_folder(name: str) -> None:
    """Neither a path from the root nor one with dots."""
    with user_error_with(expected="for --model_name_or_path one of", found=name, do="use"):
        sample_models.backbone_folder(name)


@pytest.mark.parametrize("name", ["vit-glyphs", "resnet-glyphs"])
def test_a_backbone_folder_has_what_a_checkpoint_needs(name: str) -> None:
    folder = sample_models.backbone_folder(f"sample:{name}")
    assert {"config.json", "preprocessor_config.json"} <= {path.name for path in folder.iterdir()}


def test_only_names_with_the_prefix_are_samples() -> None:
    assert samples.is_sample("sample:digits")
    assert not samples.is_sample("digits")
    assert not samples.is_sample("./sample:digits")
