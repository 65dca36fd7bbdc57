"""The sample of letters and names: how often a perfect reader is right by the picture, by the text, and by both."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from matplotlib import font_manager, get_data_path

from hf_transfer.data import glyph_names, samples
from hf_transfer.data.glyph_names import Row, rows_of
from hf_transfer.data.pictures import decode

TEST = rows_of("test")
# By hand from an alphabet's table: which letter each script reads in a shape.
LETTERS = {
    "P": ("Latin pee", "Greek rho", "Cyrillic er"),
    "H": ("Latin aitch", "Greek eta", "Cyrillic en"),
    "B": ("Latin bee", "Greek beta", "Cyrillic ve"),
    "X": ("Latin ex", "Greek chi", "Cyrillic kha"),
}


def script_told(text: str) -> str:
    """The script of the place or author that is named last: a wrong one is named first and denied."""
    names = {
        name: script
        for table in (glyph_names.PLACES, glyph_names.AUTHORS)
        for script, known in table.items()
        for name in known
    }
    return names[max((name for name in names if name in text), key=text.rindex)]


def share_right(known: Callable[[Row], object]) -> float:
    """How often the commonest letter among rows of which one knows the same is the right one."""
    groups: dict[object, Counter[int]] = {}
    rows = [row for split in glyph_names.ROWS for row in rows_of(split)]
    for row in rows:
        groups.setdefault(known(row), Counter())[row.label] += 1
    return sum(counts.most_common(1)[0][1] for counts in groups.values()) / len(rows)


def sound_told(text: str) -> str | None:
    parts = text.split(" the ")
    return parts[-1].split(" in ")[0] if text.count(".") > 1 and (" sounds " in text or " read it " in text) else None


def words_of(row: Row) -> tuple[str, str | None] | None:
    return None if row.text is None else (script_told(row.text), sound_told(row.text))


def test_neither_picture_nor_text_is_enough_and_both_together_are() -> None:
    """The shares that the module claims, from rows whose texts are read by their last name and their sound."""
    by_picture = share_right(lambda row: row.character)
    by_words = share_right(words_of)
    by_both = share_right(lambda row: (row.character, words_of(row)))
    assert by_picture == pytest.approx(0.48, abs=0.02)
    assert by_words == pytest.approx(0.47, abs=0.02)
    assert by_both == pytest.approx(0.91, abs=0.02)


def test_a_label_is_what_the_script_makes_of_the_shape() -> None:
    """Wherever the text is true, as it nearly always is."""
    assert sorted(glyph_names.LABEL_NAMES) == sorted(name for names in LETTERS.values() for name in names)
    whole = [row for row in TEST if row.character and row.text]
    is_true = [
        glyph_names.LABEL_NAMES[row.label] == LETTERS[row.character][glyph_names.SCRIPTS.index(script_told(row.text))]
        for row in whole
        if row.character and row.text
    ]
    assert len(is_true) > 650
    assert 0.93 < np.mean(is_true) < 0.99
    assert all(glyph_names.LABEL_NAMES[row.label] in LETTERS[row.character] for row in whole if row.character)


def test_a_few_rows_lack_one_of_the_two_and_none_lacks_both() -> None:
    for split, count in glyph_names.ROWS.items():
        rows = rows_of(split)
        assert len(rows) == count
        assert not any(row.character is None and row.text is None for row in rows)
        for lacking in ([row.character is None for row in rows], [row.text is None for row in rows]):
            assert 0.02 < np.mean(lacking) < 0.09


def test_every_letter_has_rows_in_every_split() -> None:
    for split in glyph_names.ROWS:
        assert min(np.bincount([row.label for row in rows_of(split)], minlength=12)) >= 10


def test_a_split_has_fonts_of_its_own_which_draw_the_shapes() -> None:
    used = {split: {row.font for row in rows_of(split)} for split in glyph_names.ROWS}
    assert used == {split: set(fonts) for split, fonts in glyph_names.FONTS.items()}
    assert not used["train"] & used["validation"]
    assert not used["test"] & (used["train"] | used["validation"])
    for name in set().union(*used.values()):
        known = font_manager.get_font(f"{get_data_path()}/fonts/ttf/{name}.ttf").get_charmap()
        assert all(ord(shape) in known for shape in glyph_names.LETTERS), name


def test_training_never_names_what_is_new_in_the_test() -> None:
    train = " ".join(row.text for row in rows_of("train") if row.text)
    test = " ".join(row.text for row in TEST if row.text)
    for table in (glyph_names.PLACES, glyph_names.AUTHORS):
        for names in table.values():
            known, new = names[: len(names) * 2 // 3], names[len(names) * 2 // 3 :]
            assert all(name in train for name in known)
            assert not any(name in train for name in new)
            assert any(name in test for name in new)


def test_rows_are_the_same_whenever_they_are_asked_for() -> None:
    assert rows_of("test") == TEST
    assert rows_of("test") != rows_of("train")[: len(TEST)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> datasets.DatasetDict:
    """The sample as it is loaded, of fewer rows: drawing takes long."""
    monkeypatch.setattr(glyph_names, "ROWS", {"train": 60, "validation": 12, "test": 12})
    return samples.load_sample("sample:glyph-names")


def test_the_sample_holds_a_picture_a_text_and_a_letter_in_each_row(few: datasets.DatasetDict) -> None:
    """None where one is missing; the picture is of the row's shape, as it is drawn for all glyphs."""
    fonts = Path(get_data_path()) / "fonts" / "ttf"
    for number, (split, data) in enumerate(few.items()):
        rows = rows_of(split)
        encoded = data.cast_column("image", datasets.Image(decode=False))
        assert data["text"][:] == [row.text for row in rows]
        assert data["label"][:] == [row.label for row in rows]
        assert data.features["label"].names == glyph_names.LABEL_NAMES
        generator = np.random.default_rng((glyph_names.SEED, number, samples.GLYPH_CANVAS))
        for row, image in zip(rows, encoded["image"][:], strict=True):
            assert (image is None) == (row.character is None)
            if row.character:
                drawn = samples.render_glyph(row.character, fonts / f"{row.font}.ttf", generator)
                assert np.array_equal(np.asarray(decode(image))[..., 0], np.asarray(drawn))


def test_its_letters_are_not_mirrored() -> None:
    assert "sample:glyph-names" in samples.NOT_TO_BE_MIRRORED
