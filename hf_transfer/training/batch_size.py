"""The largest batch that there is memory for, while a step goes on seeing as many samples."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from hf_transfer.config import RunConfig, mistake
from hf_transfer.data.inputs import Loaders, some_samples
from hf_transfer.models.groups import Group, evaluating
from hf_transfer.strategies.choice import Prepared, rdrop_alpha
from hf_transfer.strategies.freezing import Strategy, learning_parameters, set_trainable
from hf_transfer.training.checkpoint import Checkpoints
from hf_transfer.training.guard import is_out_of_memory
from hf_transfer.training.resuming import FOLDER

Settings = TypeVar("Settings", bound=RunConfig)
# Where the decision is remembered: other batches give other rounding, so a run that goes on must keep to them.
REMEMBERED = "batch sizes"


def find_batch_sizes(
    prepared: Prepared, strategy: Strategy, loaders: Loaders, config: Settings, accelerator: Accelerator,
    notes: list[str],
) -> Settings:  # fmt: skip
    """Try steps on the longest samples, from a whole step in one batch downwards, until one fits on every process.

    The model, its statistics and the random numbers are afterwards as they were. A run that goes on keeps the sizes
    that it began with.

    Args:
        prepared: the model, and its groups.
        strategy: what will learn.
        loaders: the batches of the run, for their samples.
        config: settings.
        accelerator: the processes, each of which tries.
        notes: gets a sentence on what was found, which is printed, too.

    Returns:
        The settings with `per_device_train_batch_size`, `gradient_accumulation_steps`, whose product stays, and
        `per_device_eval_batch_size` as they fit.

    Raises:
        UserError: not even one sample fits.
    """
    memory = None if config.save_steps == 0 else Checkpoints(Path(config.output_dir) / FOLDER)
    told: list[Any] = [memory.remembered().get(REMEMBERED) if memory and accelerator.is_main_process else None]
    broadcast_object_list(told)
    sizes = told[0] or _measured(prepared, strategy, loaders, config, accelerator)
    if memory and accelerator.is_main_process and not told[0]:
        memory.remember(REMEMBERED, sizes)
    train, evaluation = sizes
    steps = _samples_of_a_step(config) // train
    accelerator.gradient_accumulation_steps = steps
    notes.append(
        f"Batches that fit: {train} samples in training, {steps} for a step of {_samples_of_a_step(config)}; "
        f"{evaluation} in evaluation{', as when the run began' if told[0] else ''}."
    )
    accelerator.print(notes[-1])
    return replace(
        config, per_device_train_batch_size=train, gradient_accumulation_steps=steps,
        per_device_eval_batch_size=evaluation,
    )  # fmt: skip


def _samples_of_a_step(config: RunConfig) -> int:
    return config.per_device_train_batch_size * config.gradient_accumulation_steps


def _measured(
    prepared: Prepared, strategy: Strategy, loaders: Loaders, config: RunConfig, accelerator: Accelerator
) -> list[int]:
    model, groups = prepared.model, prepared.groups
    learning = learning_parameters(strategy.stages(groups, config.num_train_epochs))
    # With R-Drop a batch goes through the model as if it were of twice the size.
    looks = 2 if rdrop_alpha(config, model) > 0 else 1
    model.to(accelerator.device)

    def step(size: int) -> None:
        held = _held_beside(model, config, accelerator)
        _forward(model, loaders, "train", 0, looks * size, accelerator).sum().backward()
        del held

    def judge(size: int) -> None:
        with torch.no_grad(), evaluating(model):
            for split in ("train", "validation", "test"):
                _forward(model, loaders, split, None, size, accelerator)

    with _unchanged(model, groups):
        set_trainable(model, groups, learning)
        model.train()
        train = _largest(step, divisors(_samples_of_a_step(config)), model)
        evaluation = _largest(judge, divisors(config.per_device_eval_batch_size), model)
    everyone: Tensor = accelerator.gather(torch.tensor([[train, evaluation]], device=accelerator.device))
    smallest: list[int] = everyone.amin(0).tolist()
    if not all(smallest):
        raise mistake(
            expected="memory for a step on one sample",
            found=f"too little on {'one of the processes' if accelerator.num_processes > 1 else accelerator.device}",
            do="choose a smaller model, shorter inputs, --gradient_checkpointing or --bf16",
        )
    return smallest


def divisors(number: int) -> list[int]:
    """Of a number, from itself down to 1."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def _largest(trial: Callable[[int], None], sizes: Sequence[int], model: nn.Module) -> int:
    """The first of the sizes that there is memory for; 0 if there is for none."""
    for size in sizes:
        # What the size before this one took is still held, until its error is gone.
        clear_device_cache(garbage_collection=True)
        try:
            trial(size)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return size
        finally:
            model.zero_grad(set_to_none=True)
    return 0


def _forward(
    model: nn.Module, loaders: Loaders, split: str, epoch: int | None, size: int, accelerator: Accelerator
) -> Tensor:
    """Logits of the longest samples of a split; of a split that has fewer, some twice."""
    rows = loaders.of(split).dataset
    lengths = getattr(rows, "lengths", np.ones(len(rows)))
    longest = np.resize(np.argsort(-lengths, kind="stable"), size)
    inputs, _ = some_samples(loaders, split, longest.tolist(), epoch, accelerator.device)
    with accelerator.autocast():
        logits: Tensor = model(**inputs).logits
    return logits.float()


def _held_beside(model: nn.Module, config: RunConfig, accelerator: Accelerator) -> list[Tensor]:
    """As much memory as training holds beside activations: gradients of other batches, moments, averages, start.

    Processes that exchange gradients hold them twice. On a CPU the best epochs, and the copies of all that which a
    checkpoint is written from, lie in the same memory.
    """
    moving = 2 + (config.ema_decay > 0) + (config.l2_sp > 0)
    copies = 1 + moving + (accelerator.num_processes > 1)
    if accelerator.device.type == "cpu":
        best = config.soup_size + 1
        copies += best + (config.save_steps != 0) * (1 + moving + best)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.zeros_like(parameter) for parameter in learning for _ in range(copies)]


@contextmanager
def _unchanged(model: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Afterwards the model is as it was: what is open, its statistics, its mode; so are the random numbers."""
    is_open = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        set_trainable(model, groups, frozenset(is_open))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_open[name])
        model.train(training)
