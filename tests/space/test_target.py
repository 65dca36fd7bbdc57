"""What a model predicts, by its configuration: the scores of a pipeline, with our thresholds and intervals."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from classifier import Classifier, NoClassifierError, Sample
from target import Classes, Interval, Labels, Numbers, target_of
from tests.space.finished import (
    HEIGHTS,
    INTERVAL,
    SHARES,
    TAGS,
    TEXTS,
    THRESHOLDS,
    labels_of_texts,
    number_of_pictures,
    settings_of,
)
from tests.space.pairs import a_picture
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

NAMES = ("a", "b", "c")
MULTI_LABEL = "multi_label_classification"


def config_of(names: tuple[str, ...] = NAMES, problem_type: str | None = None, **more: Any) -> Any:
    return SimpleNamespace(id2label=dict(enumerate(names)), problem_type=problem_type, **more)


@pytest.mark.parametrize(
    ("problem_type", "names"),
    [
        (None, NAMES), (None, ("a",)), ("single_label_classification", NAMES), (MULTI_LABEL, NAMES),
        (MULTI_LABEL, ("a",)), ("regression", NAMES), ("regression", ("a",)),
    ],
)  # fmt: skip
def test_models_of_others_get_the_scores_of_a_pipeline(
    tmp_path: Path, problem_type: str | None, names: tuple[str, ...]
) -> None:
    """Images and texts, whatever the problem type and the number of labels, to 1e-6."""
    settings = settings_of(names, problem_type=problem_type)
    texts, pictures = tmp_path / "texts", tmp_path / "pictures"
    save_text_checkpoint(texts, **settings)
    save_checkpoint(pictures, **settings)
    picture = Image.new("RGB", (20, 30), "orange")
    classify: Any = pipeline("text-classification", str(texts), device="cpu", top_k=None)
    processor = AutoImageProcessor.from_pretrained(pictures, backend="pil")
    look: Any = pipeline("image-classification", str(pictures), image_processor=processor, device="cpu")
    for folder, sample, expected in (
        (texts, Sample(texts=("word7 word8",)), classify(["word7 word8"])[0]),
        (pictures, Sample(picture), look(picture, top_k=9)),
    ):
        classifier = Classifier(folder)
        (scores,) = classifier.scores([sample])
        shares = {one["label"]: one["score"] for one in expected}
        assert dict(zip(classifier.labels, scores, strict=True)) == pytest.approx(shares, abs=1e-6)


def test_without_our_settings_the_thresholds_are_one_half_and_there_is_no_interval() -> None:
    """A single label is one that a sample has or has not."""
    assert target_of(config_of()) == Classes(NAMES)
    assert target_of(config_of(problem_type=MULTI_LABEL)) == Labels(NAMES, (0.5, 0.5, 0.5), "; ")
    assert target_of(config_of(("spam",))) == Labels(("spam",), (0.5,), "; ")
    assert target_of(config_of(problem_type="regression")) == Numbers(NAMES, None)


def test_our_settings_are_read_from_the_configuration(tmp_path: Path) -> None:
    """As transformers saves and loads it."""
    assert Classifier(labels_of_texts(tmp_path / "labels", label_separator=" | ")).target == Labels(
        TAGS, THRESHOLDS, "| "
    )
    target = Classifier(number_of_pictures(tmp_path / "number")).target
    assert target == Numbers(("height in cm",), Interval(0.9, (12.4,), 240))


def test_names_are_in_the_order_of_their_numbers() -> None:
    """Beyond nine, too."""
    names = [f"label {number}" for number in range(12)]
    config = config_of()
    config.id2label = {number: names[number] for number in (11, 3, 0, 10, 2, 1, 4, 5, 6, 7, 8, 9)}
    assert list(target_of(config).names) == names


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"problem_type": MULTI_LABEL, "thresholds": [0.5]}, "expected 3 thresholds, one for each output, found 1"),
        ({"problem_type": MULTI_LABEL, "thresholds": ["a", "b", "c"]}, "could not convert string to float"),
        ({"problem_type": "regression", "prediction_interval": INTERVAL}, "expected 3 half_widths"),
        ({"problem_type": "regression", "prediction_interval": {"coverage": 0.9}}, "KeyError: 'half_widths'"),
        (
            {"problem_type": "regression", "prediction_interval": INTERVAL | {"half_widths": [1, -1, 1]}},
            "expected a coverage between 0 and 1 and no negative half width",
        ),
    ],
)
def test_settings_that_do_not_suit_the_model_are_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    """With the name of the file."""
    folder = save_text_checkpoint(tmp_path / "model", **settings_of(NAMES))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | more))
    with pytest.raises(NoClassifierError, match=words) as error:
        Classifier(folder)
    assert "config.json cannot be used" in str(error.value)


def test_an_interval_of_no_finite_width_is_none() -> None:
    """There were too few held-out samples for it."""
    interval = INTERVAL | {"half_widths": [float("inf")]}
    assert target_of(config_of(("a",), "regression", prediction_interval=interval)) == Numbers(("a",), None)


def test_labels_that_reach_their_thresholds_are_chosen_most_probable_first() -> None:
    """A probability equal to the threshold is enough; an explanation is about the first one."""
    target = Labels(("a", "b", "c", "d"), (0.5, 0.25, 0.9, 0.3))
    assert target.chosen_names([0.5, 0.75, 0.8, 0.2]) == ["b", "a"]
    assert target.explained([0.5, 0.75, 0.8, 0.2]) == 1
    assert target.chosen_names([0.4, 0.1, 0.8, 0.2]) == []
    assert target.explained([0.4, 0.1, 0.8, 0.2]) == 2
    assert target.judged([0.5, 0.75, 0.8, 0.2], ("c", "b")) == {"right": ["b"], "missing": ["c"], "wrong": ["a"]}


def test_there_are_bars_for_probable_chosen_and_true_labels() -> None:
    """Of 30 labels, at most 20."""
    target = Labels(tuple(f"l{number}" for number in range(30)), (0.5,) * 28 + (0.01, 0.5))
    scores = [0.4 - number / 100 for number in range(30)]
    bars = target.bars(scores, ("l20", "unknown"))
    assert [bar.name for bar in bars] == ["l0", "l1", "l2", "l3", "l4", "l20", "l28"]
    assert [bar.name for bar in bars if bar.is_chosen] == ["l28"]
    assert (bars[0].share, bars[-1].threshold) == (0.4, 0.01)
    assert len(target.bars([0.9] * 30)) == 20


def test_numbers_have_the_intervals_of_their_half_widths() -> None:
    """An unknown true value is compared with nothing."""
    target = Numbers(("height", "width"), Interval(0.9, (2.0, 10.0), 50))
    height, width = target.results([10.25, 55.0], (12.5, None), known=[(12.5, None), (1.0, 40.0)])
    assert (height.ends, height.truth, height.is_inside) == ((8.25, 12.25), 12.5, False)
    assert (width.ends, width.truth, width.is_inside) == ((45.0, 65.0), None, None)
    assert (height.words(height.value), width.words(width.value)) == ("10.25", "55.0")
    # The line holds the true values of the other examples.
    assert height.scale is not None
    assert width.scale is not None
    assert (height.scale.ticks[0], width.scale.ticks[0]) == (0.0, 40.0)
    assert target.results([10.5, 55.0], (12.5,))[0].is_inside is True


def test_numbers_without_interval_have_a_line_if_other_values_are_known() -> None:
    """Otherwise nothing says how long it should be."""
    target = Numbers(("height",))
    (alone,) = target.results([3.14159])
    assert (alone.words(alone.value), alone.ends, alone.scale, alone.is_inside) == ("3.142", (), None, None)
    (one,) = target.results([3.14159], (3.0,), known=[(3.0,), (7.5,)])
    assert (one.truth, one.is_inside) == (3.0, None)
    assert one.scale is not None
    assert one.scale.ticks[-1] >= 7.5


@pytest.mark.parametrize(("coverage", "words"), [(0.9, "9 of 10"), (0.95, "19 of 20"), (2 / 3, "2 of 3")])
def test_the_share_of_samples_within_an_interval_is_said_in_words(coverage: float, words: str) -> None:
    assert Interval(coverage, (1.0,), 30).share_in_words == words


def test_programs_get_values_with_names() -> None:
    """For each kind of prediction another shape."""
    assert Classes(("a", "b")).as_json([0.25, 0.75]) == {"label": "b", "scores": {"a": 0.25, "b": 0.75}}
    assert Labels(("a", "b"), (0.2, 0.8)).as_json([0.25, 0.75]) == {
        "labels": ["a"],
        "scores": {"a": 0.25, "b": 0.75},
        "thresholds": {"a": 0.2, "b": 0.8},
    }
    assert Numbers(("a", "b")).as_json([1.5, -2.0]) == {"values": {"a": 1.5, "b": -2.0}}
    assert Numbers(("a", "b"), Interval(0.9, (1.0, 0.5), 9)).as_json([1.5, -2.0]) == {
        "values": {"a": 1.5, "b": -2.0},
        "intervals": {"a": [0.5, 2.5], "b": [-2.5, -1.5]},
    }


def test_tables_have_columns_for_each_kind_of_prediction() -> None:
    """Labels and their probabilities are in the same order."""
    labels = Labels(("a", "b"), (0.2, 0.6), "| ")
    assert dict(zip(labels.columns, labels.cells([0.25, 0.75]), strict=True)) == {
        "labels": ("b", "a"),
        "probabilities": (0.75, 0.25),
    }
    assert [labels.written(cell) for cell in labels.cells([0.254321, 0.75])] == ["b| a", "0.75| 0.2543"]
    assert [labels.written(cell) for cell in labels.cells([0.1, 0.1])] == ["", ""]
    assert (Classes(("a", "b")).columns, Classes(("a", "b")).written(0.967449)) == (["label", "probability"], 0.9674)
    assert (Numbers(("a",)).columns, Numbers(("a",)).cells([1.5])) == (["a"], [1.5])
    interval = Interval(0.9, (1.0,), 9)
    one = Numbers(("a",), interval)
    assert dict(zip(one.columns, one.cells([1.5]), strict=True)) == {"a": 1.5, "low": 0.5, "high": 2.5}
    assert one.written(1 / 3000) == 0.0003333333
    two = Numbers(("a", "b"), Interval(0.9, (1.0, 0.5), 9))
    assert dict(zip(two.columns, two.cells([1.5, 4.0]), strict=True)) == {
        "a": 1.5, "a low": 0.5, "a high": 2.5, "b": 4.0, "b low": 3.5, "b high": 4.5
    }  # fmt: skip


def test_the_finished_models_of_these_tests_predict_what_their_heads_were_set_to(tmp_path: Path) -> None:
    """To 1e-4, as their features are in single precision."""
    labels = Classifier(labels_of_texts(tmp_path / "labels"))
    for text, shares in zip(TEXTS, SHARES, strict=True):
        assert labels.scores([Sample(texts=(text,))])[0] == pytest.approx(list(shares), abs=1e-4)
    number = Classifier(number_of_pictures(tmp_path / "number"))
    heights = number.scores([Sample(a_picture(position)) for position in range(3)])
    assert torch.tensor(heights)[:, 0].tolist() == pytest.approx(list(HEIGHTS), abs=1e-2)
