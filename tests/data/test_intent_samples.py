"""The samples composed from messages to a bookshop: labels and numbers are what a reader finds in the text."""

import csv
import hashlib
import json
import re
from collections import Counter
from itertools import combinations

import datasets
import numpy as np
import pytest

from hf_transfer.data import sample_data, samples

SPLITS = ("train", "validation", "test")
SIZES = {"train": 480, "validation": 150, "test": 300}
UNITS = {"hour": 1 / 24, "day": 1.0, "week": 7.0, "fortnight": 14.0, "month": 30.0}
SMALL = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
WORDS = {word: number for number, word in enumerate(f"{SMALL} eighteen nineteen twenty".split(), start=1)}
WORDS |= {"a": 1, "single": 1, "thirty": 30, "forty": 40, "seventy": 70}
# In this order: "the day after tomorrow" is not tomorrow.
POINTS = {
    r"this evening|tonight|before you close today|end of today|before the day is out|half a day": 0.5,
    r"day after tomorrow": 2.0,
    r"tomorrow": 1.0,
    r"this time next week": 7.0,
}
DURATION = re.compile(
    r"\b(a couple of|a single|an?|[0-9]+|[a-z]+(?:-[a-z]+)?)( and a half)? (hour|day|week|fortnight|month)s?"
    r"( and a half)?\b(?! ago)",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def sets() -> datasets.DatasetDict:
    return samples.load_sample("sample:intent-sets")


@pytest.fixture(scope="module")
def deadlines() -> datasets.DatasetDict:
    return samples.load_sample("sample:intent-deadlines")


def messages_of(split: str) -> dict[str, str]:
    """The messages of `sample:intents`, longest first, with the intent of each."""
    data = samples.load_sample("sample:intents")[split]
    names = data.features["label"].names
    return {
        row["text"]: names[row["label"]] for row in sorted(data, key=lambda row: len(row["text"]), reverse=True)
    }  # fmt: skip


def requests_in(text: str, messages: dict[str, str]) -> tuple[list[str], str]:
    """The messages that a text holds, longest first, and what is left, with a bar for each of them."""
    held = []
    for message in messages:
        if message in text and re.search(rf"(?<!\w){re.escape(message)}(?!\w)", text):
            held.append(message)
            text = text.replace(message, "|", 1)
    return held, text


def days_read(text: str) -> float:
    """What a reader takes for the deadline; two different ones would be an error."""
    days_in_text = {days for pattern, days in POINTS.items() if re.search(pattern, text, re.IGNORECASE)}
    if re.search(r"day after tomorrow", text):
        days_in_text.discard(1.0)
    for number, half, unit, half_after in DURATION.findall(text.lower().replace("half a day", "")):
        if number == "a couple of":
            count = 2.0
        elif number.isdigit():
            count = float(number)
        else:
            parts = number.removeprefix("a ").split("-")
            if any(part not in WORDS for part in parts):
                continue
            count = float(sum(WORDS[part] for part in parts))
        days_in_text.add((count + 0.5 * bool(half or half_after)) * UNITS[unit])
    assert len(days_in_text) == 1, (text, days_in_text)
    return days_in_text.pop()


def test_the_labels_of_a_message_are_the_intents_of_the_messages_that_it_holds(sets: datasets.DatasetDict) -> None:
    for split in SPLITS:
        messages = messages_of(split)
        names = sets[split].features["labels"].feature.names
        assert names == samples.load_sample("sample:intents")[split].features["label"].names
        for row in sets[split]:
            held, left = requests_in(row["text"], messages)
            assert sorted(names[label] for label in row["labels"]) == sorted(messages[message] for message in held)
            assert len(set(row["labels"])) == len(row["labels"])
            if held:
                assert re.fullmatch(r"\|(\.? ([A-Za-z' ]+[:,]? )?\|)*", left), left


def test_a_message_holds_none_to_three_requests(sets: datasets.DatasetDict) -> None:
    """One in ten holds none, and every combination of two or three intents occurs in training."""
    assert {split: len(sets[split]) for split in SPLITS} == SIZES
    for split, sizes in (
        ("train", [48, 152, 180, 100]),
        ("validation", [15, 47, 58, 30]),
        ("test", [30, 105, 110, 55]),
    ):
        assert [Counter(map(len, sets[split]["labels"]))[size] for size in range(4)] == sizes
    together = {tuple(labels) for labels in sets["train"]["labels"]}
    assert together >= {*combinations(range(6), 2), *combinations(range(6), 3)}


def test_every_intent_is_about_equally_frequent_in_every_split(sets: datasets.DatasetDict) -> None:
    for split, size in SIZES.items():
        counts = Counter(label for labels in sets[split]["labels"] for label in labels)
        assert counts.keys() == set(range(6))
        assert all(0.25 < count / size < 0.31 for count in counts.values())


def test_no_text_comes_twice_and_no_request_is_in_two_splits(
    sets: datasets.DatasetDict, deadlines: datasets.DatasetDict
) -> None:
    """Short messages are left out: they could be in another by chance."""
    for sample in (sets, deadlines):
        texts = {split: sample[split]["text"][:] for split in SPLITS}
        assert len({text for part in texts.values() for text in part}) == sum(SIZES.values())
        for split in SPLITS:
            others = " ".join(text for other in SPLITS if other != split for text in texts[other])
            long = [message for message in messages_of(split) if len(message) > 30]
            assert len(long) > 100
            assert not [message for message in long if message in others]


def test_messages_without_a_request_are_other_ones_in_every_split(sets: datasets.DatasetDict) -> None:
    with (sample_data.TEXT_FOLDER / "intent-sets" / "no_request.csv").open(encoding="utf-8", newline="") as file:
        written = [(row["split"], row["text"]) for row in csv.DictReader(file)]
    shown = [(split, row["text"]) for split in SPLITS for row in sets[split] if not row["labels"]]
    assert sorted(shown) == sorted(written)
    assert len({text for _, text in written}) == len(written) == 93


def test_the_days_are_those_that_a_reader_finds_in_the_text(deadlines: datasets.DatasetDict) -> None:
    assert {split: len(deadlines[split]) for split in SPLITS} == SIZES
    for split in SPLITS:
        assert deadlines[split].features["days"] == datasets.Value("float64")
        assert deadlines[split]["days"][:] == pytest.approx([days_read(text) for text in deadlines[split]["text"]])


def test_days_spread_from_half_a_day_to_thirty(deadlines: datasets.DatasetDict) -> None:
    """A sixth of them in each range, in every split."""
    for split in SPLITS:
        days = np.array(deadlines[split]["days"][:])
        assert (days.min(), days.max()) == (0.5, 30.0)
        counts = np.histogram(days, bins=[0, 1.25, 3.25, 7.25, 14.25, 21.25, 30.25])[0]
        assert np.all(np.abs(counts / len(days) - 1 / 6) < 0.07)
        assert 8 < days.std() < 11


def test_a_deadline_stands_before_after_and_within_a_message(deadlines: datasets.DatasetDict) -> None:
    """The message is whole: what is added is one sentence."""
    for split in SPLITS:
        messages = messages_of(split)
        places = Counter[str]()
        for text in deadlines[split]["text"]:
            held, left = requests_in(text, messages)
            places["before" if left.endswith("|") else "after" if left.startswith("|") else "within"] += 1
            assert len(held) == (1 if "|" in left else 0), text
        assert places["after"] > places["before"] > places["within"] >= 5, places


def test_validation_and_test_have_wordings_and_numbers_that_training_lacks(deadlines: datasets.DatasetDict) -> None:
    """A third of their deadlines are worded anew; 60 hours, and a week and a half, are never trained."""
    with (sample_data.TEXT_FOLDER / "intent-deadlines" / "deadlines.csv").open(encoding="utf-8", newline="") as file:
        new = [row["phrase"] for row in csv.DictReader(file) if row["in_training"] == "no"]
    assert len(new) > 25
    words = re.compile(
        rf"(?<![\w-])({'|'.join(map(re.escape, sorted(new, key=len, reverse=True)))})(?![\w-]| and a half)"
    )
    assert not [text for text in deadlines["train"]["text"] if words.search(text)]
    for split in ("validation", "test"):
        assert 0.25 < np.mean([bool(words.search(text)) for text in deadlines[split]["text"]]) < 0.42
        assert set(deadlines[split]["days"]) - set(deadlines["train"]["days"]) <= {1.5, 2.5, 10.5, 17.5}
    assert {2.5, 10.5, 17.5} <= set(deadlines["test"]["days"])


def test_the_samples_of_messages_are_the_same_on_every_machine(
    sets: datasets.DatasetDict, deadlines: datasets.DatasetDict
) -> None:
    rows = json.dumps([[list(sample[split]) for split in SPLITS] for sample in (sets, deadlines)])
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "a0fa7938e99aedd8"
