"""What every solver of a head works on: samples with standardised features, pass by pass, and what it returns."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hf_transfer.errors import user_error

BLOCK_SAMPLES = 4_096
# Standardised features are kept in memory up to this size; larger ones are computed again in each pass.
KEPT_BYTES = 32 << 20
# A feature that varies less counts as if it varied so much, as a share of the median: `Standardised.least_spread`.
LEAST_SPREAD = 0.01
Floats = npt.NDArray[np.float64]
# Features [samples, features] and targets [samples, ...], block by block; each call starts a new pass.
Blocks = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Solution:
    """A linear layer.

    Attributes:
        weight: float64 [outputs, features], for features that are not standardised.
        bias: float64 [outputs].
        regularisation: the one with which it was solved.
        loss: mean over the training samples, without the regularisation.
        point: from where a solver can start again; each solver has its own form.
        held_out: float64 [samples, outputs], outputs for each training sample by a solution that was made without it;
            of a sample with several copies, for the first. None: they were not computed.
    """

    weight: Tensor
    bias: Tensor
    regularisation: float
    loss: float
    point: Floats = field(repr=False, compare=False)
    held_out: Tensor | None = field(default=None, repr=False, compare=False)


class Standardised:
    """Samples whose features have mean 0 and spread 1.

    Args:
        blocks: the samples.
        centred: whether the mean is subtracted; otherwise features are only divided by their spread.
        see: takes the targets of each block once, in the first pass.
        prepare: makes of targets what `passes` returns; it is first called after all targets were seen.
        least_spread: the smallest spread that features are divided by, as a share of the median.

    Attributes:
        samples: how many there are.
        features: how many a sample has.
        centre: what is subtracted, float64 [features].
        spread: what the difference is divided by, float64 [features].

    Raises:
        UserError: a feature is not finite.
    """

    def __init__(
        self, blocks: Blocks, *, centred: bool, see: Callable[[Tensor], None], prepare: Callable[[Tensor], Tensor],
        least_spread: float = 0.0,
    ) -> None:  # fmt: skip
        self._blocks, self._prepare = blocks, prepare
        self._kept: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        self._measure(see, centred=centred, least_spread=least_spread)

    def _measure(self, see: Callable[[Tensor], None], *, centred: bool, least_spread: float) -> None:
        """Find mean and spread of the features.

        In two passes, since squares of features whose mean is far from zero would lose their digits.
        """
        samples, total = 0, torch.zeros((), dtype=torch.float64)
        for features, targets in self._blocks():
            see(targets)
            samples += len(targets)
            total = total + features.double().sum(0)
        mean = total / samples
        if not bool(mean.isfinite().all()):
            raise user_error(
                expected="finite features",
                found="NaN or infinity in the outputs of the frozen layers",
                do="leave out --bf16 and --fp16, use --cache_dtype float32, or choose another --model_name_or_path",
            )
        squares = torch.zeros_like(mean)
        for features, _ in self._blocks():
            squares += (features.double() - mean).square().sum(0)
        spread = (squares / samples).sqrt()
        # A constant feature is only centred: its spread is rounding.
        spread[spread <= 1e-6 * spread.max()] = 1.0
        # Others that hardly vary would get huge weights, which the training of the layers below makes unstable.
        spread = spread.clamp_min(least_spread * float(spread.median()))
        self.samples, self.features = samples, len(mean)
        self.centre = mean if centred else torch.zeros_like(mean)
        self.spread = spread

    def passes(self, dtype: torch.dtype) -> Iterable[tuple[Tensor, Tensor]]:
        """Standardised features and prepared targets, block by block; small ones are kept in memory.

        A block that is not kept is overwritten by the next one.
        """
        if not self.is_kept(dtype):
            return self.computed(dtype)
        if dtype not in self._kept:
            self._kept[dtype] = [(features.clone(), targets) for features, targets in self.computed(dtype)]
        return self._kept[dtype]

    def is_kept(self, dtype: torch.dtype) -> bool:
        """Whether the features are kept in memory after the first pass."""
        return self.samples * self.features * dtype.itemsize <= KEPT_BYTES

    def computed(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for one pass; nothing is kept, and each block is overwritten by the next one."""
        # One buffer for all blocks: the allocator does not return the memory of blocks of changing sizes.
        buffer = torch.empty(min(BLOCK_SAMPLES, self.samples), self.features, dtype=torch.float64)
        for features, targets in self._blocks():
            for part, part_targets in zip(features.split(BLOCK_SAMPLES), targets.split(BLOCK_SAMPLES), strict=True):
                standard = buffer[: len(part)]
                standard.copy_(part).sub_(self.centre).div_(self.spread)
                yield standard.to(dtype), self._prepare(part_targets)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of X'X / samples, for the matrix X of the standardised features.

        Returns:
            float64 [rank] and [features, rank]; the rank is the number of samples or of features, whichever is smaller.
            Eigenvalues that are left out are 0.
        """
        if self.samples < self.features:
            rows = torch.cat([features.clone() for features, _ in self.passes(torch.float64)])
            _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
            return values.square() / self.samples, vectors.T
        products = torch.zeros(self.features, self.features, dtype=torch.float64)
        for features, _ in self.passes(torch.float64):
            products.addmm_(features.T, features)
        values, vectors = torch.linalg.eigh(products / self.samples)
        return values.clamp_min(0.0), vectors
