"""Samples with more features than there are samples, in the coordinates of the space that they span."""

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_transfer.frozen.standardised import Standardised

# With fewer features for each sample, the decomposition takes longer than it saves.
LEAST_FEATURES_OF_A_SAMPLE = 2
# Samples up to this size are rotated, and their coordinates are kept in memory.
ROTATED_BYTES = 32 << 20


class RowSpace:
    """Standardised samples in coordinates that are as few as they can be, and weights for the features of a solution.

    If weights are penalised by their squares, those of the minimum are combinations of the samples. So few samples with
    many features are first rotated: with the decomposition X' = QR of their matrix X, the samples become R', which has
    as many columns as samples, and weights w for these columns become Qw for the features. Scores, squared weights and
    thus the minimum stay the same, up to rounding, while each pass is over a smaller matrix.

    Other samples stay as they are: many of them, and those of more than `ROTATED_BYTES`.

    A solver may ask for uncorrelated coordinates: samples up to that size are then rotated by the eigenvectors of the
    products of their coordinates. So it scales weights by eigenvalues without a product of matrices.

    Reference: Hastie and Tibshirani, "Efficient quadratic regularization for expression arrays", Biostatistics 2004,
    https://doi.org/10.1093/biostatistics/kxh010.

    Args:
        standardised: the samples.
        uncorrelated: whether the coordinates of samples up to `ROTATED_BYTES` are to be uncorrelated.

    Attributes:
        samples: how many there are.
        width: how many coordinates a sample has.
    """

    def __init__(self, standardised: Standardised, *, uncorrelated: bool = False) -> None:
        self._standardised = standardised
        self._rotated: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        self.samples, self.width = standardised.samples, standardised.features
        self._eigenvalues: Tensor | None = None
        # For their eigenvectors it is always worth while to have as few coordinates as there can be.
        is_wide = self.width >= (1 if uncorrelated else LEAST_FEATURES_OF_A_SAMPLE) * self.samples
        size = self.samples * self.width * torch.float64.itemsize
        if (is_wide or uncorrelated) and size <= ROTATED_BYTES:
            self._rotate(is_wide=is_wide, uncorrelated=uncorrelated)

    def _rotate(self, *, is_wide: bool, uncorrelated: bool) -> None:
        blocks = [(features.clone(), targets) for features, targets in self._standardised.computed(torch.float64)]
        coordinates = torch.cat([features for features, _ in blocks])
        if is_wide:
            self._directions, triangle = torch.linalg.qr(coordinates.T)
            coordinates = triangle.T.contiguous()
        if uncorrelated:
            eigenvalues, vectors = torch.linalg.eigh(coordinates.T @ coordinates / self.samples)
            self._eigenvalues = eigenvalues.clamp_min(0.0)
            self._directions = self._directions @ vectors if is_wide else vectors
            coordinates = coordinates @ vectors
        self.width = coordinates.shape[1]
        parts = coordinates.split([len(targets) for _, targets in blocks])
        self._rotated[torch.float64] = [(part, targets) for part, (_, targets) in zip(parts, blocks, strict=True)]

    def passes(self, dtype: torch.dtype) -> Iterable[tuple[Tensor, Tensor]]:
        """Coordinates [samples, width] and prepared targets, block by block; see `Standardised.passes`."""
        if not self._rotated:
            return self._standardised.passes(dtype)
        if dtype not in self._rotated:
            exact = self._rotated[torch.float64]
            self._rotated[dtype] = [(coordinates.to(dtype), targets) for coordinates, targets in exact]
        return self._rotated[dtype]

    def spectrum(self) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues and eigenvectors of the products of the coordinates; see `Standardised.spectrum`.

        No eigenvectors: the coordinates are uncorrelated, so that these are the axes.
        """
        if self._eigenvalues is not None:
            return self._eigenvalues, None
        assert not self._rotated, "the spectrum of rotated samples is known if they are uncorrelated"
        return self._standardised.spectrum()

    def original(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and biases for the features as they were before they were standardised.

        Args:
            weight: for the coordinates, float64 [outputs, width].
            bias: float64 [outputs].

        Returns:
            [outputs, features] and [outputs].
        """
        if self._rotated:
            weight = weight @ self._directions.T
        weight = weight / self._standardised.spread
        return weight, bias - weight @ self._standardised.centre
