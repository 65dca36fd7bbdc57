"""A head on a frozen backbone is solved: it is a convex problem, which needs no training step by step.

A model with taps reads the backbone at the depths that are best; otherwise probes of earlier layers are only reported.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from hf_transfer.data.batches import Loaders
from hf_transfer.data.folds import MANY_ROWS, Folds
from hf_transfer.frozen.features import Features, best_solution
from hf_transfer.frozen.out_of_fold import out_of_fold
from hf_transfer.frozen.recording import Passes, from_main_process
from hf_transfer.frozen.solvers import Solver, SolverOptions
from hf_transfer.frozen.standardised import Solution
from hf_transfer.frozen.taps import tap_features
from hf_transfer.models.groups import Group
from hf_transfer.models.modeling_deep_probe import MEAN
from hf_transfer.models.taps import HEAD_INPUT, AllTaps, count_blocks, taps_of, together, widths_of, without_head
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Metrics, Target

# With fewer samples of validation, left-out predictions for training help to choose among taps.
FEW_HELD_OUT = 1_000
# Of the training samples that help to choose, or to calibrate. Also where a class has fewer samples: heads of fewer
# folds would know too little of the others.
FOLDS = 5


class SolvedHead(NamedTuple):
    """What is known of a solved head.

    Attributes:
        row: of history: loss on training, seconds, how many of them were spent on features, the regularisation, and
            the metrics of validation.
        held_out: if the target is calibrated: predictions for samples by heads that were solved without them, those of
            validation followed by those of training. None: it is not, or there are too many training samples.
    """

    row: Metrics
    held_out: Predictions | None


def solvable_layer(model: nn.Module, head: Group, target: Target) -> str | None:
    """Name of the one Linear layer that computes the outputs, if there is a solver for the target.

    None if the target has no solver, or there are several such layers, as in a distilled DeiT: the head is trained.
    """
    if target.solver is None:
        return None
    names = [name for name in head.modules if isinstance(model.get_submodule(name), nn.Linear)]
    return names[0] if len(head.modules) == len(names) == 1 else None


def solve_head(
    model: nn.Module, layer_name: str, passes: Passes, options: SolverOptions, report: Callable[[str], None] = print
) -> SolvedHead:
    """Solve the last layer on its inputs, and write the solution into it.

    The regularisation is the best one, tried from strong to weak until two decades have brought no gain; see
    `best_solution`.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.

    Args:
        model: classifier, not wrapped; every process holds it.
        layer_name: its last Linear layer.
        passes: the samples of training and validation, and where features are stored.
        options: how the layer is solved.
        report: takes a sentence on the nearest neighbours, if they are asked for. They are only reported: no layer can
            do what they do, so the model gets the solution of logistic regression.

    Raises:
        UserError: the probe does not suit the target, or features cannot be stored.
    """
    started = time.perf_counter()
    loaders, accelerator = passes.loaders, passes.accelerator
    # Asked before the passes: it may be an error.
    solver = options.solver(loaders.target)
    model.to(accelerator.device)
    with head_features(model, layer_name, passes, loaders.views) as (layer, features):
        frozen_seconds = time.perf_counter() - started
        combinations = model.choice.combinations if isinstance(model, AllTaps) else (features.columns,)
        solve = partial(
            _best_columns, solver, features, combinations, options, loaders, intercept=layer.bias is not None
        )
        solved = from_main_process(accelerator, solve)
        features, best = replace(features, columns=solved.columns), solved.solution
        if solved.sentence:
            report(solved.sentence)
        if options.probe == "knn":
            accuracy, count = features.nearest_neighbours()
            report(f"Nearest neighbours: validation accuracy {accuracy:.4f} by a vote of {count}; not saved.")
        metrics = features.predictions(best).metrics()
        samples = features.samples * len(features.train)  # Each view counts.
    if isinstance(model, AllTaps):
        model.read_only(solved.columns, best.weight, best.bias)
    else:
        _write(layer, best)
    seconds = time.perf_counter() - started
    row = {
        "train_loss": best.loss,
        "learning_rate": 0.0,
        "seconds": seconds,
        "frozen_seconds": frozen_seconds,
        "samples_per_second": samples / seconds,
        "regularisation": best.regularisation,
        **metrics,
    }
    return SolvedHead(row, solved.held_out)


class _Solved(NamedTuple):
    """A solution.

    Attributes:
        columns: of the features that it is for.
        solution: on these columns.
        held_out: predictions for validation and training, see `SolvedHead`; None: there are none for training.
        sentence: on the choice of columns; empty, if there was none.
    """

    columns: tuple[int, ...]
    solution: Solution
    held_out: Predictions | None
    sentence: str = ""


def _best_columns(
    solver: Solver, features: Features, combinations: Sequence[tuple[int, ...]], options: SolverOptions,
    loaders: Loaders, *, intercept: bool,
) -> _Solved:  # fmt: skip
    """The best solution on the best combination of columns.

    Combinations are compared by their predictions for validation. If that is small, predictions for training samples
    by heads that were solved without them are added: by so few samples alone the choice would be left to chance.
    """
    few = features.validation_samples < FEW_HELD_OUT
    left_out = features.target.is_calibrated or (few and len(combinations) > 1)
    # Where training is large, so is validation.
    folds = loaders.folds(features.counted.numpy(), FOLDS) if left_out and 2 <= features.samples <= MANY_ROWS else None
    solve = partial(_solved, solver, features, folds=folds, options=options, intercept=intercept, left_out=left_out)
    if len(combinations) == 1:
        return solve(combinations[0])
    solutions: list[_Solved] = []
    rows: list[Metrics] = []
    best = -1
    for columns in combinations:
        solved = solve(columns)
        judged = solved.held_out or replace(features, columns=columns).predictions(solved.solution)
        row = judged.metrics(options.ranking.metric)
        best = len(rows) if options.ranking.is_better(row, rows, best) else best
        rows.append(row)
        solutions.append(solved)
    names = [together([features.names[column] for column in columns]) for columns in combinations]
    metric = options.ranking.metric
    title = next((one.title for one in features.target.metrics if one.name == metric), metric)
    scores = ", ".join(f"{name} {row[metric]:.4f}" for name, row in zip(names, rows, strict=True))
    sentence = f"Taps by {title} on {len(judged):,} held-out samples: {scores}. The head reads {names[best]}."
    chosen = solutions[best]
    return chosen._replace(held_out=chosen.held_out if features.target.is_calibrated else None, sentence=sentence)


def _solved(
    solver: Solver, features: Features, columns: tuple[int, ...], *, folds: Folds | None, options: SolverOptions,
    intercept: bool, left_out: bool,
) -> _Solved:  # fmt: skip
    """The best solution on some columns and, if wanted, predictions by heads that were solved without the samples."""
    features = replace(features, columns=columns)
    are_alone = folds is None or not folds.units_have_several_rows
    best = best_solution(solver, features, options, intercept=intercept, are_alone=are_alone)
    training = out_of_fold(solver, features, best, folds, options, intercept=intercept) if left_out else None
    if training is None:
        return _Solved(columns, best, None)
    both = features.predictions(best), training
    outputs, targets = torch.cat([one.outputs for one in both]), np.concatenate([one.targets for one in both])
    return _Solved(columns, best, Predictions(features.target, outputs, targets, np.arange(len(targets))))


def _write(layer: nn.Linear, solution: Solution) -> None:
    with torch.no_grad():
        layer.weight.copy_(solution.weight)
        if layer.bias is not None:
            layer.bias.copy_(solution.bias)


@contextmanager
def head_features(
    model: nn.Module, layer_name: str, passes: Passes, views: int
) -> Iterator[tuple[nn.Linear, Features]]:
    """What the last layer of a model may read, for training and validation; afterwards the model is as it was.

    Args:
        model: classifier, not wrapped; every process holds it.
        layer_name: its last Linear layer.
        passes: the samples, and where features are stored.
        views: augmented views of the training samples, beside the samples as in evaluation.

    Yields:
        The layer, and the features: one column, or one for each tap.
    """
    if isinstance(model, AllTaps):
        with tap_features(model.backbone, model.choice.taps, model.widths, views, passes) as features:
            yield model.classifier, replace(features, normalised=True)
        return
    with (
        without_head(model, layer_name) as layer,
        tap_features(model, [HEAD_INPUT], [layer.in_features], views, passes) as features,
    ):
        yield layer, features


def probe_layers(
    model: nn.Module, groups: Sequence[Group], layers: Sequence[int], passes: Passes, options: SolverOptions,
    report: Callable[[str], None],
) -> None:  # fmt: skip
    """Solve a probe on each of some layers, and one on all of them together; report how good they are.

    The features of a layer are the mean of its outputs over all tokens or all places of an image. The model is not
    changed, and every process has to call this.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.

    Args:
        model: classifier, not wrapped, whose target has a solver.
        groups: its groups in depth order.
        layers: blocks, counted from 1 at the input; none: nothing is done.
        passes: the samples of training and validation, and where features are stored.
        options: how probes are solved; their solver is always the one that the target names.
        report: takes the sentences.
    """
    target = passes.loaders.target
    if not layers:
        return
    solver = replace(options, probe="logistic").solver(target)
    metric = next(one for one in target.metrics if one.name == target.main_metric)
    device, (head,) = passes.accelerator.device, groups[-1].modules
    model.to(device)
    inputs = passes.loaders.some_samples("validation", [0], None, device).inputs
    with without_head(model, head):
        taps = taps_of(model, groups, inputs, [(MEAN, layer) for layer in layers])
        with tap_features(model, taps, widths_of(model, taps, inputs), 0, passes) as features:
            if not passes.accelerator.is_main_process:
                return
            combinations: list[tuple[int, ...]] = [(place,) for place in range(len(taps))]
            if len(taps) > 1:
                combinations.append(tuple(range(len(taps))))
            for places in combinations:
                some = replace(features, columns=places)
                best = best_solution(solver, some, options, intercept=True)
                row = some.predictions(best).metrics(metric.name)
                names = " + ".join(str(layers[place]) for place in places)
                report(
                    f"Probe of layer {names} of {count_blocks(groups)}: validation {metric.title} "
                    f"{row[metric.name]:.4f}, loss {row['loss']:.4f}."
                )
