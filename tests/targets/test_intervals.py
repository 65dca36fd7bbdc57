"""Intervals of metrics against a formula, a published example, and scipy's bootstrap."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from hf_transfer.targets.classes import macro_f1
from hf_transfer.targets.intervals import (
    bootstrap_interval,
    bootstrap_intervals,
    mean_and_error,
    paired_interval,
    wilson_interval,
)

# The 97.5 % quantile of the normal distribution.
Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 10), (81, 263), (9999, 10_000)]
)
def test_the_wilson_interval_is_that_of_the_formula(successes: int, trials: int) -> None:
    share = successes / trials
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    assert wilson_interval(successes, trials) == pytest.approx((middle - half, middle + half), abs=1e-9)


def test_the_wilson_interval_is_that_of_a_published_example() -> None:
    """Newcombe (1998): 81 of 263."""
    assert [round(bound, 4) for bound in wilson_interval(81, 263)] == [0.2553, 0.3662]


@pytest.mark.parametrize(("classes", "rows"), [(2, 40), (5, 300)])
def test_the_interval_of_the_macro_f1_is_a_bootstraps(classes: int, rows: int) -> None:
    """That of scipy, which draws other rows; ours draws the same in every run."""
    generator = np.random.default_rng(3)
    true = generator.integers(0, classes, rows)
    predicted = np.where(generator.random(rows) < 0.7, true, generator.integers(0, classes, rows))

    def by_scikit_learn(chosen: np.ndarray[Any, np.dtype[np.int64]]) -> float:
        return float(f1_score(true[chosen], predicted[chosen], average="macro"))

    expected = bootstrap(
        (np.arange(rows),), by_scikit_learn, n_resamples=1000, vectorized=False, method="percentile", rng=generator
    ).confidence_interval  # fmt: skip

    def ours() -> tuple[float, float]:
        return bootstrap_interval(rows, lambda chosen: macro_f1(true[chosen], predicted[chosen], classes))

    low, high = ours()
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert low < f1_score(true, predicted, average="macro") < high
    assert ours() == (low, high)


def test_the_bootstrap_draws_as_many_rows_as_there_are_with_repetitions() -> None:
    drawn: list[list[int]] = []

    def metric(chosen: np.ndarray[Any, np.dtype[np.int64]]) -> float:
        drawn.append(chosen.tolist())
        return float(chosen.mean())

    bootstrap_interval(10, metric)
    assert len(drawn) == 1000
    assert {len(rows) for rows in drawn} == {10}
    assert {row for rows in drawn for row in rows} == set(range(10))
    assert np.mean([len(set(rows)) for rows in drawn]) == pytest.approx(10 * (1 - 0.9**10), abs=0.2)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_several_metrics_have_the_same_draws_as_one(at_once: int) -> None:
    values = np.random.default_rng(1).normal(size=20)
    intervals = bootstrap_intervals(
        20,
        lambda weights: {"mean": values @ weights / 20, "largest": np.where(weights > 0, values[:, None], -9).max(0)},
        resamples=1000,
        at_once=at_once,
    )
    assert intervals["mean"] == pytest.approx(bootstrap_interval(20, lambda rows: float(values[rows].mean())))
    assert intervals["largest"] == bootstrap_interval(20, lambda rows: float(values[rows].max()))


def test_draws_without_a_value_are_left_out_of_an_interval() -> None:
    intervals = bootstrap_intervals(
        5,
        lambda weights: {
            "share": np.where(weights[0] > 0, weights[1], np.nan),
            "none": np.full(weights.shape[1], np.nan),
        },
        resamples=200,
        at_once=200,
    )
    assert 0 <= intervals["share"][0] < intervals["share"][1]
    assert np.isnan(intervals["none"]).all()


def two_models(size: int, gain: float) -> tuple[Any, Any]:
    """Scores of the same samples, most of which are equal; the first model is right more often by about `gain`."""
    generator = np.random.default_rng(5)
    second = (generator.random(size) < 0.6).astype(float)
    return np.where(generator.random(size) < gain, 1.0, second), second


@pytest.mark.parametrize("gain", [0.0, 0.05, 0.5])
def test_the_interval_of_a_difference_is_that_of_scipy_for_paired_samples(gain: float) -> None:
    first, second = two_models(300, gain)
    expected = bootstrap(
        (first, second), lambda one, other, axis: one.mean(axis) - other.mean(axis), paired=True,
        method="percentile", n_resamples=20_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert paired_interval(first, second, np.arange(300)) == pytest.approx(tuple(expected), abs=0.006)


def test_a_model_and_itself_differ_by_nothing() -> None:
    first, _ = two_models(50, 0.2)
    assert paired_interval(first, first, np.arange(50)) == (0.0, 0.0)


def test_copies_of_samples_make_no_difference_surer() -> None:
    first, second = two_models(60, 0.3)
    once = paired_interval(first, second, np.arange(60))
    four_times = np.tile(first, 4), np.tile(second, 4)
    assert paired_interval(*four_times, np.tile(np.arange(60), 4)) == pytest.approx(once)
    low, high = paired_interval(*four_times, np.arange(240))
    assert high - low < 0.7 * (once[1] - once[0])


def test_the_error_of_a_mean_is_that_of_its_independent_units() -> None:
    scores, _ = two_models(60, 0.3)
    mean, error = mean_and_error(scores, np.arange(60))
    assert (mean, error) == pytest.approx((scores.mean(), scores.std(ddof=1) / math.sqrt(60)))
    assert mean_and_error(np.tile(scores, 4), np.tile(np.arange(60), 4)) == pytest.approx((mean, error))
    assert math.isnan(mean_and_error(scores, np.zeros(60, dtype=int))[1])


def test_the_error_of_units_of_different_sizes_is_how_much_the_mean_varies() -> None:
    """Simulated: the same draw of units again and again."""
    generator = np.random.default_rng(3)

    def draw() -> tuple[Any, Any]:
        sizes = generator.integers(1, 6, 80)
        units = np.repeat(np.arange(80), sizes)
        return generator.normal(size=80)[units] + 0.3 * generator.normal(size=len(units)), units

    means, errors = np.transpose([mean_and_error(*draw()) for _ in range(400)])
    assert errors.mean() == pytest.approx(means.std(), rel=0.1)
