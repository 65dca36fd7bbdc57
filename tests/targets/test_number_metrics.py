"""Metrics of numbers against scikit-learn and scipy, and intervals against a bootstrap and exact distributions."""

import json
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import beta, kstest, pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from hf_transfer.targets import intervals
from hf_transfer.targets import number_metrics as metrics
from tests.targets.bootstraps import draws_asked_for

Floats = npt.NDArray[np.float64]
NAMES = ("rmse", "mae", "r2", "pearson", "spearman")
INDEPENDENT: dict[str, Callable[[Floats, Floats], float]] = {
    "rmse": root_mean_squared_error,
    "mae": mean_absolute_error,
    "r2": r2_score,
    "pearson": lambda truth, predicted: float(pearsonr(truth, predicted).statistic),
    "spearman": lambda truth, predicted: float(spearmanr(truth, predicted).statistic),
}


def some_numbers(seed: int, samples: int = 50, outputs: int = 3, missing: float = 0.0) -> tuple[Floats, Floats]:
    """Predicted and true numbers with ties, in eighths, which stay exact when 1e14 is added."""
    generator = np.random.default_rng(seed)
    truth = (8 * generator.normal(size=(samples, outputs))).round() / 8
    predicted = ((truth + generator.normal(size=truth.shape)) * 8).round() / 8
    truth[generator.random(truth.shape) < missing] = np.nan
    return predicted, truth


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_the_mean_over_outputs_of_those_of_scikit_learn_and_scipy(seed: int, missing: float) -> None:
    predicted, truth = some_numbers(seed, missing=missing)
    computed = metrics.number_metrics(predicted, truth)
    assert tuple(computed) == NAMES
    for name, independent in INDEPENDENT.items():
        known = [~np.isnan(column) for column in truth.T]
        of_outputs = [independent(truth[rows, one], predicted[rows, one]) for one, rows in enumerate(known)]
        assert computed[name] == pytest.approx(np.mean(of_outputs), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_metric_alone_has_the_same_value(name: str) -> None:
    numbers = some_numbers(1, missing=0.2)
    assert metrics.number_metrics(*numbers, only=name) == {name: metrics.number_metrics(*numbers)[name]}


def test_a_name_that_is_no_metric_computes_nothing() -> None:
    assert metrics.number_metrics(*some_numbers(1), only="loss") == {}


def test_an_output_without_a_known_number_is_left_out() -> None:
    predicted, truth = some_numbers(2)
    expected = metrics.number_metrics(predicted[:, :2], truth[:, :2])
    truth[:, 2] = np.nan
    assert metrics.number_metrics(predicted, truth) == expected


@pytest.mark.filterwarnings("error")
def test_without_any_known_number_metrics_and_intervals_are_nan() -> None:
    predicted, truth = np.zeros((4, 2)), np.full((4, 2), np.nan)
    assert metrics.number_metrics(predicted, truth) == pytest.approx(dict.fromkeys(NAMES, math.nan), nan_ok=True)
    for interval in metrics.number_intervals(predicted, truth).values():
        assert np.isnan(interval).all()


@pytest.mark.parametrize("far_away", [1e9, 1e14])
def test_numbers_far_from_zero_lose_no_digits(far_away: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 150)
    predicted, truth = some_numbers(3, missing=0.4)
    near, far = (metrics.number_metrics(predicted + offset, truth + offset) for offset in (0, far_away))
    assert far == pytest.approx(near, rel=1e-12)
    intervals_near, intervals_far = (
        metrics.number_intervals(predicted + offset, truth + offset) for offset in (0, far_away)
    )
    for name in NAMES:
        assert intervals_far[name] == pytest.approx(intervals_near[name], rel=1e-12)


def test_a_number_that_dwarfs_all_others_costs_no_digits_of_the_draws_without_it() -> None:
    """A third of the draws lack it, and their correlations are 1 as those of all others."""
    truth = np.append(np.arange(40.0), 1e13)[:, None]
    for name, interval in metrics.number_intervals(2 * truth, truth).items():
        if name in ("pearson", "spearman"):
            assert interval == pytest.approx((1, 1), abs=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.1, 1e9 + 0.1])
@pytest.mark.parametrize("constant", ["predicted", "truth", "both"])
def test_a_constant_side_has_no_correlation(value: float, constant: str) -> None:
    """The mean of 0.1 is not always 0.1 in floating point."""
    predicted, truth = some_numbers(4, samples=49, outputs=1)
    if constant != "truth":
        predicted[:] = value
    if constant != "predicted":
        truth[:] = value
    computed = metrics.number_metrics(predicted, truth)
    assert computed["pearson"] == computed["spearman"] == 0
    assert computed["rmse"] == pytest.approx(root_mean_squared_error(truth, predicted))
    if constant != "predicted":
        assert computed["r2"] == (1 if constant == "both" else 0)
    for name in ("pearson", "spearman"):
        assert metrics.number_intervals(predicted, truth)[name] == (0, 0)


@pytest.mark.parametrize("predicted", [[2.0, 2.0, 2.0], [2.0, 2.0, 3.0]])
def test_r2_of_a_constant_truth_is_that_of_scikit_learn(predicted: list[float]) -> None:
    truth = np.full((3, 1), 2.0)
    computed = metrics.number_metrics(np.array(predicted)[:, None], truth, only="r2")
    assert computed["r2"] == r2_score(truth[:, 0], predicted)


def test_one_sample_has_metrics() -> None:
    expected = {"rmse": 2, "mae": 2, "r2": 0, "pearson": 0, "spearman": 0}
    assert metrics.number_metrics(np.array([[3.0]]), np.array([[1.0]])) == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("samples", "missing"), [(50, 0.0), (50, 0.4), (4, 0.0), (6, 0.7)])
def test_intervals_are_those_of_a_bootstrap_that_computes_each_draw_anew(
    samples: int, missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws of few samples may lack an output, or have one sample alone again and again."""
    monkeypatch.setattr(intervals, "RESAMPLES", 150)
    predicted, truth = some_numbers(5, samples=samples, missing=missing)

    def anew(name: str) -> tuple[float, float]:
        return intervals.bootstrap_interval(
            samples, lambda rows: metrics.number_metrics(predicted[rows], truth[rows], name)[name]
        )

    computed = metrics.number_intervals(predicted, truth)
    assert tuple(computed) == NAMES
    for name, interval in computed.items():
        assert interval == pytest.approx(anew(name), abs=1e-9)


@pytest.mark.parametrize("at_once", [1, 13])
def test_intervals_do_not_depend_on_how_many_draws_are_handled_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 150)
    numbers = some_numbers(6, missing=0.1)
    computed = metrics.number_intervals(*numbers)
    monkeypatch.setattr(metrics, "WEIGHTS_AT_ONCE", 50 * at_once)
    in_parts = metrics.number_intervals(*numbers)
    for name in NAMES:
        assert in_parts[name] == pytest.approx(computed[name], abs=1e-12)


def test_large_data_have_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, truth = some_numbers(6)
    asked = draws_asked_for(monkeypatch, metrics, lambda: metrics.number_intervals(predicted, truth), truth.size)
    assert asked == [1000, 500, 200]


def test_the_rows_of_outputs_have_their_metrics_and_fit_into_json() -> None:
    predicted, truth = some_numbers(7, missing=0.3)
    truth[:, 1] = np.nan
    rows = metrics.number_rows(["height", "width", "depth"], predicted, truth)
    assert [row["output"] for row in rows] == ["height", "width", "depth"]
    assert [row["samples"] for row in rows] == (~np.isnan(truth)).sum(0).tolist()
    assert [rows[1][name] for name in NAMES] == [None] * len(NAMES)
    for output in (0, 2):
        known = ~np.isnan(truth[:, output])
        expected = {
            name: independent(truth[known, output], predicted[known, output])
            for name, independent in INDEPENDENT.items()
        }
        assert {name: rows[output][name] for name in NAMES} == pytest.approx(expected, abs=1e-12)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


@pytest.mark.parametrize("coverage", [0.5, 0.55, 0.8, 0.9, 0.95])
def test_half_widths_are_the_smallest_errors_that_enough_samples_stay_within(coverage: float) -> None:
    """Enough: the wanted share of one more sample than there are; without such an error there is no interval."""
    for samples in range(1, 60):
        errors = np.random.default_rng(samples).normal(size=samples)
        enough = Fraction(str(coverage)) * (samples + 1)
        within = [error for error in abs(errors) if (abs(errors) <= error).sum() >= enough]
        widths = metrics.interval_half_widths(errors[:, None], np.zeros((samples, 1)), coverage)
        assert widths == ([min(within)] if within else None)


@pytest.mark.parametrize(("samples", "enough"), [(8, False), (9, True)])
def test_nine_samples_are_the_fewest_for_ninety_percent(samples: int, enough: bool) -> None:
    errors = np.arange(samples, dtype=float)[:, None]
    widths = metrics.interval_half_widths(errors, np.zeros_like(errors), 0.9)
    assert widths == ([samples - 1] if enough else None)


def test_each_output_has_its_half_width_from_its_known_numbers() -> None:
    predicted, truth = np.zeros((30, 2)), np.tile(np.arange(30.0)[:, None], (1, 2))
    truth[19:, 1] = np.nan
    assert metrics.interval_half_widths(predicted, -truth, 0.9) == [27, 17]
    truth[8:, 1] = np.nan
    assert metrics.interval_half_widths(predicted, -truth, 0.9) is None


def test_the_coverage_of_new_samples_has_the_distribution_of_split_conformal_prediction() -> None:
    """With errors from 0 to 1 the probability to stay within a half width is the half width itself.

    It is the 46th smallest of 50 draws, so its distribution is Beta(46, 5), whose mean is above 90 %.
    """
    generator = np.random.default_rng(0)
    widths = []
    for _ in range(2000):
        errors = generator.uniform(-1, 1, size=(50, 1))
        widths += metrics.interval_half_widths(errors, np.zeros((50, 1)), 0.9) or []
    assert len(widths) == 2000
    assert kstest(widths, beta(46, 5).cdf).pvalue > 0.01
    assert 0.9 <= np.mean(widths) <= 0.9 + 1 / 51 + 0.002


def test_interval_coverage_is_the_share_of_known_numbers_inside() -> None:
    predicted, truth = np.array([[0.0, 0], [0, 0], [0, 0]]), np.array([[1.0, 1], [2, np.nan], [3, -4]])
    assert metrics.interval_coverage(predicted, truth, [2, 2]) == 3 / 5
    assert math.isnan(metrics.interval_coverage(predicted, truth * np.nan, [2, 2]))


def test_the_samples_that_intervals_are_made_from_are_covered_as_often_as_promised() -> None:
    predicted, truth = some_numbers(8, samples=99, outputs=2)
    widths = metrics.interval_half_widths(predicted, truth, 0.9)
    assert widths is not None
    assert metrics.interval_coverage(predicted, truth, widths) >= 90 / 99
