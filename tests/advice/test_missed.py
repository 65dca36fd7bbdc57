"""Which classes or labels a head misses: more than a tenth of their rows, and not by chance alone."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score

from hf_transfer.advice.missed import Missed, missed_by
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Target, Values

CLASSES, LABELS = Classes(("a", "b", "rare")), LabelSets(("x", "y"))


def predictions(target: Target, targets: Values, answers: Values) -> Predictions:
    """Of a head that gives these answers: class numbers, or cells of labels."""
    answers = np.eye(len(target.names))[answers] if answers.ndim == 1 else answers
    return Predictions(target, torch.from_numpy(8.0 * answers - 4), targets, np.arange(len(targets)))


def is_missed(missed: int, rows: int) -> bool:
    """Whether a class with so many rows and missed ones is there, beside 100 rows of another that are right."""
    targets = np.repeat([0, 2], [100, rows])
    answers = np.repeat([0, 1, 2], [100, missed, rows - missed])
    return [one.name for one in missed_by(predictions(CLASSES, targets, answers))] == ["rare"]


def test_of_three_classes_the_one_that_is_never_named_is_missed() -> None:
    targets = np.repeat([0, 1, 2], [300, 300, 7])
    assert missed_by(predictions(CLASSES, targets, np.where(targets == 2, 0, targets))) == (Missed("rare", 7, 7),)
    assert missed_by(predictions(CLASSES, targets, targets)) == ()


def test_the_class_that_is_missed_most_comes_first() -> None:
    targets = np.repeat([0, 1, 2], 20)
    answers = np.where((np.arange(60) % 20 < 8) & (targets == 0) | (targets == 2), 1, targets)
    assert missed_by(predictions(CLASSES, targets, answers)) == (Missed("rare", 20, 20), Missed("a", 8, 20))
    recalls = recall_score(targets, answers, average=None)
    assert [1 - recalls[2], 1 - recalls[0]] == pytest.approx([1.0, 8 / 20])


@pytest.mark.parametrize(("missed", "rows", "expected"), [(4, 4, False), (5, 5, True), (0, 5, False), (1, 5, False)])
def test_of_a_few_rows_of_a_class_nothing_is_said(missed: int, rows: int, expected: bool) -> None:
    assert is_missed(missed, rows) is expected


@pytest.mark.parametrize("rows", [10, 50, 400])
def test_more_than_a_tenth_counts_only_if_it_is_not_by_chance(rows: int) -> None:
    """By the formula of Wilson's interval, solved for a share of one tenth."""
    z, share = NormalDist().inv_cdf(0.975), 0.1
    most = share * rows + z * (share * (1 - share) * rows) ** 0.5
    first = next(count for count in range(rows) if is_missed(count, rows))
    assert first == int(np.floor(most)) + 1


def test_a_label_that_no_row_gets_is_missed_and_cells_that_are_not_known_do_not_count() -> None:
    targets = np.zeros((200, 2), dtype=np.float32)
    targets[::2, 0], targets[:8, 1], targets[8:20, 1] = 1, 1, np.nan
    answers = np.nan_to_num(targets)
    answers[:, 1] = 0
    assert missed_by(predictions(LABELS, targets, answers)) == (Missed("y", 8, 8),)


def test_numbers_have_no_classes_to_miss() -> None:
    values = np.arange(20, dtype=np.float64)[:, None]
    assert missed_by(predictions(Numbers(("x",), (0.0,), (1.0,)), values, values)) == ()
