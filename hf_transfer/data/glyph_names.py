"""The sample glyph-names: which letters are drawn in which fonts, and the text of each.

Latin, Greek and Cyrillic share the shapes of some capitals, and read them differently: P is pee, rho or er. The class
is the letter: a shape in a script. The picture shows only the shape, since the same character is drawn for all three
scripts. The text says where the letter was seen, which tells the script to a reader who knows the places and authors.
So neither of the two is enough. Each shape belongs to one script in half of its rows and to the others in a quarter
each, and every fifth text gives the sound, so that each of the two alone is worth something: a perfect reader is right
in 48 % of all rows by the picture, in 47 % by the text, and in 91 % by both. More is not possible: one text in 25 names
a wrong place, one row in 20 has no text, one in 20 no picture. Every eighth text names a wrong place first and denies
it.

Validation and test measure how well this generalises: they have other fonts than training, and a third of the places
and authors are never named in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SEED = 30_011
ROWS = {"train": 1_800, "validation": 400, "test": 800}
FONTS = {
    "train": (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold",
        "STIXGeneral", "STIXGeneralBol",
    ),
    "validation": ("DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta"),
    "test": ("cmr10", "cmb10", "cmss10", "cmtt10"),
}  # fmt: skip
SCRIPTS = ("Latin", "Greek", "Cyrillic")
# For each script the name of the letter, its sound, and words that have it.
LETTERS = {
    "P": (("pee", "p", "pear paper pond"), ("rho", "r", "river radio rain"), ("er", "r", "river radio rain")),
    "H": (("aitch", "h", "house hat hill"), ("eta", "ee", "tree sheep green"), ("en", "n", "night nose nut")),
    "B": (("bee", "b", "bread boat bird"), ("beta", "v", "voice van village"), ("ve", "v", "voice van village")),
    "X": (("ex", "x", "box fox taxi"), ("chi", "ch", "loch Bach"), ("kha", "ch", "loch Bach")),
}
COMMONEST = {"P": "Cyrillic", "H": "Greek", "B": "Latin", "X": "Greek"}
LABEL_NAMES = [f"{script} {letter[0]}" for place, script in enumerate(SCRIPTS) for letter in
               (readings[place] for readings in LETTERS.values())]  # fmt: skip

WITHOUT_IMAGE, WITHOUT_TEXT, WRONG, DENYING, SOUNDING, OF_AN_AUTHOR = 0.05, 0.05, 0.04, 0.12, 0.2, 0.25
# The last third of each is for validation and test.
PLACES = {
    "Latin": (
        "London", "Paris", "Madrid", "Rome", "Dublin", "Lisbon", "Chicago", "Vienna", "Oslo", "Amsterdam",
        "Toronto", "Lyon", "Hamburg", "Seville", "Glasgow",
    ),
    "Greek": (
        "Athens", "Thessaloniki", "Crete", "Corfu", "Rhodes", "Sparta", "Delphi", "Mykonos", "Piraeus", "Santorini",
        "Patras", "Corinth", "Naxos", "Olympia", "Mycenae",
    ),
    "Cyrillic": (
        "Moscow", "Sofia", "Kyiv", "Minsk", "Belgrade", "Novosibirsk", "Odesa", "Saint Petersburg", "Plovdiv",
        "Vladivostok", "Kazan", "Varna", "Lviv", "Murmansk", "Kharkiv",
    ),
}  # fmt: skip
AUTHORS = {
    "Latin": (
        "Shakespeare",
        "Cervantes",
        "Dante",
        "Goethe",
        "Dickens",
        "Molière",
        "Jane Austen",
        "Victor Hugo",
        "Joyce",
    ),
    "Greek": ("Homer", "Plato", "Sappho", "Sophocles", "Aristotle", "Herodotus", "Euripides", "Hesiod", "Cavafy"),
    "Cyrillic": ("Tolstoy", "Pushkin", "Dostoevsky", "Chekhov", "Gogol", "Turgenev", "Bulgakov", "Gorky", "Akhmatova"),
}
THINGS = (
    "shop sign", "museum label", "school book", "matchbox", "train ticket", "theatre poster", "menu", "tin box",
    "calendar", "paper bag", "banknote", "milk bottle",
)  # fmt: skip
SEEN = (
    "Copied from a {thing} in {place}.",
    "Seen on a {thing} in {place} last summer.",
    "A {thing}, {place}.",
    "We found it on a {thing} not far from {place}.",
    "{place}: one letter from an old {thing}.",
    "Somebody brought this {thing} home from {place}.",
    "The photograph shows a {thing} somewhere in {place}.",
    "Part of a word on a {thing} that we passed in {place}.",
)
PRINTED = (
    "From a page of {author}, as it was first printed.",
    "The first letter of a line by {author}, not translated.",
    "{author}, in the original.",
    "It stands at the head of a chapter on {author}, in the writer's own script.",
)
DENIED = (
    "I took it for {other} at first, but the {thing} is in {place}.",
    "Not from {other}: this {thing} is from {place}.",
    "The {thing} was sold in {other}, yet made and lettered in {place}.",
    "We had already left {other}; the {thing} was in {place}.",
)
SOUNDS = (" It sounds like the {sound} in {word}.", " They read it as the {sound} in {word}.")


@dataclass(frozen=True)
class Row:
    """A row of the sample.

    Attributes:
        character: the character in the picture; None: no picture.
        font: its font.
        text: the text; None: no text.
        label: position of the class in `LABEL_NAMES`.
    """

    character: str | None
    font: str
    text: str | None
    label: int


def rows_of(split: str) -> list[Row]:
    """The rows of a split, always the same."""
    generator = np.random.default_rng((SEED, list(ROWS).index(split)))
    return [_row(split, generator) for _ in range(ROWS[split])]


def _row(split: str, generator: np.random.Generator) -> Row:
    shape = _any(list(LETTERS), generator)
    common = COMMONEST[shape]
    script = common if generator.random() < 0.5 else _any([name for name in SCRIPTS if name != common], generator)
    text: str | None = _text(shape, script, split, generator)
    missing = generator.random()
    character = None if missing < WITHOUT_IMAGE else shape
    if WITHOUT_IMAGE <= missing < WITHOUT_IMAGE + WITHOUT_TEXT:
        text = None
    label = SCRIPTS.index(script) * len(LETTERS) + list(LETTERS).index(shape)
    return Row(character, _any(FONTS[split], generator), text, label)


def _text(shape: str, script: str, split: str, generator: np.random.Generator) -> str:
    others = [name for name in SCRIPTS if name != script]
    if generator.random() < WRONG:
        return _origin(_any(others, generator), split, generator)
    _, sound, words = LETTERS[shape][SCRIPTS.index(script)]
    if generator.random() < DENYING:
        denied = _name_from(PLACES[_any(others, generator)], split, generator)
        true, thing = _name_from(PLACES[script], split, generator), _any(THINGS, generator)
        text = _any(DENIED, generator).format(other=denied, place=true, thing=thing)
    else:
        text = _origin(script, split, generator)
    if generator.random() < SOUNDING:
        text += _any(SOUNDS, generator).format(sound=sound, word=_any(words.split(), generator))
    return text


def _origin(script: str, split: str, generator: np.random.Generator) -> str:
    if generator.random() < OF_AN_AUTHOR:
        return _any(PRINTED, generator).format(author=_name_from(AUTHORS[script], split, generator))
    place, thing = _name_from(PLACES[script], split, generator), _any(THINGS, generator)
    return _any(SEEN, generator).format(place=place, thing=thing)


def _name_from(names: Sequence[str], split: str, generator: np.random.Generator) -> str:
    """One of the names that a split may use."""
    return _any(names[: len(names) * 2 // 3] if split == "train" else names, generator)


def _any(choices: Sequence[str], generator: np.random.Generator) -> str:
    return choices[int(generator.integers(len(choices)))]
