"""Predictions for training samples, each by heads that were solved without it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hf_transfer.data.folds import Folds
from hf_transfer.frozen.features import PATIENCE, Features
from hf_transfer.frozen.solvers import Problem, Solver, SolverOptions
from hf_transfer.frozen.standardised import Floats, Solution
from hf_transfer.targets.intervals import ScoresByUnit
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Metrics


class Search(NamedTuple):
    """How the best regularisation is searched for.

    Attributes:
        regularisations: from strong to weak; None: those of the solver.
        patience: after so many of them without gain, the search ends: weak ones take the longest to solve.
    """

    regularisations: Sequence[float] | None = None
    patience: int = PATIENCE


USUAL_SEARCH = Search()


class LeftOut(NamedTuple):
    """Outputs with one regularisation, of heads that were solved without the samples.

    Attributes:
        regularisation: of all heads.
        outputs: float64 [repeats, samples, outputs]; those of samples in no fold are NaN.
    """

    regularisation: float
    outputs: Tensor


@dataclass(frozen=True)
class OutOfFold(ScoresByUnit):
    """Predictions for training samples by heads that were solved without them.

    Attributes:
        predictions: the outputs, averaged over the repeats; `index` has the positions of the samples.
        scores: how good the answer to each sample is, averaged over the repeats, higher is better [samples].
        units: of each sample: those of one unit belong together [samples].
        regularisation: of all heads.
    """

    predictions: Predictions
    scores: Floats
    units: npt.NDArray[np.int64]
    regularisation: float


def left_out_path(
    solver: Solver, features: Features, folds: Folds, options: SolverOptions, *, intercept: bool,
    learnt_from: Sequence[npt.NDArray[np.bool_]] | None = None, regularisations: Sequence[float] | None = None,
) -> Iterator[LeftOut]:  # fmt: skip
    """Left-out outputs from strong to weak regularisation, which is the same for the heads of all folds.

    Reference: Stone, "Cross-validatory choice and assessment of statistical predictions", Journal of the Royal
    Statistical Society B 1974, https://doi.org/10.1111/j.2517-6161.1974.tb00994.x.

    Args:
        solver: of the heads.
        features: of training.
        folds: of the training samples that count.
        options: what each class counts.
        intercept: whether heads have a bias.
        learnt_from: for each fold, the samples that its heads are solved on [samples]; None: all outside of it.
        regularisations: that are tried; None: those of the solver.
    """
    parts = [(repeat, torch.from_numpy(inside)) for repeat, inside in folds.each()]
    outside = [torch.from_numpy(rows) for rows in (folds.outside() if learnt_from is None else learnt_from)]
    problems = [_problem(solver, features, rows, options, intercept) for rows in outside]
    tried = {} if regularisations is None else {"regularisations": regularisations}
    paths = [problem.path(**tried, rough=True) for problem in problems]
    for solutions in zip(*paths, strict=True):
        outputs = torch.full(
            (len(folds.of_rows), features.samples, len(features.target.names)), math.nan, dtype=torch.float64
        )
        for (repeat, inside), solution in zip(parts, solutions, strict=True):
            outputs[repeat, inside] = features.training_outputs(solution, inside)
        yield LeftOut(solutions[0].regularisation, outputs)


def _problem(solver: Solver, features: Features, outside: Tensor, options: SolverOptions, intercept: bool) -> Problem:
    """The problem of a head on the samples outside a fold, in all their views."""
    blocks, outputs, copies = partial(features.blocks, outside), len(features.target.names), len(features.train)
    return solver(blocks, outputs, intercept=intercept, balanced=options.balanced, copies=copies)


def predicted_out_of_fold(
    solver: Solver, features: Features, folds: Folds, options: SolverOptions, *, intercept: bool,
    learnt_from: Sequence[npt.NDArray[np.bool_]] | None = None, search: Search = USUAL_SEARCH,
) -> OutOfFold:  # fmt: skip
    """The left-out predictions with the best regularisation.

    It is the best one by the left-out outputs of all samples, tried from strong to weak until that brings no gain. So
    the label of a sample has a part in the choice of this one number, and else none in the prediction for it.

    Args:
        solver: see `left_out_path`, as for the others.
        features: see there.
        folds: see there.
        options: see there; its ranking selects the regularisation.
        intercept: see there.
        learnt_from: see there.
        search: which regularisations are tried, and how far.
    """
    index = np.flatnonzero(folds.predicted)
    targets = features.targets[index]
    rows: list[Metrics] = []
    best = -1
    path = left_out_path(
        solver, features, folds, options, intercept=intercept, learnt_from=learnt_from,
        regularisations=search.regularisations,
    )  # fmt: skip
    for left_out in path:
        repeats = [Predictions(features.target, outputs[index], targets, index) for outputs in left_out.outputs]
        row = _mean_row([one.metrics(options.ranking.metric) for one in repeats])
        if options.ranking.is_better(row, rows, best):
            best, chosen, regularisation = len(rows), repeats, left_out.regularisation
        rows.append(row)
        if len(rows) - best > search.patience:
            break
    outputs = torch.stack([one.outputs for one in chosen]).mean(0)
    # What a finished model would take from left-out predictions, such as thresholds, it has here, too.
    is_calibrated = features.target.is_calibrated
    target = features.target.calibrated(outputs, targets) if is_calibrated else features.target
    scores = np.mean([target.sample_scores(one.outputs, targets) for one in chosen], axis=0)
    return OutOfFold(Predictions(target, outputs, targets, index), scores, folds.units[index], regularisation)


def _mean_row(rows: Sequence[Metrics]) -> Metrics:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def out_of_fold(
    solver: Solver, features: Features, solution: Solution, folds: Folds | None, options: SolverOptions,
    *, intercept: bool,
) -> Predictions | None:  # fmt: skip
    """Predictions for the training samples, as in evaluation, each by a head that was solved without it.

    For each fold of the first repeat, a head is solved on the samples outside of it, with the regularisation of the
    solution; all views of a sample are in its fold. If the solution has left-out outputs and no samples belong
    together, the predictions are these outputs.

    Args:
        solver: of the head.
        features: of training and validation.
        solution: the head.
        folds: of the training samples that count, each of which is in one; None: they are not divided.
        options: what each class counts.
        intercept: whether the head has a bias.

    Returns:
        None without folds, unless the solution has left-out outputs.
    """
    if folds is None or (solution.held_out is not None and not folds.units_have_several_rows):
        return None if solution.held_out is None else features.training_predictions(solution.held_out)
    left_out = torch.empty(features.samples, len(features.target.names), dtype=torch.float64)
    for _, inside in folds._replace(of_rows=folds.of_rows[:1]).each():
        chosen = torch.from_numpy(inside)
        head = _problem(solver, features, ~chosen, options, intercept).near(solution)
        left_out[chosen] = features.training_outputs(head, chosen)
    return features.training_predictions(left_out)
