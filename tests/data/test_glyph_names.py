"""The sample of letters and names: how often a perfect reader is right by the picture, by the text, and by both."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from matplotlib import font_manager, get_data_path

from hf_transfer.data import sample_data, samples
from hf_transfer.data.pictures import decode

Row = dict[str, str]
SIZES = {"train": 1_800, "validation": 400, "test": 800}
FONTS = {
    "train": "DejaVuSans DejaVuSans-Bold DejaVuSansMono DejaVuSansMono-Bold DejaVuSerif DejaVuSerif-Bold STIXGeneral "
    "STIXGeneralBol",
    "validation": "DejaVuSans-BoldOblique DejaVuSerif-BoldItalic STIXGeneralBolIta",
    "test": "cmr10 cmb10 cmss10 cmtt10",
}
SCRIPTS = ("Latin", "Greek", "Cyrillic")
# Of each script, the places and the authors that training names, and those that are new in the other splits.
KNOWN = {
    "Latin": "London, Paris, Madrid, Rome, Dublin, Lisbon, Chicago, Vienna, Oslo, Amsterdam, "
    "Shakespeare, Cervantes, Dante, Goethe, Dickens, Molière",
    "Greek": "Athens, Thessaloniki, Crete, Corfu, Rhodes, Sparta, Delphi, Mykonos, Piraeus, Santorini, "
    "Homer, Plato, Sappho, Sophocles, Aristotle, Herodotus",
    "Cyrillic": "Moscow, Sofia, Kyiv, Minsk, Belgrade, Novosibirsk, Odesa, Saint Petersburg, Plovdiv, Vladivostok, "
    "Tolstoy, Pushkin, Dostoevsky, Chekhov, Gogol, Turgenev",
}
NEW = {
    "Latin": "Toronto, Lyon, Hamburg, Seville, Glasgow, Jane Austen, Victor Hugo, Joyce",
    "Greek": "Patras, Corinth, Naxos, Olympia, Mycenae, Euripides, Hesiod, Cavafy",
    "Cyrillic": "Kazan, Varna, Lviv, Murmansk, Kharkiv, Bulgakov, Gorky, Akhmatova",
}
# By hand from an alphabet's table: which letter each script reads in a shape.
LETTERS = {
    "P": ("Latin pee", "Greek rho", "Cyrillic er"),
    "H": ("Latin aitch", "Greek eta", "Cyrillic en"),
    "B": ("Latin bee", "Greek beta", "Cyrillic ve"),
    "X": ("Latin ex", "Greek chi", "Cyrillic kha"),
}


def rows_of(split: str) -> list[Row]:
    """The rows as they are shipped: character, font, text and label, each of which may be empty."""
    with (sample_data.TEXT_FOLDER / "glyph-names" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def script_told(text: str) -> str:
    """The script of the place or author that is named last: a wrong one is named first and denied."""
    names = {name: script for table in (KNOWN, NEW) for script, known in table.items() for name in known.split(", ")}
    return names[max((name for name in names if name in text), key=text.rindex)]


def share_right(known: Callable[[Row], object]) -> float:
    """How often the commonest letter among rows of which one knows the same is the right one."""
    groups: dict[object, Counter[str]] = {}
    rows = [row for split in SIZES for row in rows_of(split)]
    for row in rows:
        groups.setdefault(known(row), Counter())[row["label"]] += 1
    return sum(counts.most_common(1)[0][1] for counts in groups.values()) / len(rows)


def sound_told(text: str) -> str | None:
    parts = text.split(" the ")
    return parts[-1].split(" in ")[0] if text.count(".") > 1 and (" sounds " in text or " read it " in text) else None


def words_of(row: Row) -> tuple[str, str | None] | None:
    return (script_told(row["text"]), sound_told(row["text"])) if row["text"] else None


def test_neither_picture_nor_text_is_enough_and_both_together_are() -> None:
    """The shares that its README claims, from rows whose texts are read by their last name and their sound."""
    by_picture = share_right(lambda row: row["character"])
    by_words = share_right(words_of)
    by_both = share_right(lambda row: (row["character"], words_of(row)))
    assert by_picture == pytest.approx(0.48, abs=0.02)
    assert by_words == pytest.approx(0.47, abs=0.02)
    assert by_both == pytest.approx(0.91, abs=0.02)


def test_a_label_is_what_the_script_makes_of_the_shape() -> None:
    """Wherever the text is true, as it nearly always is."""
    whole = [row for row in rows_of("test") if row["character"] and row["text"]]
    is_true = [
        row["label"] == LETTERS[row["character"]][SCRIPTS.index(script_told(row["text"]))] for row in whole
    ]  # fmt: skip
    assert len(is_true) > 650
    assert 0.93 < np.mean(is_true) < 0.99
    assert all(row["label"] in LETTERS[row["character"]] for row in whole)


def test_a_few_rows_lack_one_of_the_two_and_none_lacks_both() -> None:
    for split, count in SIZES.items():
        rows = rows_of(split)
        assert len(rows) == count
        assert all(row["character"] or row["text"] for row in rows)
        for column in ("character", "text"):
            assert 0.02 < np.mean([not row[column] for row in rows]) < 0.09


def test_every_letter_has_rows_in_every_split() -> None:
    for split in SIZES:
        counts = Counter(row["label"] for row in rows_of(split))
        assert counts.keys() == {name for names in LETTERS.values() for name in names}
        assert min(counts.values()) >= 10


def test_a_split_has_fonts_of_its_own_which_draw_the_shapes() -> None:
    used = {split: {row["font"] for row in rows_of(split)} for split in SIZES}
    assert used == {split: set(fonts.split()) for split, fonts in FONTS.items()}
    assert not used["train"] & used["validation"]
    assert not used["test"] & (used["train"] | used["validation"])
    for name in set().union(*used.values()):
        known = font_manager.get_font(f"{get_data_path()}/fonts/ttf/{name}.ttf").get_charmap()
        assert all(ord(shape) in known for shape in LETTERS), name


def test_training_never_names_what_is_new_in_the_test() -> None:
    train, test = (" ".join(row["text"] for row in rows_of(split)) for split in ("train", "test"))
    for script in SCRIPTS:
        new = NEW[script].split(", ")
        assert all(name in train for name in KNOWN[script].split(", "))
        assert not any(name in train for name in new)
        assert all(name in test for name in new)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> datasets.DatasetDict:
    """The sample as it is loaded, of fewer rows: drawing takes long."""
    folder = tmp_path / "glyph-names"
    folder.mkdir()
    for path in (sample_data.TEXT_FOLDER / "glyph-names").glob("*.*"):
        head = 1 + (60 if path.stem == "train" else 12)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / path.name).write_text("".join(lines[:head]), encoding="utf-8")
    monkeypatch.setattr(sample_data, "TEXT_FOLDER", tmp_path)
    return samples.load_sample("sample:glyph-names")


def test_the_sample_holds_a_picture_a_text_and_a_letter_in_each_row(few: datasets.DatasetDict) -> None:
    """None where one is missing; the picture is of the row's shape, as it is drawn for all glyphs."""
    names = [names[place] for place in range(len(SCRIPTS)) for names in LETTERS.values()]
    assert {split: len(data) for split, data in few.items()} == {"train": 60, "validation": 12, "test": 12}
    for number, (split, data) in enumerate(few.items()):
        rows = rows_of(split)
        encoded = data.cast_column("image", datasets.Image(decode=False))
        assert data["text"][:] == [row["text"] or None for row in rows]
        assert data["label"][:] == [names.index(row["label"]) for row in rows]
        assert data.features["label"].names == names
        generator = np.random.default_rng((sample_data.GLYPH_NAMES_SEED, number, sample_data.GLYPH_CANVAS))
        for row, image in zip(rows, encoded["image"][:], strict=True):
            assert (image is None) == (not row["character"])
            if row["character"]:
                drawn = sample_data.render_glyph(row["character"], row["font"], generator)
                assert np.array_equal(np.asarray(decode(image))[..., 0], np.asarray(drawn))


def test_its_letters_are_not_mirrored() -> None:
    assert "sample:glyph-names" in samples.NOT_TO_BE_MIRRORED
