"""What images and texts are worth together and each alone, against figures by hand."""

import math

import numpy as np
import pytest
import torch

from hf_transfer.evaluation.modalities import by_modality, headline, lead, scores_by_name, worth_of_fusion
from hf_transfer.training.predictions import Predictions


def said(right: list[int], rows: list[int] | None = None) -> Predictions:
    """Of two classes, right or wrong as told."""
    labels = np.arange(len(right)) % 2
    logits = torch.nn.functional.one_hot(torch.tensor(np.where(right, labels, 1 - labels)), 2).float()
    return Predictions(logits, labels, np.asarray(rows if rows is not None else range(len(right))), masked=0)


def test_both_lead_on_the_samples_that_have_the_modality() -> None:
    both, image = said([0, 1, 1, 1, 1]), said([1, 0, 0, 1], [1, 2, 3, 4])
    differences = np.array([0, 1, 1, 0])
    gain, half = lead(both, image)
    assert gain == pytest.approx(0.5)
    assert half == pytest.approx(1.96 * differences.std(ddof=1) / math.sqrt(4), rel=1e-4)


def test_what_is_gained_for_sure_is_said_and_what_is_not_is_a_warning() -> None:
    """Against the better of both."""
    both = said([1] * 40 + [0] * 10)
    worse = {"image": said([1] * 10 + [0] * 40), "text": said([1] * 20 + [0] * 30)}
    (sentence,) = worth_of_fusion(both, worse)
    assert sentence.startswith(
        "Image and text together against the text alone: +40.0 points of accuracy (95 % interval +26."
    )
    (sentence,) = worth_of_fusion(both, worse | {"image": said([1] * 39 + [0] * 11)})
    assert sentence.startswith(
        "Warning: image and text together are not better than the image alone beyond the interval: +2.0 points"
    )
    assert "recipes/vision.py is enough" in sentence
    assert worth_of_fusion(both, {}) == []


def test_the_tables_have_a_line_for_each_modality() -> None:
    test = said([1, 1, 1, 0])
    metrics = {"validation": said([1, 0]).metrics()} | by_modality(test, {"image": said([1, 0]), "text": said([0, 0])})
    assert list(metrics["test"]) == ["both", "image_only", "text_only"]
    table = scores_by_name(metrics)
    assert list(table) == ["validation", "test", "test image_only", "test text_only"]
    assert (table["test"]["accuracy"], table["test"]["samples"]) == (0.75, 4)
    assert (table["test image_only"]["accuracy"], table["test image_only"]["samples"]) == (0.5, 2)
    assert headline(metrics["validation"]) is metrics["validation"]
    assert by_modality(test, None) == {}
    assert scores_by_name({"test": said([1]).metrics()}).keys() == {"test"}
