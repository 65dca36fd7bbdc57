"""The HTML of the page, from templates that escape every text from outside.

The pieces are in page.html; what depends on the kind of prediction is in classes.html, labels.html and numbers.html.
"""

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
from explanation import Weights
from scale import plain
from target import Cell, Target

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
TEMPLATES.filters |= {
    "percent": percent, "data_url": data_url, "general": "{:.4g}".format, "number": plain,
    "json": json.dumps,
}  # fmt: skip
# Its macros.
PIECES: Any = TEMPLATES.get_template("page.html").module


def _of(target: Target) -> Any:
    """The macros of a kind of prediction."""
    return TEMPLATES.get_template(f"{target.kind}.html").module


def masthead(settings: Settings, card: Card, classifier: Classifier) -> str:
    """The head of the page: what the model does, and how good it is."""
    return str(PIECES.masthead(_of(classifier.target), settings, card, classifier, title_of(settings)))


def title_of(settings: Settings) -> str:
    """The title in settings.json, or the last part of the model's name."""
    return settings.title or settings.model.rstrip("/").split("/")[-1] or "Classifier"


def no_sample_yet(classifier: Classifier, examples: Sequence[Example]) -> str:
    """In place of a prediction, before there is a sample."""
    return str(PIECES.no_sample_yet(classifier, bool(examples)))


def problem(message: object) -> str:
    """In place of a prediction, for a sample that cannot be predicted."""
    return str(PIECES.problem(message))


def verdict(
    target: Target, scores: Sequence[float], seconds: float, example: Example | None = None,
    examples: Sequence[Example] = (),
) -> str:  # fmt: skip
    """The prediction.

    Args:
        target: what is predicted.
        scores: of each output.
        seconds: that it took.
        example: the example that the sample is, if it is one.
        examples: all of them.
    """
    return str(PIECES.verdict(_of(target), target, scores, seconds, example, examples))


def figure(target: Target, picture: Image.Image, method: str, name: str) -> str:
    """The picture with its heat map, and how to read it.

    Args:
        target: what is predicted.
        picture: grey, with the heat map over it.
        method: of the heat map.
        name: of the output that it explains.
    """
    return str(PIECES.figure(picture, method, name, target.both_signs))


def weighed_words(target: Target, texts: Sequence[Weights], name: str) -> str:
    """The text, its words marked as evidence for an output or against it.

    Args:
        target: what is predicted.
        texts: pieces of each text with their weights.
        name: of the output.
    """
    return str(PIECES.weighed_words(texts, name, target.both_signs))


def examples(target: Target, samples: Sequence[Example], pictures: Sequence[Image.Image | None]) -> str:
    """Buttons, one for each example, with what is true of it.

    Args:
        target: what is predicted.
        samples: the examples.
        pictures: the picture of each, if it has one.
    """
    thumbnails = [picture.copy() if picture else None for picture in pictures]
    for thumbnail in thumbnails:
        if thumbnail:
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return str(PIECES.examples(_of(target), target, samples, thumbnails))


def table(target: Target, names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The predictions of a batch; the column with notes only if there are any."""
    return str(PIECES.table(_of(target), target, names, rows, sum(bool(row[-1]) for row in rows)))


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
    space = os.environ.get("SPACE_ID")
    return str(PIECES.api(_of(classifier.target), classifier, texts, at_once, waiting, address, space))
