"""Checks of every step: non-finite loss or gradients, termination signals, due checkpoints.

A GPU computes behind the host, which must not wait for it in every step. So the GPU itself leaves out a step that is
not finite, and the host reads whether one was while the GPU computes the next one. On CPUs it is read at once.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from hf_transfer.data.batches import Loaders
from hf_transfer.data.transfers import HostCopy, to_device
from hf_transfer.data.workers import worker_failure
from hf_transfer.errors import UserError, user_error
from hf_transfer.interruption import Interrupted, Request
from hf_transfer.settings.training import TrainingSettings
from hf_transfer.training.compiling import compile_failure
from hf_transfer.training.resuming import Checkpointing, LastCheckpoint, RunState, largest_of_all
from hf_transfer.training.sharding import whole

ROWS_NAMED = 10
# What torch's messages contain if the host has no memory left: it has no exception class for that.
OUT_OF_HOST_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


class _Batch(NamedTuple):
    """A batch of a step: what it adds to the loss, the outputs [samples, ...], and row numbers [samples]."""

    loss: Tensor
    outputs: Tensor
    rows: Tensor


class _Step(NamedTuple):
    """A step whose numbers have not been read yet.

    Attributes:
        number: from 1.
        batches: of this process.
        norm: of the gradient, a scalar.
        numbers: whether it is not finite, the number of a signal, and whether a checkpoint is due, each the largest of
            all processes; and what the batches of this process add to the loss.
    """

    number: int
    batches: Sequence[_Batch]
    norm: Tensor
    numbers: HostCopy


class Guard:
    """Checks the steps of a stage; all processes come to the same decision.

    Args:
        request: whether this process has been asked to end.
        state: the state of the run.
        checkpointing: saves it.
        training: settings.
        accelerator: the processes.

    Attributes:
        loss: what this process adds to the loss of the last step that was read; NaN before.
    """

    def __init__(
        self, request: Request, state: RunState, checkpointing: Checkpointing, training: TrainingSettings,
        accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self._request, self._state, self._checkpointing = request, state, checkpointing
        self._training, self._accelerator = training, accelerator
        self._batches: list[_Batch] = []
        self._unread: _Step | None = None
        self._signal = self._due = 0
        self.loss = math.nan

    def record(self, loss: Tensor, outputs: Tensor, index: Tensor) -> None:
        """Keep a batch until its step is taken.

        Args:
            loss: what it adds to that of the step, a scalar.
            outputs: [samples, ...].
            index: row numbers [samples].
        """
        self._batches.append(_Batch(loss.detach(), outputs.detach(), index))

    def check(self, model: nn.Module) -> Tensor | None:
        """Clip the gradient; call it when the gradient is complete, before the optimizer's step.

        Returns:
            A scalar: 1.0 if the step is not finite, so that the optimizer must leave it out, else 0.0. None: it is
            known to be finite.

        Raises:
            UserError: a loss or the gradient was not finite, so that the weights would not be either: of this step or,
                on a GPU, of the one before it.
        """
        # Without a limit the gradient is multiplied by 1.
        limit = self._training.max_grad_norm or math.inf
        gradient_norm: Any = self._accelerator.clip_grad_norm_(model.parameters(), limit)
        norm = whole(torch.as_tensor(gradient_norm))
        losses = torch.stack([batch.loss for batch in self._batches])
        finite = losses.isfinite().all()
        # A float16 scaler detects non-finite gradients itself, and skips the step.
        if self._accelerator.scaler is None:
            finite &= norm.isfinite()
        number = self._state.position.steps + 1
        due = self._accelerator.is_main_process and self._checkpointing.due(number)
        known = to_device(torch.tensor([float(self._request.number), float(due)]), finite.device)
        shared = torch.cat([(~finite).float()[None], known])
        if self._accelerator.num_processes > 1:
            shared = self._accelerator.reduce(shared, "max")
        before, self._signal, self._due = self._unread, 0, 0
        numbers = HostCopy(torch.cat([shared, losses.sum()[None].float()]))
        self._unread, self._batches = _Step(number, self._batches, norm, numbers), []
        if reads_at_once(finite.device):
            self.settle()
            return None
        if before is not None:
            self._read(before)
        return shared[0]

    def settle(self) -> None:
        """Wait until the last step has been computed; call it before its results are used.

        Raises:
            UserError: its loss or its gradient was not finite.
        """
        if self._unread is not None:
            step, self._unread = self._unread, None
            self._read(step)

    def save_or_stop(self, total: Tensor, samples: Tensor) -> None:
        """Save if a checkpoint is due, and end the run if a signal asked for it; call it after a step.

        Args:
            total: this process's part of the sum of the losses of the epoch so far, a scalar.
            samples: how many samples these are, a scalar.

        Raises:
            Interrupted: a process was asked to end.
            UserError: before a checkpoint is saved: the loss or the gradient of the step was not finite.
        """
        if not (self._signal or self._due or self._checkpointing.due_after_count(self._state.position.steps)):
            return
        self.settle()
        self._state.position.set_loss(total.item(), float(samples.item()))
        self._checkpointing.save(self._state)
        if self._signal:
            self._stop(self._signal)

    def poll(self) -> None:
        """Call it between batches of evaluation, and after a stage.

        Raises:
            Interrupted: a process was asked to end.
        """
        (number,) = largest_of_all(self._accelerator, self._request.number)
        if number:
            raise Interrupted(number)

    @contextmanager
    def saved_if_interrupted(self) -> Iterator[None]:
        """Around evaluation and the end of a stage: if it is interrupted, the state from before it is saved."""
        try:
            yield
        except Interrupted as interruption:
            self._checkpointing.save(self._state)
            self._stop(interruption.number)

    def _stop(self, number: int) -> NoReturn:
        last = self._last_checkpoint()
        raise Interrupted(number, last.sentence, saved=last.saved)

    def _last_checkpoint(self) -> LastCheckpoint:
        """See `Checkpointing.last_checkpoint`; the others wait, because the first to end would end the main process."""
        last = self._checkpointing.last_checkpoint()
        self._accelerator.wait_for_everyone()
        return last

    def _read(self, step: _Step) -> None:
        """Note what the numbers of a step say, and refuse a step that was not finite."""
        failed, signal, due, self.loss = step.numbers.read()
        self._signal, self._due = max(self._signal, int(signal)), max(self._due, int(due))
        if failed:
            self._refuse(step)

    def _refuse(self, step: _Step) -> NoReturn:
        samples = gather_object([row for batch in step.batches for row in _rows(batch.outputs, batch.rows)])
        rows = sorted({row for row, finite in samples if not finite} or {row for row, _ in samples})
        loss = self._accelerator.reduce(torch.stack([batch.loss for batch in step.batches]).sum()).item()
        rate = self._state.steps.learning_rate
        more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
        raise user_error(
            expected="a finite loss and a finite gradient",
            found=f"a loss of {loss:.4g} and a gradient of norm {step.norm.item():.4g} in step {step.number} "
            f"(epoch {self._state.result.epochs + 1}, peak rate {rate:.1e}), with the samples of training rows "
            f"{', '.join(map(str, rows[:ROWS_NAMED]))}{more}; the step was not taken, "
            f"{self._last_checkpoint().sentence}",
            do="look at these samples, lower --learning_rate, or leave out --fp16; then run it again",
        )


def reads_at_once(device: torch.device) -> bool:
    """Whether a device computes what it is asked for before it returns, so that reading a number is no wait."""
    return device.type != "cuda"


def _rows(outputs: Tensor, index: Tensor) -> Iterator[tuple[int, bool]]:
    """Row numbers of a batch, and whether the outputs for each are finite."""
    finite = outputs.flatten(1).isfinite().all(dim=1)
    return zip(index.tolist(), finite.tolist(), strict=True)


@contextmanager
def explained_failures(
    loaders: Loaders, training: TrainingSettings, checkpointing: Checkpointing, accelerator: Accelerator
) -> Iterator[None]:
    """Turn torch's errors on full memory, dead loader workers and code that it cannot compile into messages."""
    try:
        yield
    except (UserError, MemoryError, RuntimeError, OSError, EOFError) as error:
        if explained := worker_failure(error, lambda: checkpointing.last_checkpoint().sentence):
            raise explained from error
        if explained := compile_failure(error):
            raise explained from error
        # Python's own error on full memory has no message.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if not is_out_of_memory(error):
            raise
        raise user_error(
            expected=f"memory for batches of {training.train_batch_size(len(loaders.train.dataset))} in training "
            f"and of {training.evaluation_batch_size(accelerator.device.type)} in evaluation",
            found=f"{reason}; {checkpointing.last_checkpoint().sentence}",
            do="add --auto_batch_size, or halve --per_device_train_batch_size and double "
            "--gradient_accumulation_steps: a step has as many samples; --gradient_checkpointing and --bf16 also save "
            "memory",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there is no memory left, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_HOST_MEMORY)
