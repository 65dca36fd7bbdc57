"""What the page says of models that predict labels or numbers: every sentence."""

import json
import re
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import page
from about import Card, Example, Settings
from explanation import Weights
from target import Cell, Classes, Interval, Labels, Numbers, Target

LABELS = Labels(("Game", "Education", "Office", "Network", "Audio", "Video"), (0.5, 0.35, 0.6, 0.5, 0.5, 0.8))
SCORES = [0.9, 0.4, 0.55, 0.7, 0.1, 0.05]
NUMBER = Numbers(("valence",), Interval(0.9, (0.37,), 1234))
NUMBERS = Numbers(("height", "width"), Interval(0.8, (2.0, 10.0), 50))
PLAIN = Numbers(("valence",))


def text(html: str) -> str:
    """What a reader of the page reads, on one line; texts for screen readers are in brackets."""
    html = re.sub(r'<span class="unseen">(.*?) ?</span>', r" [\1] ", html)
    words = unescape(re.sub(r"<[^>]*>", " ", html))
    return re.sub(r" +([.,:])", r"\1", " ".join(words.split()))


def classifier(target: Target, *, takes_picture: bool = False) -> Any:
    """As much of a model as the page asks for."""
    return SimpleNamespace(
        target=target,
        takes_picture=takes_picture,
        takes_text=not takes_picture,
        either=False,
        texts=1,
        max_length=32,
        model=SimpleNamespace(num_parameters=lambda: 1_000),
        device=SimpleNamespace(type="cpu"),
    )


@pytest.mark.parametrize(
    ("target", "kind", "lead"),
    [
        (LABELS, "texts → 6 labels", "Predicts which labels texts have, several or none: Game, Education,"),
        (Labels(("spam",), (0.5,)), "texts → a label: spam", "Predicts whether texts have the label spam"),
        (NUMBER, "texts → a number: valence", "Predicts a number from texts: valence"),
        (NUMBERS, "texts → 2 numbers", "Predicts 2 numbers from texts: height, width"),
        (Classes(("a", "b")), "texts → 2 classes", "Classifies texts as a, b"),
    ],
)
def test_the_head_says_what_is_predicted(target: Target, kind: str, lead: str) -> None:
    shown = text(page.masthead(Settings(title="T"), Card(), classifier(target)))
    assert shown.startswith(f"{kind} T {lead}")


def test_only_of_a_model_of_classes_the_card_has_an_accuracy() -> None:
    """Of labels it would be the share of samples of which every label is right."""
    shown = [
        "Accuracy according to its card" in page.masthead(Settings(), Card(accuracy=0.5), classifier(target))
        for target in (Classes(("a", "b")), LABELS, NUMBER)
    ]
    assert shown == [True, False, False]


def test_the_chosen_labels_are_named_with_bars_and_the_marks_of_their_thresholds() -> None:
    """A screen reader gets what the eye sees from marks and ticks."""
    shown = page.verdict(LABELS, SCORES, 0.0123)
    assert text(shown) == (
        "Game; Network; Education ✓ [chosen:] Game 90.0 % [, threshold 50.0 %] ✓ [chosen:] Network 70.0 % "
        "[, threshold 50.0 %] Office 55.0 % [, threshold 60.0 %] ✓ [chosen:] Education 40.0 % [, threshold 35.0 %] "
        "Audio 10.0 % [, threshold 50.0 %] The line across a bar is the threshold of its label (35.0 % to 80.0 %): a "
        "label is chosen if its probability reaches it. 12 ms"
    )
    bars = re.findall(r'<li( class="chosen")?>.*?width:([\d.]+)%.*?left:([\d.]+)%', shown, re.DOTALL)
    assert bars == [
        (' class="chosen"', "90.0", "50.0"), (' class="chosen"', "70.0", "50.0"), ("", "55.0", "60.0"),
        (' class="chosen"', "40.0", "35.0"), ("", "10.0", "50.0"),
    ]  # fmt: skip


@pytest.mark.parametrize(("chosen", "size"), [(1, ""), (2, ""), (3, " many")])
def test_many_names_are_shown_smaller(chosen: int, size: str) -> None:
    """They would fill the screen of a phone."""
    assert f'<p class="answer{size}">' in page.verdict(LABELS, [0.9] * chosen + [0.0] * (6 - chosen), 0.1)


def test_without_a_chosen_label_the_page_says_so() -> None:
    shown = text(page.verdict(LABELS, [0.01] * 6, 0.1))
    assert shown.startswith("No label No label reaches its threshold. Game 1.0 %")


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ((0.5, 0.5), "is the threshold of its label (50.0 % for all):"),
        ((0.25, 0.75), "is the threshold of its label (25.0 % to 75.0 %):"),
        ((0.3,), "is the threshold of its label (30.0 %):"),
    ],
)
def test_a_sentence_says_what_the_marks_are(thresholds: tuple[float, ...], words: str) -> None:
    names = tuple("abc"[: len(thresholds)])
    assert words in text(page.verdict(Labels(names, thresholds), [0.1] * len(names), 0.1))


def test_a_mark_stays_within_its_bar() -> None:
    """Whatever the threshold of a label that must never be chosen."""
    shown = page.verdict(Labels(("a", "b"), (7.0, -1.0)), [0.5, 0.5], 0.1)
    assert re.findall(r"left:([\d.]+)%", shown) == ["100.0", "0.0"]


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (("Game", "Education", "Network"), "True labels: Game; Education; Network. The prediction is right. ✓"),
        (
            ("Game", "Video"),
            "True labels: Game; Video. Right: Game. Missing: Video. Wrong: Network; Education. ✓",
        ),
        ((), "True labels: none. Wrong: Game; Network; Education. ✓"),
        (("Game", "Education", "Network", "Audio"), "Right: Game; Network; Education. Missing: Audio. ✓"),
    ],
)
def test_of_an_example_the_page_says_which_labels_are_right_missing_or_wrong(
    truth: tuple[str, ...], words: str
) -> None:
    """A true label has a bar, however improbable it is."""
    shown = page.verdict(LABELS, SCORES, 0.1, Example("for people", truth=truth))
    assert words in text(shown)
    assert set(truth) <= set(re.findall(r"([A-Z]\w+)</span>\s*<span class=\"track\"", shown))


def test_no_label_can_be_right() -> None:
    shown = text(page.verdict(LABELS, [0.01] * 6, 0.1, Example("no label", truth=())))
    assert "No label reaches its threshold. True labels: none. The prediction is right." in shown


def test_of_an_example_without_known_truth_only_its_label_is_shown() -> None:
    """It comes from an older settings.json."""
    assert "True labels: Game; x. ✓" in text(page.verdict(LABELS, SCORES, 0.1, Example("Game; x")))
    assert "True value: 1.1." in text(page.verdict(NUMBER, [1.2], 0.1, Example("1.1")))


def test_a_number_is_shown_with_its_interval_and_how_that_is_made() -> None:
    """As text, and as a line with a dot."""
    shown = page.verdict(NUMBER, [1.2166], 0.0123)
    assert text(shown) == (
        "1.22 valence 90 % interval: 0.85 to 1.59 (± 0.37) 0.8 1.0 1.2 1.4 1.6 How the interval is made: of the 1,234 "
        "held-out samples, 9 of 10 were off by at most 0.37. 12 ms"
    )
    ((left, width),) = re.findall(r'class="range" style="left:([\d.]+)%;width:([\d.]+)%"', shown)
    (dot,) = re.findall(r'class="dot" style="left:([\d.]+)%"', shown)
    assert float(dot) == pytest.approx(float(left) + float(width) / 2, abs=0.02)
    assert float(dot) == pytest.approx(100 * (1.2166 - 0.8) / 0.8, abs=0.01)
    assert 'class="scale" aria-hidden="true"' in shown


@pytest.mark.parametrize(
    ("truth", "words", "right"),
    [
        (1.1, "True value: 1.1, inside the interval. The prediction is off by 0.12.", "right"),
        (-2.25, "True value: -2.25, outside the interval. The prediction is off by 3.47.", "wrong"),
    ],
)
def test_of_an_example_the_page_says_whether_the_interval_has_the_true_value(
    truth: float, words: str, right: str
) -> None:
    """It is on the line, too."""
    shown = page.verdict(NUMBER, [1.2166], 0.1, Example("x", truth=(truth,)))
    assert words in text(shown)
    assert f'class="truth {right}"' in shown
    places = {name: float(left) for name, left in re.findall(r'class="(dot|diamond)" style="left:([\d.]+)%"', shown)}
    assert (places["diamond"] < places["dot"]) is (truth < 1.2166)


def test_numbers_are_one_below_the_other_and_an_unknown_true_value_is_left_out() -> None:
    """The sentence on the interval is there once."""
    example = Example("x", truth=(12.5, None))
    shown = text(page.verdict(NUMBERS, [10.25, 55.0], 0.1, example, [example, Example("y", truth=(8.0, 90.0))]))
    assert shown == (
        "10.25 height 80 % interval: 8.25 to 12.25 (± 2.00) True value: 12.5, outside the interval. The prediction is "
        "off by 2.25. 8 10 12 14 55.0 width 80 % interval: 45.0 to 65.0 (± 10.0) 40 60 80 100 How the intervals are "
        "made: of the 50 held-out samples, 4 of 5 were off by at most the number after ±. 100 ms"
    )


def test_without_an_interval_there_is_no_word_of_it() -> None:
    """And no line, unless other values are known."""
    alone = page.verdict(PLAIN, [1.2166], 0.1)
    assert text(alone) == "1.217 valence 100 ms"
    example = Example("1.1", truth=(1.1,))
    shown = page.verdict(PLAIN, [1.2166], 0.1, example, [example, Example("3", truth=(3.0,))])
    assert "1.217 valence True value: 1.1. The prediction is off by 0.117. 1.0" in text(shown)
    assert "nterval" not in text(shown)
    assert 'class="range"' not in shown


@pytest.mark.parametrize(
    ("target", "words"), [(LABELS, "true labels"), (NUMBER, "true value"), (NUMBERS, "true values")]
)
def test_examples_are_shown_with_what_is_true_of_them(target: Target, words: str) -> None:
    shown = text(page.examples(target, [Example("Game; Office", texts=("t",))], [None]))
    assert f"with their {words}." in shown
    assert "Game; Office" in shown


def test_explanations_say_that_they_are_about_a_label_or_about_raising_a_number() -> None:
    """For numbers both directions matter."""
    picture = Image.new("RGB", (8, 8))
    words: Weights = [("a", 0.5), ("b", -0.5)]
    assert "marked words are evidence for Game, or against it." in text(page.weighed_words(LABELS, [words], "Game"))
    assert "marked words raise valence, or lower it." in text(page.weighed_words(NUMBER, [words], "valence"))
    assert "more evidence for Game in this area." in text(page.figure(LABELS, picture, "Grad-CAM", "Game"))
    assert "the more this area raises or lowers valence." in text(page.figure(NUMBER, picture, "Grad-CAM", "valence"))
    rolled = [text(page.figure(target, picture, "attention rollout", "x")) for target in (LABELS, NUMBER)]
    assert "the more this area contributed." in rolled[0]
    assert "the more this area contributed, whether it raises or lowers x." in rolled[1]


def test_tables_of_many_show_every_kind_of_cell() -> None:
    """Labels one below the other, beside their probabilities."""
    rows: list[list[Cell]] = [
        ["t", *LABELS.cells(SCORES), ""],
        ["u", *LABELS.cells([0.0] * 6), ""],
        ["v", "", "", "The text is empty."],
    ]
    shown = page.table(LABELS, ["text", *LABELS.columns, "note"], rows)
    assert text(shown) == (
        "2 of 3 predicted text labels probabilities note t Game Network Education 90.0 % 70.0 % 40.0 % u none none "
        "v The text is empty."
    )
    rows = [["t", *NUMBER.cells([1234.5678]), ""]]
    assert text(page.table(NUMBER, ["text", *NUMBER.columns, "note"], rows)) == (
        "1 of 1 predicted text valence low high t 1,234.57 1,234.2 1,234.94"
    )


DOCUMENTED: list[tuple[Target, str, str]] = [
    (LABELS, "its labels, the probability of every label, the threshold from which on a label is chosen and, on",
     'answer["labels"], answer["scores"]'),
    (Labels(("a", "b"), (0.2, 0.8)), "its labels,", 'answer["labels"], answer["scores"]'),
    (NUMBER, "its values, their intervals and, on request", 'answer["values"], answer["intervals"]'),
    (NUMBERS, "its values, their intervals and, on request", 'answer["values"], answer["intervals"]'),
    (PLAIN, "its values and, on request", 'answer["values"]'),
]  # fmt: skip


@pytest.mark.parametrize(("target", "words", "parts"), DOCUMENTED)
def test_the_documentation_of_the_api_has_the_shape_that_this_model_returns(
    target: Target, words: str, parts: str
) -> None:
    """The same keys as the answer itself, and names of outputs."""
    shown = page.api(classifier(target), ["text"], 2, 32)
    assert words in text(shown)
    python, answer, _ = (unescape(code) for code in re.findall(r"<pre[^>]*>(.*?)</pre>", shown, re.DOTALL))
    assert f"print({parts})" in python
    documented = json.loads(re.sub(r"(, )?\.\.\.", "", re.sub(r"  # .*", "", answer)))
    del documented["words"]
    returned = target.as_json([0.5] * len(target.names))
    assert list(documented) == list(returned)
    for key, value in returned.items():
        if isinstance(value, dict):
            assert list(documented[key]) == list(value)[: len(documented[key])]
            assert ("..." in answer.split(f'"{key}"')[1].splitlines()[0]) is (len(documented[key]) < len(value))
