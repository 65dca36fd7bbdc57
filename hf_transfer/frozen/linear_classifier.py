"""Linear classifiers of one class for each sample, solved on features that need not fit into memory."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_transfer.frozen.regularisation_path import Limits, RegularisationPath, minimum
from hf_transfer.frozen.standardised import Blocks, Floats, Solution, Standardised

# The solver stops when the gradient is smaller than this share of the regularisation: with weak regularisation a fixed
# limit would already hold at the start. Below the smallest limit the loss does not change in its sixth decimal.
LARGEST_GRADIENT = 1e-5
SHARE_OF_REGULARISATION = 0.001
SMALLEST_GRADIENT = 1e-6
# It also stops when the relative progress is within the rounding of double precision.
SMALLEST_PROGRESS = 64 * float(np.finfo(np.float64).eps)
# The limits for rough solutions, in single precision: exact enough to choose a regularisation on validation.
ROUGH_GRADIENT = 2e-4
SMALLEST_ROUGH_GRADIENT = 1e-6
SMALLEST_ROUGH_PROGRESS = float(np.finfo(np.float32).eps)
# The bias of a class without training samples: it must never be predicted.
NEVER = -30.0
Loss = Literal["logistic", "svm"]


class LinearProblem(RegularisationPath):
    """Classifiers whose targets are class numbers [samples]; the loss of a solution is the mean cross-entropy.

    `logistic` is multinomial logistic regression; `svm` has, for each class against the rest, the squared hinge loss.
    Only classes with training samples are solved.

    Reference: Rifkin and Klautau, "In defense of one-vs-all classification", JMLR 2004,
    https://www.jmlr.org/papers/v5/rifkin04a.html (each class against the rest).

    Args:
        blocks: the training samples.
        classes: the number of classes; some may have no training sample.
        intercept: whether the classifier has a bias.
        balanced: weight the loss so that each class counts the same.
        copies: the solution does not depend on it.
        loss: logistic or svm.
    """

    def __init__(
        self, blocks: Blocks, classes: int, *, intercept: bool, balanced: bool = False, copies: int = 1,  # noqa: ARG002
        loss: Loss = "logistic",
    ) -> None:  # fmt: skip
        self._classes, self._loss = classes, loss
        self._counts = torch.zeros(classes, dtype=torch.int64)
        standardised = Standardised(blocks, centred=intercept, see=self._count, prepare=self._places)
        self._present = self._counts.nonzero()[:, 0]
        counts = self._counts[self._present].double()
        self._importance = counts.sum() / (len(counts) * counts) if balanced else torch.ones_like(counts)
        self._shares = counts * self._importance / counts.sum()
        super().__init__(standardised, len(self._present), intercept=intercept)

    def _count(self, labels: Tensor) -> None:
        self._counts += torch.bincount(labels, minlength=self._classes)

    def _places(self, labels: Tensor) -> Tensor:
        """The place of each class among those with training samples."""
        return torch.searchsorted(self._present, labels)

    def _start(self) -> Floats:
        """No weights, and for cross-entropy biases with which each class is as frequent as in training."""
        start = super()._start()
        if self._intercept and self._loss == "logistic":
            logarithms = self._shares.log()
            start[-self._solved :] = logarithms - logarithms.mean()
        return start

    def _minimum(self, start: Floats, regularisation: float, limits: Limits) -> Floats:
        """The minimum, for cross-entropy by scaled biases.

        Biases are not penalised, so under a strong penalty of the weights the loss is much less curved along them, and
        L-BFGS would need many iterations. So it works on biases along which it is at least the regularisation.
        """
        if self._loss == "svm":
            return super()._minimum(start, regularisation, limits)
        # That of a single class would be 0.
        curvature = (self._shares * (1 - self._shares)).clamp_min(1 / self._rows.samples)
        factors = np.ones(len(start))
        factors[-self._solved :] = (regularisation / curvature).sqrt().clamp_min(1.0)

        def objective(scaled: Floats) -> tuple[float, Floats]:
            value, gradient = self._objective(scaled * factors, regularisation, limits.dtype)
            return value, gradient * factors

        return minimum(objective, start / factors, limits) * factors

    def _limits(self, regularisation: float, *, rough: bool) -> Limits:
        if rough:
            gradient = max(SMALLEST_ROUGH_GRADIENT, min(ROUGH_GRADIENT, regularisation))
            return Limits(torch.float32, gradient, SMALLEST_ROUGH_PROGRESS)
        # The squared hinge is flat beyond its margin: much smaller gradients still bring progress.
        smallest = SMALLEST_GRADIENT if self._loss == "logistic" else 0.0
        gradient = max(smallest, min(LARGEST_GRADIENT, SHARE_OF_REGULARISATION * regularisation))
        return Limits(torch.float64, gradient, SMALLEST_PROGRESS)

    def _losses(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = (_logistic if self._loss == "logistic" else _squared_hinge)(scores, targets)
        importance = self._importance[targets] / self._rows.samples
        slopes *= importance.to(slopes)[:, None]
        return losses.double() @ importance, slopes

    def _unpacked(self, point: Floats, regularisation: float, dtype: torch.dtype) -> Solution:
        standard, intercepts = self._split(point)
        solved, biases = self._rows.original(standard, intercepts)
        weight = torch.zeros(self._classes, solved.shape[1], dtype=torch.float64)
        bias = torch.full((self._classes,), NEVER if self._intercept else 0.0, dtype=torch.float64)
        weight[self._present], bias[self._present] = solved, biases
        if not self._intercept:
            # Without a bias a class without training samples gets the mean of the others, which is never the largest.
            weight[:] = torch.where(self._counts[:, None] > 0, weight, weight[self._present].mean(0))
        return Solution(weight, bias, regularisation, self._cross_entropy(standard, intercepts, dtype), point)

    def _cross_entropy(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> float:
        typed_weight, typed_bias = weight.to(dtype), bias.to(dtype)
        parts = [
            cross_entropy(torch.addmm(typed_bias, features, typed_weight.T), labels, reduction="none").double().sum()
            for features, labels in self._rows.passes(dtype)
        ]
        return float(sum(parts)) / self._rows.samples


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
