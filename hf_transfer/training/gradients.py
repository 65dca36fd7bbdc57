"""The gradient of a step: that of the mean loss of its samples, however they are divided.

A step may consist of several batches (`--gradient_accumulation_steps`; the last step of an epoch of fewer), on several
processes. What their losses are divided by depends on all samples of the step: on how many are masked, on the weights
of their classes, on the cells that are known. So the batches of a step are fetched, and their weights added up, before
the first of them passes through the model. The losses of the batches then add up to that of the step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_transfer.data.batches import Batch, LabelledInputs, Loaders
from hf_transfer.modalities.modality import Mixer
from hf_transfer.training.objective import Objective

# Takes what a batch adds to the loss of its step, the outputs of the model, and row numbers.
Record = Callable[[Tensor, Tensor, Tensor], None]


class StepLoss(NamedTuple):
    """The loss of a step.

    Attributes:
        part: what the samples of this process add to it, a scalar: over all processes these are the mean of the step.
        samples: how many samples count in it, on all processes, a scalar.
    """

    part: Tensor
    samples: Tensor


@dataclass(frozen=True)
class Gradients:
    """Computes the gradients of the steps of an epoch.

    Attributes:
        model: wrapped.
        objective: the loss.
        loaders: the batches.
        accelerator: devices and processes.
        epoch: its number.
        mixer: mixes the samples of a batch; None: they are not mixed.
    """

    model: nn.Module
    objective: Objective
    loaders: Loaders
    accelerator: Accelerator
    epoch: int
    mixer: Mixer | None = None

    def add(self, batches: Sequence[Batch], place: int, record: Record) -> StepLoss:
        """Add the gradient of a step to the parameters, and combine it over the processes.

        Args:
            batches: of the step, on the CPU.
            place: of the first of them among the batches of this process in the epoch.
            record: called for each batch.
        """
        step = [self._labelled(batch, place + number) for number, batch in enumerate(batches)]
        weights = self.accelerator.reduce(torch.stack([self.objective.weights(batch) for batch in step]).sum(0))
        parts = []
        for number, batch in enumerate(step, 1):
            with nullcontext() if number == len(step) else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    output = self.model(**batch.inputs)
                loss = self.objective.of_output(output, batch, weights)
                # DDP and FSDP average the gradients of the processes: this makes it a sum.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            record(loss, output.logits, batch.rows)
            parts.append(loss.detach())
        return StepLoss(torch.stack(parts).sum(), weights[-1])

    def _labelled(self, batch: Batch, place: int) -> LabelledInputs:
        """A batch as it passes through the model."""
        accelerator = self.accelerator
        passed = self.objective.repeated(batch)
        labelled = self.loaders.to_inputs(passed, accelerator.device, "train", self.epoch)
        size = len(batch["index"])
        earlier = size * (place * accelerator.num_processes + accelerator.process_index)
        first = len(self.loaders.train.dataset) - earlier
        if accelerator.num_processes > 1 and first < size:
            # The last batches of an epoch are filled up with samples that a process has had before.
            rows = torch.arange(len(labelled.counted), device=accelerator.device) % size
            labelled = labelled._replace(counted=labelled.counted & (rows < first))
        if self.mixer is None:
            return labelled
        inputs, targets = self.mixer(*labelled, self.epoch)
        return labelled._replace(inputs=inputs, targets=targets)


def batches_of_steps(batches: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """The batches of each step: `count`, or fewer in the last one."""
    remaining = iter(batches)
    while step := list(islice(remaining, count)):
        yield step
