"""What the demo knows about its model: from settings.json, which lies beside it, and from the model's card."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

SETTINGS_FILE = "settings.json"
LONGEST_CARD = 200_000
# Comments, scripts and styles go with what is in them, of all else only the tags.
TAGS = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?[a-z][^<>]*>", re.DOTALL | re.IGNORECASE)
HEADING = re.compile(r"\A# .*\n*")
NAMELESS = re.compile(r"^\|\s*\|(?=[^\n]*\n\|[\s:|-]+$)", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A sample of the test split.

    Attributes:
        label: its true class.
        picture: a file beside settings.json.
        texts: a text or a pair of texts; empty where there is none.
    """

    label: str
    picture: str | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What settings.json says; each of it has a default, so that any model can be served without the file.

    Attributes:
        model: a folder beside settings.json or a Hub id.
        revision: branch, tag or commit on the Hub.
        title: what the page is called; None for the model's name.
        base_model: what the model was trained from.
        dataset: what it was trained on.
        accuracy: on the test split: `value`, its 95 % interval `low` and `high`, and the number of `samples`.
        texts: what the texts of a question are called.
        max_length: tokens at which texts were cut in training.
        trust_remote_code: run the modelling file beside the weights.
        examples: some samples of the test split.
    """

    model: str = "./model"
    revision: str | None = None
    title: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    accuracy: dict[str, float] | None = None
    texts: tuple[str, ...] = ("text",)
    max_length: int | None = None
    trust_remote_code: bool = False
    examples: tuple[Example, ...] = field(default=())


def read_settings(folder: Path) -> Settings:
    """Of settings.json in the folder; the environment's MODEL_ID and MODEL_REVISION name another model.

    TRUST_REMOTE_CODE=1 runs the modelling file that such a model brings along.
    """
    path = folder / SETTINGS_FILE
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "MODEL_ID" in os.environ:
        # What is said of one model does not hold for another.
        said = {
            "model": os.environ["MODEL_ID"],
            "revision": os.environ.get("MODEL_REVISION"),
            "trust_remote_code": os.environ.get("TRUST_REMOTE_CODE") == "1",
        }
    elif (model := str(said.get("model", "./model"))).startswith("."):
        said["model"] = str(folder / model)
    examples = [
        Example(one["label"], one.get("picture"), tuple(one.get("texts", ()))) for one in said.pop("examples", [])
    ]
    texts = tuple(said.pop("texts", ("text",)))
    return Settings(**said, texts=texts, examples=tuple(examples))


@dataclass(frozen=True)
class Card:
    """A model's card: its text without anything that a browser would fetch, and what its metadata say."""

    text: str = ""
    base_model: str | None = None
    accuracy: float | None = None


def read_card(folder: Path) -> Card:
    """Of README.md in the model's folder; an empty card if there is none, or none that can be read."""
    path = folder / "README.md"
    if not path.is_file() or path.stat().st_size > LONGEST_CARD:
        return Card()
    content = path.read_text(encoding="utf-8", errors="replace")
    try:
        card = ModelCard(content, ignore_metadata_errors=True)
        data: Any = card.data
        base, results = data.base_model, data.eval_results or []
    except (YAMLError, RecursionError, ValueError, TypeError, AttributeError, KeyError):
        return Card(plain_card(content))
    values = [one.metric_value for one in results if one.metric_type == "accuracy"]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    first = base[0] if isinstance(base, list) and base else base
    return Card(plain_card(card.text), str(first) if first else None, numbers[0] if numbers else None)


def plain_card(text: str) -> str:
    """Markdown without pictures and HTML: whatever else a card holds, nothing of it is fetched or run.

    Its heading goes, too, as the page has one; and what has no name in the head of a table is numbered, for readers
    who hear it.
    """
    text = HEADING.sub("", text.strip())
    text = NAMELESS.sub("| # |", text)
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    # Every other part is code, in which these signs mean themselves.
    parts[::2] = [TAGS.sub("", part.replace("![", "[")).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts).strip()
