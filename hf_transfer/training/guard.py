"""What every step is looked at for: numbers that are none, signals that ask the run to end, and time to save."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from hf_transfer.config import RunConfig, mistake
from hf_transfer.interruption import Interrupted, Request
from hf_transfer.training.resuming import Course, Kept, Resuming, agreed
from hf_transfer.training.sharding import whole

ROWS_NAMED = 10
# How torch says on a CPU that there is no memory left: there is no error of its own for it.
OUT_OF_HOST_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


class Guard:
    """Watches over the steps of a stage; all processes see, and do, the same.

    Args:
        request: whether this process has been asked to end.
        course: the run.
        resuming: saves it.
        config: settings.
        accelerator: the processes.
    """

    def __init__(
        self, request: Request, course: Course, resuming: Resuming, config: RunConfig, accelerator: Accelerator
    ) -> None:
        self._request, self._course, self._resuming = request, course, resuming
        self._config, self._accelerator = config, accelerator
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._asked = self._due = 0

    def see(self, loss: Tensor, logits: Tensor, index: Tensor) -> None:
        """Remember a batch until its step is taken: loss, logits [samples, classes], row numbers [samples]."""
        self._seen.append((loss.detach(), logits.detach(), index))

    def check(self, model: nn.Module) -> None:
        """Clip the gradient; to be called when it is complete, before the optimizer's step.

        Raises:
            UserError: a loss or the gradient is no number, and so would the weights be.
        """
        norm = self._clipped(model)
        finite = torch.stack([loss for loss, _, _ in self._seen]).isfinite().all()
        # A scaler of float16 finds gradients that are no numbers itself, and leaves the step out.
        if self._accelerator.scaler is None:
            finite &= norm.isfinite()
        due = self._accelerator.is_main_process and self._resuming.due(self._course.position.steps + 1)
        broken, self._asked, self._due = agreed(self._accelerator, not bool(finite), self._request.number, due)
        if broken:
            self._refuse(norm)
        self._seen.clear()

    def save_or_leave(self, total: Tensor, seen: float) -> None:
        """Save if it is time to, and end the run if it was asked for; after a step, with the epoch's loss so far."""
        if self._asked or self._due:
            self._course.position.loss, self._course.position.seen = total.item(), seen
            self._resuming.save(self._course)
        if self._asked:
            self._leave(self._asked)

    def poll(self) -> None:
        """To be called between batches of evaluation.

        Raises:
            Interrupted: a process was asked to end.
        """
        (number,) = agreed(self._accelerator, self._request.number)
        if number:
            raise Interrupted(number)

    @contextmanager
    def saved_if_left(self) -> Iterator[None]:
        """Around evaluation: a run that ends in it is saved as it was before."""
        try:
            yield
        except Interrupted as asked:
            self._resuming.save(self._course)
            self._leave(asked.number)

    def leave_if_asked(self) -> None:
        """When a stage is over."""
        (number,) = agreed(self._accelerator, self._request.number)
        if number:
            self._resuming.save(self._course)
            self._leave(number)

    def _leave(self, number: int) -> NoReturn:
        kept = self._kept()
        raise Interrupted(number, kept.sentence, saved=kept.saved)

    def _kept(self) -> Kept:
        """What the main process knows, when it has written it: whoever leaves before that would end its process."""
        kept = self._resuming.kept()
        self._accelerator.wait_for_everyone()
        return kept

    def _clipped(self, model: nn.Module) -> Tensor:
        if self._config.max_grad_norm > 0:
            norm: Any = self._accelerator.clip_grad_norm_(model.parameters(), self._config.max_grad_norm)
            return whole(torch.as_tensor(norm))
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return whole(torch.nn.utils.get_total_norm(gradients))

    def _refuse(self, norm: Tensor) -> NoReturn:
        found = gather_object([[_suspects(*batch) for batch in self._seen]])
        batches = [batch for process in found for batch in process]
        rows = sorted({row for _, broken in batches for row in broken} or {row for rows, _ in batches for row in rows})
        losses = [loss.item() for loss, _, _ in self._seen]
        position, rate = self._course.position, self._course.steps.learning_rate
        more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
        raise mistake(
            expected="a loss and a gradient that are numbers",
            found=f"a loss of {', '.join(f'{loss:.4g}' for loss in losses)} and a gradient of norm {norm.item():.4g} "
            f"in step {position.steps + 1} (epoch {self._course.result.epochs + 1}, peak rate {rate:.1e}), with the "
            f"samples of training rows {', '.join(map(str, rows[:ROWS_NAMED]))}{more}; the step was not taken, "
            f"{self._kept().sentence}",
            do="look at these samples, lower --learning_rate, or leave out --fp16; then run it again",
        )


def _suspects(_: Tensor, logits: Tensor, index: Tensor) -> tuple[list[int], list[int]]:
    """Row numbers of a batch, and of those among them whose logits are no numbers."""
    broken = ~logits.isfinite().all(dim=-1)
    return index.tolist(), index[broken.to(index.device)].tolist()


@contextmanager
def failures_in_words(config: RunConfig, resuming: Resuming) -> Iterator[None]:
    """Turns what torch says of a full memory, or of a loader's worker that is gone, into words on what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if str(error).startswith("DataLoader worker"):
            raise mistake(
                expected="loader workers that live as long as the run",
                found=f"{str(error).splitlines()[0]} {resuming.kept().sentence}",
                do="run it again; if it happens again the host's memory is full: use fewer --dataloader_num_workers, "
                "or 0",
            ) from error
        if not is_out_of_memory(error):
            raise
        raise mistake(
            expected=f"memory for batches of {config.per_device_train_batch_size} in training and of "
            f"{config.per_device_eval_batch_size} in evaluation",
            found=f"{str(error).splitlines()[0]}; {resuming.kept().sentence}",
            do="add --auto_batch_size, or halve --per_device_train_batch_size and double "
            "--gradient_accumulation_steps: a step sees as many samples; --gradient_checkpointing and --bf16 save "
            "memory, too",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_HOST_MEMORY)
