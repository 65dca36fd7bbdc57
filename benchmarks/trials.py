"""One training run of a recipe's steps, in a process of its own: the settings go in, figures come out."""

import contextlib
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

Arm = tuple[str, str]


@dataclass(frozen=True)
class Trial:
    """What is to be trained.

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
    """What came out: accuracies from 0 to 1, seconds of training with validation, parameters, bytes of the process."""

    validation: float
    test: float | None
    seconds: float
    trainable: int
    peak_bytes: int


def run(trial: Trial, look_at_test: bool) -> Outcome:
    """Train in this process, with one thread; the test split is looked at only if asked for."""
    import torch
    import transformers

    from hf_transfer.config import RunConfig, TextConfig, VisionConfig
    from hf_transfer.strategies.choice import choose_strategy, prepare_model
    from hf_transfer.training.loop import fit, start_accelerator
    from hf_transfer.training.predictions import predict_split

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind: type[RunConfig] = TextConfig if trial.recipe == "text" else VisionConfig
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = kind(**trial.settings, output_dir=folder)
        strategy = choose_strategy(config)
        with start_accelerator(config) as accelerator:
            checkpoint, splits, pipeline, make_loaders = data_of(config)
            prepared = prepare_model(checkpoint, strategy, splits.label_names, config, pipeline.example())
            loaders = make_loaders(splits, pipeline, config, accelerator, prepared.frozen_blocks)
            started = time.perf_counter()
            fitted = fit(prepared.model, strategy, prepared.groups, loaders, config, accelerator)
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            accuracy = fitted.history[fitted.best_epoch]["accuracy"]
            test = None
            if look_at_test:
                test = predict_split(fitted.model, loaders, "test", accelerator).metrics()["accuracy"]
    return Outcome(accuracy, test, seconds, fitted.trainable, peak)


def data_of(config: Any) -> tuple[Any, Any, Any, Any]:
    """Checkpoint, splits, pipeline, and what makes loaders of them."""
    from hf_transfer.config import VisionConfig
    from hf_transfer.data.inputs import PixelPipeline, image_loaders
    from hf_transfer.data.sources import load_image_splits, load_text_splits
    from hf_transfer.data.tokens import TokenPipeline, text_loaders
    from hf_transfer.models.pretrained import Checkpoint

    if isinstance(config, VisionConfig):
        checkpoint = Checkpoint(config.model_name_or_path)
        pixels = PixelPipeline(checkpoint.processor())

        def of_images(splits: Any, pipeline: Any, config: Any, accelerator: Any, frozen: bool) -> Any:
            return image_loaders(splits, pipeline, config, accelerator, frozen_prefix=frozen)

        return checkpoint, load_image_splits(config), pixels, of_images
    checkpoint = Checkpoint(config.model_name_or_path, task="text-classification")
    tokens = TokenPipeline(checkpoint.tokenizer(), model_limit=checkpoint.longest_input)
    return checkpoint, load_text_splits(config), tokens, lambda s, p, c, a, _: text_loaders(s, p, c, a)


def epochs_of_ours(model: Any, groups: Any, loaders: Any, config: Any, accelerator: Any) -> Callable[[int], Any]:
    """An epoch of `training.loop` in the first stage of a strategy: its number goes in, a row of history comes out."""
    from hf_transfer.interruption import Request
    from hf_transfer.strategies.choice import choose_strategy
    from hf_transfer.strategies.freezing import set_trainable
    from hf_transfer.training.averaging import BestCheckpoints
    from hf_transfer.training.frozen import FrozenPrefix
    from hf_transfer.training.guard import Guard
    from hf_transfer.training.loop import train_epoch
    from hf_transfer.training.progress import Fit, Position
    from hf_transfer.training.resuming import Course, Resuming
    from hf_transfer.training.steps import Steps

    strategy = choose_strategy(config)
    stages = strategy.stages(groups, config.num_train_epochs)
    set_trainable(model, groups, stages[0].trainable)
    steps = Steps(model, groups, loaders, config, strategy, stages)
    frozen = FrozenPrefix(model, groups, loaders, config, accelerator)
    course = Course(Position(), Fit(model), steps, frozen, BestCheckpoints(1), stages[0].trainable)
    guard = Guard(
        Request(), course, Resuming(model, course.changing, loaders, config, accelerator), config, accelerator
    )
    learner = steps.prepare(stages[0], accelerator)

    def epoch(number: int) -> Any:
        course.position, course.result.history = Position(), [{} for _ in range(number)]
        return train_epoch(learner, loaders, course, guard, accelerator)

    return epoch


class Journal:
    """What has been measured, a line for each run: measuring that was interrupted goes on from there.

    Args:
        path: the file; None keeps nothing.
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
    outcome = run(trial, look_at_test)
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

    The test split is looked at only by runs at the chosen rate, once each. A solved probe has no rate: the first of the
    grid stands for all. Every run has a process of its own, so that its peak memory is its own.
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
    """Save figures with the settings that they belong to."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "rows": list(rows)}, indent=2) + "\n", encoding="utf-8")
