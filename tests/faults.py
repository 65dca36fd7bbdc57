"""Runs that are killed in every phase must end with the same weights as runs that are not.

    python -m tests.faults --runs 200 --seed 0

Each run is a recipe as a user runs it, on one process or two. It is killed with SIGKILL twice, each time in a random
phase and after a random delay, which depend on the seed; then the same command runs to the end. Its weights are
compared, byte by byte, with those of an uninterrupted run.
"""

import argparse
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_transfer.checkpoints.checkpoint import Checkpoints
from tests.conftest import REPOSITORY, load_recipe
from tests.forks import forked, forks
from tests.ports import held_port
from tests.training.launched import be_rank, quietly, wait_for

# The phases in which runs are killed, and how often a run enters each at least, if it enters it at all.
PHASES = {"loading": 1, "store": 3, "step": 4, "evaluation": 4, "saving": 5, "rotation": 3, "finishing": 2}
NUMBERS = {name: number for number, name in enumerate(PHASES, start=1)}
STEPS_DONE = len(PHASES) + 1
STRATEGIES = ("linear_probe", "partial", "full", "gradual", "lora")
RECIPES = ("vision", "text")
EPOCHS, SAVE_STEPS = 4, 2
LONGEST_DELAY = 0.05
LONGEST_RUN = 600.0
# Imported before the children are forked, so that they start at once.
SHARED_MODULES = (
    "hf_transfer.data.judged", "hf_transfer.evaluation.pictures", "hf_transfer.evaluation.prediction_table",
    "hf_transfer.evaluation.saved_model", "hf_transfer.hub.card", "hf_transfer.modalities.pair_batches",
    "hf_transfer.run", "hf_transfer.strategies.adapters", "hf_transfer.strategies.choice",
    "hf_transfer.training.batch_size", "hf_transfer.training.loop", "sklearn.linear_model",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is run.

    Attributes:
        recipe: vision or text.
        strategy: what learns.
        processes: how many train together.
    """

    recipe: str
    strategy: str
    processes: int

    def flags(self, sources: Path, out: Path) -> list[str]:
        """The command line."""
        data: dict[str, Any] = {"dataset_name": sources / "texts"}
        if self.recipe == "vision":
            data = {"dataset_name": "sample:digits", "max_train_samples_per_class": 4, "augmentation": "light"}
        steps = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": 8 // self.processes}
        settings: dict[str, Any] = {
            **data,
            **({} if self.strategy == "linear_probe" else steps),
            "model_name_or_path": sources / self.recipe,
            "strategy": self.strategy,
            "save_steps": SAVE_STEPS,
            "cache_frozen": "off" if self.strategy in ("full", "gradual", "lora") else "on",
            "cache_dir": out / "cache",
            "output_dir": out / "out",
        }
        return [f"--{name}={value}" for name, value in settings.items()]


@contextmanager
def _phase(shared: Any, name: str) -> Iterator[None]:
    before = shared[0]
    shared[0] = NUMBERS[name]
    shared[NUMBERS[name]] += 1
    try:
        yield
    finally:
        shared[0] = before


def _note_phases(shared: Any) -> None:
    """Let functions of the library note the phase in shared memory."""
    from hf_transfer import run
    from hf_transfer.checkpoints.checkpoint import Checkpoints
    from hf_transfer.data import checked
    from hf_transfer.evaluation import saved_model
    from hf_transfer.frozen import features, prefix, store
    from hf_transfer.training import guard, loop, predictions, resuming

    def note(home: Any, function: str, phase: str) -> None:
        original = getattr(home, function)

        def call(*arguments: Any, **more: Any) -> Any:
            with _phase(shared, phase):
                return original(*arguments, **more)

        setattr(home, function, call)

    note(checked, "open_data", "loading")
    note(checked, "splits_of", "loading")
    note(prefix, "fill", "store")
    note(features, "fill", "store")
    # At least one chunk of training and one of validation.
    note(store.Store, "check", "store")
    note(loop, "train_epoch", "step")
    note(loop, "predict_split", "evaluation")
    note(predictions, "predict_split", "evaluation")
    note(Checkpoints, "_rotate", "rotation")
    note(Checkpoints, "save", "saving")
    note(resuming.Checkpointing, "save", "saving")
    note(saved_model, "save_model", "finishing")
    note(run, "write_report", "finishing")
    save_or_stop = guard.Guard.save_or_stop

    def count_steps(self: Any, *arguments: Any) -> None:
        shared[STEPS_DONE] = self._state.position.steps
        save_or_stop(self, *arguments)

    guard.Guard.save_or_stop = count_steps  # type: ignore[method-assign, assignment]


def _work(task: Task, flags: list[str], rank: int, port: int, shared: Any) -> None:
    """A process of a run."""
    be_rank(rank, task.processes, port)
    from hf_transfer.settings.parsing import run_recipe
    from hf_transfer.settings.run import TextConfig, VisionConfig

    if rank == 0:
        _note_phases(shared)
    run_recipe(load_recipe(task.recipe).main, TextConfig if task.recipe == "text" else VisionConfig, flags)


def run_once(
    task: Task, flags: list[str], log: Path, kill: Callable[[Any, Sequence[Any]], str | None] | None = None
) -> tuple[int, str | None, int]:
    """Run the command; the worst exit code, the phase in which a process was killed (or None), and steps done."""
    shared = forks.Array("i", len(PHASES) + 2, lock=False)
    with held_port() as port:
        works = [partial(_work, task, flags, rank, port, shared) for rank in range(task.processes)]
        processes = [forked(quietly, work, log) for work in works]
        for process in processes:
            process.start()
        killed = kill(shared, processes) if kill else None
        return wait_for(processes, LONGEST_RUN), killed, shared[STEPS_DONE]


def _kill_in(phase: str, times: int, delay: float, victim: int, shared: Any, processes: Sequence[Any]) -> str | None:
    """Wait until a phase has been entered so many times, then for the delay, and kill a process.

    Returns:
        The phase it was in; None if it had ended before.
    """
    deadline = time.monotonic() + LONGEST_RUN
    while shared[NUMBERS[phase]] < times:
        if time.monotonic() > deadline or not all(process.is_alive() for process in processes):
            return None
        time.sleep(0.0002)
    time.sleep(delay)
    if not processes[victim].is_alive():
        return None
    where = shared[0]
    processes[victim].kill()
    return list(PHASES)[where - 1] if where else "between"


def _phases(task: Task) -> list[str]:
    """The phases of a task."""
    missing = {
        "linear_probe": {"step", "rotation", "saving"}, "full": {"store"}, "gradual": {"store"}, "lora": {"store"},
    }  # fmt: skip
    return [phase for phase in PHASES if phase not in missing.get(task.strategy, set())]


def weights(out: Path) -> dict[str, bytes]:
    """The finished model's files of tensors."""
    return {path.name: path.read_bytes() for path in sorted((out / "out" / "model").glob("*.safetensors"))}


@dataclass
class Outcome:
    """The end of a run that was killed.

    Attributes:
        task: what was run.
        killed: the phases in which it was killed.
        equal: whether its weights are those of the uninterrupted run.
        lost: the most steps that a kill has cost.
    """

    task: Task
    killed: list[str]
    equal: bool
    lost: int


def try_one(task: Task, sources: Path, folder: Path, expected: dict[str, bytes], draw: random.Random) -> Outcome:
    """Kill a run twice, then run it to the end."""
    flags, log, killed, lost, saved = task.flags(sources, folder), folder / "log", [], 0, 0
    for _ in range(2):
        phase = draw.choice(_phases(task))
        times, delay = draw.randint(1, PHASES[phase]), draw.uniform(0, LONGEST_DELAY) ** 2 / LONGEST_DELAY
        victim = draw.randrange(task.processes)
        _, where, steps = run_once(task, flags, log, partial(_kill_in, phase, times, delay, victim))
        newest, notes = Checkpoints(folder / "out" / "checkpoints").newest()
        assert notes == [], notes
        assert newest is None or newest.step >= saved, "a checkpoint was lost"
        saved = newest.step if newest else 0
        if where is not None:
            killed.append(where)
            lost = max(lost, steps - saved)
    code, _, _ = run_once(task, flags, log)
    finished = code == 0 and (folder / "out" / "results.json").is_file()
    return Outcome(task, killed, finished and weights(folder) == expected, lost)


def prepare(folder: Path) -> Path:
    """Tiny models, and texts whose first word shows the label."""
    from tests.data.conftest import text_rows, write_table
    from tests.tiny_models import save_checkpoint
    from tests.tiny_text_models import save_text_checkpoint

    save_checkpoint(folder / "vision", "vit")
    save_text_checkpoint(folder / "text", "bert")
    (folder / "texts").mkdir()
    for seed, (name, count) in enumerate({"train": 40, "validation": 17, "test": 21}.items()):
        write_table(folder / "texts" / f"{name}.csv", text_rows(count, seed=seed))
    return folder


def tasks(runs: int, processes: Sequence[int]) -> list[Task]:
    """Every combination in turn."""
    every = [Task(recipe, strategy, count) for count in processes for recipe in RECIPES for strategy in STRATEGIES]
    return [every[number % len(every)] for number in range(runs)]


def campaign(runs: int, seed: int, processes: Sequence[int], folder: Path) -> list[Outcome]:
    """All runs, one after the other; the folder of a run is removed if it is equal."""
    sources = prepare(folder / "sources")
    expected: dict[Task, dict[str, bytes]] = {}
    outcomes: list[Outcome] = []
    for number, task in enumerate(tasks(runs, processes)):
        if task not in expected:
            whole = folder / f"whole-{len(expected)}"
            whole.mkdir()
            code, _, _ = run_once(task, [*task.flags(sources, whole), "--save_steps=0"], whole / "log")
            assert code == 0, (whole / "log").read_text()[-2000:]
            expected[task] = weights(whole)
        run_folder = folder / f"run-{number}"
        run_folder.mkdir()
        outcome = try_one(task, sources, run_folder, expected[task], random.Random(f"{seed}/{number}"))
        outcomes.append(outcome)
        print(f"{number + 1:4}/{runs}  {task}  killed in {outcome.killed}  equal: {outcome.equal}", flush=True)
        if outcome.equal:
            shutil.rmtree(run_folder)
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table of the kills, by phase."""
    phases = Counter(phase for outcome in outcomes for phase in outcome.killed)
    equal = sum(outcome.equal for outcome in outcomes)
    most = max(outcome.lost for outcome in outcomes)
    lines = [
        f"{equal} of {len(outcomes)} runs ended with the same bytes; {phases.total()} kills, each of which cost "
        f"at most {most} steps (a checkpoint every {SAVE_STEPS}):"
    ]
    return "\n".join([*lines, *(f"  {phase:12} {phases[phase]:4}" for phase in (*PHASES, "between"))])


def main() -> None:
    """Run, and exit with 1 if any run is not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="How many, in turn.")
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    for name in SHARED_MODULES:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        outcomes = campaign(arguments.runs, arguments.seed, arguments.processes, Path(folder))
    print(summary(outcomes))
    sys.exit(0 if all(outcome.equal for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
