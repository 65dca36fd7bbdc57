"""Runs that are killed in every phase, and must end as if nothing had happened.

    python -m tests.faults --runs 200 --seed 0

Each run is a recipe as a user runs it, on one process or two. It is killed with SIGKILL twice, each time in a phase and
after a delay that are drawn from the seed; the same command then goes on to the end. Its weights are compared, byte by
byte, with those of a run that was left alone.
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

from hf_transfer.training.checkpoint import Checkpoints
from tests.conftest import REPOSITORY, load_recipe
from tests.training.launched import be_rank, forks, free_port, quietly, wait_for

# Where runs are killed, and how often each is entered at least, where it is entered at all.
PHASES = {"loading": 1, "store": 2, "step": 4, "evaluation": 4, "saving": 5, "rotation": 3, "finishing": 2}
NUMBERS = {name: number for number, name in enumerate(PHASES, start=1)}
STEPS_DONE = len(PHASES) + 1
STRATEGIES = ("linear_probe", "partial", "full", "gradual", "lora")
RECIPES = ("vision", "text")
EPOCHS, SAVE_STEPS = 4, 2
LONGEST_DELAY = 0.05
LONGEST_RUN = 180.0
# Children share what is loaded already, and take no seconds to start.
SHARED_MODULES = (
    "evaluate", "hf_transfer.evaluation.report", "hf_transfer.strategies.choice", "hf_transfer.training.loop",
    "hf_transfer.data.tokens", "kornia", "sklearn.linear_model",
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
        own: dict[str, Any] = {"dataset_name": sources / "texts"}
        if self.recipe == "vision":
            own = {"dataset_name": "sample:digits", "max_train_samples_per_class": 4, "augmentation": "light"}
        settings: dict[str, Any] = {
            **own,
            "model_name_or_path": sources / self.recipe,
            "strategy": self.strategy,
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": 8 // self.processes,
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


def _tell_phases(shared: Any) -> None:
    """Let the library say where it is."""
    from hf_transfer.data import sources
    from hf_transfer.evaluation import report, run_folder
    from hf_transfer.training import checkpoint, features, frozen, guard, loop, predictions, resuming

    def told(home: Any, function: str, phase: str) -> None:
        original = getattr(home, function)

        def call(*arguments: Any, **more: Any) -> Any:
            with _phase(shared, phase):
                return original(*arguments, **more)

        setattr(home, function, call)

    told(sources, "load_image_splits", "loading")
    told(sources, "load_text_splits", "loading")
    told(frozen, "fill", "store")
    told(features, "fill", "store")
    told(loop, "train_epoch", "step")
    told(loop, "predict_split", "evaluation")
    told(predictions, "predict_split", "evaluation")
    told(checkpoint.Checkpoints, "_rotate", "rotation")
    told(checkpoint.Checkpoints, "save", "saving")
    told(resuming.Resuming, "save", "saving")
    save_or_leave = guard.Guard.save_or_leave

    def count_steps(self: Any, *arguments: Any) -> None:
        shared[STEPS_DONE] = self._course.position.steps
        save_or_leave(self, *arguments)

    guard.Guard.save_or_leave = count_steps  # type: ignore[method-assign, assignment]
    told(run_folder, "save_model", "finishing")
    told(report, "write_report", "finishing")


def _work(task: Task, flags: list[str], rank: int, port: int, shared: Any) -> None:
    """A process of a run."""
    be_rank(rank, task.processes, port)
    from hf_transfer.config import TextConfig, VisionConfig
    from hf_transfer.parsing import run

    if rank == 0:
        _tell_phases(shared)
    run(load_recipe(task.recipe).main, TextConfig if task.recipe == "text" else VisionConfig, flags)


def run_once(
    task: Task, flags: list[str], log: Path, kill: Callable[[Any, Sequence[Any]], str | None] | None = None
) -> tuple[int, str | None, int]:
    """Run the command; the worst exit code, the phase in which a process was killed, if one was, and steps done."""
    shared, port = forks.Array("i", len(PHASES) + 2, lock=False), free_port()
    works = [partial(_work, task, flags, rank, port, shared) for rank in range(task.processes)]
    processes = [forks.Process(target=quietly, args=(work, log)) for work in works]
    for process in processes:
        process.start()
    killed = kill(shared, processes) if kill else None
    return wait_for(processes, LONGEST_RUN), killed, shared[STEPS_DONE]


def _kill_in(phase: str, times: int, delay: float, victim: int, shared: Any, processes: Sequence[Any]) -> str | None:
    """Wait until a phase has been entered so many times, and a little longer, and kill a process.

    Returns:
        The phase it was in; None if it ended before.
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
    """Those that a task goes through."""
    never = {
        "linear_probe": {"step", "rotation", "saving"}, "full": {"store"}, "gradual": {"store"}, "lora": {"store"},
    }  # fmt: skip
    return [phase for phase in PHASES if phase not in never.get(task.strategy, set())]


def weights(out: Path) -> dict[str, bytes]:
    """The finished model's files of tensors."""
    return {path.name: path.read_bytes() for path in sorted((out / "out" / "model").glob("*.safetensors"))}


@dataclass
class Outcome:
    """How a run that was killed ended.

    Attributes:
        task: what was run.
        killed: the phases in which it was.
        equal: whether its weights are those of the run that was left alone.
        lost: the most steps that a kill has cost.
    """

    task: Task
    killed: list[str]
    equal: bool
    lost: int


def try_one(task: Task, sources: Path, folder: Path, expected: dict[str, bytes], draw: random.Random) -> Outcome:
    """Kill a run twice, and let it end."""
    flags, log, killed, lost, kept = task.flags(sources, folder), folder / "log", [], 0, 0
    for _ in range(2):
        phase = draw.choice(_phases(task))
        times, delay = draw.randint(1, PHASES[phase]), draw.uniform(0, LONGEST_DELAY) ** 2 / LONGEST_DELAY
        victim = draw.randrange(task.processes)
        _, where, steps = run_once(task, flags, log, partial(_kill_in, phase, times, delay, victim))
        newest, notes = Checkpoints(folder / "out" / "checkpoints").newest()
        assert notes == [], notes
        assert newest is None or newest.step >= kept, "a checkpoint was lost"
        kept = newest.step if newest else 0
        if where is not None:
            killed.append(where)
            lost = max(lost, steps - kept)
    code, _, _ = run_once(task, flags, log)
    finished = code == 0 and (folder / "out" / "results.json").is_file()
    return Outcome(task, killed, finished and weights(folder) == expected, lost)


def prepare(folder: Path) -> Path:
    """Tiny models, and texts whose first word tells the label."""
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
    """All runs, one after the other; their folders go, unless something is wrong with them."""
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
        own = folder / f"run-{number}"
        own.mkdir()
        outcome = try_one(task, sources, own, expected[task], random.Random(f"{seed}/{number}"))
        outcomes.append(outcome)
        print(f"{number + 1:4}/{runs}  {task}  killed in {outcome.killed}  equal: {outcome.equal}", flush=True)
        if outcome.equal:
            shutil.rmtree(own)
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """What is to be shown."""
    phases = Counter(phase for outcome in outcomes for phase in outcome.killed)
    equal = sum(outcome.equal for outcome in outcomes)
    most = max(outcome.lost for outcome in outcomes)
    lines = [
        f"{equal} of {len(outcomes)} runs ended with the same bytes; {phases.total()} kills, each of which cost "
        f"at most {most} steps (a checkpoint every {SAVE_STEPS}):"
    ]
    return "\n".join([*lines, *(f"  {phase:12} {phases[phase]:4}" for phase in (*PHASES, "between"))])


def main() -> None:
    """Run, and end with 1 if any run did not end as it should."""
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
