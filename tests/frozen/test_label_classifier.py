"""Several labels: the solver against one problem of scikit-learn for each label."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from hf_transfer.frozen import label_classifier, row_space, standardised
from hf_transfer.frozen.label_classifier import LabelProblem
from hf_transfer.frozen.standardised import Solution

Floats = npt.NDArray[np.float64]
FEW = (1.0, 1e-2, 1e-4)


@dataclass(frozen=True)
class Samples:
    """Features with different spreads, and cells of labels; a call returns them block by block.

    Attributes:
        features: float32 [samples, features].
        cells: 1, 0 or NaN, float32 [samples, labels].
        size: of the blocks.
    """

    features: npt.NDArray[np.float32]
    cells: npt.NDArray[np.float32]
    size: int = 64

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.cells), self.size):
            rows = slice(start, start + self.size)
            yield torch.from_numpy(self.features[rows]), torch.from_numpy(self.cells[rows])

    def problem(self, *, intercept: bool = True, balanced: bool = False) -> LabelProblem:
        return LabelProblem(self, self.cells.shape[1], intercept=intercept, balanced=balanced)

    def path(self, regularisations: Sequence[float] = FEW, **more: Any) -> list[Solution]:
        return list(self.problem(**more).path(regularisations))

    def probabilities(self, solution: Solution) -> Floats:
        scores = self.features.astype(np.float64) @ solution.weight.numpy().T + solution.bias.numpy()
        return np.asarray(expit(scores))


def samples(
    count: int = 150, *, shares: Sequence[float] = (0.5, 0.3, 0.05, 0.9), features: int = 10, missing: float = 0.0,
    seed: int = 0,
) -> Samples:  # fmt: skip
    """Labels that depend on the features, each with its share of positives."""
    generator = np.random.default_rng(seed)
    given = generator.normal(size=(count, features)) * np.linspace(0.2, 3, features) + generator.normal(size=features)
    scores = given @ generator.normal(size=(features, len(shares))) / 3 + generator.normal(size=(count, len(shares)))
    limits = [np.quantile(column, 1 - share) for column, share in zip(scores.T, shares, strict=True)]
    cells = (scores > limits).astype(np.float32)
    cells[generator.random(cells.shape) < missing] = np.nan
    return Samples(given.astype(np.float32), cells)


@dataclass(frozen=True)
class Reference:
    """Scikit-learn's weight and bias of one label, for standardised features, and its probabilities."""

    weight: Floats
    bias: float
    probabilities: Floats


def spread_of(given: Samples) -> Floats:
    spread = given.features.astype(np.float64).std(0)
    return np.where(spread < 1e-6 * spread.max(), 1.0, spread)


def reference(given: Samples, label: int, regularisation: float, *, intercept: bool, balanced: bool) -> Reference:
    """One binary problem, by Newton's method, of the samples whose cell is known."""
    features = given.features.astype(np.float64)
    standard = (features - features.mean(0) * intercept) / spread_of(given)
    cells = given.cells[:, label]
    known = ~np.isnan(cells)
    weight = min(20.0, (cells == 0).sum() / (cells == 1).sum()) if balanced else 1.0
    model = LogisticRegression(
        C=1 / (regularisation * len(cells)), solver="newton-cholesky", tol=1e-12, max_iter=1000,
        fit_intercept=intercept, class_weight={0: 1.0, 1: weight},
    ).fit(standard[known], cells[known])  # fmt: skip
    return Reference(model.coef_[0], float(np.ravel(model.intercept_)[0]), model.predict_proba(standard)[:, 1])


@pytest.mark.parametrize(
    ("given", "intercept", "balanced"),
    [
        pytest.param(samples(), True, False, id="plain"),
        pytest.param(samples(), True, True, id="balanced"),
        pytest.param(samples(), False, False, id="no intercept"),
        pytest.param(samples(), False, True, id="no intercept, balanced"),
        pytest.param(samples(missing=0.3), True, False, id="missing cells"),
        pytest.param(samples(missing=0.3), True, True, id="missing cells, balanced"),
        pytest.param(samples(60, features=90), True, False, id="fewer samples than features"),
        pytest.param(samples(60, features=90), False, True, id="fewer samples than features, no intercept"),
        pytest.param(samples(60, features=150), True, False, id="many more features"),
        pytest.param(
            samples(60, shares=(0.5, 0.3), features=150, missing=0.3),
            False,
            True,
            id="many more features, missing cells",
        ),
        pytest.param(samples(600, shares=np.linspace(0.02, 0.98, 30).tolist(), features=20), True, False, id="thirty"),
        pytest.param(samples(shares=(0.4,)), True, False, id="a single label"),
    ],
)
def test_each_label_is_a_binary_problem_of_scikit_learn(given: Samples, intercept: bool, balanced: bool) -> None:
    for solution in given.path(intercept=intercept, balanced=balanced):
        probabilities = given.probabilities(solution)
        weight = solution.weight.numpy() * spread_of(given)
        for label in range(given.cells.shape[1]):
            expected = reference(given, label, solution.regularisation, intercept=intercept, balanced=balanced)
            assert weight[label] == pytest.approx(expected.weight, abs=1e-6)
            assert probabilities[:, label] == pytest.approx(expected.probabilities, abs=1e-6)
        assert intercept or solution.bias.abs().max() == 0.0


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_loss_is_the_mean_over_known_cells(missing: float) -> None:
    given = samples(missing=missing)
    known = ~np.isnan(given.cells)
    for solution in given.path():
        expected = log_loss(given.cells[known], given.probabilities(solution)[known])
        assert solution.loss == pytest.approx(expected, abs=1e-9)


def test_a_label_without_positives_or_without_negatives_has_its_odds() -> None:
    """With half a cell added to each side; the other labels are as without it."""
    given = samples()
    cells = given.cells.copy()
    cells[:, 1], cells[:, 2] = 0, 1
    cells[:10, 1], cells[:10, 2] = np.nan, np.nan
    for balanced in (False, True):
        pairs = zip(replace(given, cells=cells).path(balanced=balanced), given.path(balanced=balanced), strict=True)
        for solution, plain in pairs:
            assert solution.bias[1:3].tolist() == pytest.approx([np.log(0.5 / 140.5), np.log(140.5 / 0.5)])
            assert solution.weight[1:3].abs().max() == 0.0
            assert torch.allclose(solution.weight[[0, 3]], plain.weight[[0, 3]], rtol=0, atol=1e-6)
            known = ~np.isnan(cells)
            expected = log_loss(cells[known], replace(given, cells=cells).probabilities(solution)[known])
            assert solution.loss == pytest.approx(expected, abs=1e-9)


def test_without_an_intercept_such_a_label_is_even() -> None:
    given = samples()
    given.cells[:, 1] = 0
    for solution in given.path(intercept=False):
        assert solution.bias.tolist() == [0.0] * 4
        assert solution.weight[1].abs().max() == 0.0


def test_a_label_of_which_nothing_is_known_is_even() -> None:
    given = samples()
    given.cells[:, 2] = np.nan
    for solution in given.path():
        assert (given.probabilities(solution)[:, 2] == 0.5).all()


def test_labels_do_not_depend_on_each_other() -> None:
    given = samples()
    for label in range(4):
        alone = replace(given, cells=given.cells[:, [label]]).path()
        for solution, together in zip(alone, given.path(), strict=True):
            assert torch.allclose(solution.weight[0], together.weight[label], rtol=0, atol=1e-6)


def test_features_far_from_zero_and_constant_features_do_no_harm() -> None:
    near = samples()
    constants = np.broadcast_to(np.asarray([0.0, 1e4, -0.1, 1e-8], dtype=np.float32), (150, 4))
    far = replace(near, features=np.concatenate([near.features + np.float32(1e4), constants], axis=1))
    for solution in far.path():
        weight = solution.weight.numpy() * spread_of(far)
        expected = reference(far, 0, solution.regularisation, intercept=True, balanced=False)
        assert weight[0] == pytest.approx(expected.weight, abs=1e-6)
        assert solution.weight[:, -4:].abs().max() < 1e-6


def test_where_eigenvectors_would_take_too_long_the_solution_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = samples().path((1.0, 1e-2))
    monkeypatch.setattr(label_classifier, "LARGEST_RANK", 3)
    for solution, scaled in zip(samples().path((1.0, 1e-2)), expected, strict=True):
        assert torch.allclose(solution.weight, scaled.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [3, 149, 10_000])
@pytest.mark.parametrize("at_once", [4_096, 16])
def test_samples_in_any_blocks_have_the_same_solution(size: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = samples(missing=0.1).path()
    monkeypatch.setattr(standardised, "BLOCK_SAMPLES", at_once)
    for solution, expected in zip(replace(samples(missing=0.1), size=size).path(), whole, strict=True):
        assert torch.allclose(solution.weight, expected.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("features", [10, 200])
def test_features_that_are_not_kept_in_memory_give_the_same_bit_for_bit(
    features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = samples(features=features).path()
    monkeypatch.setattr(standardised, "KEPT_BYTES", 0)
    for solution, expected in zip(samples(features=features).path(), kept, strict=True):
        assert torch.equal(solution.weight, expected.weight)
        assert torch.equal(solution.bias, expected.bias)


@pytest.mark.parametrize("features", [10, 200])
def test_samples_that_are_too_large_to_be_rotated_have_the_same_solution(
    features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated = samples(features=features).path()
    monkeypatch.setattr(row_space, "ROTATED_BYTES", 0)
    for solution, expected in zip(samples(features=features).path(), rotated, strict=True):
        assert torch.allclose(solution.weight, expected.weight, rtol=0, atol=1e-6)
        assert torch.allclose(solution.bias, expected.bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
def test_rough_solutions_are_close_and_can_be_sharpened(balanced: bool) -> None:
    given = samples(400, missing=0.1)
    problem = given.problem(balanced=balanced)
    for rough in problem.path(rough=True):
        sharp = problem.sharpened(rough)
        assert sharp.regularisation == rough.regularisation
        assert rough.loss == pytest.approx(sharp.loss, abs=1e-4)
        assert given.probabilities(rough) == pytest.approx(given.probabilities(sharp), abs=1e-2)


def test_a_solution_for_other_samples_has_the_same_regularisation() -> None:
    """Also if one of its labels has no positives there."""
    given, other = samples(400), samples(400, seed=1)
    other.cells[:, 2] = 0
    (start,) = given.path([1e-2])
    (expected,) = other.path([1e-2])
    solution = other.problem().near(start)
    assert solution.regularisation == 1e-2
    assert other.probabilities(solution) == pytest.approx(other.probabilities(expected), abs=1e-2)
    assert solution.weight[2].abs().max() == 0.0


def test_separable_labels_end_without_a_warning() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 60)).astype(np.float32)
    given = Samples(features, (features[:, :3] > 0).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [solution.loss for solution in given.problem().path(rough=True)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-3
