"""The HTML of the page. Every text from outside passes through `shown`, which escapes it."""

import base64
import io
import json
import os
from collections.abc import Sequence
from html import escape

from PIL import Image

from about import Card, Example, Settings
from classifier import Classifier
from explanation import Answer, Weights

TOP = 5
NAMED_CLASSES = 6
THUMBNAIL = 112
# Words with a smaller weight are not marked.
FAINT = 0.1


def shown(value: object) -> str:
    """Any text, escaped for HTML and its attributes."""
    return escape(str(value), quote=True)


def percent(share: float) -> str:
    """A share in percent; only 0 and 1 are shown as 0 % and 100 %."""
    if 0 < share < 0.001:
        return "&lt; 0.1 %"
    if 0.999 < share < 1:
        return "&gt; 99.9 %"
    return f"{share:.1%}".replace("%", " %")


def masthead(settings: Settings, card: Card, classifier: Classifier) -> str:
    """The head of the page: what the model does, and how good it is."""
    kinds = {(True, False): "pictures", (False, True): "texts", (True, True): "pictures with their texts"}
    kind = kinds[classifier.takes_picture, classifier.takes_text]
    few = ", ".join(map(shown, classifier.labels[:NAMED_CLASSES]))
    rest = len(classifier.labels) - NAMED_CLASSES
    names = "".join(f"<li>{shown(name)}</li>" for name in classifier.labels)
    more = f"<details><summary>and {rest} more</summary><ul>{names}</ul></details>" if rest > 0 else ""
    return f"""
<div class="masthead">
  <p class="kind">{shown(kind)} &rarr; {len(classifier.labels)} classes</p>
  <h1>{shown(title_of(settings))}</h1>
  <div class="lead">Classifies {shown(kind)} as <b>{few}</b> {more}</div>
  <dl>{"".join(_facts(settings, card, classifier))}</dl>
</div>"""


def title_of(settings: Settings) -> str:
    """The title in settings.json, or the last part of the model's name."""
    return settings.title or settings.model.rstrip("/").split("/")[-1] or "Classifier"


def _facts(settings: Settings, card: Card, classifier: Classifier) -> list[str]:
    facts = []
    if score := settings.score:
        value, low, high = (
            percent(score[name]) if score["is_share"] else f"{score[name]:.4g}" for name in ("value", "low", "high")
        )
        note = f"95 % interval {low} to {high}, {shown(score['samples'])} samples"
        title = f"{score['title'][:1].upper()}{score['title'][1:]} on test data"
        facts.append((shown(title), value, note))
    elif card.accuracy is not None:
        facts.append(("Accuracy according to its card", percent(card.accuracy), ""))
    if base := settings.base_model or card.base_model:
        facts.append(("Base model", shown(base), ""))
    if settings.dataset:
        facts.append(("Trained on", shown(settings.dataset), ""))
    count = sum(parameter.numel() for parameter in classifier.model.parameters())
    where = "on a GPU" if classifier.device.type == "cuda" else "on a CPU"
    size = f"{count / 1e6:,.1f} M" if count >= 1_000_000 else f"{count:,}"
    facts.append(("Size", size, f"parameters, running {where}"))
    return [
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for name, value, note in facts
    ]


def no_sample_yet(classifier: Classifier, examples: Sequence[Example]) -> str:
    """In place of a prediction, before there is a sample."""
    advice = {
        (True, False): "Choose a picture",
        (False, True): "Write a text" if classifier.texts == 1 else f"Write {classifier.texts} texts",
        (True, True): "Choose a picture, write its text, or both"
        if classifier.either
        else "Choose a picture, write its text",
    }
    more = ", or choose an example" if examples else ""
    first = advice[classifier.takes_picture, classifier.takes_text]
    return f'<div class="verdict empty"><p>{first}{more}.<br>The prediction appears here.</p></div>'


def problem(message: object) -> str:
    """In place of a prediction, for a sample that cannot be classified."""
    return (
        f'<div class="verdict problem" role="alert"><p><strong>That did not work</strong><br>{shown(message)}</p></div>'
    )


def verdict(answer: Answer, labels: Sequence[str], seconds: float, truth: str | None = None) -> str:
    """The most probable labels with their probabilities.

    Args:
        answer: the prediction.
        labels: class names.
        seconds: that it took.
        truth: the true class, if the sample is an example.
    """
    order = sorted(range(len(labels)), key=lambda number: -answer.scores[number])
    best = order[0]
    rows = "".join(
        f'<li><span class="name">{shown(labels[number])}</span>'
        f'<span class="track"><span style="width:{answer.scores[number]:.1%}"></span></span>'
        f'<span class="share">{percent(answer.scores[number])}</span></li>'
        for number in order[:TOP]
    )
    remark = ""
    if truth is not None:
        right = "right" if truth == labels[best] else "wrong"
        remark = f'<p class="truth {right}">True class: <b>{shown(truth)}</b>. The prediction is {right}.</p>'
    elif answer.scores[best] < 0.5:
        remark = '<p class="truth">The model is not sure.</p>'
    return f"""
<div class="verdict">
  <p class="answer"><strong>{shown(labels[best])}</strong> <span>{percent(answer.scores[best])}</span></p>
  {remark}
  <ol>{rows}</ol>
  <p class="took">{seconds * 1000:.0f} ms</p>
</div>"""


def figure(picture: Image.Image, method: str, label: str) -> str:
    """The picture with its heat map, and how to read it."""
    meaning = {
        "attention rollout": "Attention rollout: the stronger the orange, the more this area contributed.",
        "Grad-CAM": f"Grad-CAM: the stronger the orange, the more evidence for {shown(label)} in this area.",
    }[method]
    return f"""
<figure class="looked">
  <figcaption><h2>Where the model looked</h2><p>{meaning}</p></figcaption>
  <img src="{data_url(picture)}" width="{picture.width}" height="{picture.height}"
    alt="The picture in grey, orange where the model looked.">
</figure>"""


def weighed_words(texts: Sequence[Weights], label: str) -> str:
    """The text, its words marked as evidence for the label or against it."""
    lines = "".join(f'<p class="words">{"".join(_word(*piece) for piece in text)}</p>' for text in texts)
    return f"""
<div class="weighed">
  <h2>Which words mattered</h2>
  <p>Integrated gradients: marked words are evidence <span class="word for" style="--weight:60%">for</span>
    {shown(label)}, or <span class="word against" style="--weight:60%">against</span> it.</p>
  {lines}
</div>"""


def _word(piece: str, weight: float | None) -> str:
    if weight is None or abs(weight) < FAINT:
        return shown(piece)
    side = "for" if weight > 0 else "against"
    return f'<span class="word {side}" style="--weight:{abs(weight):.0%}" title="{weight:+.2f}">{shown(piece)}</span>'


def examples(samples: Sequence[Example], pictures: Sequence[Image.Image | None]) -> str:
    """Buttons, one for each example, with its true class.

    Args:
        samples: the examples.
        pictures: the picture of each, if it has one.
    """
    buttons = []
    for number, (sample, picture) in enumerate(zip(samples, pictures, strict=True)):
        image, text = "", ""
        if picture is not None:
            small = picture.copy()
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            image = f'<img src="{data_url(small)}" alt="" width="{small.width}" height="{small.height}">'
        if sample.texts:
            text = f'<span class="text">{shown(" / ".join(sample.texts)[:160])}</span>'
        buttons.append(
            f'<li><button type="button" data-example="{number}">{image}{text}'
            f'<span class="true">{shown(sample.label)}</span></button></li>'
        )
    layout = "texts" if any(sample.texts for sample in samples) else "pictures"
    return f"""
<div class="examples {layout}">
  <h2>Examples</h2><p>From the test split, which was not used for training, with their true class.</p>
  <ul>{"".join(buttons)}</ul>
</div>"""


def table(names: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """The predictions of a batch; the column with notes only if there are any."""
    width = len(names) if any(row[-1] for row in rows) else len(names) - 1
    head = "".join(f'<th scope="col">{shown(name)}</th>' for name in names[:width])
    body = "".join(
        "<tr>"
        + "".join(f"<td>{percent(cell) if isinstance(cell, float) else shown(cell)}</td>" for cell in row[:width])
        + "</tr>"
        for row in rows
    )
    problems = sum(bool(row[-1]) for row in rows)
    summary = f"{len(rows) - problems:,} of {len(rows):,} classified"
    return f"""
<div class="results" role="region" aria-label="Results" tabindex="0">
  <table><caption>{summary}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
</div>"""


def data_url(picture: Image.Image) -> str:
    """An address that contains the picture itself."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def batch_help(classifier: Classifier, text_names: Sequence[str], limit: int) -> str:
    """What to upload for many samples at once."""
    columns = " and ".join(f"<code>{shown(name)}</code>" for name in text_names)
    if not classifier.takes_text:
        what = "Upload pictures"
    elif not classifier.takes_picture:
        what = f"Upload a CSV file with the column {columns}"
    else:
        what = f"Upload pictures and a CSV file with the columns <code>image</code> (the file's name) and {columns}"
        what += ", or only one of them" if classifier.either else ""
    return f'<div class="help"><p>{what}: up to {limit:,}, each file at most 10 MB.</p></div>'


def api(classifier: Classifier, text_names: Sequence[str], at_once: int, waiting: int) -> str:
    """The documentation of the API: the endpoint, its arguments, what it returns, and two ways to call it.

    Args:
        classifier: the model.
        text_names: names of the texts of a sample.
        at_once: how many requests are computed at the same time.
        waiting: how many more may wait.
    """
    space, host = os.environ.get("SPACE_ID"), os.environ.get("SPACE_HOST")
    address = f"https://{host}" if host else "http://127.0.0.1:7860"
    texts = dict(zip(("text", "second_text"), text_names, strict=False))
    longest = f", truncated to {classifier.max_length:,} tokens" if classifier.takes_text else ""
    rows = [(key, "text", f"the {name}{longest}") for key, name in texts.items()]
    if classifier.takes_picture:
        missing = "; null if there is none" if classifier.either else ""
        rows.insert(0, ("picture", "file", f"JPEG, PNG, WebP, BMP, GIF or TIFF, at most 10 MB{missing}"))
    rows.append(("explain", "true or false", "return an explanation, too; the default is false"))
    arguments = "".join(
        f"<tr><td><code>{name}</code></td><td>{kind}</td><td>{shown(meaning)}</td></tr>" for name, kind, meaning in rows
    )
    return f"""
<div class="help api">
  <h2><code>/classify</code></h2>
  <p>Takes one sample and returns, as JSON, its label, the probability of every label and, on request, an explanation.
    {at_once} requests are computed at the same time and {waiting} may wait; further ones get the status 503: try again
    later.</p>
  <table><thead><tr><th scope="col">Argument</th><th scope="col">Type</th><th scope="col">Meaning</th></tr></thead>
  <tbody>{arguments}</tbody></table>
  {_code("Python", _python(space or address, classifier.takes_picture, list(texts)))}
  {_code("Answer", _answer(classifier))}
  {_code("Shell", _shell(address, classifier.takes_picture, list(texts)))}
</div>"""


def _python(address: str, picture: bool, texts: Sequence[str]) -> str:
    arguments = [*(['picture=handle_file("picture.jpg")'] if picture else []), *(f'{name}="..."' for name in texts)]
    return (
        f"from gradio_client import Client{', handle_file' if picture else ''}  # pip install gradio_client\n\n"
        f'client = Client("{address}")\n'
        f'answer = client.predict({", ".join(arguments)}, api_name="/classify")\n'
        'print(answer["label"], answer["scores"])'
    )


def _shell(address: str, picture: bool, texts: Sequence[str]) -> str:
    upload = f"FILE=$(curl -s -F files=@picture.jpg {address}/gradio_api/upload | tr -d '[]\"')\n" if picture else ""
    file = ['{\\"path\\": \\"$FILE\\", \\"meta\\": {\\"_type\\": \\"gradio.FileData\\"}}'] if picture else []
    data = ", ".join([*file, *('\\"...\\"' for _ in texts), "false"])
    return (
        f"{upload}ID=$(curl -s {address}/gradio_api/call/classify -H 'Content-Type: application/json' \\\n"
        f'  -d "{{\\"data\\": [{data}]}}" | cut -d\'"\' -f4)\n'
        f"curl -sN {address}/gradio_api/call/classify/$ID"
    )


def _answer(classifier: Classifier) -> str:
    first, *others = map(json.dumps, classifier.labels)
    lines = [
        f'{{"label": {first},',
        f' "scores": {{{first}: 0.94{"".join(f", {name}: 0.01" for name in others[:2])}, ...}},',
    ]
    if classifier.takes_picture:
        lines.append(' "heat": [[0.12, 0.4, ...], ...],  # with explain: rows of a grid over the picture')
    if classifier.takes_text:
        lines.append(' "words": [[["a", 0.3], [" ", null], ["word", -1.0], ...]]}  # with explain: for each text')
    return "\n".join(lines)


def _code(name: str, text: str) -> str:
    return (
        f'<div class="code"><h3>{name}</h3><button type="button" data-copy aria-label="Copy the {name} example">Copy'
        f'</button><pre tabindex="0">{shown(text)}</pre></div>'
    )


FOOT = '<div class="foot">Uploads are deleted within two hours, and not sent anywhere else.</div>'
