"""Heads on the frozen features of a model: at several depths, on fewer rows, and without pretrained weights."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_transfer.advice.missed import missed_by
from hf_transfer.advice.probes import ConstantAnswer, Difference, FreshWeights, JudgedRows, LearningCurve, Probe
from hf_transfer.advice.scoring import ProbeTask, Task, best_of, columns_of, probed
from hf_transfer.data.folds import Folds, halved
from hf_transfer.data.splits import cut_stratified
from hf_transfer.frozen.features import Features
from hf_transfer.frozen.out_of_fold import USUAL_SEARCH, OutOfFold, Search
from hf_transfer.frozen.probe import solvable_layer
from hf_transfer.frozen.recording import Passes
from hf_transfer.frozen.regularisation_path import REGULARISATIONS
from hf_transfer.frozen.solvers import RIDGE
from hf_transfer.frozen.transferability import score_of_neighbours
from hf_transfer.models.memory_format import in_channels_last
from hf_transfer.models.pretrained import load_classifier
from hf_transfer.run import Run
from hf_transfer.targets.intervals import mean_and_error

# With fresh weights, more rows would cost a long pass and say little more.
MOST_ROWS_WITH_FRESH_WEIGHTS = 1_000
# Heads for the learning curve are solved on a quarter, a half and all of the rows.
HALVINGS = 2
FEWEST_ROWS_OF_A_HEAD = 2
# Evidence is to cost little beside the pass. So regularisations are a decade apart, one without gain ends the search,
# and heads of the same features on other folds or fewer rows begin with what was the best. Ridge has no iterations.
DECADES = Search(REGULARISATIONS[::2], patience=1)
STRONGER = (100.0, 10.0, 1.0)
# Below so many rows, the choice of a place would depend much on one division into folds: all repeats count.
FEW_ROWS = 200
Solve = Callable[..., OutOfFold]


@dataclass(frozen=True)
class ProbedModel:
    """What probes say of a model.

    Attributes:
        known: fields of `Evidence`.
        seconds: of a row through the model; None: an earlier run has stored the features.
        solving: seconds of solving heads on one kind of features.
    """

    known: dict[str, Any]
    seconds: float | None
    solving: float


def why_no_head_is_solved(run: Run) -> str:
    """What the model or the target of a run lacks for a head that is solved, in a part of a sentence; "": nothing."""
    splits, prepared = run.splits, run.prepared
    if splits.target.solver is None:
        return f"there is no solver for {splits.target.describe()}"
    if solvable_layer(prepared.model, prepared.groups[-1], splits.target) is None:
        return f"the head of {run.checkpoint.name} has several layers"
    return ""


def probed_model(run: Run, *, with_fresh_weights: bool) -> ProbedModel:
    """Solve heads on the frozen features of the model of a run, from one pass over its training rows.

    Args:
        run: whose model and batches are ready.
        with_fresh_weights: whether the same architecture with random weights is probed, too.

    Raises:
        UserError: see `ProbeTask.of`.
    """
    subject = ProbeTask.of(run)
    folds, passes = subject.task.folds, Passes.of(run.loaders, run.accelerator, run.config)
    model, groups, example = run.prepared.model, run.prepared.groups, run.preprocessing.example()
    with columns_of(model, groups, example, subject.layer_name, passes, deeper=run.checkpoint.is_read_at_depths) as (
        layer,
        features,
    ):
        solve = partial(probed, options=subject.options, intercept=layer.bias is not None)
        search = USUAL_SEARCH if subject.task.target.solver == RIDGE else DECADES
        started = time.perf_counter()
        probes = {name: solve(one, folds.first(), search=search) for name, one in features.items()}
        solving = (time.perf_counter() - started) / len(features)
        head = next(iter(features))
        scores = {name: probe.scores for name, probe in probes.items()}
        if len(folds.of_rows) > 1 and len(folds.units) < FEW_ROWS:
            for name, probe in probes.items():
                further = solve(features[name], folds.others(), search=Search([probe.regularisation])).scores
                scores[name] = scores[name] + (further - scores[name]) * (1 - 1 / len(folds.of_rows))
        best = max(scores, key=lambda name: float(scores[name].mean()))
        units, seconds = probes[best].units, features[best].seconds
        rows = subject.task.train.rows[probes[best].predictions.index]
        known: dict[str, Any] = {
            "probes": tuple(
                Probe(
                    name,
                    *mean_and_error(of_rows, units),
                    None if name == head else Difference.of(of_rows, scores[head], units),
                    missed_by(probes[name].predictions),
                )
                for name, of_rows in scores.items()
            ),
            "best": best,
            "judged": JudgedRows(tuple(rows.tolist()), tuple(scores[best].tolist()), tuple(units.tolist())),
            "constant": _constant_answer(subject.task, probes[best], scores[best]),
            "neighbours": score_of_neighbours(features[best], folds.units),
            "curve": learning_curve(features[best], subject.task, probes[best], solve, run.config.training.seed),
        }
        if with_fresh_weights:
            known["fresh_weights"] = _with_fresh_weights(run, subject, features[best], solve)
    return ProbedModel(known, None if seconds is None else seconds / len(run.splits.train), solving)


def _constant_answer(task: Task, best: OutOfFold, scores: npt.NDArray[np.float64]) -> ConstantAnswer:
    """How good the best answer is that is the same for all rows, on the rows of the best head."""
    name, outputs, target = task.target.constant(task.train.targets)
    targets = best.predictions.targets
    constant = target.sample_scores(outputs.expand(len(targets), -1), targets)
    return ConstantAnswer(name, float(constant.mean()), Difference.of(scores, constant, best.units))


def learning_curve(features: Features, task: Task, whole: OutOfFold, solve: Solve, seed: int) -> LearningCurve | None:
    """How good heads are that are solved on a quarter and a half of the rows, on the same rows as those of all.

    Reference: Viering and Loog, "The shape of learning curves: a review", IEEE Transactions on Pattern Analysis and
    Machine Intelligence 2023, https://arxiv.org/abs/2103.10948.

    Args:
        features: of the rows.
        task: the rows, with their folds; the first repeat is used.
        whole: predictions by the heads of all rows.
        solve: solves heads.
        seed: of the draw of rows.

    Returns:
        None if there are too few rows.
    """
    folds = task.folds.first()
    learnt_from = [folds.outside()]
    for _ in range(HALVINGS):
        learnt_from.insert(0, halved(learnt_from[0], task.train.targets, task.target, seed))
    if min(int(rows.sum()) for rows in learnt_from[0]) < FEWEST_ROWS_OF_A_HEAD:
        return None
    # Fewer rows need no weaker regularisation.
    search = Search([factor * whole.regularisation for factor in STRONGER])
    probes = [*(solve(features, folds, learnt_from=masks, search=search) for masks in learnt_from[:-1]), whole]
    scores, errors = zip(*(mean_and_error(probe.scores, probe.units) for probe in probes), strict=True)
    rows = tuple(float(np.mean([mask.sum() for mask in masks])) for masks in learnt_from)
    return LearningCurve(rows, scores, errors, Difference.of(whole.scores, probes[-2].scores, whole.units))


def _with_fresh_weights(run: Run, subject: ProbeTask, features: Features, solve: Solve) -> FreshWeights:
    """Compare the best features of the pretrained model with the best of the same architecture without its weights."""
    train, target, seed = subject.task.train, run.splits.target, run.config.training.seed
    if len(train) > MOST_ROWS_WITH_FRESH_WEIGHTS:
        train = cut_stratified(train, MOST_ROWS_WITH_FRESH_WEIGHTS / len(train), seed, target)[1]
    inside = np.isin(subject.task.train.rows, train.rows)
    folds = subject.task.folds.first().of_part(inside)
    search = USUAL_SEARCH if target.solver == RIDGE else DECADES
    learnt_from = [rows & inside for rows in folds.outside()]
    # Of images with texts, copies with hidden parts would take most of the time, and say nothing of the weights.
    pretrained = solve(features.as_in_evaluation, folds, learnt_from=learnt_from, search=search)

    example = run.preprocessing.example()
    fresh_model, groups = load_classifier(run.checkpoint, target, example, seed=seed, fresh_weights=True)
    in_channels_last(fresh_model)
    model, groups = run.strategy.prepare(fresh_model, groups, example, seed)
    loaders = run.modality.loaders(
        replace(run.splits, train=train), run.preprocessing, run.config, run.accelerator, frozen_prefix=False
    )
    with closing(loaders):
        passes = Passes.of(loaders, run.accelerator, run.config)
        # Nobody will read these features again.
        passes = replace(passes, settings=replace(passes.settings, cache_frozen="off"))
        with columns_of(
            model, groups, example, subject.layer_name, passes, deeper=run.checkpoint.is_read_at_depths
        ) as (_, fresh):
            of_part = Folds(folds.of_rows[:, inside], folds.units[inside])
            probes = {name: solve(one.as_in_evaluation, of_part, search=search) for name, one in fresh.items()}
    best = best_of(probes)
    probe = probes[best]
    gain = Difference.of(pretrained.scores, probe.scores, pretrained.units)
    return FreshWeights(len(train), best, probe.score, probe.standard_error, pretrained.score, gain)
