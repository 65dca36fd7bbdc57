"""What the demo knows about its model: from settings.json beside it, and from the model's files."""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from classifier import NoClassifierError
from levels import LARGEST_PIXEL_VALUE

SETTINGS_FILE = "settings.json"
# hf_transfer saves it with a model.
PREPROCESSING_FILE = "preprocessing.json"
LONGEST_CARD = 200_000
# Comments, scripts and styles are removed with their content, of other elements only the tags.
TAGS = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?[a-z][^<>]*>", re.DOTALL | re.IGNORECASE)
HEADING = re.compile(r"\A# .*\n*")
TABLE = re.compile(r"(?:^ {0,3}\|.*(?:\n|\Z)){2,}", re.MULTILINE)
# A wide table scrolls in its box, also with the keyboard.
BOX = '<div class="scroll" role="group" tabindex="0">\n\n{}\n</div>\n'
UNNAMED_COLUMN = re.compile(r"^\|\s*\|(?=[^\n]*\n\|[\s:|-]+$)", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A sample of the test split.

    Attributes:
        label: its true class, labels or values, for people.
        picture: a file, by its path relative to settings.json.
        texts: one text or a pair; a missing text is empty.
        truth: names of its true labels, or its true values, where None is unknown; None for a class, or if the
            settings do not have it.
    """

    label: str
    picture: str | None = None
    texts: tuple[str, ...] = ()
    truth: tuple[str | float | None, ...] | None = None


@dataclass(frozen=True)
class Settings:
    """The content of settings.json. Everything has a default, so that a model can be served without the file.

    Attributes:
        model: a folder, by its path relative to settings.json, or a Hub id.
        revision: branch, tag or commit on the Hub.
        title: of the page; None: the model's name.
        base_model: what the model was trained from.
        dataset: what it was trained on.
        score: on the test split: `title` of the metric, `value`, its 95 % interval `low` and `high`, whether it is a
            share (`is_share`), and the number of `samples`, in words.
        texts: names of the texts of a sample; empty: unknown.
        max_length: number of tokens to which texts are truncated; None: unknown.
        largest_pixel_value: what was white in the model's training pictures of more than 8 bits; None: unknown.
        decoded_side: so many pixels of each side of a JPEG the model was trained on, at least; None: on all.
        trust_remote_code: run the modelling file beside the weights.
        examples: samples of the test split.
    """

    model: str = "./model"
    revision: str | None = None
    title: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    score: dict[str, Any] | None = None
    texts: tuple[str, ...] = ()
    max_length: int | None = None
    largest_pixel_value: float | None = None
    decoded_side: int | None = None
    trust_remote_code: bool = False
    examples: tuple[Example, ...] = ()

    @property
    def text_names(self) -> tuple[str, ...]:
        """Names of the texts of a sample, if it has texts."""
        return self.texts or ("text",)


def read_settings(folder: Path) -> Settings:
    """The content of settings.json in a folder, unless MODEL_ID and MODEL_REVISION in the environment name a model.

    TRUST_REMOTE_CODE=1 then runs the modelling file of that model.
    """
    path = folder / SETTINGS_FILE
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "MODEL_ID" in os.environ:
        # The file describes another model.
        content = {
            "model": os.environ["MODEL_ID"],
            "revision": os.environ.get("MODEL_REVISION"),
            "trust_remote_code": os.environ.get("TRUST_REMOTE_CODE") == "1",
        }
    elif (model := str(content.get("model", "./model"))).startswith("."):
        content["model"] = str(folder / model)
    examples = [_example(one) for one in content.pop("examples", [])]
    return Settings(**content | {"texts": tuple(content.get("texts", ())), "examples": tuple(examples)})


def _example(content: dict[str, Any]) -> Example:
    truth = content.get("truth")
    texts = tuple(content.get("texts", ()))
    return Example(content["label"], content.get("picture"), texts, None if truth is None else tuple(truth))


def with_preprocessing(settings: Settings, model: Path) -> Settings:
    """The settings; what they leave open about samples is as in preprocessing.json in the folder of the model.

    Raises:
        NoClassifierError: that file cannot be read.
    """
    path = model / PREPROCESSING_FILE
    if not path.is_file():
        return settings
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        columns = [content["columns"].get(name) for name in ("text_column_name", "text_pair_column_name")]
        texts = tuple(str(name) for name in columns if name is not None)
        max_length = int(content["max_length"]) if "max_length" in content else None
        side = int(content["decoded_side"]) if "decoded_side" in content else None
        white = float(content["columns"][LARGEST_PIXEL_VALUE]) if LARGEST_PIXEL_VALUE in content["columns"] else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NoClassifierError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
    return replace(
        settings, texts=settings.texts or texts, max_length=settings.max_length or max_length,
        largest_pixel_value=settings.largest_pixel_value or white, decoded_side=settings.decoded_side or side,
    )  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A model's card: its text without anything that a browser would fetch, and some of its metadata."""

    text: str = ""
    base_model: str | None = None
    accuracy: float | None = None


def read_card(folder: Path) -> Card:
    """The card in README.md of the model's folder; an empty card if it is missing or cannot be read."""
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
    """Markdown without pictures and HTML, so that nothing in a card is fetched or run.

    The heading is removed, as the page has one. A first column without a name gets one, for screen readers, and each
    table a box in which it scrolls.
    """
    text = HEADING.sub("", text.strip())
    text = UNNAMED_COLUMN.sub("| # |", text)
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    # Every other part is code, in which these characters have no meaning.
    parts[::2] = [TAGS.sub("", part.replace("![", "[")).replace("<", "&lt;") for part in parts[::2]]
    blocks = re.split(r"(```.*?```)", "".join(parts), flags=re.DOTALL)
    blocks[::2] = [TABLE.sub(lambda table: BOX.format(table[0]), block) for block in blocks[::2]]
    return "".join(blocks).strip()
