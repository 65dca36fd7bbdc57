"""Linear classifiers of several labels for each sample, solved on features that need not fit into memory."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.nn.functional import logsigmoid

from hf_transfer.frozen.regularisation_path import Limits, RegularisationPath, minimum
from hf_transfer.frozen.standardised import LEAST_SPREAD, Blocks, Floats, Solution, Standardised
from hf_transfer.targets.label_weights import weights_of_counts

# Relative to the square root of the regularisation, since the gradient is one by scaled variables.
LARGEST_GRADIENT = 1e-5
# Newton's method then ends with a step in which no weight for standardised features changes by more than this. It
# converges quadratically, so weights are exact in their sixth decimal. The steps are solved up to a share of them.
LARGEST_STEP = 1e-6
NEWTON_STEPS = 5
STEP_TOLERANCE = 1e-3
STEP_ITERATIONS = 300
# The limits for rough solutions, in single precision: probabilities agree in their third decimal. To the loss, which
# is summed over labels, a rare one adds little: progress is smaller than the rounding of its largest terms.
ROUGH_GRADIENT = 2e-4
ROUGH_PROGRESS = 1e-8
# For a matrix of a higher rank, the eigenvectors take longer than the iterations that they save.
LARGEST_RANK = 4_096


class LabelProblem(RegularisationPath):
    """Classifiers whose targets are cells [samples, labels]: 1, 0 or, where it is not known, NaN.

    The loss of a sample is the sum of the logarithmic losses of its known cells, so that each label is a logistic
    regression for itself; all are solved together. The `loss` of a solution is the mean over known cells.

    A label that has no positive cells, or no negative ones, gets no weights, and as its bias the logarithm of its odds,
    with half a cell added to each side; without an intercept its bias is 0.

    L-BFGS needs few iterations where the curvature of the loss is the same in all directions. So it works on weights
    that are scaled by the square root of an approximate curvature: for each label the mean of p (1 - p) at the start,
    times the products of the features. (This is the bound of Böhning, "Multinomial logistic regression algorithm",
    Annals of the Institute of Statistical Mathematics 1992, https://doi.org/10.1007/BF00048682, with a mean in place of
    the largest value.) Coordinates of samples that are rotated (see `RowSpace`) are uncorrelated: each weight has one
    factor.

    References: Rifkin and Klautau, "In defense of one-vs-all classification", JMLR 2004,
    https://www.jmlr.org/papers/v5/rifkin04a.html; Cox, "The regression analysis of binary sequences", Journal of the
    Royal Statistical Society B 1958, https://doi.org/10.1111/j.2517-6161.1958.tb00292.x.

    Args:
        blocks: the training samples.
        labels: how many there are.
        intercept: whether the classifiers have a bias.
        balanced: let the positives of each label count as much as its negatives, within a limit.
        copies: the solution does not depend on it.
    """

    def __init__(
        self, blocks: Blocks, labels: int, *, intercept: bool, balanced: bool = False, copies: int = 1,  # noqa: ARG002
    ) -> None:  # fmt: skip
        self._positives, self._negatives = (torch.zeros(labels, dtype=torch.int64) for _ in range(2))
        standardised = Standardised(
            blocks, centred=intercept, see=self._count, prepare=_signs, least_spread=LEAST_SPREAD
        )
        super().__init__(standardised, labels, intercept=intercept, uncorrelated=True)
        self._learnable = (self._positives > 0) & (self._negatives > 0)
        counts = self._positives.numpy(), self._negatives.numpy()
        weights = torch.from_numpy(weights_of_counts(*counts)) if balanced else torch.ones(labels, dtype=torch.float64)
        self._weights = torch.stack([weights, torch.ones_like(weights)]) * self._learnable / standardised.samples
        self._values, self._vectors, self._remaining = self._spectrum()

    def _count(self, cells: Tensor) -> None:
        self._positives += (cells == 1).sum(0)
        self._negatives += (cells == 0).sum(0)

    def _spectrum(self) -> tuple[Tensor, Tensor | None, float]:
        """Eigenvalues and eigenvectors of the products of the coordinates, and the mean of all other eigenvalues.

        No eigenvectors: they are the axes.
        """
        width = self._rows.width
        if min(self._rows.samples, width) > LARGEST_RANK:
            # Standardised features have a mean square of 1.
            return torch.zeros(0, dtype=torch.float64), torch.zeros(width, 0, dtype=torch.float64), 1.0
        return *self._rows.spectrum(), 0.0

    @property
    def _odds(self) -> Tensor:
        """The logarithms of the odds of each label, with half a cell added to each side; without an intercept 0."""
        return ((self._positives.double() + 0.5) / (self._negatives.double() + 0.5)).log() * self._intercept

    def _start(self) -> Floats:
        """No weights, and biases with which each label is as frequent as in training."""
        return np.concatenate([super()._start()[: -self._solved], self._odds.numpy()])

    def _limits(self, regularisation: float, *, rough: bool) -> Limits:
        if rough:
            return Limits(torch.float32, ROUGH_GRADIENT * min(1.0, regularisation**0.5), ROUGH_PROGRESS)
        return Limits(torch.float64, LARGEST_GRADIENT * min(1.0, regularisation**0.5), 0.0)

    def _losses(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        weights = self._cell_weights(targets, scores.dtype)
        targets = targets.to(scores)
        losses = -weights * logsigmoid(targets * scores)
        return losses.sum(dtype=torch.float64), -targets * weights * torch.sigmoid(-targets * scores)

    def _cell_weights(self, signs: Tensor, dtype: torch.dtype) -> Tensor:
        """What each cell counts [samples, labels]; 0 where it is not known."""
        positive, negative = self._weights.to(dtype)
        return torch.where(signs > 0, positive, torch.where(signs < 0, negative, 0.0))

    def _minimum(self, start: Floats, regularisation: float, limits: Limits) -> Floats:
        curvature = self._curvature(start, limits.dtype)
        roots = [(curvature * values + regularisation).sqrt() for values in (self._values, self._remaining)]
        # Biases are not penalised. The curvature along them may vanish; it then counts as that along a weight.
        roots.append(curvature.clamp_min(min(regularisation, 1 / self._rows.samples)).sqrt())
        inverse = [1 / root for root in roots]

        def objective(scaled: Floats) -> tuple[float, Floats]:
            value, gradient = self._objective(self._scaled(scaled, *inverse), regularisation, limits.dtype)
            return value, self._scaled(gradient, *inverse)

        point = self._scaled(minimum(objective, self._scaled(start, *roots), limits), *inverse)
        return self._polished(point, regularisation, inverse) if limits.dtype == torch.float64 else point

    def _polished(self, point: Floats, regularisation: float, inverse: Sequence[Tensor]) -> Floats:
        """The minimum, by Newton's method from a point near it.

        L-BFGS compares values of the loss, and near the minimum these differ less than their rounding.
        """
        largest = 1.0
        for _ in range(NEWTON_STEPS):
            _, gradient = self._objective(point, regularisation, torch.float64)
            product = partial(self._product, point, regularisation, inverse)
            operator = LinearOperator((len(point), len(point)), product, dtype=np.float64)
            along, _ = cg(operator, self._scaled(-gradient, *inverse), rtol=STEP_TOLERANCE, maxiter=STEP_ITERATIONS)
            step = self._scaled(along, *inverse)
            before, largest = largest, float(np.abs(step).max())
            if not largest < before:
                break
            point = point + step
            if largest <= LARGEST_STEP:
                break
        return point

    def _product(self, point: Floats, regularisation: float, inverse: Sequence[Tensor], scaled: Floats) -> Floats:
        """The matrix of second derivatives by scaled variables, times a vector."""
        (weight, bias), (weights, biases) = self._split(point), self._split(self._scaled(scaled, *inverse))
        slope, bias_slope = regularisation * weights, torch.zeros_like(biases)
        for features, signs in self._rows.passes(torch.float64):
            shares = torch.addmm(bias, features, weight.T).sigmoid()
            curvature = self._cell_weights(signs, torch.float64) * shares * (1 - shares)
            changes = curvature * torch.addmm(biases, features, weights.T)
            slope += changes.T @ features
            bias_slope += changes.sum(0)
        product = torch.cat([slope.reshape(-1), bias_slope * self._intercept]).numpy()
        return self._scaled(product, *inverse)

    def _curvature(self, point: Floats, dtype: torch.dtype) -> Tensor:
        """Sums of the weights of cells times p (1 - p), float64 [labels, 1]."""
        weight, bias = (values.to(dtype) for values in self._split(point))
        curvature = torch.zeros(self._solved, dtype=torch.float64)
        for features, signs in self._rows.passes(dtype):
            shares = torch.addmm(bias, features, weight.T).sigmoid()
            curvature += (self._cell_weights(signs, dtype) * shares * (1 - shares)).sum(0, dtype=torch.float64)
        return curvature[:, None]

    def _scaled(self, point: Floats, along: Tensor, across: Tensor, biases: Tensor) -> Floats:
        """A point times factors for its weights along each eigenvector, in all other directions, and for its biases.

        Args:
            point: weight and bias.
            along: [labels, rank].
            across: [labels, 1].
            biases: [labels, 1].
        """
        weight, bias = self._split(point)
        if self._vectors is None:
            weight = along * weight
        else:
            weight = across * weight + ((weight @ self._vectors) * (along - across)) @ self._vectors.T
        return torch.cat([weight.reshape(-1), bias * biases[:, 0]]).numpy()

    def _unpacked(self, point: Floats, regularisation: float, dtype: torch.dtype) -> Solution:
        standard, intercepts = self._split(point)
        standard = standard * self._learnable[:, None]
        intercepts = intercepts.where(self._learnable, self._odds)
        weight, bias = self._rows.original(standard, intercepts)
        return Solution(weight, bias, regularisation, self._mean_loss(standard, intercepts, dtype), point)

    def _mean_loss(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> float:
        """Without weights of cells."""
        typed_weight, typed_bias = weight.to(dtype), bias.to(dtype)
        total = torch.zeros((), dtype=torch.float64)
        for features, signs in self._rows.passes(dtype):
            losses = -logsigmoid(signs.to(dtype) * torch.addmm(typed_bias, features, typed_weight.T))
            total += (losses * signs.abs()).sum(dtype=torch.float64)
        return float(total / (self._positives + self._negatives).sum())


def _signs(cells: Tensor) -> Tensor:
    """1 for a label that a sample has, -1 for one that it has not, and 0 where it is not known."""
    return torch.nan_to_num(2.0 * cells - 1.0, nan=0.0)
