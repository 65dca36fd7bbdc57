"""Solvers of a head on stored features: the table of names, and what is solved with which."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from hf_transfer.errors import user_error
from hf_transfer.frozen.label_classifier import LabelProblem
from hf_transfer.frozen.linear_classifier import LinearProblem
from hf_transfer.frozen.ridge import RidgeProblem
from hf_transfer.frozen.standardised import Blocks, Solution
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.target import Target

Probe = Literal["logistic", "svm", "knn"]


class Problem(Protocol):
    """A convex problem whose solutions are linear layers."""

    def path(self, regularisations: Sequence[float] = ..., *, rough: bool = False) -> Iterator[Solution]:
        """Solutions from strong to weak regularisation; rough ones are less exact, and faster."""

    def sharpened(self, solution: Solution) -> Solution:
        """The exact solution with the regularisation of a rough one."""

    def near(self, solution: Solution) -> Solution:
        """A rough solution with the regularisation of one for other samples, of which it knows nothing else."""


class Solver(Protocol):
    """Makes the problem of a head with so many outputs from the features and targets of the training samples."""

    def __call__(self, blocks: Blocks, outputs: int, /, *, intercept: bool, balanced: bool, copies: int) -> Problem:
        """The problem.

        Args:
            blocks: features and targets of the training samples.
            outputs: of the head.
            intercept: whether the head has a bias.
            balanced: weight the loss so that each class, or the positives and negatives of each label, count the same.
            copies: how often `blocks` goes through the samples, in the same order, with other features (augmented).
        """


LOGISTIC, SQUARED_HINGE = "multinomial logistic", "one-vs-rest squared hinge"
LABELS, RIDGE = "one-vs-rest logistic", "ridge"
# By the names that targets give: `Target.solver`.
SOLVERS: dict[str, Solver] = {
    LOGISTIC: LinearProblem,
    SQUARED_HINGE: partial(LinearProblem, loss="svm"),
    LABELS: LabelProblem,
    RIDGE: RidgeProblem,
}


@dataclass(frozen=True)
class SolverOptions:
    """How a head is solved.

    Attributes:
        ranking: the metric that selects the regularisation.
        probe: `logistic`: the solver that the target names; `svm`: a support vector machine instead; `knn`: as
            `logistic`, and the accuracy of nearest neighbours is reported.
        balanced: weight the loss so that each class, or the positives and negatives of each label, count the same.
    """

    ranking: Ranking
    probe: Probe = "logistic"
    balanced: bool = False

    def solver(self, target: Target) -> Solver:
        """The solver for a target that names one.

        Raises:
            UserError: the probe is one for classes, and the target is not.
        """
        assert target.solver is not None
        if self.probe != "logistic" and target.solver != LOGISTIC:
            raise user_error(
                expected=f"for --probe {self.probe} one class for each sample",
                found=target.describe(),
                do="leave out --probe",
            )
        return SOLVERS[SQUARED_HINGE if self.probe == "svm" else target.solver]
