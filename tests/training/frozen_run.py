"""Run in two processes: trainings with the store and without, in all processes together.

Given a folder and strategies, it writes what each process has found: `STRATEGY-RANK.json`.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from hf_transfer.config import VisionConfig
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.training import store
from hf_transfer.training.loop import fit, start_accelerator
from hf_transfer.training.progress import Fit
from tests.training.toy_task import Rows, loaders_of, settings, vit

SAMPLES, HELD_OUT, CHUNK = 24, 10, 4
CLOCKS = ("seconds", "samples_per_second", "frozen_seconds")


def chosen(strategy: str, folder: Path, cache_frozen: str) -> VisionConfig:
    """Two epochs of the top block, or the head solved."""
    return settings(
        strategy=strategy, trainable_layers=1, cache_frozen=cache_frozen, cache_dir=str(folder / strategy),
        per_device_train_batch_size=2, per_device_eval_batch_size=2, learning_rate=5e-3, warmup_steps=0,
    )  # fmt: skip


def train(accelerator: Accelerator, config: VisionConfig) -> Fit:
    """The loop on a fresh copy of a tiny ViT, dropping some of what it learns from."""
    model, groups = vit(hidden_dropout_prob=0.2)
    loaders = loaders_of(accelerator, Rows(SAMPLES, masked=(3,)), Rows(HELD_OUT, seed=1), 2)
    return fit(model, choose_strategy(config), groups, loaders, config, accelerator)


def digest(model: nn.Module) -> str:
    """A hash of all weights."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def told(fitted: Fit) -> dict[str, Any]:
    """What a run came to, without times."""
    history = [{name: value for name, value in row.items() if name not in CLOCKS} for row in fitted.history]
    return {"history": history, "weights": digest(fitted.model), "best": fitted.best_epoch, "notes": fitted.notes}


def main(folder: Path, *strategies: str) -> None:
    """Each of the strategies without the store, with one that is to be filled, and with the same once it is."""
    store.CHUNK_SAMPLES = CHUNK
    written: list[str] = []
    write = store.Store.write

    def noting(own: store.Store, number: int, *rest: Any) -> None:
        written.append(f"{own.key}/{number}")
        write(own, number, *rest)

    store.Store.write = noting  # type: ignore[method-assign,assignment]
    # One for all: with an accelerator ends the connection of the processes.
    with start_accelerator(chosen(strategies[0], folder, "off")) as accelerator:
        for strategy in strategies:
            found: dict[str, Any] = {"processes": accelerator.num_processes}
            for kind in ("off", "on", "again", "auto"):
                written.clear()
                config = chosen(strategy, folder, "on" if kind == "again" else kind)
                found[kind] = told(train(accelerator, config))
                found[f"{kind} wrote"] = list(written)
            (folder / f"{strategy}-{accelerator.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
