"""Predictions of a split, and how epochs are ranked by their metrics."""

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
import torch

from hf_transfer.errors import UserError
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.predictions import Predictions, Ranking
from hf_transfer.targets.reporting import Metric

TARGET = Classes(("cat", "dog"))
NAN, INFINITY = math.nan, math.inf


class WithErrors(Classes):
    """Classes that are also ranked by an error, which is better when it is lower."""

    metrics: ClassVar[tuple[Metric, ...]] = (*Classes.metrics, Metric("error", "error", lower_is_better=True))


def test_predictions_are_evaluated_by_their_target() -> None:
    outputs, numbers = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), np.array([0, 1, 1])
    predictions = Predictions(TARGET, outputs, numbers, np.arange(3), masked=2)
    assert len(predictions) == 3
    assert predictions.metrics() == TARGET.evaluate(outputs, numbers)
    assert predictions.metrics("accuracy") == TARGET.evaluate(outputs, numbers, "accuracy")
    assert predictions.intervals() == TARGET.intervals(outputs, numbers)
    assert predictions.sample_scores().tolist() == [1, 1, 0]


def best_of(ranking: Ranking, rows: list[Mapping[str, float]]) -> int:
    """The epoch that is kept when the rows come one after the other."""
    best = -1
    for epoch, row in enumerate(rows):
        if ranking.is_better(dict(row), [dict(earlier) for earlier in rows], best):
            best = epoch
    return best


def rows_of(name: str, *pairs: tuple[float, float]) -> list[Mapping[str, float]]:
    return [{name: value, "loss": loss} for value, loss in pairs]


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        ([(0.5, 1), (0.7, 2), (0.6, 0.1)], 1),
        ([(0.5, 1), (0.5, 0.9), (0.5, 1.1)], 1),
        # Of two equal epochs the first is kept.
        ([(0.5, 1), (0.5, 1)], 0),
        ([(NAN, 1), (0.1, 2), (NAN, 0)], 1),
        ([(NAN, NAN), (NAN, NAN)], 0),
        ([(NAN, NAN), (NAN, 1)], 1),
        ([(0.5, NAN), (0.5, 7)], 1),
        ([(0.5, INFINITY), (0.5, NAN)], 0),
    ],
)
def test_a_higher_accuracy_wins_then_a_lower_loss_and_nan_never(pairs: list[tuple[float, float]], best: int) -> None:
    """Also if the first epoch of all is NaN, which compares with nothing."""
    assert best_of(Ranking.of(TARGET, None), rows_of("accuracy", *pairs)) == best


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        ([(0.5, 1), (0.3, 2), (0.4, 0.1)], 1),
        ([(0.5, 1), (0.5, 0.9)], 1),
        ([(NAN, 1), (9, 2), (NAN, 0)], 1),
        ([(INFINITY, 1), (9, 2)], 1),
    ],
)
def test_a_lower_error_wins_and_nan_never(pairs: list[tuple[float, float]], best: int) -> None:
    ranking = Ranking.of(WithErrors(("cat", "dog")), "error")
    assert ranking.lower_is_better
    assert best_of(ranking, rows_of("error", *pairs)) == best


def test_by_loss_the_lower_one_wins() -> None:
    ranking = Ranking.of(TARGET, "loss")
    assert ranking == Ranking("loss", lower_is_better=True)
    assert best_of(ranking, [{"loss": 2}, {"loss": NAN}, {"loss": 1}, {"loss": 1.5}]) == 2


def test_without_a_metric_the_targets_own_ranks() -> None:
    assert Ranking.of(TARGET, None) == Ranking("accuracy", lower_is_better=False)
    assert Ranking.of(TARGET, "f1_macro") == Ranking("f1_macro", lower_is_better=False)


def test_a_metric_that_the_target_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(UserError) as error:
        Ranking.of(TARGET, "auc")
    assert str(error.value).splitlines()[:2] == [
        "Expected: for --metric_for_best_model one of accuracy, f1_macro, loss",
        "Found:    auc",
    ]


def test_a_share_is_shown_in_percent_and_another_metric_as_a_number() -> None:
    accuracy, f1_macro = Classes.metrics
    assert (accuracy.shown(0.91234), f1_macro.shown(0.91234)) == ("91.23%", "0.9123")
