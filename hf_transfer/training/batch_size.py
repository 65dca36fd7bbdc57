"""The largest batches that fit into memory, with as many samples in an optimizer step as before."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from hf_transfer.data.batches import Batch, Loaders
from hf_transfer.errors import user_error
from hf_transfer.models.groups import Group
from hf_transfer.models.tracing import evaluating, requiring_gradients
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.choice import Prepared
from hf_transfer.strategies.freezing import Strategy, learning_parameters, set_trainable, unfreeze, updated_statistics
from hf_transfer.training import guard, random_numbers, resuming

# The name under which the sizes are remembered: other batches round differently, so a resumed run must keep them.
REMEMBERED = "batch sizes"


def find_batch_sizes(
    prepared: Prepared, strategy: Strategy, loaders: Loaders, config: RunConfig, accelerator: Accelerator, *,
    twice: bool = False,
) -> tuple[RunConfig, str]:  # fmt: skip
    """Try steps on the longest samples, from a whole step in one batch downwards, until one fits on every process.

    The model, its statistics and the random numbers are not changed. A resumed run keeps its sizes.

    Args:
        prepared: the model, and its groups.
        strategy: what will learn.
        loaders: the batches of the run, for their samples.
        config: settings.
        accelerator: the processes, each of which tries.
        twice: whether a step passes each sample twice through the model.

    Returns:
        The settings with the `per_device_train_batch_size`, `gradient_accumulation_steps` (the product of both stays)
        and `per_device_eval_batch_size` that fit, and a sentence on them.

    Raises:
        UserError: not even one sample fits.
    """
    training = config.training
    samples = training.train_batch_size(len(loaders.of("train").dataset)) * training.gradient_accumulation_steps
    saves = config.checkpoints.save_steps != 0 and accelerator.is_main_process
    decisions = resuming.checkpoints_of(config)
    remembered = decisions.remembered() if saves else {}
    if accelerator.is_main_process and (named := config.checkpoints.resume_from_checkpoint):
        remembered = resuming.remembered_in(Path(named)) | remembered
    (earlier,) = broadcast_object_list([remembered.get(REMEMBERED)])
    sizes = earlier or _measured(prepared, strategy, loaders, config, samples, accelerator, twice)
    if saves and not earlier:
        decisions.remember(REMEMBERED, sizes)
    train, evaluation = sizes
    steps = samples // train
    chosen = config.replaced(
        per_device_train_batch_size=train, gradient_accumulation_steps=steps, per_device_eval_batch_size=evaluation
    )
    return chosen, (
        f"Batches that fit: {train} samples in training, {steps} for a step of {samples}; "
        f"{evaluation} in evaluation{', as when the run began' if earlier else ''}."
    )


def _measured(
    prepared: Prepared, strategy: Strategy, loaders: Loaders, config: RunConfig, samples: int,
    accelerator: Accelerator, twice: bool,
) -> list[int]:  # fmt: skip
    model, groups = prepared.model, prepared.groups
    stages = strategy.stages(groups, config.training.num_train_epochs)
    learning, updates = learning_parameters(stages), updated_statistics(stages)
    model.to(accelerator.device)

    def step(size: int) -> None:
        # With R-Drop the model gets batches of twice the size.
        inputs = _longest(loaders, "train", 0, 2 * size if twice else size, accelerator)
        # The other batches of the step are on the device, too.
        waiting = [value.clone() for _ in range(samples // size - 1) for value in inputs.values()]
        reserved = _reserved(model, config, accelerator)
        _logits(model, inputs, accelerator).sum().backward()
        del waiting, reserved

    def evaluate(size: int) -> None:
        with torch.no_grad(), evaluating(model):
            for split in ("train", "validation", "test"):
                _logits(model, _longest(loaders, split, None, size, accelerator), accelerator)

    with _unchanged(model, groups), random_numbers.unchanged_random_state(accelerator.device):
        set_trainable(model, groups, learning, updates_statistics=updates)
        model.train()
        train = _largest(step, divisors(samples), model)
        evaluation = _largest(evaluate, divisors(config.training.evaluation_batch_size(accelerator.device.type)), model)
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
            return size
        except (MemoryError, RuntimeError) as error:
            if not guard.is_out_of_memory(error):
                raise
        finally:
            model.zero_grad(set_to_none=True)
    return 0


def _longest(loaders: Loaders, split: str, epoch: int | None, size: int, accelerator: Accelerator) -> Batch:
    """Model inputs of the longest samples of a split; if it has fewer than `size`, samples are repeated."""
    rows = loaders.of(split).dataset
    lengths = getattr(rows, "lengths", np.ones(len(rows)))
    longest = np.resize(np.argsort(-lengths, kind="stable"), size)
    return loaders.some_samples(split, longest.tolist(), epoch, accelerator.device).inputs


def _logits(model: nn.Module, inputs: Batch, accelerator: Accelerator) -> Tensor:
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
    """Afterwards the model is as it was: what is trainable, its statistics, its mode."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with requiring_gradients(model, set()), evaluating(model):
        try:
            yield
        finally:
            unfreeze(model, groups)
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
