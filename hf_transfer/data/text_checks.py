"""Checks of texts before training: whether rows have words, and whether splits share some."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow.compute

from hf_transfer.data.groups import Keys, key_of
from hf_transfer.data.rows import blocks_of_texts, texts_in
from hf_transfer.data.splits import Split
from hf_transfer.errors import user_error

# Python reads bytes of another encoding, and some escapes of JSON, as halves of pairs; no tokenizer takes them.
SURROGATES = re.compile("[\ud800-\udfff]")
HALF_A_PAIR = "it has half of a surrogate pair, which is no character"


def bad_texts(split: Split) -> dict[int, str]:
    """The rows without a text, each with the reason."""
    bad: dict[int, str] = {}
    start = 0
    for block in blocks_of_texts(split):
        has_words = np.ones(len(block), dtype=bool)
        for column in block.columns:
            # This strips what Python strips.
            stripped = pyarrow.compute.fill_null(pyarrow.compute.utf8_trim_whitespace(column), "")
            has_words &= pyarrow.compute.not_equal(stripped, "").to_numpy()
        places = np.flatnonzero(~has_words)
        rows = split.rows[start + places].tolist()
        bad |= dict(zip(rows, map(fault_of_texts, texts_in(block.take(places))), strict=True))
        start += len(block)
    return bad


def fault_of_texts(texts: Sequence[str | None]) -> str:
    """What a text, or one of a pair, lacks; empty if all have words."""
    if any(text is None for text in texts):
        return "missing"
    if not all(texts):
        return "empty"
    if not all(text and text.strip() for text in texts):
        return "white space only"
    return HALF_A_PAIR if any(text and SURROGATES.search(text) for text in texts) else ""


def refuse_half_pairs(texts: Sequence[str]) -> None:
    """Refuse texts that no tokenizer takes.

    Raises:
        UserError: one has half of a surrogate pair.
    """
    for text in texts:
        if half := SURROGATES.search(text):
            raise user_error(
                expected="texts of characters",
                found=f"half of a surrogate pair, U+{ord(half[0]):04X}, in {text!r:.200}",
                do="decode it with its encoding, or replace such halves: text.encode(errors='replace').decode()",
            )


def each_text(split: Split) -> Iterator[tuple[str | None, ...] | None]:
    """The text of each row, or its pair of texts, which are not in memory all at once; None: the row has none."""
    for block in blocks_of_texts(split):
        for texts in texts_in(block):
            yield texts if any(text is not None for text in texts) else None


def copies_of_texts(splits: Mapping[str, Split]) -> dict[str, int]:
    """For each split beside training: how many of its rows have the same text as one of training.

    Texts are compared by hashes of 64 bits.

    Args:
        splits: of texts alone, one of which is `train`.
    """
    others = [name for name in splits if name != "train"]
    if not others:
        return {}
    in_training = _keys(splits["train"])
    return {name: int(np.isin(_keys(splits[name]), in_training).sum()) for name in others}


def _keys(split: Split) -> Keys:
    """The keys of the texts of the rows that count."""
    keys = (key_of(repr(texts).encode(errors="replace")) for texts in each_text(split))
    return np.fromiter(keys, np.uint64, len(split))[split.counted]
