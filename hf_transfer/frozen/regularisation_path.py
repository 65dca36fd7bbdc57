"""Linear layers with a smooth convex loss, solved to convergence from strong to weak regularisation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from hf_transfer.frozen.row_space import RowSpace
from hf_transfer.frozen.standardised import Floats, Solution, Standardised

# Relative to the mean loss of a sample, for standardised features, from strong to weak.
REGULARISATIONS = tuple(10.0**exponent for exponent in np.arange(1.0, -6.5, -0.5))
MAX_ITERATIONS = 1_000


class Limits(NamedTuple):
    """When a solution is exact enough.

    Attributes:
        dtype: the precision of the loss and its gradient.
        gradient: the largest element of the gradient.
        progress: of the loss, in one iteration.
    """

    dtype: torch.dtype
    gradient: float
    progress: float


class RegularisationPath(ABC):
    """Minimise the mean loss plus half the regularisation times the squared weights of standardised features.

    The standardisation is folded into the solution. L-BFGS sees the samples block by block, in the coordinates of
    `RowSpace`.

    Reference: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical
    Programming 1989, https://doi.org/10.1007/BF01589116 (by scipy).

    Args:
        standardised: the training samples.
        outputs: how many outputs are solved.
        intercept: whether they have a bias.
        uncorrelated: see `RowSpace`.
    """

    def __init__(
        self, standardised: Standardised, outputs: int, *, intercept: bool, uncorrelated: bool = False
    ) -> None:
        self._rows = RowSpace(standardised, uncorrelated=uncorrelated)
        self._solved, self._intercept = outputs, intercept

    @abstractmethod
    def _limits(self, regularisation: float, *, rough: bool) -> Limits:
        """When a solution is exact enough."""

    @abstractmethod
    def _losses(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What a block adds to the mean loss, float64, and its derivative by the scores [samples, outputs]."""

    @abstractmethod
    def _unpacked(self, point: Floats, regularisation: float, dtype: torch.dtype) -> Solution:
        """The solution for features that are not standardised."""

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

    def sharpened(self, solution: Solution) -> Solution:
        """The exact solution in double precision with the regularisation of a rough one."""
        return self._solution(solution.point, solution.regularisation, rough=False)

    def near(self, solution: Solution) -> Solution:
        """A rough solution with the regularisation of one for other samples.

        The search does not begin at that one: with weak regularisation it would end there, and know these samples.
        """
        return self._solution(self._start(), solution.regularisation, rough=True)

    def _start(self) -> Floats:
        """Where the search for the first solution begins."""
        return np.zeros(self._solved * (self._rows.width + 1))

    def _extrapolated(self, solved: Sequence[Solution], regularisation: float) -> Floats:
        """A starting point on the line through the last two solutions."""
        if len(solved) < 2:
            return solved[0].point if solved else self._start()
        # As a function of the logarithm of the regularisation the path is almost straight.
        before, last, this = np.log([*(solution.regularisation for solution in solved), regularisation])
        share = float((this - last) / (last - before))
        return solved[1].point + share * (solved[1].point - solved[0].point)

    def _solution(self, start: Floats, regularisation: float, *, rough: bool) -> Solution:
        limits = self._limits(regularisation, rough=rough)
        return self._unpacked(self._minimum(start, regularisation, limits), regularisation, limits.dtype)

    def _minimum(self, start: Floats, regularisation: float, limits: Limits) -> Floats:
        return minimum(partial(self._objective, regularisation=regularisation, dtype=limits.dtype), start, limits)

    def _objective(self, point: Floats, regularisation: float, dtype: torch.dtype) -> tuple[float, Floats]:
        """Value and gradient: computed in this precision within a block, and summed in double precision."""
        weight, bias = self._split(point)
        value, slope = regularisation / 2 * weight.square().sum(), regularisation * weight
        bias_slope = torch.zeros_like(bias)
        typed_weight, typed_bias = weight.to(dtype), bias.to(dtype)
        for features, targets in self._rows.passes(dtype):
            loss, slopes = self._losses(torch.addmm(typed_bias, features, typed_weight.T), targets)
            value = value + loss
            slope += slopes.T @ features
            bias_slope += slopes.sum(0)
        if not self._intercept:
            bias_slope.zero_()
        return value.item(), torch.cat([slope.reshape(-1), bias_slope]).numpy()

    def _split(self, point: Floats) -> tuple[Tensor, Tensor]:
        """Weight and bias for the coordinates of `RowSpace`."""
        values = torch.from_numpy(point)
        return values[: -self._solved].view(self._solved, self._rows.width), values[-self._solved :]


def minimum(objective: Callable[[Floats], tuple[float, Floats]], start: Floats, limits: Limits) -> Floats:
    """Where a smooth convex function is smallest.

    Args:
        objective: its value and gradient.
        start: where the search begins.
        limits: when it ends.
    """
    options = {"maxiter": MAX_ITERATIONS, "maxls": 50, "gtol": limits.gradient, "ftol": limits.progress}
    point: Floats = minimize(objective, start, method="L-BFGS-B", jac=True, options=options).x
    return point
