"""A script for two processes: trains with strategies of several stages, and notes the weights after each epoch.

For each training it writes `NAME.json` into a folder: for each epoch and process a checksum of every tensor, and which
parameters moved.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from hf_transfer.frozen import probe
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.training import loop
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.predictions import predict_split
from hf_transfer.training.progress import Fit
from tests.tiny_models import state
from tests.training.toy_task import fit_loaders, loaders_of, rows_for, settings, tiny

EPOCHS = 5
# Also with averages, L2-SP and class weights, which are carried from stage to stage.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit-gradual": ("vit", {"strategy": "gradual", "learning_rate": 5e-3}),
    "resnet_basic-gradual": (
        "resnet_basic",
        {"strategy": "gradual", "ema_decay": 0.8, "l2_sp": 0.1, "soup_size": 3, "learning_rate": 5e-3},
    ),
    "vit-lp_ft": ("vit", {"strategy": "lp_ft", "class_weights": "balanced"}),
    "vit-lora": ("vit", {"strategy": "lora"}),
    "vit-lokr": ("vit", {"strategy": "lokr", "adapter_dropout": 0.5}),
}


def checksum(tensor: Tensor) -> str:
    """A hash of a tensor's values."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def config_of(case: str) -> RunConfig:
    """The settings of a training."""
    return settings(num_train_epochs=EPOCHS, warmup_steps=0, **CASES[case][1])


def trained(case: str, accelerator: Accelerator) -> tuple[list[Any], list[Any], Fit]:
    """One training.

    Returns:
        Names of the parameters of each stage; for each epoch, and for the end, checksums and what moved, by process;
        and the result.
    """
    name, config = CASES[case][0], config_of(case)
    model, groups, inputs = tiny(name)
    strategy = choose_strategy(config.strategy)
    prepared, groups = strategy.prepare(model, groups, inputs, config.training.seed)
    stages = [sorted(stage.trainable) for stage in strategy.stages(groups, config.training.num_train_epochs)]
    epochs: list[dict[str, Any]] = []
    before = state(prepared)

    def note() -> None:
        nonlocal before
        after = state(prepared)
        moved = [key for key, _ in prepared.named_parameters() if not torch.equal(after[key], before[key])]
        process = {"weights": {key: checksum(value) for key, value in after.items()}, "moved": moved}
        before = after
        epochs.append({"processes": gather_object([process])})

    def noting(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            answer = function(*arguments, **keywords)
            note()
            return answer

        return call

    rows = rows_for(name, 24), rows_for(name, 20, seed=1)
    loaders = loaders_of(accelerator, *rows, config.training.train_batch_size(24), config.training.seed)
    with (
        patch.object(loop, "predict_split", noting(predict_split)),
        patch.object(probe, "solve_head", noting(probe.solve_head)),
    ):
        fitted = fit_loaders(prepared, strategy, groups, loaders, config, accelerator)
    note()
    return stages, epochs, fitted


def main(folder: Path) -> None:
    """All trainings in one start, which takes most of the time."""
    with start_accelerator(settings()) as accelerator:
        for case in CASES:
            stages, epochs, fitted = trained(case, accelerator)
            if accelerator.is_main_process:
                rows = [{key: row[key] for key in ("accuracy", "loss")} for row in fitted.history]
                content = {"stages": stages, "epochs": epochs, "history": rows, "soup": fitted.soup}
                (folder / f"{case}.json").write_text(json.dumps({"number": accelerator.num_processes, **content}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
