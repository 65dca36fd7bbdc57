"""Run in two processes: trainings with the store and without.

Given a folder and strategies, each process writes its results to `STRATEGY-RANK.json`.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from hf_transfer.frozen import store
from hf_transfer.settings.run import VisionConfig
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.loop import fit
from hf_transfer.training.progress import Fit
from tests.training.toy_task import Rows, loaders_of, settings, vit

SAMPLES, HELD_OUT, CHUNK = 24, 10, 4
CLOCKS = ("seconds", "samples_per_second", "frozen_seconds")


def settings_of(strategy: str, folder: Path, cache_frozen: str) -> VisionConfig:
    """Two epochs of the top block, or a solved head."""
    return settings(
        strategy=strategy, trainable_layers=1, cache_frozen=cache_frozen, cache_dir=str(folder / strategy),
        per_device_train_batch_size=2, per_device_eval_batch_size=2, learning_rate=5e-3, warmup_steps=0,
    )  # fmt: skip


def train(accelerator: Accelerator, config: VisionConfig) -> Fit:
    """The loop on a new copy of a tiny ViT with dropout."""
    model, groups = vit(hidden_dropout_prob=0.2)
    loaders = loaders_of(accelerator, Rows(SAMPLES, masked=(3,)), Rows(HELD_OUT, seed=1), 2)
    return fit(model, choose_strategy(config.strategy), groups, loaders, config, accelerator)


def digest(model: nn.Module) -> str:
    """A hash of all weights."""
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode() + value.numpy().tobytes())
    return weights.hexdigest()


def summary(fitted: Fit) -> dict[str, Any]:
    """The result of a run, without times."""
    history = [{name: value for name, value in row.items() if name not in CLOCKS} for row in fitted.history]
    return {"history": history, "weights": digest(fitted.model), "best": fitted.best_epoch, "notes": fitted.notes}


def main(folder: Path, *strategies: str) -> None:
    """Run each strategy without the store, with a new store, with the same store again, and with `auto`."""
    store.CHUNK_SAMPLES = CHUNK
    written: list[str] = []
    write = store.Store.write

    def record(stored: store.Store, number: int, *rest: Any) -> None:
        written.append(f"{stored.key}/{number}")
        write(stored, number, *rest)

    store.Store.write = record  # type: ignore[method-assign,assignment]
    # One accelerator for all: its end would end the connection between the processes.
    with start_accelerator(settings_of(strategies[0], folder, "off")) as accelerator:
        for strategy in strategies:
            results: dict[str, Any] = {"processes": accelerator.num_processes}
            for kind in ("off", "on", "again", "auto"):
                written.clear()
                config = settings_of(strategy, folder, "on" if kind == "again" else kind)
                results[kind] = summary(train(accelerator, config))
                results[f"{kind} wrote"] = list(written)
            (folder / f"{strategy}-{accelerator.process_index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
