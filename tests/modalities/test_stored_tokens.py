"""Tokens on disk: the same as in memory, made once for the same texts and tokenizer, and never needed."""

import os
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_transfer.checkpoints.kept import kept_in
from hf_transfer.data import cached_folders
from hf_transfer.data.splits import Split
from hf_transfer.modalities import stored_tokens
from hf_transfer.modalities.stored_tokens import Tokens, tokens_of_split
from hf_transfer.modalities.text_batches import TextRows
from hf_transfer.modalities.tokens import TokenPreprocessing
from tests.tiny_text_models import forget_input_names, tiny_tokenizer

WORDS = [f"word{number}" for number in range(5, 10)]


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of seven rows, so that there are several, and all tokens are stored."""
    monkeypatch.setattr("hf_transfer.data.rows.ROWS_OF_A_BLOCK", 7)
    monkeypatch.setattr(stored_tokens, "FEWEST_STORED", 1)


def preprocessing(length: int | None = None, **settings: Any) -> TokenPreprocessing:
    return TokenPreprocessing(tiny_tokenizer(**settings), model_limit=40, max_seq_length=length)


def some_texts(count: int = 60) -> list[str | None]:
    """Texts of up to 50 words, of which some are missing or empty."""
    generator = np.random.default_rng(0)
    texts: list[str | None] = [" ".join(generator.choice(WORDS, length)) for length in generator.integers(0, 50, count)]
    return [None if place % 17 == 3 else text for place, text in enumerate(texts)]


def split_of(texts: Sequence[str | None], pairs: Sequence[str | None] | None = None) -> Split:
    """Two of three rows of a data set."""
    data = datasets.Dataset.from_dict({"text": texts} | ({"text_pair": pairs} if pairs else {}))
    rows = np.flatnonzero(np.arange(len(texts)) % 3)
    return Split(data, rows, rows % 2)


def same(first: Tokens, second: Tokens) -> bool:
    return first.fingerprint("") == second.fingerprint("") and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("lengths", "lost", "emptied")
    )


@pytest.mark.parametrize("pairs", [None, some_texts()[::-1]])
def test_tokens_on_disk_are_those_in_memory(tmp_path: Path, pairs: list[str | None] | None) -> None:
    split = split_of(some_texts(), pairs)
    in_memory, first = tokens_of_split(split, preprocessing()), tokens_of_split(split, preprocessing(), tmp_path)
    second = tokens_of_split(split, preprocessing(), tmp_path)
    assert same(in_memory, first)
    assert same(in_memory, second)
    assert [store.what for store in kept_in(tmp_path)] == ["tokens of texts"]
    assert [second.of(place) for place in range(len(split))] == [in_memory.of(place) for place in range(len(split))]


def test_the_hash_of_tokens_is_the_one_that_earlier_checkpoints_and_stores_have() -> None:
    """Recorded before tokens were stored: else no interrupted run could be resumed."""
    rows = TextRows(split_of(some_texts()), preprocessing())
    assert rows.fingerprint() == "f2eeb1f8d191975c741907a533f3e6e24940f93d7a512670841a2462525728b4"


def test_a_second_run_makes_no_tokens(tmp_path: Path) -> None:
    split, made = split_of(some_texts()), preprocessing()
    first = tokens_of_split(split, made, tmp_path)
    with mock.patch.object(TokenPreprocessing, "encode", side_effect=AssertionError("a text was encoded")):
        assert same(first, tokens_of_split(split, preprocessing(), tmp_path))
        # What was encoded in the meantime does not matter.
    made.encode([("word7 " * 60,)])
    with mock.patch.object(TokenPreprocessing, "encode", side_effect=AssertionError("a text was encoded")):
        assert same(first, tokens_of_split(split, made, tmp_path))


def test_other_texts_lengths_and_tokenizers_have_other_tokens(tmp_path: Path) -> None:
    texts = some_texts()
    moved = ["word5 word6", "word7", *texts[2:]], ["word5", " word6word7", *texts[2:]]
    cases = [
        (split_of(texts), preprocessing()),
        (split_of(texts[::-1]), preprocessing()),
        (split_of(texts, texts), preprocessing()),
        *((split_of(["", *some]), preprocessing()) for some in moved),
        (split_of(texts), preprocessing(9)),
        (split_of(texts), preprocessing(truncation_side="left")),
    ]
    for split, made in cases:
        assert same(tokens_of_split(split, made, tmp_path), tokens_of_split(split, made))
    assert len(list((tmp_path / "tokens").iterdir())) == len(cases)


def test_models_with_and_without_a_mask_share_no_tokens(tmp_path: Path) -> None:
    """FNet takes no mask, and the mean of its tokens needs one; most tokenizers say neither."""
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    forget_input_names(tmp_path / "model")
    split = split_of(some_texts())
    for takes_mask in (True, False, True):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        made = TokenPreprocessing(tokenizer, model_limit=40, takes_mask=takes_mask)
        tokens = tokens_of_split(split, made, tmp_path)
        assert ("attention_mask" in tokens.of(0)) is takes_mask
        assert same(tokens, tokens_of_split(split, made))


def test_another_process_maps_the_files_itself(tmp_path: Path) -> None:
    """Else each loader worker would get a copy of all tokens."""
    split = split_of([*some_texts(), *["word7 word8"] * 3000])
    stored = tokens_of_split(split, preprocessing(), tmp_path)
    assert len(ForkingPickler.dumps(stored)) < 1000
    assert same(ForkingPickler.loads(ForkingPickler.dumps(stored)), stored)
    in_memory = tokens_of_split(split, preprocessing())
    assert same(ForkingPickler.loads(ForkingPickler.dumps(in_memory)), in_memory)


def test_damaged_and_missing_files_are_made_again(tmp_path: Path) -> None:
    """Also if only a bit has changed: other tokens would be learned without a word."""
    split = split_of(some_texts())
    first = tokens_of_split(split, preprocessing())
    tokens_of_split(split, preprocessing(), tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content in before.items():
        for damaged in (content[:-8], content[:-1] + bytes([content[-1] ^ 1]), None):
            (folder / name).unlink() if damaged is None else (folder / name).write_bytes(damaged)
            assert same(first, tokens_of_split(split, preprocessing(), tmp_path))
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_where_nothing_can_be_written_tokens_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is no reason not to train."""
    split = split_of(some_texts())
    (tmp_path / "file").touch()
    assert same(tokens_of_split(split, preprocessing()), tokens_of_split(split, preprocessing(), tmp_path / "file"))
    monkeypatch.setattr(cached_folders, "ROOM_LEFT", 1 << 62)
    assert same(tokens_of_split(split, preprocessing()), tokens_of_split(split, preprocessing(), tmp_path))
    assert list((tmp_path / "tokens").iterdir()) == []


def test_few_texts_are_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_tokens, "FEWEST_STORED", 1000)
    tokens_of_split(split_of(some_texts()), preprocessing(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no such permissions")
def test_nobody_else_can_read_tokens(tmp_path: Path) -> None:
    """Texts can be made of them."""
    tokens_of_split(split_of(some_texts()), preprocessing(), tmp_path)
    assert [(path.stat().st_mode & 0o777) for path in (tmp_path / "tokens").iterdir()] == [0o700]


def test_values_that_are_all_the_same_take_no_room(tmp_path: Path) -> None:
    """Such as the mask of texts that are not padded."""
    tokens = tokens_of_split(split_of(some_texts()), preprocessing(), tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    assert not (folder / "attention_mask").exists()
    assert tokens.of(0)["attention_mask"] == [1] * int(tokens.lengths[0])
