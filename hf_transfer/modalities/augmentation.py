"""Random changes to training images, each a pure function of (seed, view, index).

There is no random number generator: every draw is a hash of those three numbers and a counter. So a sample changes in
the same way in any batch, worker or process, and after a run was resumed.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import kornia.enhance
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional
from torch import Tensor

from hf_transfer.data.transfers import to_device

Floats = npt.NDArray[np.float64]
Kind = Literal["none", "light", "standard", "trivial"]
DRAWS = 12
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Pictures of noise that a fingerprint is read off: enough of them for every operation of "trivial" to be drawn.
PROBES, PROBE_SIDE = 128, 8


@dataclass(frozen=True)
class Augmentation:
    """The kind of random changes to training images, and which view of an image an epoch sees.

    Attributes:
        kind: none; light (shifts by up to 10 % of the side, areas of 90 to 110 %); standard (crops of 50 to 100 % of
            the area, brightness, contrast and saturation by up to 20 %); trivial (light, then one strong operation).
        flip: mirror half of the views.
        seed: seed of all draws.
        views: number of different views of a sample; 0: a new one in every epoch.
    """

    kind: Kind
    flip: bool
    seed: int
    views: int = 0

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Change a batch.

        Args:
            images: float [batch, 3, height, width], values in [0, 1].
            index: int64 [batch], the samples' row numbers.
            epoch: epoch, from 0.

        Returns:
            A batch of the same shape and range.
        """
        if self.kind == "none":
            return images
        rows = index.cpu().numpy()
        draws = uniform_draws(self.seed, self.view(rows, epoch), rows, DRAWS)
        scale = (0.5, 1.0) if self.kind == "standard" else (0.9, 1.1)
        images = _warp(images, _crop_matrices(draws, scale, self.kind == "standard", self.flip))
        if self.kind == "standard":
            factors = 0.8 + 0.4 * draws[:, 6:9]
            return _saturation(_contrast(_brightness(images, factors[:, 0]), factors[:, 1]), factors[:, 2])
        if self.kind == "trivial":
            return _trivial(images, draws[:, 6:9])
        return images

    def fingerprint(self) -> str:
        """A hash that changes with whatever happens to images: their code may change where no setting does."""
        noise = np.random.default_rng(0).random((PROBES, 3, PROBE_SIDE, PROBE_SIDE), dtype=np.float32)
        changed = self(torch.from_numpy(noise), torch.arange(PROBES), 0)
        # In 8 bits: another number of threads may round differently, and is no other augmentation.
        pixels = (changed * 255).round().to(torch.uint8).numpy()
        return hashlib.sha256(f"{self}".encode() + pixels.tobytes()).hexdigest()

    def view(self, rows: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        """Which view of each row `epoch` sees: (epoch + offset of the row) mod views."""
        if self.views == 0:
            return np.full_like(rows, epoch)
        offsets = _mix(rows.astype(np.uint64) + _mix(np.uint64(self.seed)))
        return ((np.uint64(epoch) + offsets) % np.uint64(self.views)).astype(np.int64)


def uniform_draws(seed: int, views: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], count: int) -> Floats:
    """Numbers in [0, 1), shape [rows, count]: a counter-based generator, hashed by SplitMix64.

    References:
        Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
        https://doi.org/10.1145/2063384.2063405; Steele, Lea and Flood, "Fast splittable pseudorandom number
        generators", OOPSLA 2014, https://doi.org/10.1145/2660193.2660195.
    """
    keys = _mix(_mix(_mix(np.uint64(seed)) + views.astype(np.uint64)) + rows.astype(np.uint64))
    with np.errstate(over="ignore"):
        counters = keys[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64)[None, :]
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: a change of any input bit flips about half of the output bits."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(values, dtype=np.uint64) + GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _crop_matrices(draws: Floats, scale: tuple[float, float], stretch: bool, flip: bool) -> Floats:
    """Affine maps [batch, 2, 3] from output to input coordinates, both in [-1, 1].

    Args:
        draws: [batch, DRAWS]; the first five columns are used.
        scale: smallest and largest share of the input's area that the output shows; above 1 it zooms out.
        stretch: also vary the aspect ratio, from 3/4 to 4/3.
        flip: mirror half of the images.
    """
    area = scale[0] + (scale[1] - scale[0]) * draws[:, 0]
    ratio = np.exp((2 * draws[:, 1] - 1) * np.log(4 / 3)) if stretch else np.ones(len(draws))
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    if stretch:
        width, height = np.minimum(width, 1.0), np.minimum(height, 1.0)
    # A crop may lie anywhere inside the image; "light" shifts by up to a tenth of the side, whose length is 2 here.
    reach_x, reach_y = (1 - width, 1 - height) if stretch else (np.full_like(width, 0.2), np.full_like(height, 0.2))
    mirrored = np.where(draws[:, 4] < 0.5, -1.0, 1.0) if flip else np.ones(len(draws))
    shift_x, shift_y = (2 * draws[:, 2] - 1) * reach_x, (2 * draws[:, 3] - 1) * reach_y
    return _matrices(len(draws), width * mirrored, 0, shift_x, 0, height, shift_y)


def _matrices(count: int, *elements: Floats | float) -> Floats:
    """Matrices of affine maps [count, 2, 3], by their six elements, row by row; a number stands for all of them."""
    columns = [np.broadcast_to(element, count) for element in elements]
    return np.stack(columns, axis=-1).reshape(count, 2, 3)


def _warp(images: Tensor, matrices: Floats) -> Tensor:
    """Bilinear sampling along affine maps; outside of the image its border is repeated."""
    # Element by element: a batched matrix product may round differently for another batch size. On the device: the grid
    # is two thirds of the size of the images.
    height, width = images.shape[-2:]
    x = ((torch.arange(width, device=images.device) * 2 + 1) / width - 1).view(1, 1, width)
    y = ((torch.arange(height, device=images.device) * 2 + 1) / height - 1).view(1, height, 1)
    m = to_device(torch.from_numpy(matrices).float(), images.device)[:, :, :, None, None]
    grid = torch.stack([m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2], m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]], -1)
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _trivial(images: Tensor, draws: Floats) -> Tensor:
    """One operation for each image, drawn uniformly, with a strength drawn uniformly.

    Reference: Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", ICCV 2021,
    https://arxiv.org/abs/2103.10158 (the "wide" space).
    """
    chosen = (draws[:, 0] * len(TRIVIAL_OPERATIONS)).astype(np.int64)
    amount = draws[:, 1] * np.where(draws[:, 2] < 0.5, -1.0, 1.0)
    changed = images.clone()
    for number, operation in enumerate(TRIVIAL_OPERATIONS.values()):
        members = np.flatnonzero(chosen == number)
        if members.size:
            where = to_device(torch.from_numpy(members), images.device)
            changed[where] = operation(images[where], amount[members]).clamp(0, 1)
    return changed


def _brightness(images: Tensor, factors: Floats) -> Tensor:
    return (images * _by_image(factors, images)).clamp(0, 1)


def _contrast(images: Tensor, factors: Floats) -> Tensor:
    means = _means(images)[:, None, None, None]
    return (means + (images - means) * _by_image(factors, images)).clamp(0, 1)


def _means(images: Tensor) -> Tensor:
    """The mean of each image [batch], the same to the bit in every batch and on every device.

    torch's own sum may add in another order if the batch has another size. Here halves are added, element by element,
    until one number is left, which also loses fewer digits (pairwise summation).

    Reference: Higham, "The accuracy of floating point summation", SIAM Journal on Scientific Computing 1993,
    https://doi.org/10.1137/0914050.
    """
    sums = images.flatten(1)
    count = sums.shape[1]
    while (length := sums.shape[1]) > 1:
        half = (length + 1) // 2
        first, second = sums.split([half, length - half], 1)
        # Of an odd number, the one in the middle stays as it is.
        sums = first + torch.nn.functional.pad(second, (0, 2 * half - length))
    return sums[:, 0] / count


def _saturation(images: Tensor, factors: Floats) -> Tensor:
    grey = (0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2])[:, None]
    return (grey + (images - grey) * _by_image(factors, images)).clamp(0, 1)


def _by_image(values: Floats, images: Tensor) -> Tensor:
    return to_device(torch.from_numpy(values).to(images.dtype), images.device)[:, None, None, None]


def _affine(images: Tensor, *elements: Floats | float) -> Tensor:
    return _warp(images, _matrices(len(images), *elements))


def _rotate(images: Tensor, angle: Floats) -> Tensor:
    sine, cosine = np.sin(angle), np.cos(angle)
    return _affine(images, cosine, -sine, 0, sine, cosine, 0)


def _sharpness(images: Tensor, factors: Floats) -> Tensor:
    """Away from or toward the mean of the neighbours, in which a pixel counts as five; the border stays, as in Pillow.

    By shifted sums: how a convolution rounds may depend on the size of the batch and on the device.
    """
    sums = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:]
    inner = images[..., 1:-1, 1:-1]
    smooth = (sums + 4 * inner) / 13
    changed = images.clone()
    changed[..., 1:-1, 1:-1] = smooth + (inner - smooth) * _by_image(factors, images)
    return changed


def _posterize(images: Tensor, strength: Floats) -> Tensor:
    # From 8 bits down to 2, as in the paper's wide space.
    cleared = np.rint(6 * strength)
    kept = to_device(torch.from_numpy(256 - 2**cleared).to(torch.uint8), images.device)[:, None, None, None]
    levels = ((images * 255).to(torch.uint8) & kept).to(images.dtype) / 255
    return torch.where(_by_image(cleared, images) > 0, levels, images)


def _solarize(images: Tensor, thresholds: Floats) -> Tensor:
    return torch.where(images < _by_image(thresholds, images), images, 1 - images)


def _autocontrast(images: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


# Each takes images, and for each image the strength of the change from 0 to 1, with its sign.
TRIVIAL_OPERATIONS: dict[str, Callable[[Tensor, Floats], Tensor]] = {
    "identity": lambda images, amount: images,
    "shear_x": lambda images, amount: _affine(images, 1, 0.99 * amount, 0, 0, 1, 0),
    "shear_y": lambda images, amount: _affine(images, 1, 0, 0, 0.99 * amount, 1, 0),
    # The paper shifts by up to 32 of 32 pixels; 2 is the width of the coordinate system.
    "translate_x": lambda images, amount: _affine(images, 1, 0, 2 * amount, 0, 1, 0),
    "translate_y": lambda images, amount: _affine(images, 1, 0, 0, 0, 1, 2 * amount),
    "rotate": lambda images, amount: _rotate(images, np.deg2rad(135 * amount)),
    "brightness": lambda images, amount: _brightness(images, 1 + 0.99 * amount),
    "saturation": lambda images, amount: _saturation(images, 1 + 0.99 * amount),
    "contrast": lambda images, amount: _contrast(images, 1 + 0.99 * amount),
    "sharpness": lambda images, amount: _sharpness(images, 1 + 0.99 * amount),
    "posterize": lambda images, amount: _posterize(images, abs(amount)),
    "solarize": lambda images, amount: _solarize(images, 1 - abs(amount)),
    "autocontrast": lambda images, amount: _autocontrast(images),
    "equalize": lambda images, amount: kornia.enhance.equalize(images),
}
