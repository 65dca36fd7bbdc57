"""Linear classifiers solved to convergence on features that need not fit into memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_transfer.config import mistake

# Of the mean loss of a sample, on standardised features, from strong to weak.
REGULARISATIONS = tuple(10.0**exponent for exponent in np.arange(1.0, -6.5, -0.5))
MOST_ITERATIONS = 1_000
# A gradient is small beside that of the penalty: a fixed limit would leave a weak one where it started. Below the least
# one the loss of a weak one does not change any more in its sixth decimal.
LARGEST_GRADIENT = 1e-5
SHARE_OF_REGULARISATION = 0.001
LEAST_GRADIENT = 1e-6
# Where no progress can be seen any more, in units of double precision.
SMALLEST_PROGRESS = 64 * np.finfo(np.float64).eps
# What serves to choose a regularisation by validation: single precision, and no more steps than that can tell apart.
ROUGH_GRADIENT = 2e-4
LEAST_ROUGH_GRADIENT = 1e-6
LEAST_ROUGH_PROGRESS = float(np.finfo(np.float32).eps)
# A class that training lacks must not win for want of evidence.
NEVER = -30.0
BLOCK_SAMPLES = 4_096
# Below this, standardised features are kept instead of being made anew in each pass.
KEPT_BYTES = 32 << 20
Loss = Literal["logistic", "svm"]
# Features [samples, features] and class numbers [samples] of some samples after the other, again in each pass.
Blocks = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Solution:
    """A linear classifier.

    Attributes:
        weight: float64 [classes, features], for features as they are.
        bias: float64 [classes].
        regularisation: with which it was solved.
        loss: mean cross-entropy of the training samples.
        point: the same for standardised features, float64 [(features + 1) x classes that training has].
    """

    weight: Tensor
    bias: Tensor
    regularisation: float
    loss: float
    point: npt.NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


class LinearProblem:
    """Minimise the mean loss plus half the regularisation times the squared weights of standardised features.

    `logistic` is multinomial logistic regression; `svm` has, for each class against the rest, the squared hinge loss.
    The standardisation is folded into the solution. L-BFGS sees the samples block by block.

    References: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical
    Programming 1989, https://doi.org/10.1007/BF01589116 (by scipy); Rifkin and Klautau, "In defense of one-vs-all
    classification", JMLR 2004, https://www.jmlr.org/papers/v5/rifkin04a.html (each class against the rest).

    Args:
        blocks: the training samples.
        classes: how many there are; training may lack some.
        intercept: whether the classifier has a bias.
        balanced: let each class count alike, whatever number of samples it has.
        loss: logistic or svm.
    """

    def __init__(
        self, blocks: Blocks, classes: int, *, intercept: bool, balanced: bool = False, loss: Loss = "logistic"
    ) -> None:
        self._blocks, self._classes, self._intercept, self._loss = blocks, classes, intercept, loss
        self._kept: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        self._look()
        counts = self._counts[self._present].double()
        self._importance = counts.sum() / (len(counts) * counts) if balanced else torch.ones_like(counts)

    def path(self, regularisations: Sequence[float] = REGULARISATIONS, *, rough: bool = False) -> Iterator[Solution]:
        """Solutions from strong to weak regularisation, each starting where the two before it point to.

        Rough ones take a fraction of the time, and are good enough to choose one by, that is then to be `sharpened`.

        Reference: Park and Hastie, "L1-regularization path algorithm for generalized linear models", Journal of the
        Royal Statistical Society B 2007, https://doi.org/10.1111/j.1467-9868.2007.00607.x (predictor and corrector).
        """
        points: list[npt.NDArray[np.float64]] = []
        for place, regularisation in enumerate(regularisations):
            start = self._predicted(points, regularisations[: place + 1])
            points = [*points[-1:], self._minimum(start, regularisation, rough=rough)]
            yield self._solution(points[-1], regularisation, torch.float32 if rough else torch.float64)

    def _predicted(
        self, points: Sequence[npt.NDArray[np.float64]], regularisations: Sequence[float]
    ) -> npt.NDArray[np.float64]:
        """Where the last of these regularisations may lead: along the line through the last two points."""
        if not points:
            return np.zeros(len(self._present) * (self._features + 1))
        if len(points) == 1:
            return points[0]
        # Along the logarithm of the regularisation the path is almost straight.
        before, last, this = np.log(regularisations[-3:])
        line: npt.NDArray[np.float64] = points[1] + (this - last) / (last - before) * (points[1] - points[0])
        return line

    def sharpened(self, solution: Solution) -> Solution:
        """A rough solution, solved to the end in double precision."""
        assert solution.point is not None
        point = self._minimum(solution.point, solution.regularisation, rough=False)
        return self._solution(point, solution.regularisation, torch.float64)

    def _minimum(
        self, start: npt.NDArray[np.float64], regularisation: float, *, rough: bool
    ) -> npt.NDArray[np.float64]:
        # A hinge is flat beyond its margin, so that much smaller gradients still lead somewhere.
        least = LEAST_GRADIENT if self._loss == "logistic" else 0.0
        gradient = max(least, min(LARGEST_GRADIENT, SHARE_OF_REGULARISATION * regularisation))
        if rough:
            gradient = max(LEAST_ROUGH_GRADIENT, min(ROUGH_GRADIENT, regularisation))
        found = minimize(
            self._objective,
            start,
            args=(regularisation, torch.float32 if rough else torch.float64),
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": MOST_ITERATIONS,
                "maxls": 50,
                "gtol": gradient,
                "ftol": LEAST_ROUGH_PROGRESS if rough else SMALLEST_PROGRESS,
            },
        )
        point: npt.NDArray[np.float64] = found.x
        return point

    def _look(self) -> None:
        """One pass for the classes and the mean, one for the spread: what is squared must not be large."""
        counts, total, samples = torch.zeros(self._classes, dtype=torch.int64), None, 0
        for features, labels in self._blocks():
            counts += torch.bincount(labels, minlength=self._classes)
            summed = features.double().sum(0)
            total = summed if total is None else total + summed
            samples += len(labels)
        assert total is not None, "no sample to learn from"
        mean = total / samples
        if not bool(mean.isfinite().all()):
            raise mistake(
                expected="features that are numbers",
                found="NaN or infinity in what the frozen layers give",
                do="leave out --bf16 and --fp16, use --cache_dtype float32, or choose another --model_name_or_path",
            )
        squares = torch.zeros_like(mean)
        for features, _ in self._blocks():
            squares += (features.double() - mean).square().sum(0)
        spread = (squares / samples).sqrt()
        # What never changes tells nothing.
        spread[spread <= 1e-6 * spread.max()] = 1.0
        self._samples, self._counts, self._features = samples, counts, len(mean)
        self._present = counts.nonzero()[:, 0]
        self._centre = mean if self._intercept else torch.zeros_like(mean)
        self._spread = spread

    @cached_property
    def _numbers(self) -> Tensor:
        """The place of each class among those that are present."""
        numbers = torch.full((self._classes,), -1)
        numbers[self._present] = torch.arange(len(self._present))
        return numbers

    def _passed(self, dtype: torch.dtype) -> Iterable[tuple[Tensor, Tensor]]:
        """Standardised features and labels, block by block; those that are few are kept."""
        if self._samples * self._features * dtype.itemsize > KEPT_BYTES:
            return self._standardised(dtype)
        if dtype not in self._kept:
            self._kept[dtype] = [(features.clone(), labels) for features, labels in self._standardised(dtype)]
        return self._kept[dtype]

    def _standardised(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        # One buffer: the allocator would hoard what comes and goes in odd sizes.
        buffer = torch.empty(min(BLOCK_SAMPLES, self._samples), self._features, dtype=torch.float64)
        for features, labels in self._blocks():
            for part, own in zip(features.split(BLOCK_SAMPLES), labels.split(BLOCK_SAMPLES), strict=True):
                standard = buffer[: len(part)]
                standard.copy_(part).sub_(self._centre).div_(self._spread)
                yield standard.to(dtype), self._numbers[own]

    def _objective(
        self, flat: npt.NDArray[np.float64], regularisation: float, dtype: torch.dtype
    ) -> tuple[float, npt.NDArray[np.float64]]:
        """Value and gradient: in this precision within a block, in double precision over all."""
        weight, bias = self._unpacked(flat)
        value, slope = regularisation / 2 * weight.square().sum(), regularisation * weight
        bias_slope = torch.zeros_like(bias)
        pointwise = _logistic if self._loss == "logistic" else _squared_hinge
        own_weight, own_bias = weight.to(dtype), bias.to(dtype)
        for features, labels in self._passed(dtype):
            losses, slopes = pointwise(torch.addmm(own_bias, features, own_weight.T), labels)
            importance = self._importance[labels] / self._samples
            value = value + losses.double() @ importance
            slopes *= importance.to(dtype)[:, None]
            slope += slopes.T @ features
            bias_slope += slopes.sum(0)
        if not self._intercept:
            bias_slope.zero_()
        return value.item(), torch.cat([slope.reshape(-1), bias_slope]).numpy()

    def _unpacked(self, flat: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        values, classes = torch.from_numpy(flat), len(self._present)
        return values[:-classes].view(classes, self._features), values[-classes:]

    def _solution(self, flat: npt.NDArray[np.float64], regularisation: float, dtype: torch.dtype) -> Solution:
        standard, intercepts = self._unpacked(flat)
        weight = torch.zeros(self._classes, self._features, dtype=torch.float64)
        bias = torch.full((self._classes,), NEVER if self._intercept else 0.0, dtype=torch.float64)
        weight[self._present] = standard / self._spread
        if not self._intercept:
            # What training lacks scores the mean of the others, which never is the most.
            weight[:] = torch.where(self._counts[:, None] > 0, weight, weight[self._present].mean(0))
        bias[self._present] = intercepts - weight[self._present] @ self._centre
        return Solution(weight, bias, regularisation, self._cross_entropy(standard, intercepts, dtype), flat)

    def _cross_entropy(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> float:
        own_weight, own_bias = weight.to(dtype), bias.to(dtype)
        parts = [
            cross_entropy(torch.addmm(own_bias, features, own_weight.T), labels, reduction="none").double().sum()
            for features, labels in self._passed(dtype)
        ]
        return float(sum(parts)) / self._samples


def _logistic(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each sample, and its derivative by the scores."""
    logarithms = scores.log_softmax(1)
    slopes = logarithms.exp()
    places = torch.arange(len(labels))
    slopes[places, labels] -= 1.0
    return -logarithms[places, labels], slopes


def _squared_hinge(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Squared hinge losses of each class against the rest, summed for each sample, and their derivative."""
    signs = torch.full_like(scores, -1.0)
    signs[torch.arange(len(labels)), labels] = 1.0
    short = (1.0 - signs * scores).clamp_min(0.0)
    return short.square().sum(1), -2.0 * signs * short
