"""The embedded data sets by their names; they need no network. The backbones are in `sample_models.py`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from hf_transfer.errors import UserError, user_error

if TYPE_CHECKING:
    import datasets

PREFIX = "sample:"
# A mirrored image would have another label: b and d, 2 and 5, a slant to the left and one to the right.
NOT_TO_BE_MIRRORED = frozenset(
    PREFIX + name for name in ("digits", "glyphs", "glyph-names", "digit-sets", "digit-slants")
)


def is_sample(name: str) -> bool:
    """True for `sample:NAME`."""
    return name.startswith(PREFIX)


def load_sample(name: str) -> datasets.DatasetDict:
    """The data set `sample:NAME`: columns `image`, `text` or both, and `label`; one split, `train`, or all three.

    Raises:
        UserError: there is no such sample.
    """
    from hf_transfer.data.sample_data import MAKERS

    short = name.removeprefix(PREFIX)
    if short not in MAKERS:
        raise no_such_sample(name, list(MAKERS), "--dataset_name")
    return MAKERS[short]()


def no_such_sample(name: str, known: list[str], setting: str) -> UserError:
    """The error for a name that no sample has.

    Args:
        name: what the user gave.
        known: the samples that there are, without their prefix.
        setting: in which the name stands.
    """
    nearest = difflib.get_close_matches(name, [PREFIX + short for short in known], n=1, cutoff=0.0)
    return user_error(
        expected=f"for {setting} one of {', '.join(PREFIX + short for short in known)}",
        found=name,
        do=f"use {nearest[0]}",
    )
