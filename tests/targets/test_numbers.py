"""Numbers: loss, folding, metrics, intervals and answers against independent computations."""

from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor, nn
from torch.nn.functional import huber_loss
from transformers import BertConfig

from hf_transfer.errors import UserError
from hf_transfer.evaluation.results import judged
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.table import target_of_model, write_settings
from hf_transfer.targets.target import LabelColumns, LossOptions

NAN = float("nan")
VALUES = np.array([[1e9 + 1, 2.0], [1e9 + 3, NAN], [1e9 + 8, 5.0], [1e9 + 4, -1.0]])
TARGET = Numbers(("height", "width")).fitted(VALUES)
COUNTED = torch.tensor([True, True, True, False])
Floats = npt.NDArray[np.float64]


def some_outputs(rows: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))


def some_samples(rows: int = 120) -> tuple[Numbers, Tensor, Floats]:
    """A target, standardised outputs, and true values in large units."""
    generator = np.random.default_rng(0)
    values = generator.normal([2_000, -3], [15, 0.01], (rows, 2))
    target = Numbers(("year", "shift")).fitted(values)
    outputs = (values - values.mean(0)) / values.std(0) * 0.8 + generator.normal(0, 0.4, values.shape)
    return target, torch.from_numpy(outputs).float(), values


def standardised() -> Any:
    return (VALUES - np.nanmean(VALUES, 0)) / np.nanstd(VALUES, 0)


@pytest.mark.parametrize("kind", ["", "mse", "huber"])
def test_the_loss_is_that_of_the_standardised_numbers_that_are_known(kind: str) -> None:
    sums = TARGET.loss(some_outputs(), torch.from_numpy(VALUES), COUNTED, LossOptions(kind=kind))
    errors = (some_outputs().double().numpy() - standardised())[:3]
    errors = errors[~np.isnan(errors)]
    losses = (
        huber_loss(torch.from_numpy(errors), torch.zeros(5), reduction="none").numpy() if kind == "huber" else errors**2
    )
    assert sums.total.item() == pytest.approx(losses.sum(), rel=1e-5)
    assert sums.weight.item() == 5


def test_neither_masked_samples_nor_unknown_cells_have_a_gradient() -> None:
    outputs = some_outputs().requires_grad_()
    TARGET.loss(outputs, torch.from_numpy(VALUES), COUNTED, LossOptions()).total.backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert torch.equal(outputs.grad != 0, COUNTED[:, None] & ~torch.from_numpy(VALUES).isnan())


def test_mean_and_scale_folded_into_a_layer_make_it_answer_in_the_users_units() -> None:
    target, _, values = some_samples()
    layer = nn.Linear(7, 2)
    inputs = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    before = layer(inputs).detach().double().numpy()
    target.finish([layer])
    expected = before * values.std(0) + values.mean(0)
    assert layer(inputs).detach().numpy() == pytest.approx(expected, rel=1e-5)


def test_a_layer_without_a_bias_gets_the_scale_alone() -> None:
    """The scale is then the root of the mean square, and nothing is centred."""
    target, _, values = some_samples()
    scaled = target.for_head(has_bias=False)
    assert (scaled.mean, target.for_head(has_bias=True)) == ((0.0, 0.0), target)
    assert scaled.scale == pytest.approx(np.sqrt((values**2).mean(0)))
    layer = nn.Linear(3, 2, bias=False)
    weight = layer.weight.detach().clone()
    scaled.finish([layer])
    assert torch.allclose(layer.weight, weight * torch.tensor(scaled.scale)[:, None])


def test_a_model_in_training_and_the_finished_one_have_the_same_metrics() -> None:
    target, outputs, values = some_samples()
    config = BertConfig()
    write_settings(config, target)
    finished = target_of_model(BertConfig.from_dict(config.to_dict()))
    scale, mean = (torch.tensor(values, dtype=torch.float64) for values in (target.scale, target.mean))
    units = outputs.double() * scale + mean
    assert finished.evaluate(units, values) == pytest.approx(target.evaluate(outputs, values), rel=1e-9)
    assert finished.names == ["year", "shift"]


def test_the_metrics_are_those_of_scikit_learn_and_scipy() -> None:
    target, outputs, values = some_samples()
    predicted = outputs.double().numpy() * values.std(0) + values.mean(0)
    metrics = target.evaluate(outputs, values)
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(values, predicted))
    assert metrics["mae"] == pytest.approx(mean_absolute_error(values, predicted))
    assert metrics["r2"] == pytest.approx(r2_score(values, predicted))
    for name, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
        expected = np.mean([correlation(values[:, place], predicted[:, place])[0] for place in (0, 1)])
        assert metrics[name] == pytest.approx(expected)
    assert metrics.keys() == {*(one.name for one in target.metrics), "loss"}
    assert target.evaluate(outputs, values, "r2").keys() == {"r2", "loss"}
    expected = -np.abs(predicted - values).mean(1)
    assert target.sample_scores(outputs, values) == pytest.approx(expected)


def test_the_baseline_is_the_mean_of_training() -> None:
    target, _, values = some_samples()
    name, metrics = judged(target.constant(values[:80]), values[80:])
    mean = np.broadcast_to(values[:80].mean(0), (40, 2))
    assert name == "always the mean"
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(values[80:], mean))
    assert metrics["r2"] == pytest.approx(r2_score(values[80:], mean))
    assert (metrics["pearson"], metrics["spearman"]) == (0, 0)


def test_intervals_of_predictions_hold_nine_of_ten_held_out_samples_and_are_saved() -> None:
    target, outputs, values = some_samples(400)
    calibrated = target.calibrated(outputs[:200], values[:200])
    errors = np.abs(target.predicted(outputs) - values)
    assert [(errors[:200, place] <= calibrated.half_widths[place]).mean() for place in (0, 1)] == pytest.approx(
        [0.905, 0.905]
    )
    config: Any = BertConfig.from_dict({"thresholds": [0.5]})
    write_settings(config, calibrated)
    assert config.prediction_interval == {
        "coverage": 0.9, "half_widths": list(calibrated.half_widths), "samples": 200,
    }  # fmt: skip
    assert not hasattr(config, "thresholds")
    finished = target_of_model(config)
    assert isinstance(finished, Numbers)
    (decision,) = finished.decisions(torch.tensor([[1_990.0, -3.0]]))
    low, high = decision["intervals"]["year"]
    assert (low, high) == pytest.approx((1_990 - finished.half_widths[0], 1_990 + finished.half_widths[0]))
    tables, _ = finished.details(torch.from_numpy(target.predicted(outputs[200:])), values[200:])
    covered = {row["output"]: row["covered"] for row in tables[-1].rows}
    expected = {name: (errors[200:, place] <= finished.half_widths[place]).mean() for place, name in enumerate(covered)}
    assert covered == pytest.approx(expected)


def test_too_few_held_out_samples_make_no_interval() -> None:
    target, outputs, values = some_samples(8)
    calibrated = target.calibrated(outputs, values)
    assert calibrated.half_widths == ()
    assert "too few" in calibrated.describe_calibration(8)[0]
    assert calibrated.decisions(outputs) == [{}] * 8


def test_answers_are_the_numbers_themselves() -> None:
    finished = Numbers(("height", "width"), in_units=True)
    assert finished.answers(torch.tensor([[1.5, -2.0]]), 1) == [[("height", 1.5), ("width", -2.0)]]
    assert finished.shown(np.array([1.23456, NAN])) == "1.235, nan"
    assert finished.truth(np.array([1.5, NAN])) == [1.5, None]


def values(**splits: list[float]) -> dict[str, Any]:
    return {name: np.asarray(rows, dtype=np.float64)[:, None] for name, rows in splits.items()}


ONE = Numbers(("height",))


@pytest.mark.parametrize(
    ("given", "expected", "found"),
    [
        (values(train=[2.5, 2.5, 2.5]), "different numbers in column 'height'", "2.5 in each training row"),
        (values(train=[1.0, 2.0, 3.0]), "at least 6 training samples", "3"),
    ],
)
def test_numbers_that_cannot_be_learned_are_refused(given: Any, expected: str, found: str) -> None:
    with pytest.raises(UserError) as error:
        ONE.check(given, splits_to_cut=2 if "at least" in expected else 0)
    first, second, _ = str(error.value).splitlines()
    assert expected in first
    assert found in second


def test_the_range_and_what_a_split_lacks_are_reported() -> None:
    notes = ONE.notes(values(train=list(range(100)), validation=[1, 30, 60, 90], test=[3, 5, 30, 200]))
    assert notes == [
        "height: from 0 to 99 in training, mean 49.5.",
        "height: 1 in test are outside of the range of training.",
        "height: in test no value is between 49.5 and 74.25, as a quarter of training is.",
        "height: in test no value is between 74.25 and 99, as a quarter of training is.",
    ]


def test_quantile_bins_are_strata_and_each_split_gets_its_share_of_every_bin() -> None:
    numbers = np.exp(np.random.default_rng(0).normal(size=(200, 1)))
    strata = ONE.strata(numbers)
    assert np.bincount(strata).tolist() == [20] * 10
    assert [numbers[strata == bin_].max() for bin_ in range(9)] < [
        numbers[strata == bin_].min() for bin_ in range(1, 10)
    ]
    cut = ONE.cut(numbers, 0.15, np.random.default_rng(0))
    assert np.bincount(strata[cut]).tolist() == [3] * 10
    assert len({*ONE.strata(np.full((30, 1), 2.5)).tolist()}) == 1


def test_a_finished_model_reads_numbers_by_its_own_names() -> None:
    """One column is enough; of the other number nothing is known."""
    rows = datasets.Dataset.from_dict({"height": [1.0, 2.0], "width": [3.0, 4.0]})
    outputs = ("width", "height")
    assert Numbers.read({"test": rows}, LabelColumns(("height", "width"), outputs=outputs))[1]["test"].tolist() == [
        [3.0, 1.0], [4.0, 2.0]
    ]  # fmt: skip
    read, values = Numbers.read({"test": rows}, LabelColumns(("height",), outputs=outputs))
    assert read.names == ["width", "height"]
    np.testing.assert_array_equal(values["test"], [[np.nan, 1.0], [np.nan, 2.0]])
    with pytest.raises(UserError, match="the model does not have 'weight'"):
        Numbers.read({"test": rows}, LabelColumns(("height", "weight"), outputs=outputs))


@pytest.mark.parametrize(
    ("column", "found"), [([np.nan] * 4, "no number in training"), ([np.nan, 7, 7, 7], "7 in each")]
)
def test_a_column_without_different_numbers_in_what_is_left_for_training_is_refused(column: Any, found: str) -> None:
    """Before the split the others had some: without this, its outputs would be NaN."""
    values = np.stack([np.arange(4.0), np.asarray(column, dtype=np.float64)], axis=1)
    with pytest.raises(UserError, match=f"column 'width'.*\n.*{found}.*\n.*name splits of your own"):
        Numbers(("height", "width")).fitted(values)
