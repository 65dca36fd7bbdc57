"""Mixtures of two samples of a batch, a pure function of (seed, epoch, first row of the batch)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_transfer.data.batches import Batch
from hf_transfer.targets.target import Target

# Keeps these draws apart from others that are seeded with (seed, epoch): numpy fills missing words of a seed with 0.
STREAM = 0x6D6978


@dataclass(frozen=True)
class Mixing:
    """Mixup and CutMix: each sample is mixed with the one in the mirrored position of its batch.

    Mixup adds a share of all the partner's pixels, CutMix pastes a box of them; the targets are mixed by the same
    share. With both, each batch has one of them, with equal probability.

    References: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    https://arxiv.org/abs/1710.09412; Yun, Han, Oh, Chun, Choe and Yoo, "CutMix: Regularization Strategy to Train Strong
    Classifiers with Localizable Features", ICCV 2019, https://arxiv.org/abs/1905.04899.

    Attributes:
        mixup_alpha: the share that a sample keeps is drawn from Beta(alpha, alpha); 0 turns Mixup off.
        cutmix_alpha: the same for the share of the area; 0 turns CutMix off.
        seed: seed of all draws.
        target: what is predicted; it makes shares of targets.
    """

    mixup_alpha: float
    cutmix_alpha: float
    seed: int
    target: Target

    def __call__(
        self, inputs: Batch, targets: Tensor, counted: Tensor, index: Tensor, epoch: int
    ) -> tuple[Batch, Tensor]:
        """Mix a batch; the tensors that are passed are not changed.

        Args:
            inputs: with `pixel_values`, float [batch, channels, height, width].
            targets: [batch, ...].
            counted: bool [batch]; a masked sample, and one whose partner is masked, is not mixed.
            index: row numbers, int64 [batch]; on the CPU, so that reading one does not wait for the GPU.
            epoch: epoch, from 0.

        Returns:
            The inputs with mixed pixels, and targets as shares, float32 [batch, outputs]; zeros for masked samples.
        """
        shares, pixels = self.target.mixed(targets, counted), inputs["pixel_values"]
        alphas = {"mixup": self.mixup_alpha, "cutmix": self.cutmix_alpha}
        kinds = [kind for kind, alpha in alphas.items() if alpha > 0]
        if not kinds or not len(targets):
            return inputs, shares
        draws = np.random.default_rng((self.seed, epoch, int(index[0]), STREAM))
        kind = kinds[draws.integers(len(kinds))]
        kept = float(draws.beta(alphas[kind], alphas[kind]))
        partners = pixels.flip(0)
        if kind == "mixup":
            mixed = kept * pixels + (1 - kept) * partners
        else:
            rows, columns = _box(draws, kept, pixels.shape[-2:])
            mixed = pixels.clone()
            mixed[..., rows, columns] = partners[..., rows, columns]
            # The border may have clipped the box: the share is that of the area that was pasted.
            kept = 1 - mixed[..., rows, columns].numel() / mixed.numel()
        # The middle sample of an odd batch is its own partner, which rounding must not change.
        place = torch.arange(len(targets), device=targets.device)
        mixes = counted & counted.flip(0) & (place != place.flip(0))
        pixels = torch.where(mixes[:, None, None, None], mixed, pixels)
        mixed_shares = torch.where(mixes[:, None], kept * shares + (1 - kept) * shares.flip(0), shares)
        return {**inputs, "pixel_values": pixels}, mixed_shares


def _box(draws: np.random.Generator, kept: float, sizes: Sequence[int]) -> list[slice]:
    """A box with 1 - `kept` of the area, centred anywhere and clipped at the border, as a slice of each axis."""
    side = math.sqrt(1 - kept)
    box = []
    for size in sizes:
        length, centre = int(size * side), int(draws.integers(size))
        start = centre - length // 2
        box.append(slice(max(0, start), min(size, start + length)))
    return box
