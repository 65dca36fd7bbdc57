"""Linear classifiers, solved to convergence on features that need not fit into memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_transfer.errors import user_error

# Relative to the mean loss of a sample, for standardised features, from strong to weak.
REGULARISATIONS = tuple(10.0**exponent for exponent in np.arange(1.0, -6.5, -0.5))
MAX_ITERATIONS = 1_000
# The solver stops when the gradient is smaller than this share of the regularisation: with weak regularisation a fixed
# limit would already hold at the start. Below the smallest limit the loss does not change in its sixth decimal.
LARGEST_GRADIENT = 1e-5
SHARE_OF_REGULARISATION = 0.001
SMALLEST_GRADIENT = 1e-6
# It also stops when the relative progress is within the rounding of double precision.
SMALLEST_PROGRESS = 64 * np.finfo(np.float64).eps
# The limits for rough solutions, in single precision: exact enough to choose a regularisation on validation.
ROUGH_GRADIENT = 2e-4
SMALLEST_ROUGH_GRADIENT = 1e-6
SMALLEST_ROUGH_PROGRESS = float(np.finfo(np.float32).eps)
# The bias of a class without training samples: it must never be predicted.
NEVER = -30.0
BLOCK_SAMPLES = 4_096
# Standardised features are kept in memory up to this size; larger ones are computed again in each pass.
KEPT_BYTES = 32 << 20
Loss = Literal["logistic", "svm"]
Floats = npt.NDArray[np.float64]
# Features [samples, features] and class numbers [samples], block by block; each call starts a new pass.
Blocks = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Solution:
    """A linear classifier.

    Attributes:
        weight: float64 [classes, features], for features that are not standardised.
        bias: float64 [classes].
        regularisation: the one with which it was solved.
        loss: mean cross-entropy of the training samples.
        point: weight and bias for standardised features [(features + 1) x classes with training samples].
    """

    weight: Tensor
    bias: Tensor
    regularisation: float
    loss: float
    point: Floats = field(repr=False, compare=False)


class LinearProblem:
    """Minimise the mean loss plus half the regularisation times the squared weights of standardised features.

    `logistic` is multinomial logistic regression; `svm` has, for each class against the rest, the squared hinge loss.
    The standardisation is folded into the solution. L-BFGS sees the samples block by block.

    References: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical
    Programming 1989, https://doi.org/10.1007/BF01589116 (by scipy); Rifkin and Klautau, "In defense of one-vs-all
    classification", JMLR 2004, https://www.jmlr.org/papers/v5/rifkin04a.html (each class against the rest).

    Args:
        blocks: the training samples.
        classes: the number of classes; some may have no training sample.
        intercept: whether the classifier has a bias.
        balanced: weight the loss so that each class counts the same.
        loss: logistic or svm.
    """

    def __init__(
        self, blocks: Blocks, classes: int, *, intercept: bool, balanced: bool = False, loss: Loss = "logistic"
    ) -> None:
        self._blocks, self._classes, self._intercept, self._loss = blocks, classes, intercept, loss
        self._kept: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        self._measure()
        counts = self._counts[self._present].double()
        self._importance = counts.sum() / (len(counts) * counts) if balanced else torch.ones_like(counts)

    def path(self, regularisations: Sequence[float] = REGULARISATIONS, *, rough: bool = False) -> Iterator[Solution]:
        """Solutions from strong to weak regularisation, each started from an extrapolation of the two before it.

        Rough solutions take a fraction of the time. They are exact enough to choose a regularisation; the chosen
        solution is then `sharpened`.

        Reference: Park and Hastie, "L1-regularization path algorithm for generalized linear models", Journal of the
        Royal Statistical Society B 2007, https://doi.org/10.1111/j.1467-9868.2007.00607.x (predictor and corrector).
        """
        solved: list[Solution] = []
        for regularisation in regularisations:
            start = self._extrapolated(solved, regularisation)
            solved = [*solved[-1:], self._solution(start, regularisation, rough=rough)]
            yield solved[-1]

    def _extrapolated(self, solved: Sequence[Solution], regularisation: float) -> Floats:
        """A starting point on the line through the last two solutions."""
        if len(solved) < 2:
            return solved[0].point if solved else np.zeros(len(self._present) * (self._features + 1))
        # As a function of the logarithm of the regularisation the path is almost straight.
        before, last, this = np.log([*(solution.regularisation for solution in solved), regularisation])
        share = float((this - last) / (last - before))
        return solved[1].point + share * (solved[1].point - solved[0].point)

    def sharpened(self, solution: Solution) -> Solution:
        """The exact solution in double precision with the regularisation of a rough one."""
        return self._solution(solution.point, solution.regularisation, rough=False)

    def _solution(self, start: Floats, regularisation: float, *, rough: bool) -> Solution:
        if rough:
            dtype, progress = torch.float32, SMALLEST_ROUGH_PROGRESS
            gradient = max(SMALLEST_ROUGH_GRADIENT, min(ROUGH_GRADIENT, regularisation))
        else:
            dtype, progress = torch.float64, SMALLEST_PROGRESS
            # The squared hinge is flat beyond its margin: much smaller gradients still bring progress.
            smallest = SMALLEST_GRADIENT if self._loss == "logistic" else 0.0
            gradient = max(smallest, min(LARGEST_GRADIENT, SHARE_OF_REGULARISATION * regularisation))
        options = {"maxiter": MAX_ITERATIONS, "maxls": 50, "gtol": gradient, "ftol": progress}
        result = minimize(self._objective, start, (regularisation, dtype), "L-BFGS-B", jac=True, options=options)
        return self._unpacked(result.x, regularisation, dtype)

    def _measure(self) -> None:
        """Count the classes, and find mean and spread of the features.

        In two passes, since squares of features whose mean is far from zero would lose their digits.
        """
        counts, total = torch.zeros(self._classes, dtype=torch.int64), torch.zeros((), dtype=torch.float64)
        for features, labels in self._blocks():
            counts += torch.bincount(labels, minlength=self._classes)
            total = total + features.double().sum(0)
        samples = int(counts.sum())
        mean = total / samples
        if not bool(mean.isfinite().all()):
            raise user_error(
                expected="finite features",
                found="NaN or infinity in the outputs of the frozen layers",
                do="leave out --bf16 and --fp16, use --cache_dtype float32, or choose another --model_name_or_path",
            )
        squares = torch.zeros_like(mean)
        for features, _ in self._blocks():
            squares += (features.double() - mean).square().sum(0)
        spread = (squares / samples).sqrt()
        # A constant feature is only centred: its spread is rounding.
        spread[spread <= 1e-6 * spread.max()] = 1.0
        self._samples, self._counts, self._features = samples, counts, len(mean)
        self._present = counts.nonzero()[:, 0]
        self._centre = mean if self._intercept else torch.zeros_like(mean)
        self._spread = spread

    def _pass(self, dtype: torch.dtype) -> Iterable[tuple[Tensor, Tensor]]:
        """Standardised features and labels, block by block; small ones are kept in memory.

        A label is the place of its class among those with training samples.
        """
        if self._samples * self._features * dtype.itemsize > KEPT_BYTES:
            return self._standardised(dtype)
        if dtype not in self._kept:
            self._kept[dtype] = [(features.clone(), labels) for features, labels in self._standardised(dtype)]
        return self._kept[dtype]

    def _standardised(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        # One buffer for all blocks: the allocator does not return the memory of blocks of changing sizes.
        buffer = torch.empty(min(BLOCK_SAMPLES, self._samples), self._features, dtype=torch.float64)
        for features, labels in self._blocks():
            for part, part_labels in zip(features.split(BLOCK_SAMPLES), labels.split(BLOCK_SAMPLES), strict=True):
                standard = buffer[: len(part)]
                standard.copy_(part).sub_(self._centre).div_(self._spread)
                yield standard.to(dtype), torch.searchsorted(self._present, part_labels)

    def _objective(self, flat: Floats, regularisation: float, dtype: torch.dtype) -> tuple[float, Floats]:
        """Value and gradient: computed in this precision within a block, and summed in double precision."""
        weight, bias = self._split(flat)
        value, slope = regularisation / 2 * weight.square().sum(), regularisation * weight
        bias_slope = torch.zeros_like(bias)
        pointwise = _logistic if self._loss == "logistic" else _squared_hinge
        typed_weight, typed_bias = weight.to(dtype), bias.to(dtype)
        for features, labels in self._pass(dtype):
            losses, slopes = pointwise(torch.addmm(typed_bias, features, typed_weight.T), labels)
            importance = self._importance[labels] / self._samples
            value = value + losses.double() @ importance
            slopes *= importance.to(dtype)[:, None]
            slope += slopes.T @ features
            bias_slope += slopes.sum(0)
        if not self._intercept:
            bias_slope.zero_()
        return value.item(), torch.cat([slope.reshape(-1), bias_slope]).numpy()

    def _split(self, flat: Floats) -> tuple[Tensor, Tensor]:
        """Weight and bias for standardised features."""
        values, classes = torch.from_numpy(flat), len(self._present)
        return values[:-classes].view(classes, self._features), values[-classes:]

    def _unpacked(self, flat: Floats, regularisation: float, dtype: torch.dtype) -> Solution:
        """The solution for features that are not standardised."""
        standard, intercepts = self._split(flat)
        weight = torch.zeros(self._classes, self._features, dtype=torch.float64)
        bias = torch.full((self._classes,), NEVER if self._intercept else 0.0, dtype=torch.float64)
        weight[self._present] = standard / self._spread
        if not self._intercept:
            # Without a bias a class without training samples gets the mean of the others, which is never the largest.
            weight[:] = torch.where(self._counts[:, None] > 0, weight, weight[self._present].mean(0))
        bias[self._present] = intercepts - weight[self._present] @ self._centre
        return Solution(weight, bias, regularisation, self._cross_entropy(standard, intercepts, dtype), flat)

    def _cross_entropy(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> float:
        typed_weight, typed_bias = weight.to(dtype), bias.to(dtype)
        parts = [
            cross_entropy(torch.addmm(typed_bias, features, typed_weight.T), labels, reduction="none").double().sum()
            for features, labels in self._pass(dtype)
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
