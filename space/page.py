"""The HTML of the page: the pieces in page.html, which escapes every text from outside."""

import base64
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from about import Card, Example, Settings
from classifier import Classifier
from explanation import Answer, Weights

TOP = 5
THUMBNAIL = 112
FOOT = '<div class="foot">Uploads are deleted within two hours, and not sent anywhere else.</div>'


def percent(share: float) -> str:
    """A share in percent; only 0 and 1 are shown as 0 % and 100 %."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %")


def data_url(picture: Image.Image) -> str:
    """An address that contains the picture itself."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
TEMPLATES.filters |= {"percent": percent, "data_url": data_url, "general": "{:.4g}".format, "json": json.dumps}
# Its macros.
PIECES: Any = TEMPLATES.get_template("page.html").module


def masthead(settings: Settings, card: Card, classifier: Classifier) -> str:
    """The head of the page: what the model does, and how good it is."""
    return str(PIECES.masthead(settings, card, classifier, title_of(settings)))


def title_of(settings: Settings) -> str:
    """The title in settings.json, or the last part of the model's name."""
    return settings.title or settings.model.rstrip("/").split("/")[-1] or "Classifier"


def no_sample_yet(classifier: Classifier, examples: Sequence[Example]) -> str:
    """In place of a prediction, before there is a sample."""
    return str(PIECES.no_sample_yet(classifier, bool(examples)))


def problem(message: object) -> str:
    """In place of a prediction, for a sample that cannot be classified."""
    return str(PIECES.problem(message))


def verdict(answer: Answer, labels: Sequence[str], seconds: float, truth: str | None = None) -> str:
    """The most probable labels with their probabilities.

    Args:
        answer: the prediction.
        labels: class names.
        seconds: that it took.
        truth: the true class, if the sample is an example.
    """
    best = sorted(zip(labels, answer.scores, strict=True), key=lambda one: -one[1])[:TOP]
    return str(PIECES.verdict(best, seconds, truth))


def figure(picture: Image.Image, method: str, label: str) -> str:
    """The picture with its heat map, and how to read it."""
    return str(PIECES.figure(picture, method, label))


def weighed_words(texts: Sequence[Weights], label: str) -> str:
    """The text, its words marked as evidence for the label or against it."""
    return str(PIECES.weighed_words(texts, label))


def examples(samples: Sequence[Example], pictures: Sequence[Image.Image | None]) -> str:
    """Buttons, one for each example, with its true class.

    Args:
        samples: the examples.
        pictures: the picture of each, if it has one.
    """
    thumbnails = [picture.copy() if picture else None for picture in pictures]
    for thumbnail in thumbnails:
        if thumbnail:
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return str(PIECES.examples(samples, thumbnails))


def table(names: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """The predictions of a batch; the column with notes only if there are any."""
    return str(PIECES.table(names, rows, sum(bool(row[-1]) for row in rows)))


def batch_help(classifier: Classifier, text_names: Sequence[str], limit: int) -> str:
    """What to upload for many samples at once."""
    return str(PIECES.batch_help(classifier, text_names, limit))


def api(classifier: Classifier, text_names: Sequence[str], at_once: int, waiting: int) -> str:
    """The documentation of the API: the endpoint, its arguments, what it returns, and two ways to call it.

    Args:
        classifier: the model.
        text_names: names of the texts of a sample.
        at_once: how many requests are computed at the same time.
        waiting: how many more may wait.
    """
    host = os.environ.get("SPACE_HOST")
    address = f"https://{host}" if host else "http://127.0.0.1:7860"
    texts = dict(zip(("text", "second_text"), text_names, strict=False))
    return str(PIECES.api(classifier, texts, at_once, waiting, address, os.environ.get("SPACE_ID")))
