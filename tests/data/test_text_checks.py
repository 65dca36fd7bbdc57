"""Texts are checked block by block, and as Python would check each of them."""

import sys
from collections.abc import Sequence

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_transfer.data.rows import blocks_of_texts, gathered, texts_of
from hf_transfer.data.splits import Split
from hf_transfer.data.text_checks import bad_texts, copies_of_texts, fault_of_texts

SIGNS = st.text(" \t\n\u3000\x1f\xa0ab\u200b", max_size=3)


@pytest.fixture
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of seven rows, so that there are several."""
    monkeypatch.setattr("hf_transfer.data.rows.ROWS_OF_A_BLOCK", 7)


def split_of(texts: Sequence[str | None], seconds: Sequence[str | None] | None = None, step: int = 1) -> Split:
    """Every so many rows of a data set."""
    features = datasets.Features(dict.fromkeys(["text", *(["text_pair"] if seconds else [])], datasets.Value("string")))
    data = datasets.Dataset.from_dict({"text": texts} | ({"text_pair": seconds} if seconds else {}), features)
    rows = np.arange(0, len(texts), step)
    return Split(data, rows, rows % 2)


@pytest.mark.usefixtures("_few_rows")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.none() | SIGNS, st.none() | SIGNS), min_size=1, max_size=40), st.integers(1, 9))
def test_bad_texts_are_those_that_python_finds_one_by_one(
    pairs: list[tuple[str | None, str | None]], step: int
) -> None:
    first, second = zip(*pairs, strict=True)
    for split in (split_of(first, step=step), split_of(first, second, step=step)):
        faults = {row: fault_of_texts(texts) for row, texts in zip(split.rows.tolist(), texts_of(split), strict=True)}
        assert bad_texts(split) == {row: fault for row, fault in faults.items() if fault}


@pytest.mark.parametrize("texts", [["a \ud800 b"], ["a", "\udcff"]])
def test_half_of_a_surrogate_pair_is_a_fault(texts: list[str]) -> None:
    assert fault_of_texts(texts) == "it has half of a surrogate pair, which is no character"
    assert fault_of_texts(["\U0001f600"]) == ""


def test_white_space_is_what_python_strips() -> None:
    """Of all signs of Unicode."""
    signs = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
    assert list(bad_texts(split_of(signs))) == [place for place, sign in enumerate(signs) if not sign.strip()]


@pytest.mark.usefixtures("_few_rows")
def test_texts_come_in_the_order_of_the_rows_from_selected_and_joined_data_sets() -> None:
    parts = [datasets.Dataset.from_dict({"text": [f"{part} {row}" for row in range(20)]}) for part in "ab"]
    data = datasets.concatenate_datasets(parts).select(range(39, -1, -1))
    rows = np.array([0, 3, 5, 6, 7, 13, 30, 38, 39])
    split = Split(data, rows, np.zeros(len(rows), dtype=np.int64))
    assert texts_of(split) == [(data[row]["text"],) for row in rows.tolist()]
    assert [len(block) for block in blocks_of_texts(split)] == [4, 2, 1, 2]


def test_blocks_of_long_texts_have_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tokens of ten thousand books would be in memory at once; the first of a pair counts, as the second."""
    monkeypatch.setattr("hf_transfer.data.rows.BYTES_OF_A_BLOCK", 100)
    texts = ["a" * 60, None, "b" * 60, "c" * 500, "d", "e", "", "f" * 99]
    for pairs in (None, texts[::-1]):
        split = split_of(texts, pairs, step=1)
        blocks = list(blocks_of_texts(split))
        assert [len(block) for block in blocks] == ([2, 1, 4, 1] if pairs is None else [2, 1, 1, 3, 1])
        assert [row for block in blocks for row in block["text"].to_pylist()] == texts
        assert texts_of(split_of(texts, pairs, step=3)) == texts_of(split)[::3]


def test_only_texts_of_rows_that_count_are_copies() -> None:
    train, test = split_of(["one", "two", "three", ""]), split_of(["two", "two", "four", "", "one"])
    train.unreadable[3] = "empty"
    test.unreadable.update({3: "empty", 4: "missing"})
    assert copies_of_texts({"train": train, "test": test}) == {"test": 2}
    assert copies_of_texts({"train": train}) == {}


def test_both_texts_of_a_pair_are_those_of_a_copy() -> None:
    train = split_of(["one", "two"], ["three", "four"])
    assert copies_of_texts({"train": train, "test": split_of(["one", "one"], ["four", "three"])}) == {"test": 1}


@pytest.mark.parametrize("change", ["shuffle", "filter", "cut", "repeat"])
def test_rows_that_were_chosen_from_a_data_set_are_gathered(change: str) -> None:
    """Else each of a million rows is looked up by its number, whenever a column is read."""
    kinds = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kinds})
    data = datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(50)], "label": [0, 1] * 25}, features)
    chosen = {
        "shuffle": lambda: data.shuffle(seed=3),
        "filter": lambda: data.filter(lambda row: row["label"] == 1),
        "cut": lambda: data.train_test_split(0.3, seed=1)["train"],
        "repeat": lambda: data.select([4, 4, 2]),
    }[change]()
    rows = gathered(chosen)
    assert rows[:] == chosen[:]
    assert (rows.features, rows._fingerprint) == (chosen.features, chosen._fingerprint)
    assert rows._indices is None
    assert rows.with_format("arrow")[:]["text"].num_chunks == 1


def test_rows_of_a_large_data_set_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would not fit into memory."""
    monkeypatch.setattr("hf_transfer.data.rows.LARGEST_GATHERED", 100)
    data = datasets.Dataset.from_dict({"text": ["a word"] * 100})
    assert gathered(data) is data
    chosen = data.shuffle(seed=0)
    assert gathered(chosen) is chosen
