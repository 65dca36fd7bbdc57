"""The solver against scikit-learn, and against itself with other blocks of the same samples."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor

from hf_transfer.frozen import regularisation_path, standardised
from hf_transfer.frozen.linear_classifier import LinearProblem
from hf_transfer.frozen.regularisation_path import REGULARISATIONS
from hf_transfer.frozen.standardised import Solution
from tests.frozen.mapped_features import megabytes_of_more_samples, print_largest

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
FEW = (1.0, 1e-2, 1e-4)


@dataclass
class Samples:
    """Features with different spreads, and overlapping classes; a call returns them block by block.

    Attributes:
        features: float32 [samples, features].
        labels: class numbers [samples].
        classes: the number of classes, including those without samples.
        sizes: of the blocks, in turn.
        passes: the number of calls.
    """

    features: npt.NDArray[np.float32]
    labels: Counts
    classes: int
    sizes: Sequence[int] = (64,)
    passes: int = 0

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        start, turn = 0, 0
        while start < len(self.labels):
            end = start + self.sizes[turn % len(self.sizes)]
            yield torch.from_numpy(self.features[start:end]), torch.from_numpy(self.labels[start:end])
            start, turn = end, turn + 1

    def path(self, regularisations: Sequence[float] = FEW, *, intercept: bool = True, **more: Any) -> list[Solution]:
        return list(LinearProblem(self, self.classes, intercept=intercept, **more).path(regularisations))


def samples(
    count: int = 150, *, classes: int = 4, present: Sequence[int] | None = None, features: int = 10, seed: int = 0
) -> Samples:
    generator = np.random.default_rng(seed)
    labels = np.asarray(present or range(classes))[generator.integers(0, len(present or range(classes)), count)]
    centres = generator.normal(size=(classes, features)) / 2
    noise = generator.normal(size=(count, features)) * np.linspace(0.2, 3, features)
    return Samples((centres[labels] + noise).astype(np.float32), labels, classes)


@dataclass(frozen=True)
class Problem:
    """The same problem, written out: features are standardised, and classes with samples are numbered."""

    given: Samples
    intercept: bool = True
    balanced: bool = False

    @property
    def raw(self) -> Floats:
        return self.given.features.astype(np.float64)

    @property
    def spread(self) -> Floats:
        spread = self.raw.std(0)
        return np.where(spread < 1e-6 * spread.max(), 1.0, spread)

    @property
    def centre(self) -> Floats:
        return np.asarray(self.raw.mean(0) * self.intercept)

    @property
    def seen(self) -> Floats:
        return np.asarray((self.raw - self.centre) / self.spread)

    @property
    def present(self) -> Counts:
        return np.unique(self.given.labels)

    @property
    def numbers(self) -> Counts:
        return np.searchsorted(self.present, self.given.labels)

    @property
    def importance(self) -> Floats:
        counts = np.bincount(self.numbers)
        each = len(self.numbers) / (len(counts) * counts) if self.balanced else np.ones(len(counts))
        return np.asarray(each[self.numbers], dtype=np.float64)

    def standard(self, solution: Solution) -> tuple[Floats, Floats]:
        """Weight and bias for standardised features, of the classes with samples."""
        weight, bias = solution.weight.numpy()[self.present], solution.bias.numpy()[self.present]
        return weight * self.spread, bias + weight @ self.centre

    def cross_entropies(self, weight: Floats, bias: Floats) -> Floats:
        logarithms = torch.log_softmax(torch.from_numpy(self.seen @ weight.T + bias), 1).numpy()
        return np.asarray(-logarithms[np.arange(len(self.numbers)), self.numbers])

    def hinges(self, weight: Floats, bias: Floats) -> Floats:
        signs = np.where(np.arange(len(weight)) == self.numbers[:, None], 1.0, -1.0)
        return np.asarray((np.maximum(0.0, 1.0 - signs * (self.seen @ weight.T + bias)) ** 2).sum(1))

    def objective(self, losses: Floats, weight: Floats, regularisation: float) -> float:
        return float((losses * self.importance).mean() + regularisation / 2 * np.square(weight).sum())

    def logistic(self, regularisation: float) -> tuple[Floats, Floats]:
        """Scikit-learn's solution, by Newton's method."""
        # Of two classes it takes the difference, whose square is twice the sum of the squares of both.
        scale = 2.0 if len(self.present) == 2 else 1.0
        model = LogisticRegression(
            C=scale / (regularisation * len(self.numbers)), solver="newton-cg", tol=1e-10, max_iter=5000,
            fit_intercept=self.intercept, class_weight="balanced" if self.balanced else None,
        ).fit(self.seen, self.numbers)  # fmt: skip
        weight, bias = np.asarray(model.coef_), np.broadcast_to(model.intercept_, len(model.coef_))
        if len(weight) == 1:
            return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return weight, bias

    def svm(self, regularisation: float) -> tuple[Floats, Floats]:
        """Scikit-learn's solution, one class against the rest."""
        model = LinearSVC(
            loss="squared_hinge", dual=False, C=1 / (regularisation * len(self.numbers)), tol=1e-9, max_iter=100_000,
            # It penalises the intercept, too: the large scale makes this penalty a millionth.
            fit_intercept=self.intercept, intercept_scaling=1e3,
        ).fit(self.seen, self.numbers, sample_weight=self.importance)  # fmt: skip
        return model.coef_, np.broadcast_to(model.intercept_, len(model.coef_))


@pytest.mark.parametrize(
    ("given", "intercept", "balanced"),
    [
        pytest.param(samples(classes=2), True, False, id="two classes"),
        pytest.param(samples(600, classes=30, features=20), True, False, id="thirty classes"),
        pytest.param(samples(), True, True, id="balanced"),
        pytest.param(samples(classes=2, present=(0, 0, 0, 1)), True, True, id="two classes balanced"),
        pytest.param(samples(), False, False, id="no intercept"),
        pytest.param(samples(), False, True, id="no intercept, balanced"),
        pytest.param(samples(classes=7, present=(1, 3, 4)), True, False, id="absent classes"),
        pytest.param(samples(classes=7, present=(2, 2, 2, 5)), True, True, id="two of seven classes, balanced"),
        pytest.param(samples(40, features=60), True, False, id="fewer samples than features"),
        pytest.param(samples(40, features=150), True, False, id="many more features"),
        pytest.param(samples(40, features=150), False, True, id="many more features, no intercept, balanced"),
    ],
)
def test_the_minimum_is_scikit_learns(given: Samples, intercept: bool, balanced: bool) -> None:
    problem = Problem(given, intercept, balanced)
    for solution in given.path(intercept=intercept, balanced=balanced):
        ours, theirs = problem.standard(solution), problem.logistic(solution.regularisation)
        losses, expected = problem.cross_entropies(*ours), problem.cross_entropies(*theirs)
        assert losses.mean() == pytest.approx(solution.loss, abs=1e-9)
        assert losses.mean() == pytest.approx(expected.mean(), abs=1e-3)
        assert problem.objective(losses, ours[0], solution.regularisation) == pytest.approx(
            problem.objective(expected, theirs[0], solution.regularisation), abs=2e-6
        )


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("classes", "present"), [(2, (0, 1)), (4, (0, 1, 2, 3)), (7, (1, 3, 4))])
def test_a_support_vector_machine_is_scikit_learns(
    classes: int, present: Sequence[int], intercept: bool, balanced: bool
) -> None:
    given = samples(classes=classes, present=present)
    problem = Problem(given, intercept, balanced)
    for solution in given.path(intercept=intercept, balanced=balanced, loss="svm"):
        ours, theirs = problem.standard(solution), problem.svm(solution.regularisation)
        if len(present) == 2:
            # Of two classes scikit-learn has one row: the row of the other class is its negative.
            theirs = np.concatenate([-theirs[0], theirs[0]]), np.concatenate([-theirs[1], theirs[1]])
        assert problem.objective(problem.hinges(*ours), ours[0], solution.regularisation) == pytest.approx(
            problem.objective(problem.hinges(*theirs), theirs[0], solution.regularisation), abs=2e-6
        )
        assert ours[0] == pytest.approx(theirs[0], abs=5e-3)
        assert problem.cross_entropies(*ours).mean() == pytest.approx(solution.loss, abs=1e-9)


@pytest.mark.parametrize("loss", ["logistic", "svm"])
def test_a_class_that_training_lacks_never_wins(loss: str) -> None:
    given = samples(classes=7, present=(1, 3, 4))
    for solution in given.path(loss=loss):
        scores = torch.from_numpy(given.features).double() @ solution.weight.T + solution.bias
        assert set(scores.argmax(1).tolist()) <= {1, 3, 4}
        assert scores.softmax(1)[:, [0, 2, 5, 6]].max() < 1e-6


@pytest.mark.parametrize("loss", ["logistic", "svm"])
def test_a_class_that_training_lacks_never_wins_without_an_intercept(loss: str) -> None:
    given = samples(classes=7, present=(1, 3, 4))
    for solution in given.path(intercept=False, loss=loss):
        scores = torch.from_numpy(given.features).double() @ solution.weight.T
        assert set(scores.argmax(1).tolist()) <= {1, 3, 4}
        assert solution.bias.tolist() == [0.0] * 7


def test_a_single_class_can_be_solved() -> None:
    (solution,) = samples(classes=3, present=(1,)).path([1e-2])
    assert solution.loss == solution.weight.abs().max().item() == 0.0
    assert solution.bias.tolist() == [-30.0, 0.0, -30.0]


@pytest.mark.parametrize("balanced", [False, True])
def test_a_strong_penalty_of_the_weights_takes_few_passes(balanced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The biases, which it leaves free, are found as fast as the weights."""
    monkeypatch.setattr(standardised, "KEPT_BYTES", 0)
    given = samples(300, classes=6, present=(0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5))
    problem = LinearProblem(given, 6, intercept=True, balanced=balanced)
    given.passes = 0
    list(problem.path([100.0]))
    assert given.passes <= 12


def test_features_far_from_zero_and_constant_features_do_no_harm() -> None:
    """Squares of large numbers would lose their digits, and a constant feature has no information."""
    near = samples()
    # The constants are separate columns: float32 would lose the digits of a sum with 1e4.
    far = Samples(near.features + np.float32(1e4), near.labels, near.classes)
    constants = np.asarray([0.0, 1e4, -0.1, 1e-8], dtype=np.float32)
    far.features = np.concatenate([far.features, np.broadcast_to(constants, (len(far.labels), 4))], axis=1)
    problem = Problem(far)
    for solution in far.path():
        ours, theirs = problem.standard(solution), problem.logistic(solution.regularisation)
        assert problem.objective(problem.cross_entropies(*ours), ours[0], solution.regularisation) == pytest.approx(
            problem.objective(problem.cross_entropies(*theirs), theirs[0], solution.regularisation), abs=2e-6
        )
        assert solution.weight[:, -4:].abs().max() < 1e-6


def test_constant_features_give_the_frequencies_of_the_classes() -> None:
    given = samples()
    given.features = np.full_like(given.features, 1e4)
    frequencies = torch.bincount(torch.from_numpy(given.labels)) / len(given.labels)
    for solution in given.path():
        scores = torch.from_numpy(given.features[:1]).double() @ solution.weight.T + solution.bias
        assert scores.softmax(1)[0].tolist() == pytest.approx(frequencies.tolist(), abs=1e-3)


@pytest.mark.parametrize("sizes", [(7, 64, 1), (3,), (149,), (10_000,)], ids=str)
@pytest.mark.parametrize("at_once", [4_096, 16])
def test_samples_in_any_blocks_have_the_same_solution(
    sizes: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = samples().path()
    given = samples()
    given.sizes = sizes
    monkeypatch.setattr(standardised, "BLOCK_SAMPLES", at_once)
    for solution, expected in zip(given.path(), whole, strict=True):
        assert solution.loss == pytest.approx(expected.loss, abs=1e-6)
        assert torch.allclose(solution.weight, expected.weight, rtol=0, atol=1e-3)


def test_a_block_without_samples_changes_nothing() -> None:
    """For example, because all its samples are masked."""
    given = samples()

    def with_gaps() -> Iterator[tuple[Tensor, Tensor]]:
        for features, labels in given():
            yield features[:0], labels[:0]
            yield features, labels

    solutions = LinearProblem(with_gaps, 4, intercept=True).path(FEW)
    for solution, expected in zip(solutions, given.path(), strict=True):
        assert torch.equal(solution.weight, expected.weight)


def test_features_that_are_not_kept_in_memory_give_the_same_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, streamed = samples(), samples()
    solutions = kept.path()
    monkeypatch.setattr(standardised, "KEPT_BYTES", 0)
    for solution, expected in zip(streamed.path(), solutions, strict=True):
        assert torch.equal(solution.weight, expected.weight)
        assert torch.equal(solution.bias, expected.bias)
        assert solution.loss == expected.loss
    # Two passes for means and spreads, and one to keep the features.
    assert kept.passes == 3
    assert streamed.passes > 20


@pytest.mark.parametrize("loss", ["logistic", "svm"])
def test_a_path_ends_where_a_cold_start_does(loss: str) -> None:
    for solution in samples().path(loss=loss):
        (cold,) = samples().path([solution.regularisation], loss=loss)
        assert solution.loss == pytest.approx(cold.loss, abs=1e-4)
        assert solution.regularisation == cold.regularisation


def test_the_path_leads_from_strong_to_weak_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [solution.loss for solution in samples().path(REGULARISATIONS)]
    assert losses == sorted(losses, reverse=True)
    assert list(REGULARISATIONS) == pytest.approx([10.0 ** (1 - half / 2) for half in range(15)])


def solve_mapped(path: str) -> None:
    """In a separate process: see `print_largest`."""
    regularisation_path.MAX_ITERATIONS = 1
    print_largest(
        path,
        lambda samples: torch.arange(samples) % 3,
        lambda blocks: list(LinearProblem(blocks, 3, intercept=True).path([1e-2])),
    )


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    assert megabytes_of_more_samples(__name__, tmp_path) < 4
