"""Scores of features without a head, next to other computations of the same."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import KNeighborsClassifier

from hf_transfer.frozen.transferability import Evidence, Spectrum, h_score, log_evidence, neighbour_means

Floats = npt.NDArray[np.float64]
CLASSES = 4


def samples(size: int, width: int, *, seed: int = 0, signal: float = 1.0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Features in which classes have different means, and whose spreads and origin differ; and the class numbers."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, size)
    features = generator.normal(size=(size, width)) + signal * generator.normal(size=(CLASSES, width))[labels]
    return features * generator.uniform(0.2, 3, width) + generator.normal(size=width), labels


def indicators(labels: npt.NDArray[np.int64]) -> Floats:
    """1 for the class of each sample, and 0 for the others."""
    return np.eye(CLASSES)[labels]


def evidence_of(features: Floats, output: Floats) -> Evidence:
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    return Evidence(left.T @ output, singular**2, features.shape, float(output @ output))


def density(features: Floats, output: Floats, alpha: float, beta: float) -> float:
    """The logarithm of the density of the outputs, from their covariance matrix."""
    covariance = np.eye(len(output)) / beta + features @ features.T / alpha
    return float(multivariate_normal(np.zeros(len(output)), covariance).logpdf(output))


SHAPES = pytest.mark.parametrize(("size", "width"), [(60, 8), (12, 30)])


@SHAPES
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.3, 20.0), (50.0, 0.5)])
def test_the_evidence_is_the_density_of_a_gaussian(size: int, width: int, alpha: float, beta: float) -> None:
    features, labels = samples(size, width)
    output = indicators(labels)[:, 1]
    expected = density(features, output, alpha, beta)
    assert evidence_of(features, output).logarithm(alpha, beta) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("size", "width"), [(60, 8), (40, 15)])
def test_no_other_precisions_have_more_evidence(size: int, width: int) -> None:
    """Found by another algorithm, from another start."""
    features, labels = samples(size, width)
    output = indicators(labels)[:, 1]
    other = minimize(lambda point: -density(features, output, *np.exp(point)), [1.0, -1.0], method="Nelder-Mead")
    assert evidence_of(features, output).largest() == pytest.approx(-other.fun / size, abs=1e-4)


def test_the_score_is_that_of_centred_features_with_a_constant_averaged_over_classes() -> None:
    features, labels = samples(50, 6)
    centred = features - features.mean(0)
    inputs = np.column_stack([centred / np.sqrt(np.square(centred).mean()), np.ones(50)])
    expected = np.mean([evidence_of(inputs, output).largest() for output in indicators(labels).T])
    assert log_evidence(Spectrum.of(features), indicators(labels)) == pytest.approx(expected, abs=1e-9)


def both(features: Floats, labels: npt.NDArray[np.int64]) -> tuple[float, float]:
    spectrum = Spectrum.of(features)
    return log_evidence(spectrum, indicators(labels)), h_score(spectrum, labels)


@SHAPES
def test_scores_do_not_depend_on_the_order_of_samples_nor_on_unit_origin_or_rotation(size: int, width: int) -> None:
    features, labels = samples(size, width)
    expected = pytest.approx(both(features, labels), rel=1e-5)
    order = np.random.default_rng(1).permutation(size)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(width, width)))[0]
    assert both(features[order], labels[order]) == expected
    assert both(1_000 * features + 5, labels) == expected
    assert both(features @ rotation, labels) == expected


def test_labels_that_have_nothing_to_do_with_the_features_score_less() -> None:
    features, labels = samples(200, 10)
    shuffled = np.random.default_rng(3).permutation(labels)
    assert np.all(np.subtract(both(features, labels), both(features, shuffled)) > 0.1)


def test_a_class_without_samples_does_not_count() -> None:
    features, labels = samples(60, 8)
    outputs = np.column_stack([indicators(labels), np.zeros(60)])
    assert log_evidence(Spectrum.of(features), outputs) == log_evidence(Spectrum.of(features), indicators(labels))


@SHAPES
def test_shrinkage_is_that_of_scikit_learn(size: int, width: int) -> None:
    features, _ = samples(size, width)
    assert Spectrum.of(features).shrinkage == pytest.approx(LedoitWolf().fit(features).shrinkage_, rel=1e-9)


@SHAPES
def test_the_h_score_is_the_trace_that_the_paper_writes(size: int, width: int) -> None:
    features, labels = samples(size, width)
    shrunk = LedoitWolf().fit(features)
    means = np.stack([features[labels == number].mean(0) for number in range(CLASSES)])[labels]
    between = (1 - shrunk.shrinkage_) * np.cov(means, rowvar=False, bias=True)
    expected = np.trace(np.linalg.inv(shrunk.covariance_) @ between)
    assert h_score(Spectrum.of(features), labels) == pytest.approx(expected, rel=1e-8)


def weights(distances: Floats) -> Any:
    return np.exp(-distances / 0.07)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_neighbours_vote_as_those_of_scikit_learn_without_the_sample_itself(count: int) -> None:
    features, labels = samples(40, 5, signal=0.5)
    means = neighbour_means(
        torch.from_numpy(features), torch.from_numpy(indicators(labels)), torch.arange(40), count
    ).numpy()
    for sample in range(40):
        rest = np.arange(40) != sample
        votes = KNeighborsClassifier(count, metric="cosine", weights=weights, algorithm="brute")
        votes.fit(features[rest], labels[rest])
        assert means[sample, votes.classes_] == pytest.approx(votes.predict_proba(features[[sample]])[0], abs=1e-9)


def test_samples_of_one_unit_are_no_neighbours_of_each_other() -> None:
    """Copies with a label of their own would have it confirmed by each other."""
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    one_label_each = torch.eye(12, dtype=torch.float64).repeat_interleave(2, 0)
    apart = neighbour_means(features, one_label_each, torch.arange(24), 3)
    together = neighbour_means(features, one_label_each, torch.arange(12).repeat_interleave(2), 3)
    assert torch.all((apart * one_label_each).sum(1) > 0)
    assert torch.all((together * one_label_each).sum(1) == 0)


def test_outputs_that_are_not_known_have_no_part_in_a_mean() -> None:
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    outputs = torch.full((10, 2), math.nan, dtype=torch.float64)
    outputs[:, 0], outputs[3, 1] = 7.0, 2.0
    means = neighbour_means(features, outputs, torch.arange(10), 9)
    assert torch.allclose(means[:, 0], torch.tensor(7.0, dtype=torch.float64))
    assert torch.equal(means[:, 1].isnan(), torch.arange(10) == 3)
    assert torch.allclose(means[torch.arange(10) != 3, 1], torch.tensor(2.0, dtype=torch.float64))


def test_neighbours_in_blocks_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = samples(40, 5)
    given = torch.from_numpy(features), torch.from_numpy(indicators(labels)), torch.arange(40), 7
    whole = neighbour_means(*given)
    monkeypatch.setattr("hf_transfer.frozen.transferability.QUERIES", 7)
    assert torch.allclose(neighbour_means(*given), whole)
