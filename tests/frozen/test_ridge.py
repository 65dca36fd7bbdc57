"""Ridge regression against scikit-learn, and its left-out outputs against one refit for each sample."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from hf_transfer.frozen import ridge, standardised
from hf_transfer.frozen.ridge import RidgeProblem
from hf_transfer.frozen.standardised import Solution
from tests.frozen.mapped_features import megabytes_of_more_samples, print_largest

Floats = npt.NDArray[np.float64]
FEW = (10.0, 1e-2, 1e-4)


@dataclass(frozen=True)
class Samples:
    """Features of all copies of some samples, and their numbers; a call returns them block by block, copy by copy.

    Attributes:
        features: float32 [copies, samples, features].
        numbers: float64 [samples, outputs], NaN where one is not known.
        size: of the blocks, which also hold samples of two copies.
    """

    features: npt.NDArray[np.float32]
    numbers: Floats
    size: int = 7

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        features, numbers = self.all_features, np.tile(self.numbers, (self.copies, 1))
        for start in range(0, len(numbers), self.size):
            rows = slice(start, start + self.size)
            yield torch.from_numpy(features[rows]), torch.from_numpy(numbers[rows])

    @property
    def copies(self) -> int:
        return len(self.features)

    @property
    def all_features(self) -> npt.NDArray[np.float32]:
        return self.features.reshape(-1, self.features.shape[2])

    def path(self, regularisations: Sequence[float] = FEW, *, intercept: bool = True) -> list[Solution]:
        problem = RidgeProblem(self, self.numbers.shape[1], intercept=intercept, copies=self.copies)
        return list(problem.path(regularisations))

    def outputs(self, solution: Solution) -> Floats:
        """For the first copy of each sample."""
        return np.asarray(self.features[0].astype(np.float64) @ solution.weight.numpy().T + solution.bias.numpy())


def samples(
    count: int = 25, *, features: int = 6, outputs: int = 2, copies: int = 1, missing: float = 0.0, offset: float = 0.0
) -> Samples:
    """Numbers that depend on the features, and copies with other noise in the features."""
    generator = np.random.default_rng(0)
    plain = generator.normal(size=(count, features)) * np.linspace(0.2, 3, features)
    changes = generator.normal(size=(copies, count, features)) / 3 * (np.arange(copies) > 0)[:, None, None]
    numbers = plain @ generator.normal(size=(features, outputs)) / 2 + generator.normal(size=(count, outputs))
    numbers[generator.random(numbers.shape) < missing] = np.nan
    return Samples((plain + changes + offset).astype(np.float32), numbers)


@dataclass(frozen=True)
class Reference:
    """Scikit-learn's solution for one output, of the samples for which it is known."""

    given: Samples
    output: int
    intercept: bool

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        return ~np.isnan(self.given.numbers[:, self.output])

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Of the features of all copies."""
        return np.tile(self.known, self.given.copies).nonzero()[0]

    @property
    def spread(self) -> Floats:
        spread = self.given.all_features[self.rows].astype(np.float64).std(0)
        return np.where(spread <= 1e-6 * spread.max(), 1.0, spread)

    def fitted(self, regularisation: float, without: int | None = None) -> tuple[Floats, Floats, float]:
        """Outputs for the first copies, without a sample and all its copies; weight, and loss of all samples.

        The penalty is that of all samples beside the sum of the squared errors.
        """
        count = len(self.given.numbers)
        rows = self.rows if without is None else self.rows[self.rows % count != without]
        features = self.given.all_features.astype(np.float64) / self.spread
        numbers = np.tile(self.given.numbers[:, self.output], self.given.copies)
        model = Ridge(alpha=regularisation * len(self.rows), fit_intercept=self.intercept, solver="svd")
        model.fit(features[rows], numbers[rows])
        errors = model.predict(features[rows]) - numbers[rows]
        return model.predict(features[:count]), model.coef_ / self.spread, float(np.square(errors).mean())


CASES = [
    pytest.param(samples(), id="plain"),
    pytest.param(samples(outputs=1), id="one output"),
    pytest.param(samples(copies=3), id="three copies"),
    pytest.param(samples(features=60), id="fewer samples than features"),
    pytest.param(samples(features=60, copies=2), id="two copies, still fewer than features"),
    pytest.param(samples(missing=0.3), id="missing cells"),
    pytest.param(samples(missing=0.3, copies=2, outputs=3), id="missing cells, two copies"),
    pytest.param(samples(missing=0.3, features=60), id="missing cells, fewer samples than features"),
    pytest.param(samples(offset=10.0), id="features with an offset"),
]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("given", CASES)
def test_the_solution_is_scikit_learns(given: Samples, intercept: bool) -> None:
    for solution in given.path(intercept=intercept):
        losses = []
        for output in range(given.numbers.shape[1]):
            reference = Reference(given, output, intercept)
            outputs, weight, loss = reference.fitted(solution.regularisation)
            assert given.outputs(solution)[:, output] == pytest.approx(outputs, abs=1e-8)
            assert solution.weight[output].numpy() == pytest.approx(weight, abs=1e-8)
            losses += [loss] * int(reference.known.sum())
        assert solution.loss == pytest.approx(np.mean(losses), abs=1e-8)
        assert intercept or solution.bias.abs().max() == 0.0


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("given", CASES)
def test_a_left_out_output_is_that_of_a_refit_without_the_sample(given: Samples, intercept: bool) -> None:
    """And without all its copies; where the number is not known, the solution has not seen the sample anyway."""
    for solution in given.path(intercept=intercept):
        assert solution.held_out is not None
        for output in range(given.numbers.shape[1]):
            reference = Reference(given, output, intercept)
            refits = [
                reference.fitted(solution.regularisation, without=sample)[0][sample]
                for sample in range(len(given.numbers))
            ]
            assert solution.held_out[:, output].numpy() == pytest.approx(np.asarray(refits), abs=1e-8)
            unknown = ~reference.known
            assert solution.held_out[unknown, output].numpy() == pytest.approx(
                given.outputs(solution)[unknown, output], abs=1e-8
            )


def check_outputs(solution: Solution, given: Samples, intercept: bool, *, tolerance: float) -> None:
    """The first output is scikit-learn's, and left-out outputs are those of refits."""
    assert solution.held_out is not None
    reference = Reference(given, 0, intercept)
    expected, *_ = reference.fitted(solution.regularisation)
    assert given.outputs(solution)[:, 0] == pytest.approx(expected, abs=tolerance)
    for sample in range(len(given.numbers)):
        refit = reference.fitted(solution.regularisation, without=sample)[0][sample]
        assert solution.held_out[sample, 0].item() == pytest.approx(refit, abs=tolerance)


def test_features_far_from_zero_do_no_harm() -> None:
    given = samples(offset=1e4, copies=2)
    for solution in given.path():
        check_outputs(solution, given, True, tolerance=1e-8)


def degenerate() -> Samples:
    """A copy of a feature, the sum of two others, and constants."""
    given = samples(copies=2)
    first, second, third = (given.features[:, :, [column]] for column in range(3))
    constants = np.broadcast_to(np.asarray([0.0, 1e4, -0.1], dtype=np.float32), (2, 25, 3))
    return replace(given, features=np.concatenate([given.features, first, second + third, constants], axis=2))


@pytest.mark.parametrize("intercept", [True, False])
def test_dependent_and_constant_features_do_no_harm(intercept: bool) -> None:
    given = degenerate()
    for solution in given.path(intercept=intercept):
        check_outputs(solution, given, intercept, tolerance=1e-7)
        assert not intercept or solution.weight[:, -3:].abs().max() < 1e-9


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize(("size", "part", "held_out_bytes"), [(1, 4, 1), (7, 1_024, 500), (1_000, 9, 1 << 30)])
def test_samples_in_any_blocks_have_the_same_solution(
    missing: float, size: int, part: int, held_out_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if left-out outputs are computed for one regularisation at a time."""
    given = samples(copies=2, missing=missing)
    expected = given.path(ridge.REGULARISATIONS)
    monkeypatch.setattr(ridge, "PART_SAMPLES", part)
    monkeypatch.setattr(ridge, "HELD_OUT_BYTES", held_out_bytes)
    for solution, other in zip(replace(given, size=size).path(ridge.REGULARISATIONS), expected, strict=True):
        assert solution.held_out is not None
        assert other.held_out is not None
        assert torch.allclose(solution.weight, other.weight, rtol=0, atol=1e-9)
        assert torch.allclose(solution.held_out, other.held_out, rtol=0, atol=1e-9)
        assert solution.regularisation == other.regularisation


def test_features_that_are_not_kept_in_memory_give_the_same_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (samples(missing=0.3), samples(features=60, copies=2)):
        kept = given.path()
        with monkeypatch.context() as context:
            context.setattr(standardised, "KEPT_BYTES", 0)
            for solution, expected in zip(given.path(), kept, strict=True):
                assert torch.equal(solution.weight, expected.weight)


def test_the_path_leads_from_the_mean_to_the_least_squares() -> None:
    given = samples(40)
    path = given.path(ridge.REGULARISATIONS)
    assert [solution.loss for solution in path] == sorted((solution.loss for solution in path), reverse=True)
    assert path[0].loss == pytest.approx(given.numbers.var(0).mean(), rel=0.01)
    features = np.c_[given.features[0].astype(np.float64), np.ones(40)]
    least, *_ = np.linalg.lstsq(features, given.numbers, rcond=None)
    assert given.outputs(path[-1]) == pytest.approx(features @ least, abs=1e-4)


def test_a_solution_is_exact_already() -> None:
    given = samples()
    problem = RidgeProblem(given, 2, intercept=True)
    (solution,) = problem.path([1e-2], rough=True)
    assert problem.sharpened(solution) is solution
    assert torch.equal(problem.near(solution).weight, solution.weight)
    assert problem.near(solution).held_out is None


@pytest.mark.parametrize("intercept", [True, False])
def test_without_the_only_sample_the_output_is_zero(intercept: bool) -> None:
    for solution in samples(1, copies=2).path(intercept=intercept):
        assert solution.held_out is not None
        assert solution.held_out.tolist() == [[0.0, 0.0]]
        assert bool(solution.weight.isfinite().all())


def test_an_output_that_is_never_known_is_zero() -> None:
    given = samples()
    given.numbers[:, 1] = np.nan
    for solution in given.path():
        assert solution.held_out is not None
        assert given.outputs(solution)[:, 1].tolist() == solution.held_out[:, 1].tolist() == [0.0] * 25
        assert given.outputs(solution)[:, 0] == pytest.approx(
            Reference(given, 0, True).fitted(solution.regularisation)[0], abs=1e-8
        )


def solve_mapped(path: str) -> None:
    """In a separate process: see `print_largest`."""
    print_largest(
        path,
        lambda samples: torch.arange(samples, dtype=torch.float64)[:, None] % 3,
        lambda blocks: list(RidgeProblem(blocks, 1, intercept=True).path([1e-2])),
    )


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    assert megabytes_of_more_samples(__name__, tmp_path) < 4


def test_balancing_changes_nothing() -> None:
    given = samples()
    more: list[dict[str, Any]] = [{}, {"balanced": True}]
    first, second = (next(RidgeProblem(given, 2, intercept=True, **one).path([1e-2])) for one in more)
    assert torch.equal(first.weight, second.weight)
