"""How well the frozen features of one pretrained model suit a task, and what the model costs."""

import gc
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_transfer.data.batches import Batch
from hf_transfer.data.checked import units_of_rows
from hf_transfer.data.folds import Folds, folds_of
from hf_transfer.data.splits import Split, Splits, cut_stratified, part_of
from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation.run_folder import peak_memory_bytes
from hf_transfer.evaluation.saved_model import count_parameters
from hf_transfer.frozen.features import Features
from hf_transfer.frozen.out_of_fold import USUAL_SEARCH, OutOfFold, Search, predicted_out_of_fold
from hf_transfer.frozen.probe import solvable_layer
from hf_transfer.frozen.recording import Passes
from hf_transfer.frozen.solvers import SolverOptions
from hf_transfer.frozen.taps import tap_features
from hf_transfer.frozen.transferability import Scores, scores_of
from hf_transfer.host_memory import freed_memory_kept, peak_restarted
from hf_transfer.look_ahead import seconds_of_a_pass
from hf_transfer.models.groups import Group
from hf_transfer.models.taps import HEAD_INPUT, AllTaps, TapChoice, together, usual_taps, widths_of, without_head
from hf_transfer.run import Run, open_run
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import TOWER_STRATEGIES
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.target import Target
from hf_transfer.training.guard import is_out_of_memory

# Up to so many training rows, all are used: in the very store that a later run reads.
ALL_ROWS = 5_000
# Of more, so many of each class are enough, and at least so many of all.
ROWS_OF_A_CLASS, FEWEST_ROWS = 50, 1_000


@dataclass(frozen=True)
class ScoredModel:
    """What is known of a pretrained model before it is trained.

    Attributes:
        name: as it was given.
        column: the features whose probe is best, by the names of `--taps`: `head` is what enters the head.
        probe: predictions by heads on these features, out of fold.
        scores: of the same features, without a head.
        parameters: of the model, with its new head.
        rows_per_second: through the frozen model.
        peak_memory_bytes: of the process, or of the accelerator if it has one; None: it is not known.
        truncated: how many texts were cut off; None: samples have no length.
        names: what the model consists of, by the settings of a run.
    """

    name: str
    column: str
    probe: OutOfFold
    scores: Scores
    parameters: int
    rows_per_second: float
    peak_memory_bytes: int | None
    truncated: int | None
    names: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """The samples on which all models are scored.

    Attributes:
        train: the rows that are used; none of them is masked.
        target: what is predicted.
        folds: of the rows.
        notes: sentences on the data.
    """

    train: Split
    target: Target
    folds: Folds
    notes: list[str]


def training_alone(splits: Splits, seed: int) -> Splits:
    """Only training rows: all of them or, if there are many, some of each class, the same for each model.

    Args:
        splits: of a data set.
        seed: of the draw.
    """
    train, nothing = splits.train, np.empty(0, dtype=np.int64)
    if len(train) > ALL_ROWS:
        wanted = max(FEWEST_ROWS, ROWS_OF_A_CLASS * len(splits.target.names))
        if wanted < len(train):
            train = cut_stratified(train, wanted / len(train), seed, splits.target)[1]
    return replace(
        splits, train=train, validation=part_of(train, nothing), test=part_of(train, nothing), unlabelled=None,
        copies={},
    )  # fmt: skip


def solving(config: RunConfig) -> RunConfig:
    """The settings of a run that solves a head on the frozen model of another one, and trains nothing."""
    changes: dict[str, Any] = {name: None for name in TOWER_STRATEGIES if name in config.settings()}
    return config.replaced(strategy=config.solved, **changes).without_ineffective()


def score_model(config: RunConfig, data: datasets.DatasetDict | None = None) -> tuple[ScoredModel, Task]:
    """Load one model, and score its features on training rows; neither validation nor test is predicted.

    Args:
        config: the settings of a run that solves a head on the frozen model.
        data: a data set in memory; None: what the settings name.

    Raises:
        UserError: the model cannot be loaded for these data or has no head that can be solved, or memory is full.
    """
    restarted = peak_restarted()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with frozen_run(config, data, partial(training_alone, seed=config.training.seed)) as run:
        scored, task = _scored(run)
        used = peak_memory_bytes()
        host = used["host"] if restarted else None
        scored = replace(scored, peak_memory_bytes=used["device"] or host)
    return scored, task


@contextmanager
def frozen_run(
    config: RunConfig, data: datasets.DatasetDict | None, choose: Callable[[Splits], Splits]
) -> Iterator[Run]:
    """A run that is ready to compute features, and writes nothing but its caches.

    Args:
        config: the settings of a run that solves a head on the frozen model.
        data: a data set in memory; None: what the settings name.
        choose: the samples that are used.

    Raises:
        UserError: see `score_model`.
    """
    # The run itself would print its notes, for each model again.
    with _memory_explained(), open_run(config, data, ahead=True) as run, redirect_stdout(io.StringIO()):
        run.load_data(choose)
        run.load_model()
        run.choose_what_learns()
        with freed_memory_kept(scarce=False):
            yield run


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise user_error(
            expected="memory for a pass through the model",
            found=(str(error) or type(error).__name__).splitlines()[0],
            do="lower --per_device_eval_batch_size, or leave this model out",
        ) from error


@dataclass(frozen=True)
class ProbeTask:
    """How heads on the frozen features of a run are solved and judged.

    Attributes:
        layer_name: the last layer of the model.
        task: the samples.
        options: how heads are solved.
    """

    layer_name: str
    task: Task
    options: SolverOptions

    @classmethod
    def of(cls, run: Run) -> "ProbeTask":
        """That of a run whose model and batches are ready.

        Raises:
            UserError: the model has no head that can be solved, or too few rows differ.
        """
        config, splits, prepared = run.config, run.splits, run.prepared
        layer_name = solvable_layer(prepared.model, prepared.groups[-1], splits.target)
        if layer_name is None:
            raise user_error(
                expected="a head of one linear layer, and a target that it can be solved for",
                found=f"{run.checkpoint.name} with {splits.target.describe()}",
                do="leave this model out",
            )
        counting = part_of(splits.train, np.flatnonzero(splits.train.counted))
        units = units_of_rows(counting, splits.groups, config, run.modality)
        folds = folds_of(counting, units, splits.target, config.training.seed)
        ranking = Ranking.of(splits.target, config.training.metric_for_best_model)
        balanced = config.training.class_weights == "balanced"
        options = SolverOptions(ranking, config.strategy.probe, balanced=balanced)
        return cls(layer_name, Task(counting, splits.target, folds, splits.describe()), options)


def _scored(run: Run) -> tuple[ScoredModel, Task]:
    probe_task = ProbeTask.of(run)
    task, passes = probe_task.task, Passes.of(run.loaders, run.accelerator, run.config)
    model, groups, example = run.prepared.model, run.prepared.groups, run.preprocessing.example()
    deeper = run.checkpoint.is_read_at_depths
    with columns_of(model, groups, example, probe_task.layer_name, passes, deeper=deeper) as (layer, features):
        column, probe = best_column(features, task.folds, probe_task.options, intercept=layer.bias is not None)
        scores = scores_of(features[column], task.folds.units)
    lost = getattr(run.loaders.train.dataset, "lost", None)
    scored = ScoredModel(
        name=run.checkpoint.name,
        column=column,
        probe=probe,
        scores=scores,
        parameters=_parameters(model, layer, features[column]),
        rows_per_second=len(run.splits.train) / seconds_of_a_pass(run, "train"),
        peak_memory_bytes=None,
        truncated=None if lost is None else int((lost > 0).sum()),
        names=run.config.named_models,
    )
    return scored, task


def _parameters(model: nn.Module, layer: nn.Linear, features: Features) -> int:
    """Of a model with its head; of one on all taps, with a head on those that are read."""
    if not isinstance(model, AllTaps):
        return count_parameters(model)
    width = sum(model.widths[place] for place in features.columns)
    bias = 0 if layer.bias is None else layer.out_features
    return count_parameters(model.backbone) + width * layer.out_features + bias


@contextmanager
def columns_of(
    model: nn.Module, groups: Sequence[Group], example: Batch, layer_name: str, passes: Passes, *, deeper: bool
) -> Iterator[tuple[nn.Linear, dict[str, Features]]]:
    """The last layer of a model, and the features at several depths, by name; the model has no last layer inside.

    Args:
        model: a classifier, not wrapped; one on all taps stays as it is.
        groups: its groups in depth order.
        example: a small batch.
        layer_name: its last layer.
        passes: the training samples, and where features are stored.
        deeper: whether a head could be moved to other depths.
    """
    if isinstance(model, AllTaps):
        with _combined(model.backbone, model.choice, model.widths, passes) as features:
            yield model.classifier, features
        return
    with without_head(model, layer_name) as layer:
        choice = _taps(model, groups, example, deeper=deeper)
        with _combined(model, choice, widths_of(model, choice.taps, example), passes) as features:
            yield layer, features


@contextmanager
def _combined(
    backbone: nn.Module, choice: TapChoice, widths: Sequence[int], passes: Passes
) -> Iterator[dict[str, Features]]:
    """The features of each combination of taps, by name."""
    with tap_features(backbone, choice.taps, widths, 0, passes, of_validation=False) as features:
        scaled = replace(features, normalised=True)
        yield {
            together([features.names[place] for place in places]): replace(scaled, columns=places)
            for places in choice.combinations
        }


def _taps(model: nn.Module, groups: Sequence[Group], example: Batch, *, deeper: bool) -> TapChoice:
    """Where a model is read: at several depths, if it returns what is there, and its head could be moved."""
    if isinstance(model, PreTrainedModel) and deeper:
        with suppress(UserError):
            return usual_taps(model, groups, example)
    return TapChoice((HEAD_INPUT,), ((0,),))


def best_column(
    features: dict[str, Features], folds: Folds, options: SolverOptions, *, intercept: bool
) -> tuple[str, OutOfFold]:
    """Of some features of the same rows, those whose probe is best out of fold, with their predictions.

    Args:
        features: by name; the first of equal ones is chosen.
        folds: of the rows.
        options: how heads are solved.
        intercept: whether they have a bias.
    """
    # Once is enough to choose by.
    probes = {name: probed(one, folds.first(), options, intercept=intercept) for name, one in features.items()}
    best = best_of(probes)
    if len(folds.of_rows) == 1:
        return best, probes[best]
    return best, probed(features[best], folds, options, intercept=intercept)


def best_of(probes: dict[str, OutOfFold]) -> str:
    """The name of the best probe; of equal ones, the first."""
    return max(probes, key=lambda name: probes[name].score)


def probed(
    features: Features, folds: Folds, options: SolverOptions, *, intercept: bool,
    learnt_from: Sequence[npt.NDArray[np.bool_]] | None = None, search: Search = USUAL_SEARCH,
) -> OutOfFold:  # fmt: skip
    """The predictions of heads on some features; see `predicted_out_of_fold`."""
    return predicted_out_of_fold(
        options.solver(features.target), features, folds, options, intercept=intercept, learnt_from=learnt_from,
        search=search,
    )  # fmt: skip


def score_models(
    configs: dict[str, RunConfig], data: datasets.DatasetDict | None, report: Callable[[str], None]
) -> tuple[dict[str, ScoredModel], dict[str, UserError], Task]:
    """Score several models on the same rows, one after the other.

    Args:
        configs: the settings of a run with each model, by its name.
        data: a data set in memory; None: what the settings name.
        report: takes a sentence before each model.

    Returns:
        The models that were scored, and the reasons of those that cannot be used, by name; and the samples.

    Raises:
        UserError: no model can be used.
    """
    scored: dict[str, ScoredModel] = {}
    failed: dict[str, UserError] = {}
    for number, (name, config) in enumerate(configs.items(), start=1):
        report(f"[{number}/{len(configs)}] {name}")
        try:
            scored[name], task = score_model(config, data)
        except UserError as error:
            # A copy: the error itself holds the model, by the frames of its traceback.
            failed[name] = UserError(str(error), found=error.found)
        # One model in memory at a time: what is left of this one has reference cycles.
        gc.collect()
    if not scored:
        raise _nothing_usable(failed)
    return scored, failed, task


def _nothing_usable(failed: dict[str, UserError]) -> UserError:
    """The one reason, if it is the same for all, as of data that cannot be read."""
    first, *others = failed.values()
    if all(str(error) == str(first) for error in others):
        return first
    return user_error(
        expected="at least one model that can be used with these data",
        found="; ".join(f"{name}: {' '.join(str(error).split())}" for name, error in failed.items()),
        do="name other models",
    )
