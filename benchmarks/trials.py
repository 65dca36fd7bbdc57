"""Trainings by the steps of a run: settings go in, figures come out. Each may have a process of its own."""

import io
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.intervals import Floats
from benchmarks.processes import run_alone

# torch is imported where it is needed: the process that only waits for others stays small.
if TYPE_CHECKING:
    from hf_transfer.data.batches import Loaders
    from hf_transfer.run import Run
    from hf_transfer.settings.run import RunConfig
    from hf_transfer.training.progress import Fit

Arm = tuple[str, str]
# For a command in a process of its own.
ALONE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
CHILD = "from benchmarks.trials import train_here; train_here()"


@dataclass(frozen=True)
class Trial:
    """A training.

    Attributes:
        recipe: vision or text.
        settings: those of the recipe's config, without `output_dir`.
    """

    recipe: str
    settings: dict[str, Any] = field(hash=False)

    def with_settings(self, **more: Any) -> "Trial":
        """The same with other settings."""
        return Trial(self.recipe, {**self.settings, **more})


@dataclass(frozen=True)
class Outcome:
    """The outcome of a training: accuracies from 0 to 1, seconds with validation, parameters, bytes of the process."""

    validation: float
    test: float | None
    seconds: float
    trainable: int
    peak_bytes: int


def settings_of(recipe: str, settings: Mapping[str, Any]) -> "RunConfig":
    """The settings of a run; those that have no effect with its strategy are left out.

    Args:
        recipe: vision, text or multimodal.
        settings: by name.
    """
    from hf_transfer.modalities.table import modality_named
    from hf_transfer.settings.run import TOWERS, required

    kind = modality_named(recipe).config
    necessary = {name: settings[name] for name in (*required(kind), *TOWERS) if name in settings}
    return kind.of(**necessary).replaced(**settings).without_ineffective()


@contextmanager
def ready_run(config: "RunConfig") -> Iterator["Run"]:
    """A run that is ready to be trained: data and model are loaded, what learns is decided. Nothing is printed."""
    from hf_transfer.run import open_run

    with redirect_stdout(io.StringIO()), open_run(config, ahead=True) as run:
        run.load_data()
        run.load_model()
        run.choose_what_learns()
        yield run


def train(run: "Run", loaders: "Loaders | None" = None) -> tuple["Fit", float]:
    """Train a run that is ready, and keep the model in memory; the seconds of training with validation.

    Args:
        run: see `ready_run`.
        loaders: other batches than its own.
    """
    from hf_transfer.training.loop import fit

    prepared = run.prepared
    started = time.perf_counter()
    fitted = fit(
        prepared.model, run.strategy, prepared.groups, loaders or run.loaders, run.config, run.accelerator,
        run.regularisation,
    )  # fmt: skip
    return fitted, time.perf_counter() - started


def accuracy_on_test(run: "Run", fitted: "Fit") -> float:
    """The accuracy of a trained model on the test split, from 0 to 1."""
    from hf_transfer.training.predictions import predict_split

    return predict_split(fitted.model, run.loaders, "test", run.accelerator).metrics()["accuracy"]


def run_trial(trial: Trial, look_at_test: bool) -> Outcome:
    """Train in this process, with one thread; the test split is used only if asked for."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of(trial.recipe, {**trial.settings, "output_dir": folder})
        with ready_run(config) as run:
            fitted, seconds = train(run)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            accuracy = fitted.history[fitted.best_epoch]["accuracy"]
            test = accuracy_on_test(run, fitted) if look_at_test else None
    return Outcome(accuracy, test, seconds, fitted.trainable, peak)


def epochs_of_ours(run: "Run", loaders: "Loaders | None" = None) -> Callable[[int], Any]:
    """An epoch of `training.loop` in the first stage of a strategy: its number goes in, a row of history comes out.

    Args:
        run: see `ready_run`; nothing is saved.
        loaders: other batches than its own.
    """
    from functools import partial

    from hf_transfer.frozen.prefix import FrozenPrefix
    from hf_transfer.frozen.recording import Passes
    from hf_transfer.interruption import Request
    from hf_transfer.strategies.freezing import set_trainable
    from hf_transfer.targets.predictions import Ranking
    from hf_transfer.training.averaging import BestEpochs
    from hf_transfer.training.guard import Guard
    from hf_transfer.training.identity import run_identity
    from hf_transfer.training.loop import train_epoch
    from hf_transfer.training.progress import Fit, Position
    from hf_transfer.training.resuming import Checkpointing, RunState, checkpoints_of
    from hf_transfer.training.steps import Steps

    config, accelerator, strategy = run.config, run.accelerator, run.strategy
    model, groups, batches = run.prepared.model, run.prepared.groups, loaders or run.loaders
    training, stages = config.training, strategy.stages(groups, config.training.num_train_epochs)
    changing = stages[0].trainable
    set_trainable(model, groups, changing, updates_statistics=stages[0].updates_statistics)
    steps = Steps(model, groups, batches, training, strategy, stages, run.regularisation)
    frozen = FrozenPrefix(model, groups, Passes.of(batches, accelerator, config))
    identity = partial(
        run_identity, model, changing, strategy, stages, batches, config, accelerator, run.regularisation
    )
    checkpointing = Checkpointing(model, changing, identity, checkpoints_of(config), config.checkpoints, accelerator)
    ranking = Ranking.of(batches.target, training.metric_for_best_model)
    learner = steps.prepare(stages[0], accelerator, Position())

    def epoch(number: int) -> Any:
        so_far = Fit(model, history=[{} for _ in range(number)])
        state = RunState(so_far, steps, frozen, BestEpochs(1), changing, ranking)
        return train_epoch(
            learner, batches, state, Guard(Request(), state, checkpointing, training, accelerator), accelerator
        )

    return epoch


class Journal:
    """A file with a line for each finished training: an interrupted measurement continues from there.

    Args:
        path: the file; None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
        self._known = {entry["run"]: Outcome(**entry["outcome"]) for entry in map(json.loads, lines)}

    def submit(self, pool: ProcessPoolExecutor, trial: Trial, look_at_test: bool) -> "Future[Outcome]":
        """The outcome, from the file or from a process of the pool."""
        known = self._known.get(_name(trial, look_at_test))
        if known is None:
            return pool.submit(_run_and_note, trial, look_at_test, self.path)
        done: Future[Outcome] = Future()
        done.set_result(known)
        return done


def _name(trial: Trial, look_at_test: bool) -> str:
    return json.dumps([trial.recipe, trial.settings, look_at_test], sort_keys=True)


def _run_and_note(trial: Trial, look_at_test: bool, path: Path | None) -> Outcome:
    outcome = run_trial(trial, look_at_test)
    if path is not None:
        line = json.dumps({"run": _name(trial, look_at_test), "outcome": asdict(outcome)})
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return outcome


def tuned(
    arms: Iterable[tuple[Arm, Trial]], rates: Sequence[float], seeds: Sequence[int], choosing: Sequence[int],
    processes: int, journal: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each arm: the rate chosen on validation by the mean of a few seeds, and all seeds at that rate.

    The test split is used only by runs with the chosen rate, once each. A solved probe has no rate: the first of the
    grid stands for all. Every run has its own process, so that its peak memory is its own.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    trials, noted = dict(arms), Journal(journal)
    grid = {arm: rates[:1] if trial.settings["strategy"] == "linear_probe" else rates for arm, trial in trials.items()}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        tried = {
            (arm, rate, seed): noted.submit(pool, trials[arm].with_settings(learning_rate=rate, seed=seed), False)
            for arm in trials
            if len(grid[arm]) > 1
            for rate in grid[arm]
            for seed in choosing
        }

        def score(arm: Arm, rate: float) -> float:
            return mean(tried[arm, rate, seed].result().validation for seed in choosing) if len(grid[arm]) > 1 else 0.0

        scores = {arm: {rate: score(arm, rate) for rate in grid[arm]} for arm in trials}
        chosen = {arm: max(by_rate, key=by_rate.__getitem__) for arm, by_rate in scores.items()}
        final = {
            (arm, seed): noted.submit(pool, trials[arm].with_settings(learning_rate=chosen[arm], seed=seed), True)
            for arm in trials
            for seed in seeds
        }
        return [_row(arm, chosen[arm], scores[arm], [final[arm, seed].result() for seed in seeds]) for arm in trials]


def _row(arm: Arm, rate: float, scores: dict[float, float], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    solved = arm[1] == "linear_probe"
    return {
        "backbone": arm[0],
        "arm": arm[1],
        "learning_rate": None if solved else rate,
        "validation_by_rate": {} if len(scores) == 1 else {f"{rate:g}": score for rate, score in scores.items()},
        "validation": [outcome.validation for outcome in outcomes],
        "test": [outcome.test for outcome in outcomes],
        "seconds": [outcome.seconds for outcome in outcomes],
        "trainable": outcomes[0].trainable,
        "peak_bytes": max(outcome.peak_bytes for outcome in outcomes),
    }


def write_rows(path: Path, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Save figures with their settings."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "rows": list(rows)}, indent=2) + "\n", encoding="utf-8")


def trained_alone(recipe: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a whole run of classes in a process of its own, from data to a saved model that was loaded again.

    Args:
        recipe: vision or text.
        settings: by name; those that have no effect with its strategy are left out.

    Returns:
        `accuracy` on the test split, which answers were `right` (see `answers`), `validation`, the `best_epoch`,
        `seconds` of the clock and `cpu_seconds`.
    """
    words = [sys.executable, "-c", CHILD, json.dumps([recipe, settings])]
    ended = run_alone(words, folder=Path(__file__).parents[1], environment=ALONE)
    figures: dict[str, Any] = json.loads(ended.printed.strip().splitlines()[-1])
    return {**figures, "seconds": ended.clock, "cpu_seconds": ended.processor}


def train_here() -> None:
    """Train in this process with the settings of the command line, and print the figures in the last line."""
    from hf_transfer.whole_run import run_all_steps

    recipe, settings = json.loads(sys.argv[1])
    run = run_all_steps(settings_of(recipe, settings))
    assert run.results is not None, "the run is not finished"
    right = run.predictions["test"].sample_scores() > 0.5
    figures = {
        "accuracy": float(right.mean()), "test_rows": len(right), "right": np.packbits(right).tobytes().hex(),
        "validation": run.metrics["validation"]["accuracy"], "best_epoch": run.results.best_epoch,
    }  # fmt: skip
    print(f"\n{json.dumps(figures)}")


def answers(rows: Sequence[Mapping[str, Any]]) -> Floats:
    """Which answers of a model were right: 1 or 0 [seeds, test rows]."""
    return np.array([
        np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), dtype=np.uint8), count=row["test_rows"])
        for row in rows
    ], dtype=float)  # fmt: skip
