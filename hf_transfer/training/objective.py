"""The loss that training minimises: the target's own, and what a modality adds to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_transfer.data.batches import Batch
from hf_transfer.targets.target import LossOptions, Target


@dataclass(frozen=True, eq=False)
class Objective:
    """Weighted mean loss of the samples that count.

    The sum of the samples' losses is divided by the sum of their weights, as in `torch.nn.functional.cross_entropy`.

    With R-Drop each sample passes through the model twice, with different dropout: the mean loss of both passes is
    increased by `rdrop_alpha` times the disagreement of their outputs.

    Reference: Wu, Li, Wang, Meng, Qin, Chen, Zhang and Liu, "R-Drop: Regularized Dropout for Neural Networks",
    NeurIPS 2021, https://arxiv.org/abs/2106.14448.

    Attributes:
        target: what is predicted.
        options: smoothing and weights.
        auxiliary_weight: weight of the losses of further heads, each of which sees one part of a sample alone.
        rdrop_alpha: weight of the disagreement of two passes; 0: each sample passes once.
    """

    target: Target
    options: LossOptions = field(default_factory=LossOptions)
    auxiliary_weight: float = 0.0
    rdrop_alpha: float = 0.0

    def repeated(self, batch: Batch) -> Batch:
        """A batch as it passes through the model: with R-Drop all its samples, followed by all of them again."""
        if self.rdrop_alpha == 0:
            return batch
        return {name: torch.cat([values, values]) for name, values in batch.items()}

    def of_output(self, output: Any, inputs: Mapping[str, Tensor], targets: Tensor, counted: Tensor) -> Tensor:
        """The loss of a batch: of its logits and, with their weight, of those of further heads.

        A sample without an image does not count for the head that sees the image alone; likewise for texts.

        Args:
            output: of the model; `image_logits` and `text_logits` belong to further heads.
            inputs: of the model; `image_present` and `text_present` are the masks of these heads.
            targets: see `__call__`.
            counted: see `__call__`.
        """
        loss = self(output.logits.float(), targets, counted)
        for part in ("image", "text"):
            part_logits = getattr(output, f"{part}_logits", None)
            if part_logits is not None:
                # Also with a weight of 0: DDP waits for a gradient of every trainable parameter.
                present = counted & inputs[f"{part}_present"]
                loss = loss + self.auxiliary_weight * self(part_logits.float(), targets, present)
        if self.rdrop_alpha > 0:
            loss = loss + self.rdrop_alpha * self.target.disagreement(output.logits.float(), counted)
        return loss

    def __call__(self, outputs: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        """The loss of a batch, a scalar; 0 with a gradient of zeros if every sample is masked.

        Args:
            outputs: float [batch, outputs].
            targets: values of the samples [batch, ...], or shares if samples were mixed.
            counted: bool [batch], False for masked samples.
        """
        total, weight = self.target.loss(outputs, targets, counted, self.options)
        return total / torch.where(weight > 0, weight, 1)
