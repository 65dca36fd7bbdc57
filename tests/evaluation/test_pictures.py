"""The pictures of a report, whatever the names of classes are."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from hf_transfer.evaluation.pictures import draw_confusion, draw_residuals, drawn_names

NAMES = ("plain", "a \t b\n", "\u732b", "$x^$", "\U000f0000")


@pytest.fixture
def font_with_a_cat(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an installed font that has the Chinese character for cat: a stand-in, which maps it to a box."""
    boxes = next(font for font in font_manager.fontManager.ttflist if font.name == "Last Resort High-Efficiency")
    font = font_manager.FontEntry(fname=boxes.fname, name="Cats")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist, font])
    return font.name


def test_a_name_without_a_font_is_its_number_and_others_stay_on_one_line() -> None:
    names, fonts = drawn_names(NAMES, "class")
    assert names == ["plain", "a b", "class 2", r"\$x^\$", "class 4"]
    assert len(fonts) == 1
    assert drawn_names(NAMES, "output")[0][2] == "output 2", "of numbers, which have no classes"


def test_another_installed_font_is_taken_for_characters_that_the_usual_one_lacks(font_with_a_cat: str) -> None:
    names, fonts = drawn_names(NAMES[:3], "class")
    assert names == ["plain", "a b", "\u732b"]
    assert fonts[-1] == font_with_a_cat


def test_a_font_that_was_removed_or_is_damaged_is_passed_over(
    font_with_a_cat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """matplotlib lists installed fonts only once, in its cache."""
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    listed = [font_manager.FontEntry(fname=str(file), name="Gone") for file in (tmp_path / "removed.ttf", damaged)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*listed, *font_manager.fontManager.ttflist])
    names, fonts = drawn_names(NAMES[:3], "class")
    assert names[2] == NAMES[2]
    assert (fonts[-1], "Gone" in fonts) == (font_with_a_cat, False)


def test_pictures_are_drawn_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(tmp_path / "confusion.png", (np.eye(len(NAMES), dtype=np.int64), NAMES))
        values = np.zeros((3, len(NAMES)))
        draw_residuals(tmp_path / "residuals.png", (values, values + 1, NAMES))
    for name in ("confusion.png", "residuals.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 100
