"""What the page shows of its model; names from outside are escaped."""

import copy
import json
import re
from dataclasses import fields
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import page
from about import Card, Example, Settings, plain_card, read_card, read_settings
from classifier import Classifier
from explanation import Weights
from target import TOP, Classes, Interval, Labels, Numbers, Target
from tests.space.finished import settings_of
from tests.space.hostile import HOSTILE
from tests.tiny_models import save_checkpoint


class Tags(HTMLParser):
    """Tags and attributes of a piece of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def tags(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    return parser


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A model whose class names are attacks."""
    return Classifier(save_checkpoint(tmp_path_factory.mktemp("models") / "m", **settings_of(HOSTILE)))


def of_other(hostile: Classifier, target: Target) -> Classifier:
    """As if that model predicted something else."""
    other = copy.copy(hostile)
    other.target = target
    return other


HOSTILE_TARGETS: dict[str, Target] = {
    "classes": Classes(tuple(HOSTILE)),
    "labels": Labels(tuple(HOSTILE), (0.2,) * 5, HOSTILE[0]),
    "numbers": Numbers(tuple(HOSTILE), Interval(0.9, (0.1,) * 5, 50)),
}
HOSTILE_TRUTHS: dict[str, tuple[str | float, ...] | None] = {
    "classes": None, "labels": tuple(HOSTILE[:2]), "numbers": (0.1, 0.2, 0.3, 0.4, 0.5)
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_TARGETS)
def test_names_from_outside_are_escaped_everywhere(hostile: Classifier, kind: str) -> None:
    """Of classes, labels, numbers, models, metrics, data, files, texts."""
    hostile = of_other(hostile, HOSTILE_TARGETS[kind])
    score = {"title": HOSTILE[0], "value": 0.5, "low": 0.25, "high": 0.75, "is_share": True, "samples": HOSTILE[1]}
    settings = Settings(
        model=HOSTILE[0], title=HOSTILE[1], base_model=HOSTILE[2], dataset=HOSTILE[3], texts=(HOSTILE[0],), score=score
    )
    words: Weights = [(name, 0.5) for name in HOSTILE]
    samples = [Example(name, texts=(name,), truth=HOSTILE_TRUTHS[kind]) for name in HOSTILE]
    picture, target = Image.new("RGB", (8, 8)), hostile.target
    pieces = [
        page.masthead(settings, Card(base_model=HOSTILE[0]), hostile),
        page.verdict(target, [0.1, 0.2, 0.3, 0.2, 0.2], 0.1, samples[0], samples),
        page.figure(target, picture, "Grad-CAM", HOSTILE[1]),
        page.weighed_words(target, [words], HOSTILE[0]),
        page.examples(target, samples, [picture] * len(samples)),
        page.table(target, [*HOSTILE, "note"], [[*HOSTILE, HOSTILE[0]], [tuple(HOSTILE)] * 6]),
        page.api(hostile, HOSTILE[:1], 2, 32),
        page.batch_help(hostile, HOSTILE[:1], 9),
    ]
    for piece in pieces:
        parsed = tags(piece)
        assert "script" not in parsed.tags
        assert not [name for name in parsed.attributes if name.startswith("on")]
        assert "alert(1)</script>" not in piece
    assert sum(tags(piece).tags.count("img") for piece in pieces) == 1 + len(samples)


@pytest.mark.parametrize("kind", HOSTILE_TARGETS)
def test_the_answer_in_the_documentation_of_the_api_is_complete(hostile: Classifier, kind: str) -> None:
    """Whatever a sample has, and whatever is predicted."""
    hostile = of_other(hostile, HOSTILE_TARGETS[kind])
    both, texts = copy.copy(hostile), copy.copy(hostile)
    both.takes_text = texts.takes_text = True
    both.max_length = texts.max_length = 9
    texts.takes_picture = False
    for classifier, last in ((hostile, "heat"), (both, "words"), (texts, "words")):
        shown = unescape(re.findall(r"<pre[^>]*>(.*?)</pre>", page.api(classifier, (), 2, 32), re.DOTALL)[1])
        lines = [line.split("  # ")[0] for line in shown.splitlines()]
        assert lines[-1].startswith(f' "{last}"')
        assert [line[-1] for line in lines] == [",", *"," * (len(lines) - 2), "}"]


def test_the_head_says_what_the_model_is_and_how_good(hostile: Classifier) -> None:
    score: dict[str, object] = {"title": "accuracy", "value": 0.9256505, "low": 0.8879, "high": 0.9513}
    score |= {"is_share": True, "samples": "268 of 269"}
    settings = Settings(model="a/b-c", base_model="google/vit", dataset="digits", score=score)
    text = " ".join(re.sub(r"<[^>]*>", " ", page.masthead(settings, Card(), hostile)).split())
    assert "b-c" in text
    assert "Accuracy on test data 92.6 % 95 % interval 88.8 % to 95.1 %, 268 of 269 samples" in text
    assert "Base model google/vit" in text
    assert "Trained on digits" in text
    score |= {"title": "MAE", "value": 1.23456, "low": 1.0, "high": 2.5, "is_share": False}
    text = page.masthead(Settings(score=score), Card(), hostile)
    assert "<dt>MAE on test data</dt><dd>1.235<small>95 % interval 1 to 2.5, 268 of 269 samples</small>" in text
    other = page.masthead(Settings(model="./model"), Card(base_model="x/y", accuracy=0.5), hostile)
    assert "Accuracy according to its card" in other
    assert "x/y" in other


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0.0 %"), (0.0004, "< 0.1 %"), (0.5, "50.0 %"), (0.9996, "> 99.9 %"), (1.0, "100.0 %")],
)
def test_only_certain_predictions_are_shown_as_certain(share: float, words: str) -> None:
    """0.9996 would be rounded to 100 %."""
    assert page.percent(share) == words
    assert f"<span>{escape(words)}</span>" in page.verdict(Classes(("a", "b")), [share, 0], 0.1)


def test_a_prediction_names_the_best_label_first_and_whether_it_is_right() -> None:
    """If the sample is an example."""
    target = Classes(tuple(f"label{number}" for number in range(8)))
    scores = [0.05, 0.6, 0.05, 0.1, 0.05, 0.05, 0.05, 0.05]
    shown = page.verdict(target, scores, 0.0123, Example("label1"))
    assert re.findall(r'class="name">(\w+)', shown)[:2] == ["label1", "label3"]
    assert len(re.findall(r'class="name"', shown)) == TOP
    assert "12 ms" in shown
    assert "True class: <b>label1</b>. The prediction is right." in shown
    assert "True class: <b>label2</b>. The prediction is wrong." in page.verdict(target, scores, 0.1, Example("label2"))
    assert "not sure" not in page.verdict(target, scores, 0.1)
    assert "not sure" in page.verdict(target, [0.125] * 8, 0.1)


CARD = """---
base_model: google/vit
model-index:
- name: x
  results:
  - task: {type: image-classification}
    dataset: {name: d, type: d}
    metrics:
    - {type: accuracy, value: 0.875}
---
# A card

| | accuracy |
|---:|---|
| 1 | 2 |

![picture](curves.png) and <img src="https://evil.example/x.png"> and [a link](https://example.org)

<script>alert(1)</script><!-- hidden <b>words</b> --><style>
body { background: url(https://evil.example/y.png) }
</style>

```python
if a < b: print("<script>")
```

`<b>` and ![ref][one] 1 < 2
"""


def test_of_a_card_nothing_is_fetched_or_run(tmp_path: Path) -> None:
    """Blocks of code stay as they are."""
    (tmp_path / "README.md").write_text(CARD)
    card = read_card(tmp_path)
    assert (card.base_model, card.accuracy) == ("google/vit", 0.875)
    assert "![" not in card.text
    assert "# A card" not in card.text
    assert "\n| # | accuracy |\n|---:|---|\n| 1 | 2 |" in card.text
    assert "evil.example" not in card.text
    assert "alert(1)" not in card.text
    assert "hidden" not in card.text
    assert 'if a < b: print("<script>")' in card.text
    assert "`<b>`" in card.text
    assert "1 &lt; 2" in card.text
    assert "[a link](https://example.org)" in card.text


@pytest.mark.parametrize(
    "content", ["", "no metadata", "---\n- a\n---\ntext", "---\nmodel-index: 3\n---\nx", "---\n: :\n---\n"]
)
def test_a_card_that_cannot_be_read_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert read_card(tmp_path).accuracy is None
    assert read_card(tmp_path / "none") == Card()
    assert plain_card("<" * 5000).count("&lt;") == 5000


def test_settings_are_those_of_the_file_unless_the_environment_names_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file describes another model then."""
    monkeypatch.delenv("MODEL_ID", raising=False)
    assert read_settings(tmp_path) == Settings(model=str(tmp_path / "model"))
    content = {
        "model": "a/b",
        "revision": "c",
        "title": "T",
        "texts": ["one", "two"],
        "examples": [{"label": "x", "texts": ["y"]}],
    }
    (tmp_path / "settings.json").write_text(json.dumps(content))
    settings = read_settings(tmp_path)
    assert (settings.model, settings.revision, settings.texts) == ("a/b", "c", ("one", "two"))
    assert settings.examples == (Example("x", texts=("y",)),)
    monkeypatch.setenv("MODEL_ID", "other/model")
    monkeypatch.setenv("MODEL_REVISION", "v1")
    assert read_settings(tmp_path) == Settings(model="other/model", revision="v1")
    assert {field.name for field in fields(Settings)} >= set(content)
