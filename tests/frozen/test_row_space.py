"""Few samples with many features: they are solved in fewer coordinates, and the solutions are the same."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from hf_transfer.frozen import row_space
from hf_transfer.frozen.label_classifier import LabelProblem
from hf_transfer.frozen.linear_classifier import LinearProblem
from hf_transfer.frozen.regularisation_path import REGULARISATIONS, RegularisationPath
from hf_transfer.frozen.row_space import RowSpace
from hf_transfer.frozen.standardised import Blocks, Standardised

FEW = (1.0, 1e-2)
OUTPUTS = 3
PROBLEMS = [
    pytest.param(LinearProblem, id="logistic"),
    pytest.param(partial(LinearProblem, loss="svm"), id="squared hinge"),
    pytest.param(LabelProblem, id="labels"),
]
MakeProblem = Callable[..., RegularisationPath]


def blocks_of(features: Tensor, problem: MakeProblem = LinearProblem, size: int = 16) -> Blocks:
    """Samples of three classes or, for labels, of as many labels, one for each class."""
    classes = torch.arange(len(features)) % OUTPUTS
    targets = torch.nn.functional.one_hot(classes, OUTPUTS).float() if problem is LabelProblem else classes

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(features.split(size), targets.split(size), strict=True)

    return blocks


def samples(count: int = 50, features: int = 200) -> Tensor:
    """Classes that overlap; features of different spreads, far from zero, one constant; and two equal samples."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(OUTPUTS, features, generator=generator) / 5
    made = centres[torch.arange(count) % OUTPUTS] + torch.randn(count, features, generator=generator)
    made = made * torch.linspace(0.1, 3, features) + 1
    made[:, 0] = 7
    made[OUTPUTS] = made[0]
    return made


def standardised(features: Tensor, *, centred: bool = True) -> Standardised:
    return Standardised(blocks_of(features), centred=centred, see=lambda _: None, prepare=lambda targets: targets)


def joined(rows: Standardised | RowSpace, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat([block.clone() for block, _ in rows.passes(dtype)])


def without_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_space, "ROTATED_BYTES", 0)


@pytest.mark.parametrize("centred", [True, False])
def test_coordinates_have_the_products_of_the_samples_and_their_blocks(centred: bool) -> None:
    given = standardised(samples(), centred=centred)
    rows = RowSpace(given)
    assert rows.width == rows.samples == 50
    full, short = joined(given), joined(rows)
    assert short.shape == (50, 50)
    assert torch.allclose(short @ short.T, full @ full.T, rtol=1e-12, atol=1e-9)
    assert torch.equal(joined(rows, torch.float32), short.float())
    for (block, targets), (_, expected) in zip(rows.passes(torch.float32), given.passes(torch.float32), strict=True):
        assert len(block) == len(targets)
        assert torch.equal(targets, expected)


@pytest.mark.parametrize("count", [50, 150])
def test_weights_for_coordinates_and_for_features_give_the_same_scores(count: int) -> None:
    features = samples(count)
    rows = RowSpace(standardised(features))
    assert (rows.width == 200) == (count == 150), "samples are not rotated where there are many"
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUTPUTS, rows.width, generator=generator, dtype=torch.float64)
    bias = torch.randn(OUTPUTS, generator=generator, dtype=torch.float64)
    of_features, of_bias = rows.original(weight, bias)
    assert torch.allclose(features.double() @ of_features.T + of_bias, joined(rows) @ weight.T + bias, atol=1e-9)
    spread = features.double().std(0, correction=0)
    spread[0] = 1
    assert (of_features * spread).square().sum().item() == pytest.approx(weight.square().sum().item())


@pytest.mark.parametrize(("count", "features"), [(50, 200), (50, 60), (150, 20)])
def test_uncorrelated_coordinates_have_diagonal_products(count: int, features: int) -> None:
    given = standardised(samples(count, features))
    rows = RowSpace(given, uncorrelated=True)
    assert rows.width == min(count, features), "as few coordinates as there can be"
    values, vectors = rows.spectrum()
    assert vectors is None
    full, short = joined(given), joined(rows)
    assert torch.allclose(short.T @ short / count, values.diag(), rtol=0, atol=1e-10)
    assert torch.allclose(short @ short.T, full @ full.T, rtol=1e-12, atol=1e-9)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUTPUTS, rows.width, generator=generator, dtype=torch.float64)
    of_features, bias = rows.original(weight, torch.zeros(OUTPUTS, dtype=torch.float64))
    raw = samples(count, features).double()
    assert torch.allclose(raw @ of_features.T + bias, short @ weight.T, atol=1e-9)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_solutions_are_those_without_a_rotation(
    problem: MakeProblem, intercept: bool, balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = samples()
    blocks = blocks_of(features, problem)
    solve = partial(problem, blocks, OUTPUTS, intercept=intercept, balanced=balanced)
    rotated = list(solve().path(FEW))
    without_rotation(monkeypatch)
    for solution, expected in zip(rotated, solve().path(FEW), strict=True):
        assert len(solution.point) == OUTPUTS * 51
        assert len(expected.point) == OUTPUTS * 201
        assert solution.weight.shape == expected.weight.shape == (OUTPUTS, 200)
        probabilities, others = (
            (features.double() @ one.weight.T + one.bias).softmax(1) for one in (solution, expected)
        )
        assert torch.allclose(probabilities, others, rtol=0, atol=1e-3)
        assert solution.loss == pytest.approx(expected.loss, abs=1e-4)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_rough_solutions_choose_what_they_choose_without_a_rotation(
    problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, new = samples(), samples(90)[50:].double()
    blocks = blocks_of(features, problem)

    def answers() -> Sequence[Tensor]:
        path = problem(blocks, OUTPUTS, intercept=True).path(REGULARISATIONS[:9], rough=True)
        return [(new @ solution.weight.T + solution.bias).softmax(1) for solution in path]

    rotated = answers()
    without_rotation(monkeypatch)
    for one, other in zip(rotated, answers(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=0.02)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_larger_samples_are_not_rotated(problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_space, "ROTATED_BYTES", 8 * 50 * 200 - 1)
    (solution,) = problem(blocks_of(samples(), problem), OUTPUTS, intercept=True).path([1e-2])
    assert len(solution.point) == OUTPUTS * 201


def test_rotated_samples_are_read_three_times() -> None:
    passes = 0
    blocks = blocks_of(samples())

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal passes
        passes += 1
        return blocks()

    problem = LinearProblem(counted, OUTPUTS, intercept=True)
    problem.sharpened(list(problem.path(FEW, rough=True))[-1])
    assert passes == 3
