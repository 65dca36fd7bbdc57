"""The loss that training minimises: the target's own, and what a modality adds to it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_transfer.data.batches import Batch, LabelledInputs
from hf_transfer.targets.target import LossOptions, Target


@dataclass(frozen=True, eq=False)
class Objective:
    """Weighted mean loss of the samples that count in a step.

    The sum of the samples' losses is divided by the sum of their weights, as in `torch.nn.functional.cross_entropy`.
    A step may consist of several batches, on several processes: what they add to its loss makes up the mean over all of
    its samples, however these are divided.

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

    def weights(self, batch: LabelledInputs) -> Tensor:
        """What the sums of the losses of a step are divided by, added up over its batches, before their outputs exist.

        Args:
            batch: as it passes through the model.

        Returns:
            The sum of the weights of the samples for each of `_masks`, and the number of samples; float32.
        """
        weights = [self.target.weight(batch.targets, mask, self.options) for mask in self._masks(batch).values()]
        # With R-Drop each sample is there twice.
        samples = batch.counted.sum() / (1 if self.rdrop_alpha == 0 else 2)
        return torch.stack([weight.float() for weight in (*weights, samples)])

    def of_output(self, output: Any, batch: LabelledInputs, weights: Tensor) -> Tensor:
        """What a batch adds to the loss of its step: by its logits and, with their weight, by those of further heads.

        A sample without an image does not count for the head that sees the image alone; likewise for texts.

        Args:
            output: of the model; `image_logits` and `text_logits` belong to further heads.
            batch: which the model got.
            weights: the sum of `weights` over all batches of the step, on all processes.
        """
        masks = self._masks(batch)
        loss = self(output.logits.float(), batch.targets, masks.pop("logits"), weights[0])
        for (name, present), weight in zip(masks.items(), weights[1:], strict=False):
            part_logits = getattr(output, name, None)
            if part_logits is not None:
                # Also with a weight of 0: DDP waits for a gradient of every trainable parameter.
                loss = loss + self.auxiliary_weight * self(part_logits.float(), batch.targets, present, weight)
        if self.rdrop_alpha > 0:
            disagreement = self.target.disagreement(output.logits.float(), batch.counted)
            loss = loss + self.rdrop_alpha * _divided(disagreement, weights[-1])
        return loss

    def __call__(self, outputs: Tensor, targets: Tensor, counted: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar; 0 with a gradient of zeros if every sample is masked.

        Args:
            outputs: float [batch, outputs].
            targets: values of the samples [batch, ...], or shares if samples were mixed.
            counted: bool [batch], False for masked samples.
            weight: that of all samples of the step; None: that of the batch, which is the whole step.
        """
        sums = self.target.loss(outputs, targets, counted, self.options)
        return _divided(sums.total, sums.weight if weight is None else weight)

    def _masks(self, batch: LabelledInputs) -> dict[str, Tensor]:
        """Which samples count for each head, bool [batch], by the name of its logits; there may not be all heads."""
        present = {part: batch.inputs.get(f"{part}_present") for part in ("image", "text")}
        parts = {f"{part}_logits": batch.counted & mask for part, mask in present.items() if mask is not None}
        return {"logits": batch.counted, **parts}


def _divided(total: Tensor, weight: Tensor) -> Tensor:
    """A sum over samples, divided by that of their weights; 0 if no sample counts."""
    return total / torch.where(weight > 0, weight, 1)
