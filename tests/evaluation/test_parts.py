"""How much better images with texts are predicted than each alone, against figures by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from hf_transfer.evaluation.parts import lead, worth_of_parts
from hf_transfer.evaluation.results import PART, Results, Scores
from hf_transfer.evaluation.templates import TEMPLATES
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.predictions import Predictions
from tests.evaluation.examples import results_of


def predictions(right: list[int], rows: list[int] | None = None) -> Predictions:
    """Of two classes, right (1) or wrong (0)."""
    labels = np.arange(len(right)) % 2
    outputs = torch.nn.functional.one_hot(torch.tensor(np.where(right, labels, 1 - labels)), 2).float()
    index = np.asarray(rows if rows is not None else range(len(right)))
    return Predictions(Classes(("a", "b")), outputs, labels, index)


def scores(of: Predictions, masked: int = 0) -> Scores:
    return Scores(of.metrics(), of.intervals(), len(of), masked)


def test_the_lead_is_computed_on_the_samples_that_have_the_part() -> None:
    both, image = predictions([0, 1, 1, 1, 1]), predictions([1, 0, 0, 1], [1, 2, 3, 4])
    differences = np.array([0, 1, 1, 0])
    gain, half = lead(both, image)
    assert gain == pytest.approx(0.5)
    assert half == pytest.approx(1.96 * differences.std(ddof=1) / math.sqrt(4), rel=1e-4)


def test_a_significant_lead_over_the_best_part_is_a_sentence_and_any_other_a_warning() -> None:
    both = predictions([1] * 40 + [0] * 10)
    parts = {"image": predictions([1] * 10 + [0] * 40), "text": predictions([1] * 20 + [0] * 30)}
    (sentence,) = worth_of_parts(both, parts)
    assert sentence.startswith(
        "Image and text together against the text alone: +40.0 points of accuracy (95 % interval +26."
    )
    (sentence,) = worth_of_parts(both, parts | {"image": predictions([1] * 39 + [0] * 11)})
    assert sentence.startswith(
        "Warning: image and text together are not better than the image alone beyond the interval: +2.0 points"
    )
    assert "Perhaps the image alone is enough, or try another --strategy or --fusion." in sentence
    assert worth_of_parts(both, {}) == []


def test_metrics_and_tables_have_each_part_after_the_whole() -> None:
    test = predictions([1, 1, 1, 0])
    parts = {"image": predictions([1, 0]), "text": predictions([0, 0])}
    by_name = {"validation": scores(predictions([1, 0])), "test": scores(test)}
    by_name |= {f"test {PART.format(name)}": scores(part, masked=2) for name, part in parts.items()}
    results: Results = results_of(scores=by_name, samples={"train": 2, "validation": 2, "test": 4})
    assert list(results.metrics["test"]) == ["both", "image_only", "text_only"]
    assert results.metrics["test"]["both"] == {**test.metrics(), "samples": 4}
    assert results.test.metrics == test.metrics()
    tables: Any = TEMPLATES.get_template("evaluation/tables.md.jinja").module
    rows = [line.split(" | ")[:3] for line in tables.scores(results).splitlines()]
    assert rows[2:] == [
        ["| validation", "2", "0.5000"], ["| test", "4", "0.7500"],
        ["| test image&#95;only", "2 of 4", "0.5000"], ["| test text&#95;only", "2 of 4", "0.0000"],
    ]  # fmt: skip
    alone = results_of(scores={"test": scores(predictions([1]))})
    assert alone.metrics == {"test": predictions([1]).metrics()}
