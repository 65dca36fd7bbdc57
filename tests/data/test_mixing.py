"""Mixtures by what they must be: shares read off plainly coloured images, and boxes counted pixel by pixel."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from hf_transfer.data.inputs import MASKED
from hf_transfer.data.mixing import Mixing

CLASSES = 7
SIDE = (12, 20)
MIXUP = Mixing(mixup_alpha=0.4, cutmix_alpha=0.0, seed=3, classes=CLASSES)
CUTMIX = Mixing(mixup_alpha=0.0, cutmix_alpha=1.0, seed=3, classes=CLASSES)
BOTH = Mixing(mixup_alpha=0.4, cutmix_alpha=1.0, seed=3, classes=CLASSES)
ALL = pytest.mark.parametrize("mixing", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])


def batch(rows: int = 6, masked: tuple[int, ...] = (), first: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, classes 0, 1, 2, ... and row numbers."""
    pixels = torch.randn(rows, 3, *SIDE, generator=torch.Generator().manual_seed(rows))
    labels = torch.arange(rows) % CLASSES
    labels[list(masked)] = MASKED
    return pixels, labels, torch.arange(first, first + rows)


def one_hot(labels: Tensor) -> Tensor:
    rows = torch.zeros(len(labels), CLASSES)
    for row, label in enumerate(labels.tolist()):
        if label != MASKED:
            rows[row, label] = 1
    return rows


def kept_share(mixing: Mixing, row: int, epoch: int = 0) -> float:
    """Of two samples in a batch that begins with `row`: how much of the first is left, by its target."""
    _, targets = mixing(torch.zeros(2, 3, *SIDE), torch.tensor([0, 1]), torch.tensor([row, 0]), epoch)
    return float(targets[0, 0])


def test_mixup_adds_shares_of_the_mirrored_sample() -> None:
    """The share, read off the targets, rebuilds the pixels."""
    pixels, labels, index = batch()
    mixed, targets = MIXUP(pixels, labels, index, 0)
    share = float(targets[0, 0])
    assert 0.01 < share < 0.99
    expected = share * one_hot(labels).numpy() + (1 - share) * one_hot(labels).numpy()[::-1]
    assert targets.numpy() == pytest.approx(expected, abs=1e-6)
    assert mixed.numpy() == pytest.approx(share * pixels.numpy() + (1 - share) * pixels.numpy()[::-1], abs=1e-5)


@pytest.mark.parametrize("first", range(30))
def test_cutmix_pastes_one_box_and_counts_its_real_area(first: int) -> None:
    """Also where the border cuts the box."""
    pixels, labels, index = batch(first=first)
    mixed, targets = CUTMIX(pixels, labels, index, 1)
    pasted = (mixed != pixels).all(1)
    assert torch.equal(mixed, torch.where(pasted[:, None], pixels.flip(0), pixels))
    assert all(torch.equal(row, pasted[0]) for row in pasted)
    rows, columns = pasted[0].any(1).nonzero(), pasted[0].any(0).nonzero()
    if len(rows):
        box = (int(rows.max() - rows.min()) + 1) * (int(columns.max() - columns.min()) + 1)
        assert box == pasted[0].sum()
    share = 1 - pasted[0].double().mean()
    expected = share * one_hot(labels) + (1 - share) * one_hot(labels).flip(0)
    torch.testing.assert_close(targets, expected.float())


def test_boxes_lie_everywhere_and_have_the_images_proportions() -> None:
    """A pixel in a corner is pasted less often than the middle, but it is."""
    pixels, labels, _ = batch(2)
    counts = torch.zeros(SIDE)
    heights, widths = [], []
    for first in range(1500):
        mixed, _ = CUTMIX(pixels, labels, torch.tensor([first, 0]), 0)
        pasted = (mixed != pixels)[0].any(0)
        counts += pasted
        if pasted.any() and not (pasted[0].any() or pasted[-1].any() or pasted[:, 0].any() or pasted[:, -1].any()):
            heights.append(int(pasted.any(1).sum()))
            widths.append(int(pasted.any(0).sum()))
    # A box of area a covers the middle with probability a and a corner with a / 4; a is 1/2 in the mean.
    assert counts[6, 10] / 1500 == pytest.approx(1 / 2, abs=0.06)
    assert counts.min() / 1500 == pytest.approx(1 / 8, abs=0.04)
    assert np.mean(widths) / np.mean(heights) == pytest.approx(SIDE[1] / SIDE[0], rel=0.1)
    drawn = np.array([kept_share(Mixing(0.0, 1.0, seed, CLASSES), seed) for seed in range(1500)])
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
    mixing = Mixing(alpha, 0.0, 0, CLASSES)
    shares = [kept_share(mixing, row) for row in range(2000)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_with_both_a_coin_decides() -> None:
    pixels, labels, _ = batch(2)
    boxes = 0
    for row in range(400):
        mixed, _ = BOTH(pixels, labels, torch.tensor([row, 0]), 0)
        same = (mixed == pixels) | (mixed == pixels.flip(0))
        boxes += bool(same.all())
    assert 150 < boxes < 250


@ALL
def test_a_masked_sample_has_no_target_and_nobody_takes_from_it(mixing: Mixing) -> None:
    for epoch in range(5):
        pixels, labels, index = batch(6, masked=(1,))
        pixels[1] = float("nan")
        mixed, targets = mixing(pixels, labels, index, epoch)
        assert not targets[1].any()
        assert torch.equal(mixed[4], pixels[4])
        assert torch.equal(targets[4], one_hot(labels)[4])
        assert targets.sum(1).tolist() == pytest.approx([1, 0, 1, 1, 1, 1])
        others = [0, 2, 3, 5]
        assert not torch.equal(mixed[others], pixels[others]) or float(targets[0, 0]) > 0.99


@ALL
def test_a_batch_of_masked_samples_alone_is_left_as_it_is(mixing: Mixing) -> None:
    pixels, labels, index = batch(3, masked=(0, 1, 2))
    mixed, targets = mixing(pixels, labels, index, 0)
    assert torch.equal(mixed, pixels)
    assert not targets.any()


@ALL
@pytest.mark.parametrize(("rows", "alone"), [(1, 0), (5, 2)])
def test_a_sample_that_is_its_own_partner_stays_to_the_bit(mixing: Mixing, rows: int, alone: int) -> None:
    for epoch in range(8):
        pixels, labels, index = batch(rows)
        mixed, targets = mixing(pixels, labels, index, epoch)
        assert torch.equal(mixed[alone], pixels[alone])
        assert torch.equal(targets[alone], one_hot(labels)[alone])


def test_without_alphas_nothing_is_mixed() -> None:
    pixels, labels, index = batch(6, masked=(2,))
    mixed, targets = Mixing(0.0, 0.0, 3, CLASSES)(pixels, labels, index, 0)
    assert torch.equal(mixed, pixels)
    assert torch.equal(targets, one_hot(labels))


@ALL
def test_an_empty_batch_passes(mixing: Mixing) -> None:
    mixed, targets = mixing(torch.zeros(0, 3, *SIDE), torch.zeros(0, dtype=torch.int64), torch.arange(0), 0)
    assert (mixed.shape, targets.shape) == ((0, 3, *SIDE), (0, CLASSES))


@ALL
def test_what_is_given_is_not_changed(mixing: Mixing) -> None:
    for epoch in range(5):
        given, copies = batch(6, masked=(2,)), batch(6, masked=(2,))
        mixing(*given, epoch)
        assert all(torch.equal(tensor, copied) for tensor, copied in zip(given, copies, strict=True))


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
    other_seed = Mixing(mixing.mixup_alpha, mixing.cutmix_alpha, 4, CLASSES)
    others = [kept_share(mixing, 41), kept_share(mixing, 40, epoch=1), kept_share(other_seed, 40)]
    assert len({reference, *others}) == 4


def test_the_draws_are_not_those_of_the_order_of_samples() -> None:
    """numpy's generator of (seed, epoch) is also that of (seed, epoch, 0)."""
    share = kept_share(Mixing(1.0, 0.0, 5, CLASSES), row=0, epoch=2)
    draws = np.random.default_rng((5, 2))
    draws.integers(1)
    assert share != pytest.approx(draws.beta(1.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pixels_keep_their_precision(dtype: torch.dtype) -> None:
    pixels, labels, index = batch()
    for mixing in (MIXUP, CUTMIX):
        mixed, targets = mixing(pixels.to(dtype), labels, index, 0)
        assert (mixed.dtype, targets.dtype) == (dtype, torch.float32)
