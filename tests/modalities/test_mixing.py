"""Mixtures by what they must be: shares read off plainly coloured images, and boxes counted pixel by pixel."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from hf_transfer.modalities.mixing import Mixing
from hf_transfer.targets.classes import Classes

CLASSES = 7
TARGET = Classes(tuple("abcdefg"))
SIDE = (12, 20)
MIXUP = Mixing(mixup_alpha=0.4, cutmix_alpha=0.0, seed=3, target=TARGET)
CUTMIX = Mixing(mixup_alpha=0.0, cutmix_alpha=1.0, seed=3, target=TARGET)
BOTH = Mixing(mixup_alpha=0.4, cutmix_alpha=1.0, seed=3, target=TARGET)
ALL = pytest.mark.parametrize("mixing", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])


@dataclass
class Samples:
    """Noise, classes 0, 1, 2, ..., whether they count, and row numbers."""

    pixels: Tensor
    classes: Tensor
    counted: Tensor
    index: Tensor

    def shares(self) -> Tensor:
        """One-hot rows; zeros for masked samples."""
        rows = torch.zeros(len(self.classes), CLASSES)
        for row, (number, counts) in enumerate(zip(self.classes.tolist(), self.counted.tolist(), strict=True)):
            rows[row, number] = float(counts)
        return rows

    def tensors(self) -> tuple[Tensor, ...]:
        return self.pixels, self.classes, self.counted, self.index


def batch(rows: int = 6, masked: tuple[int, ...] = (), first: int = 40) -> Samples:
    pixels = torch.randn(rows, 3, *SIDE, generator=torch.Generator().manual_seed(rows))
    counted = torch.ones(rows, dtype=torch.bool)
    counted[list(masked)] = False
    return Samples(pixels, torch.arange(rows) % CLASSES, counted, torch.arange(first, first + rows))


def mix(mixing: Mixing, samples: Samples, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """The mixed pixels, and the shares of the targets."""
    inputs, shares = mixing(
        {"pixel_values": samples.pixels}, samples.classes, samples.counted, samples.index, epoch
    )  # fmt: skip
    return inputs["pixel_values"], shares


def pair_from(row: int) -> Samples:
    """Two black samples of a batch that begins with `row`."""
    counted = torch.ones(2, dtype=torch.bool)
    return Samples(torch.zeros(2, 3, *SIDE), torch.tensor([0, 1]), counted, torch.tensor([row, 0]))


def kept_share(mixing: Mixing, row: int, epoch: int = 0) -> float:
    """Of two samples in a batch that begins with `row`: how much of the first is left, by its target."""
    return float(mix(mixing, pair_from(row), epoch)[1][0, 0])


def test_mixup_adds_shares_of_the_mirrored_sample() -> None:
    """The share, read off the targets, rebuilds the pixels."""
    samples = batch()
    mixed, targets = mix(MIXUP, samples)
    share, shares, pixels = float(targets[0, 0]), samples.shares().numpy(), samples.pixels.numpy()
    assert 0.01 < share < 0.99
    assert targets.numpy() == pytest.approx(share * shares + (1 - share) * shares[::-1], abs=1e-6)
    assert mixed.numpy() == pytest.approx(share * pixels + (1 - share) * pixels[::-1], abs=1e-5)


@pytest.mark.parametrize("first", range(30))
def test_cutmix_pastes_one_box_and_counts_its_real_area(first: int) -> None:
    """Also where the border clips the box."""
    samples = batch(first=first)
    pixels, (mixed, targets) = samples.pixels, mix(CUTMIX, samples, 1)
    pasted = (mixed != pixels).all(1)
    assert torch.equal(mixed, torch.where(pasted[:, None], pixels.flip(0), pixels))
    assert all(torch.equal(row, pasted[0]) for row in pasted)
    rows, columns = pasted[0].any(1).nonzero(), pasted[0].any(0).nonzero()
    if len(rows):
        box = (int(rows.max() - rows.min()) + 1) * (int(columns.max() - columns.min()) + 1)
        assert box == pasted[0].sum()
    share = 1 - pasted[0].double().mean()
    expected = share * samples.shares() + (1 - share) * samples.shares().flip(0)
    torch.testing.assert_close(targets, expected.float())


def test_boxes_lie_everywhere_and_have_the_images_proportions() -> None:
    """A pixel in a corner is pasted less often than the middle, but it is."""
    samples = batch(2)
    counts = torch.zeros(SIDE)
    heights, widths = [], []
    for first in range(1500):
        samples.index = torch.tensor([first, 0])
        pasted = (mix(CUTMIX, samples)[0] != samples.pixels)[0].any(0)
        counts += pasted
        if pasted.any() and not (pasted[0].any() or pasted[-1].any() or pasted[:, 0].any() or pasted[:, -1].any()):
            heights.append(int(pasted.any(1).sum()))
            widths.append(int(pasted.any(0).sum()))
    # A box of area a covers the middle with probability a and a corner with a / 4; a is 1/2 in the mean.
    assert counts[6, 10] / 1500 == pytest.approx(1 / 2, abs=0.06)
    assert counts.min() / 1500 == pytest.approx(1 / 8, abs=0.04)
    assert np.mean(widths) / np.mean(heights) == pytest.approx(SIDE[1] / SIDE[0], rel=0.1)
    drawn = np.array([kept_share(Mixing(0.0, 1.0, seed, TARGET), seed) for seed in range(1500)])
    assert drawn.mean() == pytest.approx(mean_share_by_simulation(), abs=0.03)


def mean_share_by_simulation() -> float:
    """CutMix's own recipe in continuous coordinates, with other random numbers."""
    generator = np.random.default_rng(12345)
    side = np.sqrt(1 - generator.uniform(size=200_000))
    areas = np.ones_like(side)
    for centre in generator.uniform(size=(2, len(side))):
        areas *= np.minimum(1, centre + side / 2) - np.maximum(0, centre - side / 2)
    return float(1 - areas.mean())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixups_share_is_beta_distributed(alpha: float) -> None:
    """Over batches that begin with other rows."""
    mixing = Mixing(alpha, 0.0, 0, TARGET)
    shares = [kept_share(mixing, row) for row in range(2000)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_with_both_a_coin_decides() -> None:
    samples, boxes = batch(2), 0
    for row in range(400):
        samples.index = torch.tensor([row, 0])
        mixed, _ = mix(BOTH, samples)
        same = (mixed == samples.pixels) | (mixed == samples.pixels.flip(0))
        boxes += bool(same.all())
    assert 150 < boxes < 250


@ALL
def test_a_masked_sample_has_no_share_of_a_target_and_is_mixed_into_no_other(mixing: Mixing) -> None:
    for epoch in range(5):
        samples = batch(6, masked=(1,))
        pixels = samples.pixels
        pixels[1] = float("nan")
        mixed, targets = mix(mixing, samples, epoch)
        assert not targets[1].any()
        assert torch.equal(mixed[4], pixels[4])
        assert torch.equal(targets[4], samples.shares()[4])
        assert targets.sum(1).tolist() == pytest.approx([1, 0, 1, 1, 1, 1])
        others = [0, 2, 3, 5]
        assert not torch.equal(mixed[others], pixels[others]) or float(targets[0, 0]) > 0.99


@ALL
def test_a_batch_of_masked_samples_alone_is_left_as_it_is(mixing: Mixing) -> None:
    samples = batch(3, masked=(0, 1, 2))
    mixed, targets = mix(mixing, samples)
    assert torch.equal(mixed, samples.pixels)
    assert not targets.any()


@ALL
@pytest.mark.parametrize(("rows", "alone"), [(1, 0), (5, 2)])
def test_a_sample_that_is_its_own_partner_stays_to_the_bit(mixing: Mixing, rows: int, alone: int) -> None:
    for epoch in range(8):
        samples = batch(rows)
        mixed, targets = mix(mixing, samples, epoch)
        assert torch.equal(mixed[alone], samples.pixels[alone])
        assert torch.equal(targets[alone], samples.shares()[alone])


def test_without_alphas_nothing_is_mixed() -> None:
    samples = batch(6, masked=(2,))
    mixed, targets = mix(Mixing(0.0, 0.0, 3, TARGET), samples)
    assert torch.equal(mixed, samples.pixels)
    assert torch.equal(targets, samples.shares())


@ALL
def test_an_empty_batch_passes(mixing: Mixing) -> None:
    mixed, targets = mix(mixing, batch(0))
    assert (mixed.shape, targets.shape) == ((0, 3, *SIDE), (0, CLASSES))


@ALL
def test_what_is_given_is_not_changed(mixing: Mixing) -> None:
    for epoch in range(5):
        given, copies = batch(6, masked=(2,)), batch(6, masked=(2,))
        mix(mixing, given, epoch)
        assert all(torch.equal(one, copied) for one, copied in zip(given.tensors(), copies.tensors(), strict=True))


@ALL
def test_a_mixture_depends_on_seed_epoch_and_first_row_alone(mixing: Mixing) -> None:
    """And leaves the global generators alone."""
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    reference = kept_share(mixing, 40)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.random() == np.random.RandomState(1).random_sample()
    torch.manual_seed(2)
    np.random.seed(2)
    assert kept_share(mixing, 40) == reference
    other_seed = Mixing(mixing.mixup_alpha, mixing.cutmix_alpha, 4, TARGET)
    others = [kept_share(mixing, 41), kept_share(mixing, 40, epoch=1), kept_share(other_seed, 40)]
    assert len({reference, *others}) == 4


def test_the_draws_are_not_those_of_the_order_of_samples() -> None:
    """numpy's generator of (seed, epoch) is also that of (seed, epoch, 0)."""
    share = kept_share(Mixing(1.0, 0.0, 5, TARGET), row=0, epoch=2)
    draws = np.random.default_rng((5, 2))
    draws.integers(1)
    assert share != pytest.approx(draws.beta(1.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pixels_keep_their_precision(dtype: torch.dtype) -> None:
    samples = batch()
    samples.pixels = samples.pixels.to(dtype)
    for mixing in (MIXUP, CUTMIX):
        mixed, targets = mix(mixing, samples)
        assert (mixed.dtype, targets.dtype) == (dtype, torch.float32)


def test_other_inputs_of_the_model_pass_unchanged() -> None:
    samples, other = batch(), torch.arange(6)
    inputs, _ = MIXUP(
        {"pixel_values": samples.pixels, "other": other}, samples.classes, samples.counted, samples.index, 0
    )
    assert inputs.keys() == {"pixel_values", "other"}
    assert inputs["other"] is other
