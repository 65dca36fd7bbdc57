"""The gate of weights with 8 bits: how much worse, and how different, answers may be."""

from typing import Any

import numpy as np
import pytest
import torch

from hf_transfer.export.quantisation import gate_of
from hf_transfer.export.serve import answer
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Target
from tests.export.exported import same_answers
from tests.export.finished_models import CLASS_TARGET, TARGETS
from tests.tiny_models import CLASSES


def predictions(target: Target, outputs: torch.Tensor, truth: Any) -> Predictions:
    return Predictions(target, outputs, np.asarray(truth), np.arange(len(outputs)))


def of_classes(answers: list[int], truth: list[int]) -> Predictions:
    """Predictions that choose these classes."""
    return predictions(CLASS_TARGET, torch.eye(CLASSES)[answers], truth)


@pytest.mark.parametrize(
    ("changed", "samples", "reason"),
    [
        (0, 200, ""),
        (1, 201, ""),
        (1, 200, "the score falls by 0.0050, and must by less than 0.005"),
        (3, 200, "the score falls by 0.0150, and must by less than 0.005"),
    ],
)
def test_accuracy_may_fall_by_less_than_half_a_point(changed: int, samples: int, reason: str) -> None:
    truth = [number % CLASSES for number in range(samples)]
    worse = [(number + 1) % CLASSES if place < changed else number for place, number in enumerate(truth)]
    gate = gate_of(of_classes(truth, truth), of_classes(worse, truth))
    assert gate.float32 == 1.0
    assert gate.int8 == pytest.approx(1 - changed / samples)
    assert gate.reason == reason


@pytest.mark.parametrize(("changed", "reason"), [(2, ""), (3, "97.0% of the answers are the same")])
def test_most_answers_stay_also_where_accuracy_does(changed: int, reason: str) -> None:
    """Wrong answers become other wrong ones."""
    truth, before = [0] * 100, [1] * 10 + [0] * 90
    after = [2] * changed + before[changed:]
    gate = gate_of(of_classes(before, truth), of_classes(after, truth))
    assert gate.loss == 0
    assert gate.reason.startswith(reason)
    assert bool(gate.reason) == bool(reason)


def test_numbers_are_judged_in_standard_deviations_of_the_true_ones() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(50.0, 10.0, (400, CLASSES))
    before = torch.from_numpy(truth)
    for shift, same, is_written in ((0.04, 1.0, True), (0.09, 1.0, False), (0.2, 0.0, False)):
        gate = gate_of(
            predictions(TARGETS["numbers"], before, truth), predictions(TARGETS["numbers"], before + shift, truth)
        )
        assert gate.same == same
        assert gate.loss == pytest.approx(shift / 10.0, rel=0.1)
        assert gate.as_json()["written"] is is_written


def test_sets_of_labels_are_the_same_if_all_labels_are() -> None:
    truth = np.zeros((4, CLASSES), np.float32)
    before = torch.full((4, CLASSES), -9.0)
    after = before.clone()
    after[0, 3] = 9.0
    target = TARGETS["labels"]
    assert gate_of(predictions(target, before, truth), predictions(target, after, truth)).same == 0.75


@pytest.mark.parametrize("name", TARGETS)
def test_the_program_beside_a_model_answers_as_the_target_does(name: str) -> None:
    target = TARGETS[name]
    outputs = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(1)) * 3
    about = {
        "labels": target.names, "activation": target.activation, "answered_as": target.answered_as,
        **target.saved_settings(),
    }  # fmt: skip
    expected = zip(target.answers(outputs, 3), target.decisions(outputs), strict=True)
    for row, (scores, decisions) in zip(outputs, expected, strict=True):
        assert same_answers(answer(row.numpy(), about, 3), {**decisions, target.answered_as: dict(scores)})
