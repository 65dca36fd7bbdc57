"""How well features suit labels, without a head: nearest neighbours, the evidence of a linear model, and H-score."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from hf_transfer.frozen.features import Features
from hf_transfer.frozen.solvers import LABELS, LOGISTIC
from hf_transfer.frozen.standardised import Floats
from hf_transfer.targets.intervals import mean_and_error
from hf_transfer.targets.predictions import Predictions

MOST_NEIGHBOURS = 20
TEMPERATURE = 0.07
# Similarities of so many samples to all others are in memory at once.
QUERIES = 256
# The search for the evidence ends when the ratio of both precisions changes less, or after so many steps.
SMALLEST_CHANGE, MOST_STEPS = 1e-6, 500
# Added to sums of squares that may be zero, as when features predict a label without error.
EPSILON = 1e-5
# Shares of neighbours become logits within these limits.
SMALLEST_SHARE = 1e-6


class Scores(NamedTuple):
    """Scores of features; higher is better. None: it is not defined for the target.

    Attributes:
        neighbours: the mean score of answers by the nearest neighbours of each sample.
        log_evidence: of a linear model, per sample: LogME.
        h_score: how far apart classes are, by the spread of all samples.
    """

    neighbours: float | None
    log_evidence: float | None
    h_score: float | None


def scores_of(features: Features, units: npt.NDArray[np.int64]) -> Scores:
    """All scores of the training samples that count.

    Neighbours and evidence of numbers and of several labels are those of each output; of classes, of each class
    against the others. H-score is defined for classes alone.

    Args:
        features: of training.
        units: of the samples: those of one unit are no neighbours of each other [samples].
    """
    features = features.as_in_evaluation
    matrix, outputs = _all_rows(features), _learned_outputs(features)
    known = not bool(outputs.isnan().any())
    spectrum = Spectrum.of(matrix.double().numpy())
    return Scores(
        neighbours=_score_of_neighbours(features, matrix, outputs, units),
        log_evidence=log_evidence(spectrum, outputs.numpy()) if known else None,
        h_score=h_score(spectrum, features.targets) if features.target.solver == LOGISTIC else None,
    )


def score_of_neighbours(features: Features, units: npt.NDArray[np.int64]) -> float | None:
    """The first of the scores alone; see `scores_of`."""
    features = features.as_in_evaluation
    return _score_of_neighbours(features, _all_rows(features), _learned_outputs(features), units)


def _all_rows(features: Features) -> Tensor:
    return torch.cat([block for block, _ in features.blocks()])


def _learned_outputs(features: Features) -> Tensor:
    """What a linear model of each output learns: 0 and 1, or standardised numbers, float64 [samples, outputs]."""
    targets = torch.cat([targets for _, targets in features.blocks()])
    return (one_hot(targets, len(features.target.names)) if features.target.solver == LOGISTIC else targets).double()


def _score_of_neighbours(
    features: Features, matrix: Tensor, outputs: Tensor, units: npt.NDArray[np.int64]
) -> float | None:
    target, is_class = features.target, features.target.solver == LOGISTIC
    smallest = int(outputs.sum(0)[outputs.sum(0) > 0].min()) if is_class else MOST_NEIGHBOURS
    means = neighbour_means(matrix, outputs, torch.from_numpy(units), min(MOST_NEIGHBOURS, smallest))
    if bool(means.isnan().all(1).any()):
        # All samples are of one unit.
        return None
    if is_class:
        means = means.clamp_min(SMALLEST_SHARE).log()
    elif target.solver == LABELS:
        means = means.nan_to_num(0.0).logit(SMALLEST_SHARE)
        target = target.calibrated(means, features.targets)
    answers = Predictions(target, means.float(), features.targets, np.arange(len(means)))
    return mean_and_error(answers.sample_scores(), units)[0]


def neighbour_means(features: Tensor, outputs: Tensor, units: Tensor, count: int) -> Tensor:
    """The mean outputs of the nearest neighbours of each sample, weighted by exp(cosine / 0.07).

    No sample of its own unit is its neighbour.

    Reference: Wu, Xiong, Yu and Lin, "Unsupervised feature learning via non-parametric instance discrimination", CVPR
    2018, https://arxiv.org/abs/1805.01978 (the weights).

    Args:
        features: [samples, features].
        outputs: float64 [samples, outputs]; one that is not known is NaN, and has no part in a mean.
        units: [samples].
        count: how many neighbours.

    Returns:
        float64 [samples, outputs]; NaN where no neighbour has a known output.
    """
    directions = normalize(features.double())
    known = ~outputs.isnan()
    values, means = outputs.nan_to_num(0.0), []
    for queries, own_units in zip(directions.split(QUERIES), units.split(QUERIES), strict=True):
        similar = (queries @ directions.T).masked_fill(own_units[:, None] == units, -math.inf)
        nearest, places = similar.topk(min(count, len(units)), dim=1)
        # Relative to the nearest, so that no weight overflows; where there is no neighbour they are NaN.
        weights = ((nearest - nearest[:, :1]) / TEMPERATURE).exp()
        means.append((weights[..., None] * values[places]).sum(1) / (weights[..., None] * known[places]).sum(1))
    return torch.cat(means)


class Spectrum(NamedTuple):
    """Centred features as left * singular * directions.

    Attributes:
        left: [samples, rank].
        singular: [rank].
        directions: [rank, features].
    """

    left: Floats
    singular: Floats
    directions: Floats

    @classmethod
    def of(cls, features: Floats) -> "Spectrum":
        """The decomposition of features [samples, features] minus their mean."""
        return cls(*np.linalg.svd(features - features.mean(0), full_matrices=False))

    @property
    def mean_square(self) -> float:
        """Of all entries of the centred features."""
        return float(np.square(self.singular).sum() / (len(self.left) * self.directions.shape[1]))

    @property
    def shrinkage(self) -> float:
        """How far the covariance is shrunk towards a multiple of the unit matrix, from 0 to 1, by Ledoit and Wolf.

        Scikit-learn computes the same from the features in time quadratic in their number; this takes what is known.
        """
        samples, width = len(self.left), self.directions.shape[1]
        variances: Floats = self.singular**2 / samples
        fourth, second = float((np.square(self.left * self.singular).sum(1) ** 2).sum()), float((variances**2).sum())
        distance = second - width * self.mean_square**2
        return min(1.0, (fourth / samples - second) / samples / distance) if distance > 0 else 1.0


def log_evidence(features: Spectrum, outputs: Floats) -> float:
    """LogME: the logarithm of the largest evidence of a Bayesian linear model, per sample; the mean over outputs.

    Features are centred and scaled by one factor, and a constant is added, so that the score does not depend on their
    unit or origin. Only scores of the same samples can be compared.

    Reference: You, Liu, Wang and Long, "LogME: practical assessment of pre-trained models for transfer learning", ICML
    2021, https://arxiv.org/abs/2102.11005.

    Args:
        features: of the samples.
        outputs: [samples, outputs]; those that are the same for all samples do not count.
    """
    samples, width = len(features.left), features.directions.shape[1]
    # Centred features are orthogonal to a constant: that is one more direction.
    squares = np.append(features.singular**2 / (features.mean_square or 1.0), samples)
    varying = outputs[:, np.ptp(outputs, axis=0) > 0]
    along = np.vstack([features.left.T @ varying, varying.sum(0) / math.sqrt(samples)])
    evidence = [
        Evidence(of_output, squares, (samples, width + 1), float(output @ output))
        for of_output, output in zip(along.T, varying.T, strict=True)
    ]
    return float(np.mean([one.largest() for one in evidence]))


class Evidence:
    """The evidence of y = F w + noise, with weights of precision alpha and noise of precision beta.

    Args:
        along: y along the left singular vectors of F [rank].
        squares: of the singular values [rank].
        shape: of F.
        total: y'y.
    """

    def __init__(self, along: Floats, squares: Floats, shape: tuple[int, ...], total: float) -> None:
        self._along, self._squares, (self._samples, self._features) = along**2, squares, shape
        self._outside = max(0.0, total - float(self._along.sum()))

    def largest(self) -> float:
        """The largest logarithm of the evidence, per sample, by the fixed points of MacKay."""
        alpha = beta = 1.0
        for _ in range(MOST_STEPS):
            ratio = alpha / beta
            effective = float((self._squares / (self._squares + ratio)).sum())
            weights, errors = self._sums(ratio)
            alpha = effective / (weights + EPSILON)
            beta = max(self._samples - effective, EPSILON) / (errors + EPSILON)
            if abs(alpha / beta - ratio) <= SMALLEST_CHANGE * ratio:
                break
        return self.logarithm(alpha, beta) / self._samples

    def logarithm(self, alpha: float, beta: float) -> float:
        """The logarithm of N(y; 0, 1/beta + F F'/alpha)."""
        weights, errors = self._sums(alpha / beta)
        rest = self._features - len(self._squares)
        determinant = float(np.log(alpha + beta * self._squares).sum()) + rest * math.log(alpha)
        return 0.5 * (
            self._features * math.log(alpha) + self._samples * math.log(beta) - determinant
            - beta * errors - alpha * weights - self._samples * math.log(2 * math.pi)
        )  # fmt: skip

    def _sums(self, ratio: float) -> tuple[float, float]:
        """Squared weights and squared errors of the most probable weights, for a ratio of the precisions."""
        shares = self._along / (self._squares + ratio) ** 2
        return float((self._squares * shares).sum()), float(ratio**2 * shares.sum()) + self._outside


def h_score(features: Spectrum, labels: npt.NDArray[np.int64]) -> float:
    """H-score, with a covariance shrunk as Ledoit and Wolf do: how far apart classes are, by the spread of all samples.

    References: Bao, Li, Huang, Zhang, Zheng, Zamir and Guibas, "An information-theoretic approach to transferability in
    task transfer learning", ICIP 2019, https://doi.org/10.1109/ICIP.2019.8803726; Ibrahim, Ponomareva and Mazumder,
    "Newer is not always better: rethinking transferability metrics, their peculiarities, stability and performance",
    ECML PKDD 2022, https://arxiv.org/abs/2110.06893 (shrinkage); Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", Journal of Multivariate Analysis 2004,
    https://doi.org/10.1016/S0047-259X(03)00096-4.

    Args:
        features: of the samples.
        labels: class numbers [samples].
    """
    samples, rotated, shrinkage = len(features.left), features.left * features.singular, features.shrinkage
    spread = shrinkage * features.mean_square + (1 - shrinkage) * features.singular**2 / samples
    numbers, counts = np.unique(labels, return_counts=True)
    means = np.stack([rotated[labels == number].mean(0) for number in numbers])
    between = (counts / samples) @ means**2
    return float((1 - shrinkage) * (between[spread > 0] / spread[spread > 0]).sum())
