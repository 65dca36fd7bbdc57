"""What training minimises: cross-entropy, smoothed and weighted by class, and agreement of dropouts, if asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from hf_transfer.data.inputs import MASKED, Batch


@dataclass(frozen=True, eq=False)
class Objective:
    """Weighted mean cross-entropy of the samples that are not masked.

    The sum of the samples' losses is divided by the sum of their weights, as in `torch.nn.functional.cross_entropy`;
    what a sample weighs does not depend on the smoothing.

    With R-Drop each sample goes through the model twice, and what two draws of dropout make of it must agree: to the
    mean cross-entropy of both comes `rdrop_alpha` times the mean of KL(first, second) and KL(second, first).

    References: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for Computer
    Vision", CVPR 2016, https://arxiv.org/abs/1512.00567 (label smoothing); Wu, Li, Wang, Meng, Qin, Chen, Zhang and
    Liu, "R-Drop: Regularized Dropout for Neural Networks", NeurIPS 2021, https://arxiv.org/abs/2106.14448.

    Attributes:
        label_smoothing: share of each target that is spread evenly over all classes, from 0 to 1.
        class_weights: float [classes], what a sample of each class counts; None counts all alike.
        auxiliary_weight: of the losses of the heads that see one modality alone, in a model of images and texts.
        rdrop_alpha: weight of the agreement of two draws of dropout; 0 looks at each sample once.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    auxiliary_weight: float = 0.0
    rdrop_alpha: float = 0.0

    def as_seen(self, batch: Batch) -> Batch:
        """A batch as it goes through the model: with R-Drop all its samples, and then all of them again."""
        if self.rdrop_alpha == 0:
            return batch
        return {name: torch.cat([values, values]) for name, values in batch.items()}

    def of_output(self, output: Any, inputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """The loss of what a model says of a batch: of its logits and, by their weight, of those of further heads.

        A sample without an image does not count for the head that sees the image alone; likewise for texts.

        Args:
            output: of the model; `image_logits` and `text_logits` are those of further heads.
            inputs: of the model; `image_present` and `text_present` go with these.
            targets: see `__call__`.
        """
        loss = self(output.logits.float(), targets)
        for modality in ("image", "text"):
            alone = getattr(output, f"{modality}_logits", None)
            if alone is not None:
                there = targets.where(inputs[f"{modality}_present"], MASKED)
                # Also by a weight of 0: several processes wait for the gradients of all that may learn.
                loss = loss + self.auxiliary_weight * self(alone.float(), there)
        if self.rdrop_alpha > 0:
            loss = loss + self.rdrop_alpha * disagreement(output.logits.float(), targets)
        return loss

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, a scalar; 0, with a gradient of zeros, if every sample is masked.

        Args:
            logits: float [batch, classes].
            targets: class numbers, int64 [batch], of which `MASKED` ones do not count; or shares of the classes,
                float [batch, classes], in which a masked sample's row is all zeros.
        """
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        if targets.is_floating_point():
            total, weight = self._of_shares(logits, targets.to(logits), weights)
        else:
            total, weight = self._of_numbers(logits, targets, weights)
        return total / torch.where(weight > 0, weight, 1)

    def _of_numbers(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The samples' losses and the samples' weights, both summed."""
        total = cross_entropy(
            logits, labels, weights, ignore_index=MASKED, reduction="sum", label_smoothing=self.label_smoothing
        )
        counted = labels != MASKED
        if weights is None:
            return total, counted.sum()
        # Not by labels[counted]: how many that picks is unknown until the GPU has answered.
        return total, (weights[torch.where(counted, labels, 0)] * counted).sum()

    def _of_shares(self, logits: Tensor, shares: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        # A masked row has nothing to spread: it stays all zeros.
        spread = shares.sum(-1, keepdim=True) / shares.shape[-1]
        smooth = (1 - self.label_smoothing) * shares + self.label_smoothing * spread
        if weights is not None:
            smooth, shares = smooth * weights, shares * weights
        return -(smooth * log_softmax(logits, -1)).sum(), shares.sum()


def disagreement(logits: Tensor, targets: Tensor) -> Tensor:
    """How far apart the two halves of a batch are, which are the same samples: a scalar, in nats a sample.

    Args:
        logits: float [2 * samples, classes].
        targets: class numbers of both halves, int64 [2 * samples]; `MASKED` ones do not count.
    """
    first, second = log_softmax(logits, -1).chunk(2)
    both = kl_div(first, second, log_target=True, reduction="none") + kl_div(
        second, first, log_target=True, reduction="none"
    )
    counted = targets.chunk(2)[0] != MASKED
    return (both.sum(-1) * counted).sum() / (2 * counted.sum().clamp(min=1))


def balanced_class_weights(labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Weights with which every class counts as much as any other, float32 [classes].

    A class with `count` of the `samples` weighs samples / (present classes * count), as scikit-learn's "balanced"
    does, so the mean over the samples is 1. A class that training lacks weighs 1: no sample has it, and what label
    smoothing spreads to it counts as for an average class.

    Reference: King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001,
    https://doi.org/10.1093/oxfordjournals.pan.a004868.

    Args:
        labels: class numbers [samples] of the training split; `MASKED` ones do not count.
        classes: how many classes the model tells apart.
    """
    counts = np.bincount(labels[labels != MASKED], minlength=classes)
    assert len(counts) == classes, f"a label lies beyond the {classes} classes"
    present = counts > 0
    weights = np.ones(classes)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return torch.from_numpy(weights).float()
