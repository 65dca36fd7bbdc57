"""The largest batches that fit into memory, with as many samples in an optimizer step as before."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from hf_transfer.data.batches import Loaders
from hf_transfer.errors import user_error
from hf_transfer.models.groups import Group, evaluating
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.training import TrainingSettings
from hf_transfer.strategies.choice import Prepared
from hf_transfer.strategies.freezing import Strategy, learning_parameters, set_trainable
from hf_transfer.training.guard import is_out_of_memory
from hf_transfer.training.resuming import checkpoints_of

Config = TypeVar("Config", bound=RunConfig)
# The name under which the sizes are remembered: other batches round differently, so a resumed run must keep them.
REMEMBERED = "batch sizes"


def find_batch_sizes(
    prepared: Prepared, strategy: Strategy, loaders: Loaders, config: Config, accelerator: Accelerator, *,
    twice: bool = False,
) -> tuple[Config, str]:  # fmt: skip
    """Try steps on the longest samples, from a whole step in one batch downwards, until one fits on every process.

    The model, its statistics and the random numbers are not changed. A resumed run keeps its sizes.

    Args:
        prepared: the model, and its groups.
        strategy: what will learn.
        loaders: the batches of the run, for their samples.
        config: settings.
        accelerator: the processes, each of which tries; it accumulates gradients as found.
        twice: whether a step passes each sample twice through the model.

    Returns:
        The settings with the `per_device_train_batch_size`, `gradient_accumulation_steps` (the product of both stays)
        and `per_device_eval_batch_size` that fit, and a sentence on them.

    Raises:
        UserError: not even one sample fits.
    """
    decisions = None if config.checkpoints.save_steps == 0 else checkpoints_of(config)
    remembered: list[Any] = [None]
    if decisions and accelerator.is_main_process:
        remembered = [decisions.remembered().get(REMEMBERED)]
    broadcast_object_list(remembered)
    sizes = remembered[0] or _measured(prepared, strategy, loaders, config, accelerator, twice)
    if decisions and accelerator.is_main_process and not remembered[0]:
        decisions.remember(REMEMBERED, sizes)
    train, evaluation = sizes
    samples = _samples_of_a_step(config.training)
    accelerator.gradient_accumulation_steps = samples // train
    note = (
        f"Batches that fit: {train} samples in training, {samples // train} for a step of {samples}; "
        f"{evaluation} in evaluation{', as when the run began' if remembered[0] else ''}."
    )
    chosen = config.replaced(
        per_device_train_batch_size=train, gradient_accumulation_steps=samples // train,
        per_device_eval_batch_size=evaluation,
    )  # fmt: skip
    return chosen, note


def _samples_of_a_step(training: TrainingSettings) -> int:
    return training.per_device_train_batch_size * training.gradient_accumulation_steps


def _measured(
    prepared: Prepared, strategy: Strategy, loaders: Loaders, config: RunConfig, accelerator: Accelerator, twice: bool
) -> list[int]:
    model, groups = prepared.model, prepared.groups
    learning = learning_parameters(strategy.stages(groups, config.training.num_train_epochs))
    # With R-Drop the model gets batches of twice the size.
    passes = 2 if twice else 1
    model.to(accelerator.device)

    def step(size: int) -> None:
        reserved = _reserved(model, config, accelerator)
        _forward(model, loaders, "train", 0, passes * size, accelerator).sum().backward()
        del reserved

    def evaluate(size: int) -> None:
        with torch.no_grad(), evaluating(model):
            for split in ("train", "validation", "test"):
                _forward(model, loaders, split, None, size, accelerator)

    with _unchanged(model, groups):
        set_trainable(model, groups, learning)
        model.train()
        train = _largest(step, divisors(_samples_of_a_step(config.training)), model)
        evaluation = _largest(evaluate, divisors(config.training.per_device_eval_batch_size), model)
    gathered: Tensor = accelerator.gather(torch.tensor([[train, evaluation]], device=accelerator.device))
    smallest: list[int] = gathered.amin(0).tolist()
    if not all(smallest):
        raise user_error(
            expected="memory for a step on one sample",
            found=f"too little on {'one of the processes' if accelerator.num_processes > 1 else accelerator.device}",
            do="choose a smaller model, shorter inputs, --gradient_checkpointing or --bf16",
        )
    return smallest


def divisors(number: int) -> list[int]:
    """The divisors of a number, from itself down to 1."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def _largest(trial: Callable[[int], None], sizes: Sequence[int], model: nn.Module) -> int:
    """The first of the sizes that fits into memory; 0 if none does."""
    for size in sizes:
        # Not in the handler of the error, which still refers to the tensors of the failed trial.
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
    """Logits of the longest samples of a split; if it has fewer than `size`, samples are repeated."""
    rows = loaders.of(split).dataset
    lengths = getattr(rows, "lengths", np.ones(len(rows)))
    longest = np.resize(np.argsort(-lengths, kind="stable"), size)
    inputs = loaders.some_samples(split, longest.tolist(), epoch, accelerator.device).inputs
    with accelerator.autocast():
        logits: Tensor = model(**inputs).logits
    return logits.float()


def _reserved(model: nn.Module, config: RunConfig, accelerator: Accelerator) -> list[Tensor]:
    """As much memory as training needs beside activations: accumulated gradients, moments, averages, starting point.

    Processes that exchange gradients have them twice. On a CPU the best epochs, and the copy of everything from which a
    checkpoint is written, need memory, too.
    """
    moving = 2 + (config.training.ema_decay > 0) + (config.training.l2_sp > 0)
    copies = 1 + moving + (accelerator.num_processes > 1)
    if accelerator.device.type == "cpu":
        best = config.training.soup_size + 1
        copies += best + (config.checkpoints.save_steps != 0) * (1 + moving + best)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.zeros_like(parameter) for parameter in trainable for _ in range(copies)]


@contextmanager
def _unchanged(model: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Afterwards the model is as it was: what is trainable, its statistics, its mode; so are the random numbers."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        set_trainable(model, groups, frozenset(trainable))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        model.train(training)
