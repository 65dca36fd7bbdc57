"""Ridge regression on features that need not fit into memory, with exact leave-one-out outputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_transfer.frozen.standardised import LEAST_SPREAD, Blocks, Solution, Standardised

# Relative to the mean of the squared errors, for standardised features, from strong to weak.
REGULARISATIONS = tuple(10.0**exponent for exponent in np.arange(3.0, -6.5, -0.5))
# Left-out outputs of several regularisations are computed in one pass, as far as they fit into this.
HELD_OUT_BYTES = 256 << 20
PART_SAMPLES = 1_024


class RidgeProblem:
    """Minimise the mean squared error plus the regularisation times the squared weights of standardised features.

    Targets are numbers [samples, outputs]; NaN where one is not known. Each output is a problem for itself, of the
    samples for which it is known: their mean and spread standardise the features, and bias and outputs are as if there
    were no other samples. The intercept is not penalised; without one nothing is centred. The `loss` of a solution is
    the mean squared error over known cells.

    With the eigenvectors V and eigenvalues s of X'X / n, the weights are V (s + regularisation)^-1 V'X'y / n: one
    decomposition serves all regularisations and all outputs that are known for the same samples.

    References: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems", Technometrics 1970,
    https://doi.org/10.1080/00401706.1970.10488634; Allen, "The relationship between variable selection and data
    augmentation and a method for prediction", Technometrics 1974, https://doi.org/10.1080/00401706.1974.10489157
    (outputs without each sample); Golub, Heath and Wahba, "Generalized cross-validation as a method for choosing a good
    ridge parameter", Technometrics 1979, https://doi.org/10.1080/00401706.1979.10489751 (the same from one
    decomposition).

    Args:
        blocks: the training samples.
        outputs: how many there are.
        intercept: whether the outputs have a bias.
        balanced: numbers have no classes that could count the same: it changes nothing.
        copies: how often `blocks` goes through the samples, in the same order, with other features.
    """

    def __init__(
        self, blocks: Blocks, outputs: int, *, intercept: bool, balanced: bool = False, copies: int = 1,  # noqa: ARG002
    ) -> None:  # fmt: skip
        self._blocks, self._outputs, self._intercept, self._copies = blocks, outputs, intercept, copies
        targets = torch.cat([targets.double() for _, targets in blocks()])
        self._samples = len(targets) // copies
        assert len(targets) == self._samples * copies, "each copy has all samples"
        self._targets = targets[: self._samples]
        patterns, places = (~self._targets.isnan()).T.unique(dim=0, return_inverse=True)
        self._parts = [
            self._decomposed(known, (places == place).nonzero()[:, 0])
            for place, known in enumerate(patterns)
            if known.any()
        ]
        self._features = len(self._parts[0].centre)

    def path(
        self,
        regularisations: Sequence[float] = REGULARISATIONS,
        *,
        rough: bool = False,  # noqa: ARG002
    ) -> Iterator[Solution]:
        """Solutions from strong to weak regularisation, with left-out outputs; they are exact, also if asked for rough.

        The left-out output for a sample is that of a solution without it and all its copies. Its features are scaled as
        with them, and its squared weights count the same beside the sum of the squared errors.
        """
        together = max(1, HELD_OUT_BYTES // (8 * self._samples * self._outputs))
        for start in range(0, len(regularisations), together):
            some = regularisations[start : start + together]
            for regularisation, held_out in zip(some, self._held_out(some), strict=True):
                # A copy: else the one that is chosen would keep all others in memory.
                yield self._solution(regularisation, held_out.clone())

    def sharpened(self, solution: Solution) -> Solution:
        """The same: it is exact."""
        return solution

    def near(self, solution: Solution) -> Solution:
        """The exact solution with the regularisation of another one, without left-out outputs."""
        return self._solution(solution.regularisation, None)

    def _decomposed(self, known: Tensor, columns: Tensor) -> "_Part":
        """The outputs in some columns, which are known for the same samples."""

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            rows, start = known.repeat(self._copies), 0
            for features, targets in self._blocks():
                chosen = rows[start : start + len(features)]
                start += len(features)
                yield (features if chosen.all() else features[chosen]), targets[chosen][:, columns].double()

        standardised = Standardised(
            blocks,
            centred=self._intercept,
            see=lambda _: None,
            prepare=lambda targets: targets,
            least_spread=LEAST_SPREAD,
        )
        targets = self._targets[known][:, columns]
        means = targets.mean(0) * self._intercept
        values, vectors = standardised.spectrum()
        products = torch.zeros(standardised.features, len(columns), dtype=torch.float64)
        for features, some in standardised.passes(torch.float64):
            products += features.T @ (some - means)
        return _Part(
            columns=columns,
            samples=standardised.samples,
            centre=standardised.centre,
            spread=standardised.spread,
            means=means,
            squares=(targets - means).square().mean(0),
            values=values,
            vectors=vectors,
            products=vectors.T @ products / standardised.samples,
        )

    def _solution(self, regularisation: float, held_out: Tensor | None) -> Solution:
        weight = torch.zeros(self._outputs, self._features, dtype=torch.float64)
        bias = torch.zeros(self._outputs, dtype=torch.float64)
        errors = cells = 0.0
        for part in self._parts:
            weight[part.columns] = (part.weights(regularisation) / part.spread[:, None]).T
            bias[part.columns] = part.means - weight[part.columns] @ part.centre
            errors += part.samples * float(part.mean_squares(regularisation).sum())
            cells += part.samples * len(part.columns)
        return Solution(weight, bias, regularisation, errors / cells, np.zeros(0), held_out)

    def _held_out(self, regularisations: Sequence[float]) -> Tensor:
        """Outputs for each sample by solutions without it [regularisations, samples, outputs]."""
        outputs = torch.zeros(len(regularisations), self._samples, self._outputs, dtype=torch.float64)
        strengths = torch.tensor(regularisations, dtype=torch.float64)
        for part in self._parts:
            start = 0
            for copies in zip(*(self._pieces(copy) for copy in range(self._copies)), strict=True):
                rows = slice(start, start + len(copies[0]))
                start = rows.stop
                targets = self._targets[rows][:, part.columns]
                outputs[:, rows, part.columns] = part.without_each(
                    torch.stack(copies), targets, strengths, intercept=self._intercept
                )
        return outputs

    def _pieces(self, copy: int) -> Iterator[Tensor]:
        """Features of all samples in one of their copies, a number of samples at a time."""
        size, start, before = max(1, PART_SAMPLES // self._copies), copy * self._samples, 0
        waiting = torch.zeros(0)
        for features, _ in self._blocks():
            chosen = features[max(0, start - before) : max(0, start + self._samples - before)]
            before += len(features)
            if len(chosen):
                waiting = torch.cat([waiting, chosen]) if len(waiting) else chosen
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]
        if len(waiting):
            yield waiting


@dataclass(frozen=True)
class _Part:
    """Outputs that are known for the same samples.

    Attributes:
        columns: their numbers.
        samples: for how many they are known; copies count.
        centre: what is subtracted from features [features].
        spread: what the difference is divided by [features].
        means: what is subtracted from targets [outputs].
        squares: the mean squares of these differences [outputs].
        values: eigenvalues of X'X / samples [rank].
        vectors: its eigenvectors V [features, rank].
        products: V'X'y / samples [rank, outputs].
    """

    columns: Tensor
    samples: int
    centre: Tensor
    spread: Tensor
    means: Tensor
    squares: Tensor
    values: Tensor
    vectors: Tensor
    products: Tensor

    def weights(self, regularisation: float) -> Tensor:
        """For standardised features [features, outputs]."""
        return self.vectors @ (self.products / (self.values + regularisation)[:, None])

    def mean_squares(self, regularisation: float) -> Tensor:
        """Mean squared errors of the solution [outputs]."""
        shares = (self.values + 2 * regularisation) / (self.values + regularisation).square()
        return (self.squares - shares @ self.products.square()).clamp_min(0.0)

    def without_each(self, copies: Tensor, targets: Tensor, regularisations: Tensor, *, intercept: bool) -> Tensor:
        """Outputs for samples by solutions without them.

        With H for the matrix that makes the outputs of the training samples of their targets, the errors without a
        group of samples are (I - H)^-1 times the errors with it, both for the rows and columns of the group.

        Args:
            copies: features [copies, samples, features]; a group is a sample with all its copies.
            targets: [samples, outputs].
            regularisations: [regularisations].
            intercept: whether the outputs have a bias.

        Returns:
            [regularisations, samples, outputs]; for samples whose target is not known the outputs of the solution,
            which was made without them.
        """
        along = (copies.double() - self.centre) / self.spread @ self.vectors
        shrunk = 1 / (self.values[:, None] + regularisations)
        factors = (self.products[:, None] * shrunk[:, :, None]).flatten(1)
        # [copies, samples, regularisations, outputs].
        fitted = (along @ factors).unflatten(2, (len(regularisations), -1)) + self.means
        known = ~targets.isnan()
        if self.samples == len(copies):
            # Without the only sample there is no solution but zero.
            return torch.where(known, 0.0, fitted[0].transpose(0, 1))
        leverages = torch.stack([torch.stack([one * other @ shrunk for other in along]) for one in along])
        leverages = (leverages + float(intercept)) / self.samples
        # [samples, regularisations, copies, copies].
        system = torch.eye(len(copies), dtype=torch.float64) - leverages.permute(2, 3, 0, 1)
        errors = torch.linalg.solve(system, (targets[:, None] - fitted).permute(1, 2, 0, 3))[:, :, 0]
        return torch.where(known[:, None], targets[:, None] - errors, fitted[0]).transpose(0, 1)
