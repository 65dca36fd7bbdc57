"""Metrics of labels against scikit-learn, and their intervals against a bootstrap that computes each draw anew."""

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_fscore_support

from hf_transfer.targets import intervals
from hf_transfer.targets import label_metrics as metrics
from tests.targets.bootstraps import draws_asked_for

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
NAMES = ("map", "f1_micro", "f1_macro", "f1_samples", "subset_accuracy")
LABELS = 6


def some_answers(seed: int, samples: int = 60, missing: float = 0.0) -> tuple[Floats, Flags, Floats]:
    """Scores with ties, what is chosen by them, and the truth: a label that none has, one that all have, empty rows."""
    generator = np.random.default_rng(seed)
    truth = (generator.random((samples, LABELS)) < [0.0, 1.0, 0.1, 0.3, 0.5, 0.8]).astype(float)
    scores = (generator.normal(size=truth.shape) + truth).round(1)
    chosen = scores > 0.6
    truth[1], chosen[1] = 0, False
    truth[generator.random(truth.shape) < missing] = np.nan
    if missing:
        truth[2] = np.nan
    return scores, chosen, truth


CASES = [(seed, missing) for seed in range(5) for missing in (0.0, 0.3)]


@pytest.mark.parametrize(("seed", "missing"), CASES)
def test_average_precision_is_that_of_scikit_learn_over_the_known_cells(seed: int, missing: float) -> None:
    scores, _, truth = some_answers(seed, missing=missing)
    precisions = metrics.average_precisions(scores, truth)
    for label in range(1, LABELS):
        known = ~np.isnan(truth[:, label])
        expected = average_precision_score(truth[known, label], scores[known, label])
        assert precisions[label] == pytest.approx(expected, abs=1e-12)


def test_a_label_without_a_positive_has_no_average_precision_and_is_left_out_of_the_mean() -> None:
    scores, chosen, truth = some_answers(0)
    precisions = metrics.average_precisions(scores, truth)
    assert np.isnan(precisions).tolist() == [True] + [False] * (LABELS - 1)
    expected = average_precision_score(truth[:, 1:], scores[:, 1:], average="macro")
    assert metrics.label_metrics(scores, chosen, truth)["map"] == pytest.approx(expected, abs=1e-12)


def test_samples_of_equal_scores_are_ranked_together_in_any_order() -> None:
    """Half of the four are positive, however they are sorted."""
    for truth in ([1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]):
        assert metrics.average_precisions(np.zeros((4, 1)), np.array(truth, float)[:, None]).tolist() == [0.5]


@pytest.mark.parametrize("seed", range(5))
def test_f1_and_subset_accuracy_are_those_of_scikit_learn(seed: int) -> None:
    scores, chosen, truth = some_answers(seed)
    assert metrics.label_metrics(scores, chosen, truth) == pytest.approx(
        {
            "map": average_precision_score(truth[:, 1:], scores[:, 1:], average="macro"),
            "f1_micro": f1_score(truth, chosen, average="micro"),
            "f1_macro": f1_score(truth, chosen, average="macro", zero_division=np.nan),
            "f1_samples": f1_score(truth, chosen, average="samples", zero_division=1.0),
            "subset_accuracy": accuracy_score(truth, chosen),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("seed", range(5))
def test_missing_cells_count_nowhere(seed: int) -> None:
    scores, chosen, truth = some_answers(seed, missing=0.3)
    known = ~np.isnan(truth)
    by_label = [f1_score(truth[one, k], chosen[one, k], zero_division=np.nan) for k, one in enumerate(known.T)]
    rows = [(truth[row, one], chosen[row, one]) for row, one in enumerate(known) if one.any()]
    computed = metrics.label_metrics(scores, chosen, truth)
    assert len(rows) < len(truth)
    assert computed["f1_micro"] == pytest.approx(f1_score(truth[known], chosen[known]))
    assert computed["f1_macro"] == pytest.approx(np.nanmean(by_label))
    assert computed["f1_samples"] == pytest.approx(np.mean([f1_score(*row, zero_division=1.0) for row in rows]))
    assert computed["subset_accuracy"] == pytest.approx(np.mean([(true == named).all() for true, named in rows]))


def test_a_sample_without_any_known_cell_changes_nothing() -> None:
    scores, chosen, truth = some_answers(1, missing=0.3)
    known = ~np.isnan(truth).all(1)
    assert not known.all()
    with_it, without = (
        metrics.label_metrics(scores[rows], chosen[rows], truth[rows]) for rows in (np.ones_like(known), known)
    )
    assert with_it == pytest.approx(without, abs=1e-12)


def test_a_label_that_is_neither_there_nor_chosen_is_left_out_of_the_macro_f1_alone() -> None:
    truth = np.array([[1.0, 0.0], [0.0, 0.0]])
    chosen = np.array([[True, False], [True, False]])
    computed = metrics.label_metrics(chosen.astype(float), chosen, truth)
    assert computed["f1_macro"] == computed["f1_micro"] == pytest.approx(2 / 3)


def test_the_f1_of_a_sample_is_one_without_labels_and_nan_if_nothing_is_known() -> None:
    truth = np.array([[0, 0], [0, 0], [np.nan, np.nan], [1, 1], [1, np.nan]])
    chosen = np.array([[False, False], [True, False], [True, True], [True, False], [True, True]])
    assert metrics.sample_f1(chosen, truth) == pytest.approx([1, 0, math.nan, 2 / 3, 1], nan_ok=True)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_mean_f1_of_the_samples_is_the_metric(missing: float) -> None:
    scores, chosen, truth = some_answers(2, missing=missing)
    computed = metrics.label_metrics(scores, chosen, truth)
    assert computed["f1_samples"] == pytest.approx(np.nanmean(metrics.sample_f1(chosen, truth)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_without_any_label_no_metric_fails(value: float) -> None:
    truth = np.full((3, 2), value)
    computed = metrics.label_metrics(np.zeros((3, 2)), np.zeros((3, 2), bool), truth)
    right = 1.0 if value == 0 else 0.0
    assert computed == {"map": 0, "f1_micro": 0, "f1_macro": 0, "f1_samples": right, "subset_accuracy": right}


@pytest.mark.parametrize("name", NAMES)
def test_one_metric_alone_has_the_same_value(name: str) -> None:
    answers = some_answers(3, missing=0.3)
    assert metrics.label_metrics(*answers, only=name) == {name: metrics.label_metrics(*answers)[name]}


def test_a_name_that_is_no_metric_computes_nothing() -> None:
    assert metrics.label_metrics(*some_answers(3), only="loss") == {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("samples", "missing"), [(60, 0.0), (60, 0.3), (12, 0.3), (5, 0.5)])
def test_intervals_are_those_of_a_bootstrap_that_computes_each_draw_anew(
    samples: int, missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws of few samples may lack a label, or even all known cells."""
    monkeypatch.setattr(intervals, "RESAMPLES", 150)
    scores, chosen, truth = some_answers(4, samples=samples, missing=missing)

    def anew(name: str) -> tuple[float, float]:
        return intervals.bootstrap_interval(
            samples, lambda rows: metrics.label_metrics(scores[rows], chosen[rows], truth[rows], name)[name]
        )

    computed = metrics.label_intervals(scores, chosen, truth)
    assert tuple(computed) == NAMES
    for name, interval in computed.items():
        assert interval == pytest.approx(anew(name), abs=1e-6)


def test_a_label_that_a_draw_lacks_is_left_out_of_it() -> None:
    """A third of the draws lack the only sample that has the second label."""
    truth = np.array([[1.0, 1], [1, 0], [1, 0], [0, 0]])
    assert metrics.label_intervals(truth, truth == 1, truth)["map"] == (1, 1)


def test_intervals_do_not_depend_on_how_many_draws_and_labels_are_handled_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = some_answers(5, missing=0.1)
    computed = metrics.label_intervals(*answers)
    monkeypatch.setattr(metrics, "WEIGHTS_AT_ONCE", 60 * 13)
    monkeypatch.setattr(metrics, "LABELS_AT_ONCE", 4)
    in_parts = metrics.label_intervals(*answers)
    for name in NAMES:
        assert in_parts[name] == pytest.approx(computed[name], abs=1e-6)


def test_large_data_have_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, chosen, truth = some_answers(6)
    asked = draws_asked_for(monkeypatch, metrics, lambda: metrics.label_intervals(scores, chosen, truth), truth.size)
    assert asked == [1000, 500, 200]


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_rows_of_labels_are_those_of_scikit_learn(missing: float) -> None:
    scores, chosen, truth = some_answers(7, missing=missing)
    names, thresholds = [f"label {k}" for k in range(LABELS)], np.linspace(0.1, 0.6, LABELS)
    rows = metrics.label_rows(names, scores, chosen, truth, thresholds)
    assert [row["label"] for row in rows] == names
    assert [row["threshold"] for row in rows] == thresholds.tolist()
    for label, row in enumerate(rows):
        known = ~np.isnan(truth[:, label])
        expected = precision_recall_fscore_support(
            truth[known, label], chosen[known, label], average="binary", zero_division=0.0
        )[:3]
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(list(expected), abs=1e-12)
        assert row["samples"] == (truth[:, label] == 1).sum()
    assert rows[0]["average_precision"] is None
    assert [row["average_precision"] for row in rows[1:]] == metrics.average_precisions(scores, truth)[1:].tolist()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
