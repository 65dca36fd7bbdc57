"""What does it cost not to lose a run? Full fine-tuning of a BERT of 90 MB with checkpoints, and without.

    python -m benchmarks.saving

Rounds are interleaved, with one thread. The cost of a save is all that it adds to a run: the pause in which what can
change is copied, and what writing takes from the steps meanwhile. It is compared with the 60 seconds that lie between
two saves; here they follow each other faster, so that there are enough of them.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.intervals import median_interval
from benchmarks.trials import data_of
from hf_transfer.config import TextConfig
from hf_transfer.strategies.choice import choose_strategy, prepare_model
from hf_transfer.training.checkpoint import Checkpoints
from hf_transfer.training.loop import fit, start_accelerator
from hf_transfer.training.resuming import FOLDER, SECONDS_BETWEEN, Resuming

ROUNDS = 12
SAVES = 3
STEPS_BETWEEN = 15
RESULTS = Path(__file__).parent / "results" / "saving.json"


@contextlib.contextmanager
def timed_saves(pauses: list[float]) -> Iterator[None]:
    """Save every few steps, in the background, and note for how many seconds each save holds training up."""
    save = Resuming.save

    def timed(resuming: Resuming, course: Any) -> None:
        started = time.perf_counter()
        save(resuming, course)
        pauses.append(time.perf_counter() - started)

    due = mock.patch.object(Resuming, "due", lambda _, steps: steps % STEPS_BETWEEN == 0)
    with mock.patch.object(Resuming, "save", timed), due:
        yield


def train(loaded: tuple[Any, ...], folder: Path, save_steps: int | None) -> float:
    """Seconds of a training run whose checkpoints go into `folder`."""
    config = settings(folder, save_steps)
    checkpoint, splits, pipeline, make_loaders = loaded
    strategy = choose_strategy(config)
    prepared = prepare_model(checkpoint, strategy, splits.label_names, config, pipeline.example())
    with start_accelerator(config) as accelerator, contextlib.redirect_stdout(io.StringIO()):
        loaders = make_loaders(splits, pipeline, config, accelerator, prepared.frozen_blocks)
        started = time.perf_counter()
        fit(prepared.model, strategy, prepared.groups, loaders, config, accelerator)
        return time.perf_counter() - started


def settings(folder: Path, save_steps: int | None) -> TextConfig:
    """Two epochs of 23 steps."""
    return TextConfig(
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
    loaded = data_of(settings(Path("unused"), 0))
    costs: list[float] = []
    pauses: list[float] = []
    size = 0
    for number in range(rounds):
        seconds = {}
        for saving in (False, True) if number % 2 else (True, False):
            with tempfile.TemporaryDirectory() as folder, timed_saves(pauses) if saving else contextlib.nullcontext():
                seconds[saving] = train(loaded, Path(folder), None if saving else 0)
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
    found = measure(arguments.rounds)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    cost, low, high = found["cost"]
    print(
        f"A checkpoint of {found['bytes'] / 2**20:,.0f} MiB holds training up for {found['pause'][0]:.2f} s and costs "
        f"{cost:.2f} s in all ({low:.2f} to {high:.2f}): {cost / SECONDS_BETWEEN:.1%} of a minute "
        f"({low / SECONDS_BETWEEN:.1%} to {high / SECONDS_BETWEEN:.1%})."
    )


if __name__ == "__main__":
    main()
