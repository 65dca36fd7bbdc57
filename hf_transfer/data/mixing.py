"""Mixtures of two samples of a batch, a pure function of (seed, epoch, first row of the batch)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hf_transfer.data.inputs import MASKED

# Others draw from (seed, epoch, row) as well, and numpy takes a missing word for 0: this one keeps us apart.
STREAM = 0x6D6978


@dataclass(frozen=True)
class Mixing:
    """Mixup and CutMix: each sample takes on a part of the one in the mirrored position of its batch.

    Mixup adds a share of all the partner's pixels, CutMix pastes a box of them; the targets are mixed by the same
    share. With both, each batch has one of them, by the toss of a coin.

    References: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    https://arxiv.org/abs/1710.09412; Yun, Han, Oh, Chun, Choe and Yoo, "CutMix: Regularization Strategy to Train Strong
    Classifiers with Localizable Features", ICCV 2019, https://arxiv.org/abs/1905.04899.

    Attributes:
        mixup_alpha: the share that a sample keeps is drawn from Beta(alpha, alpha); 0 turns Mixup off.
        cutmix_alpha: the same for the share of the area; 0 turns CutMix off.
        seed: seed of all draws.
        classes: how many classes the model tells apart.
    """

    mixup_alpha: float
    cutmix_alpha: float
    seed: int
    classes: int

    def __call__(self, pixels: Tensor, labels: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mix a batch; what is given is not changed.

        Args:
            pixels: float [batch, channels, height, width].
            labels: class numbers, int64 [batch]; a masked sample, and one whose partner is masked, is not mixed.
            index: row numbers, int64 [batch]; on the CPU they cost no wait for the GPU.
            epoch: epoch, from 0.

        Returns:
            Pixels of the same shape, and shares of the classes, float32 [batch, classes], whose rows sum to 1, or to 0
            where the sample is masked.
        """
        counted = labels != MASKED
        targets = one_hot(labels.where(counted, 0), self.classes).float() * counted[:, None]
        kinds = [kind for kind in ("mixup", "cutmix") if self._alpha(kind) > 0]
        if not kinds or not len(labels):
            return pixels, targets
        draws = np.random.default_rng((self.seed, epoch, int(index[0]), STREAM))
        kind = kinds[draws.integers(len(kinds))]
        kept = float(draws.beta(self._alpha(kind), self._alpha(kind)))
        partners = pixels.flip(0)
        if kind == "mixup":
            mixed = kept * pixels + (1 - kept) * partners
        else:
            height, width = pixels.shape[-2:]
            top, bottom, left, right = _box(draws, kept, height, width)
            mixed = pixels.clone()
            mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
            # The border may cut the box: what counts is the area that was pasted.
            kept = 1 - (bottom - top) * (right - left) / (height * width)
        # The middle one of an odd batch is its own partner: rounding must not touch it.
        place = torch.arange(len(labels), device=labels.device)
        mixes = counted & counted.flip(0) & (place != place.flip(0))
        pixels = torch.where(mixes[:, None, None, None], mixed, pixels)
        return pixels, torch.where(mixes[:, None], kept * targets + (1 - kept) * targets.flip(0), targets)

    def _alpha(self, kind: str) -> float:
        return self.mixup_alpha if kind == "mixup" else self.cutmix_alpha


def _box(draws: np.random.Generator, kept: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box with 1 - `kept` of the area and its centre anywhere, cut at the border."""
    side = math.sqrt(1 - kept)
    edges = []
    for size in (height, width):
        length, centre = int(size * side), int(draws.integers(size))
        start = centre - length // 2
        edges += [max(0, start), min(size, start + length)]
    top, bottom, left, right = edges
    return top, bottom, left, right
