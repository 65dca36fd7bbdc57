"""The samples that are composed from the messages of `sample:intents`: `sample:intent-sets`, `sample:intent-deadlines`.

A message is in the same split here as there.
"""

import csv
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets

from hf_transfer.data.draws import Draws

Row = dict[str, str]
Labelled = dict[str, object]
Messages = Mapping[str, list[Row]]

SETS_SEED = 40_013
# How many messages have one request, two and three. In addition there are those without any.
SETS = {"train": (152, 180, 100), "validation": (47, 58, 30), "test": (105, 110, 55)}
# In characters: a longer one is a whole story, to which nothing is added.
LONGEST = 110
ENDS = ".?!"
CASUAL_ONE_IN = 12
GREETING = re.compile(r"(hello|hi|hey|dear|good (morning|day|evening)|yo|to whom)\b", re.IGNORECASE)
LINKS = (
    "", "Also: ", "Another thing: ", "And something else: ", "On a different matter: ", "While I'm writing: ",
    "And one more thing: ", "Separately: ",
)  # fmt: skip
LAST_LINKS = ("Finally: ", "And lastly: ", "One last thing: ", "And a last point: ")
CASUAL_LINKS = ("also ", "and another thing, ", "oh and ", "btw ")

DEADLINES_SEED = 40_031
DEADLINES = {"train": 480, "validation": 150, "test": 300}
# The last day of each range of days. All ranges are equally frequent.
DAY_RANGES = (1, 3, 7, 14, 21, 30)
# Words by which a message could name a second date. "Three weeks ago" and "last month" are none.
DATE = re.compile(
    r"\b((mon|tues|wednes|thurs|fri|satur|sun)day|to(day|morrow|night)|this (morning|evening|week|month)|next|due|until"
    r"|till|soon|deadline|xmas|christmas|birthday|january|february|march|april|june|july|august|sept(ember)?|october"
    r"|november|december|[0-9]+(st|nd|rd|th)|((?<!last )(minute|hour|day|week|month|year)|fortnight)s?(?! ago))\b",
    re.IGNORECASE,
)
# A question that can be asked after something else.
LAST_QUESTION = re.compile(
    r"(?<=[.?!]) (Any|Can|Could|Do|Does|Have|How|Is|May|What|When|Where|Which|Who|Why|Will|Would)\b[^.?!]*\?$"
)


def intent_sets(messages: Messages, names: list[str], folder: Path) -> datasets.DatasetDict:
    """Messages with up to three requests, and the intents of these; columns `text` and `labels`.

    Args:
        messages: the rows of `sample:intents` for each split.
        names: the intents.
        folder: where the messages without any request are.
    """
    features = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=names))}
    )
    empty = _table(folder / "no_request.csv")
    draws = Draws(SETS_SEED)
    splits = {}
    for split, counts in SETS.items():
        rows: list[Labelled] = [{"text": row["text"], "labels": []} for row in empty if row["split"] == split]
        rows += _with_one(messages[split], names, counts[0], draws)
        for size in (2, 3):
            rows += _with_several(messages[split], names, size, counts[size - 1], draws)
        splits[split] = datasets.Dataset.from_list(draws.shuffled(rows), features=features)
    return datasets.DatasetDict(splits)


def _with_one(messages: list[Row], names: list[str], count: int, draws: Draws) -> list[Labelled]:
    """As many of each intent; first those that cannot be joined with others."""
    rows = sorted(draws.shuffled(messages), key=lambda row: _can_be_joined(row["text"]))
    of_intent = {name: iter([row["text"] for row in rows if row["label"] == name]) for name in names}
    return [
        {"text": next(of_intent[name]), "labels": [name]} for name in itertools.islice(itertools.cycle(names), count)
    ]


def _with_several(messages: list[Row], names: list[str], size: int, count: int, draws: Draws) -> list[Labelled]:
    """Messages of `size` requests; all combinations of intents are equally frequent, and so are the requests."""
    supply: dict[tuple[str, bool], Iterator[str]] = {}
    for name, casual in itertools.product(names, (False, True)):
        texts = [row["text"] for row in messages if row["label"] == name and _can_be_joined(row["text"])]
        if fitting := [text for text in draws.shuffled(texts) if _is_casual(text) == casual]:
            supply[name, casual] = itertools.cycle(fitting)
    combinations = itertools.cycle(draws.shuffled(list(itertools.combinations(names, size))))
    rows: list[Labelled] = []
    for intents in itertools.islice(combinations, count):
        # Who writes in small letters does so to the end.
        casual = draws.below(CASUAL_ONE_IN) == 0 and all((intent, True) in supply for intent in intents)
        parts = [next(supply[intent, casual]) for intent in draws.shuffled(intents)]
        rows.append({"text": _joined(parts, casual, draws), "labels": list(intents)})
    return rows


def _can_be_joined(text: str) -> bool:
    whole = text[-1] in ENDS or _is_casual(text)
    return whole and len(text) <= LONGEST and GREETING.match(text) is None


def _is_casual(text: str) -> bool:
    return text[0].islower()


def _joined(parts: list[str], casual: bool, draws: Draws) -> str:
    """The parts as one message, most of them with a few words between."""
    links = draws.shuffled(CASUAL_LINKS if casual else LINKS)[: len(parts) - 1]
    if len(parts) == 3 and not casual:
        links[-1] = draws.one(LAST_LINKS)
    text = parts[0]
    for link, part in zip(links, parts[1:], strict=True):
        text = f"{_ended(text)} {link}{part}"
    return text


def _ended(text: str) -> str:
    return text if text[-1] in ENDS else f"{text}."


def intent_deadlines(messages: Messages, folder: Path) -> datasets.DatasetDict:
    """Messages with a deadline, and the number of days until then, from 0.5 to 30; columns `text` and `days`.

    A third of the deadlines in validation and test have a form that is never seen in training ("eleven days" where
    training has "11 days"), and so have a third of the sentences around them.

    Args:
        messages: the rows of `sample:intents` for each split.
        folder: where the tables of deadlines and of sentences are.
    """
    features = datasets.Features({"text": datasets.Value("string"), "days": datasets.Value("float64")})
    deadlines, sentences = _table(folder / "deadlines.csv"), _table(folder / "sentences.csv")
    draws = Draws(DEADLINES_SEED)
    splits = {}
    for split, count in DEADLINES.items():
        texts = [row["text"] for row in messages[split]]
        dateless = [text for text in texts if len(text) <= LONGEST and not DATE.search(text)]
        rows = []
        for text in itertools.islice(itertools.cycle(draws.shuffled(dateless)), count):
            deadline = _deadline(_of_split(deadlines, split, draws), draws)
            fitting = [row for row in sentences if _fits(row, deadline)]
            sentence = draws.one(_of_split(fitting, split, draws))
            rows.append({"text": _with_deadline(text, sentence, deadline, draws), "days": float(deadline["days"])})
        splits[split] = datasets.Dataset.from_list(rows, features=features)
    return datasets.DatasetDict(splits)


def _of_split(rows: list[Row], split: str, draws: Draws) -> list[Row]:
    """Those of training, or, in the other splits, one time in three those that training lacks."""
    new = split != "train" and draws.below(3) == 0
    return [row for row in rows if (row["in_training"] == "no") == new]


def _deadline(rows: list[Row], draws: Draws) -> Row:
    """One of the rows: a range of days is drawn, then one of its forms."""
    last = draws.below(len(DAY_RANGES))
    after = DAY_RANGES[last - 1] if last else 0
    return draws.one([row for row in rows if after < float(row["days"]) <= DAY_RANGES[last]])


def _fits(sentence: Row, deadline: Row) -> bool:
    near_enough = float(sentence["from_day"]) <= float(deadline["days"]) <= float(sentence["to_day"])
    return sentence["kind"] == deadline["kind"] and near_enough


def _with_deadline(text: str, sentence: Row, deadline: Row, draws: Draws) -> str:
    """The message with a sentence that names the deadline: after it, before it, or before its last question."""
    added = sentence["sentence"].format(deadline["phrase"])
    if _is_casual(text):
        added = added[0].lower() + added[1:].removesuffix(".")
    versions = [f"{_ended(text)} {added}"]
    if sentence["may_begin"] == "yes":
        versions.append(f"{_ended(added)} {text}")
    if question := LAST_QUESTION.search(text):
        versions.append(f"{text[: question.start()]} {_ended(added)}{text[question.start() :]}")
    return draws.one(versions)


def _table(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
