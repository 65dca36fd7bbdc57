"""A script for two processes with FSDP: trainings of tiny models, whose weights are sharded.

For each training it writes `weights.safetensors`, `model/` and `history.json` into a folder; the same of whole models
(DDP) into `whole/`; of some that were interrupted and resumed into `NAME-resumed/`; and what each process held into
`parts.json`.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hf_transfer.evaluation.saved_model import save_model
from hf_transfer.interruption import Interrupted
from hf_transfer.training import steps
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.progress import Fit
from tests.training.resumed_runs import CASES, save_weights
from tests.training.toy_task import fit_loaders, loaders_of, rows_for, settings, tiny

# Averages, soup and L2-SP; stages; stored activations; BatchNorm; adapters; gradient accumulation.
COMPARED = ("full", "gradual", "partial", "statistics", "lora", "accumulated")
# The step in which each is interrupted: in the middle of an epoch, and in the middle of a later stage.
INTERRUPTED = {"full": 3, "gradual": 8}


def trained(name: str, out: Path, accelerator: Accelerator, **more: Any) -> Fit:
    """One training of a case."""
    case = CASES[name]
    config = case.config(out, **more)
    model, groups, inputs = tiny(case.model, seed=0)
    prepared, groups = case.strategy.prepare(model, groups, inputs, config.training.seed)
    rows = rows_for(case.model, 24), rows_for(case.model, 10, seed=1)
    loaders = loaders_of(accelerator, *rows, 4, config.training.seed)
    return fit_loaders(prepared, case.strategy, groups, loaders, config, accelerator)


def keep(fitted: Fit, out: Path, accelerator: Accelerator) -> None:
    """Let the main process write the result."""
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        save_weights(fitted.model, out / "weights.safetensors")
        (out / "history.json").write_text(json.dumps(fitted.history))
        save_model(fitted.model, out / "model")


@contextmanager
def interrupted_in(step: int, process: int) -> Iterator[None]:
    """One of the processes gets a signal in one of its steps."""
    take_step, taken = torch.optim.AdamW.step, count(1)

    def step_with_signal(self: Any, *arguments: Any, **more: Any) -> Any:
        if next(taken) == step and torch.distributed.get_rank() == process:
            os.kill(os.getpid(), signal.SIGUSR1)
        return take_step(self, *arguments, **more)

    torch.optim.AdamW.step = step_with_signal  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.optim.AdamW.step = take_step  # type: ignore[method-assign]


@contextmanager
def whole_models(accelerator: Accelerator) -> Iterator[None]:
    """Inside, the same processes train with DDP: starting others would take longer than all the trainings."""
    states: list[Any] = [accelerator.state, PartialState()]
    try:
        for state in states:
            state.distributed_type = DistributedType.MULTI_CPU
        yield
    finally:
        for state in states:
            state.distributed_type = DistributedType.FSDP


def main(folder: Path) -> None:
    """All trainings in one start, which takes most of the time."""
    parts: list[dict[str, int]] = []
    make_copy = vars(steps)["sharded_copy"]

    def noting(*arguments: Any) -> nn.Module:
        part: nn.Module = make_copy(*arguments)
        local = [value.to_local() for value in part.parameters() if isinstance(value, DTensor)]
        units = sum(isinstance(module, FSDPModule) for module in part.modules())
        parts.append({"numbers": sum(value.numel() for value in local), "units": units})
        return part

    setattr(steps, "sharded_copy", noting)  # noqa: B010
    with start_accelerator(settings()) as accelerator:
        for name in COMPARED:
            keep(trained(name, folder / name, accelerator, save_steps=0), folder / name, accelerator)
        of_processes, stages = gather_object([parts[0]]), len(parts)
        with whole_models(accelerator):
            for name in COMPARED:
                out = folder / "whole" / name
                keep(trained(name, out, accelerator, save_steps=0), out, accelerator)
        assert len(parts) == stages, "these models must be whole"
        if accelerator.is_main_process:
            (folder / "parts.json").write_text(json.dumps(of_processes))
        for name, step in INTERRUPTED.items():
            out = folder / f"{name}-resumed"
            with interrupted_in(step, process=1), pytest.raises(Interrupted):
                trained(name, out, accelerator)
            keep(trained(name, out, accelerator), out, accelerator)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
