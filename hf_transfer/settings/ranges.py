"""The values that a setting may have."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The values that a setting may have.

    Attributes:
        words: what they are, for the error message.
        holds: whether a value is one of them; it is not asked about None.
    """

    words: str
    holds: Callable[[Any], bool]


def at_least(minimum: int) -> Range:
    """Whole numbers from `minimum`."""
    return Range(f"a whole number of at least {minimum}", lambda value: value >= minimum)


def can_encode(text: str, encoding: str) -> bool:
    """Whether the encoding exists, is one of text, and can encode the text."""
    # Not by the encoding's name alone: hex and rot13 are codecs, but not encodings of text.
    try:
        text.encode(encoding)
    except (LookupError, ValueError):
        return False
    return True


def _is_name(text: str) -> bool:
    """Whether a text can be a name or a path: it is not empty, and ~ stands for a folder that is known."""
    try:
        Path(text).expanduser()
    except RuntimeError:
        return False
    return bool(text.strip())


# Separators of fields in tables, by their names.
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}


def _is_delimiter(text: str) -> bool:
    """Whether a text is the name of a separator, or one sign that fields of a table can be separated by."""
    return text in DELIMITERS or (len(text) == 1 and not text.isalnum() and text not in '"\r\n\0')


# The name of a place where a backbone, or one of two towers, can be read.
TAP = r"(image_|text_)?(head|(mean|first)_[1-9][0-9]*)"


def _are_taps(names: list[str]) -> bool:
    """Whether each of them names a place where a backbone can be read, and none twice."""
    return len({*names}) == len(names) and all(re.fullmatch(TAP, name) for name in names)


NOT_NEGATIVE = Range("a number of at least 0", lambda value: 0 <= value < float("inf"))
POSITIVE = Range("a number above 0", lambda value: 0 < value < float("inf"))
BELOW_ONE = Range("a number from 0 to below 1", lambda value: 0 <= value < 1)
RATE = Range("a number above 0 and at most 10", lambda value: 0 < value <= 10)
SHARE = Range("a share above 0 and at most 0.5", lambda value: 0 < value <= 0.5)
FACTOR = Range("a number above 0 and at most 1", lambda value: 0 < value <= 1)
SEED = Range("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
NAME = Range("a name or a path", _is_name)
SEPARATOR = Range("signs that are no letters, digits or spaces", lambda text: text and not re.search(r"[\w ]", text))
DELIMITER = Range("one sign, such as ; or ^, or comma, semicolon, tab or pipe", _is_delimiter)
COUNTED_FROM_ONE = Range("numbers of at least 1", lambda values: min(values, default=1) >= 1)
TAPS = Range(
    "head, mean_N or first_N with N from 1, each once; of images with texts image_ or text_ comes first", _are_taps
)
ENCODING = Range("the name of an encoding, such as utf-8 or latin-1", lambda name: can_encode("a", name))
