"""What does a checkpoint cost? Full fine-tuning of a BERT of 90 MB with checkpoints, and without.

    python -m benchmarks.saving

Rounds are interleaved, with one thread. The cost of a save is everything that it adds to a run: the pause in which the
weights and moments are copied, and the time that writing takes from the steps. It is compared with the 60 seconds
between two saves; here they follow each other faster, so that there are enough of them.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.intervals import median_interval
from benchmarks.trials import ready_run, train
from hf_transfer.checkpoints.checkpoint import Checkpoints
from hf_transfer.settings.run import TextConfig
from hf_transfer.training.resuming import FOLDER, SECONDS_BETWEEN, Checkpointing

ROUNDS = 12
SAVES = 3
STEPS_BETWEEN = 15
RESULTS = Path(__file__).parent / "results" / "saving.json"


@contextlib.contextmanager
def timed_saves(pauses: list[float]) -> Iterator[None]:
    """Save every few steps, in the background, and note for how many seconds each save pauses training."""
    save = Checkpointing.save

    def timed(checkpointing: Checkpointing, state: Any) -> None:
        started = time.perf_counter()
        save(checkpointing, state)
        pauses.append(time.perf_counter() - started)

    due = mock.patch.object(Checkpointing, "due", lambda _, steps: steps % STEPS_BETWEEN == 0)
    with mock.patch.object(Checkpointing, "save", timed), due:
        yield


def seconds_of_training(folder: Path, save_steps: int | None) -> float:
    """Seconds of a training run whose checkpoints go into `folder`."""
    with ready_run(settings(folder, save_steps)) as run:
        return train(run)[1]


def settings(folder: Path, save_steps: int | None) -> TextConfig:
    """Two epochs of 23 steps."""
    return TextConfig.of(
        model_name_or_path="sample:minilm", dataset_name="sample:intents", strategy="full", rdrop_alpha=0.0,
        num_train_epochs=2, output_dir=str(folder), save_steps=save_steps,
    )  # fmt: skip


def newest_bytes(folder: Path) -> int:
    """The size of the newest checkpoint of a run."""
    newest, _ = Checkpoints(folder / FOLDER).newest()
    assert newest is not None, "nothing was saved"
    return sum(path.stat().st_size for path in newest.folder.iterdir())


def measure(rounds: int) -> dict[str, Any]:
    """The seconds that a save costs, and those of its pause, each with its interval."""
    costs: list[float] = []
    pauses: list[float] = []
    size = 0
    for number in range(rounds):
        seconds = {}
        for saving in (False, True) if number % 2 else (True, False):
            with tempfile.TemporaryDirectory() as folder, timed_saves(pauses) if saving else contextlib.nullcontext():
                seconds[saving] = seconds_of_training(Path(folder), None if saving else 0)
                size = newest_bytes(Path(folder)) if saving else size
        costs.append((seconds[True] - seconds[False]) / SAVES)
        print(f"round {number + 1}: {costs[-1]:.2f} s for each save", flush=True)
    return {"cost": median_interval(costs), "pause": median_interval(pauses), "bytes": size, "rounds": rounds}


def main() -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(arguments.rounds)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    cost, low, high = figures["cost"]
    print(
        f"A checkpoint of {figures['bytes'] / 2**20:,.0f} MiB pauses training for {figures['pause'][0]:.2f} s. "
        f"It costs {cost:.2f} s in all ({low:.2f} to {high:.2f}): {cost / SECONDS_BETWEEN:.1%} of a minute "
        f"({low / SECONDS_BETWEEN:.1%} to {high / SECONDS_BETWEEN:.1%})."
    )


if __name__ == "__main__":
    main()
