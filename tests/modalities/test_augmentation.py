"""Augmentation is a pure function of (seed, view, index), bit for bit, and stays within its bounds."""

from collections.abc import Callable
from typing import get_args

import kornia.enhance
import numpy as np
import pytest
import scipy.stats
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.utils.data import BatchSampler

from hf_transfer.modalities.augmentation import DRAWS, TRIVIAL_OPERATIONS, Augmentation, Kind, uniform_draws
from hf_transfer.modalities.augmentation import _crop_matrices as crop_matrices

KINDS: tuple[Kind, ...] = get_args(Kind)
RANDOM_KINDS = KINDS[1:]
# Large enough that every operation of "trivial" is drawn.
ROWS = torch.arange(0, 600, 5)


def pictures(count: int = len(ROWS), side: int = 12) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def by_row(augment: Augmentation, images: Tensor, batches: list[list[int]], epoch: int = 3) -> Tensor:
    """Each image changed in its batch, put back in its place."""
    result = torch.full_like(images, -1.0)
    for batch in batches:
        result[batch] = augment(images[batch], ROWS[batch], epoch)
    return result


def splitmix64_reference(state: int) -> int:
    """One output of Steele, Lea and Flood's generator, in Python's own integers."""
    limit = 2**64
    z = (state + 0x9E3779B97F4A7C15) % limit
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % limit
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % limit
    return z ^ (z >> 31)


def reference_draw(seed: int, view: int, row: int, number: int) -> float:
    key = splitmix64_reference((splitmix64_reference((splitmix64_reference(seed) + view) % 2**64) + row) % 2**64)
    return (splitmix64_reference((key + (number + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53


def test_the_reference_generator_gives_the_published_numbers() -> None:
    """The first outputs of SplitMix64 for seed 1234567, as its authors' reference implementation gives them."""
    gamma = 0x9E3779B97F4A7C15
    assert [splitmix64_reference((1234567 + step * gamma) % 2**64) for step in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.integers(0, 2**63 - 1), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**9)), min_size=1))
def test_draws_equal_splitmix64_in_plain_integers(seed: int, pairs: list[tuple[int, int]]) -> None:
    """Seeds, views and rows as large as they may come."""
    views, rows = (np.asarray(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    expected = [[reference_draw(seed, view, row, number) for number in range(4)] for view, row in pairs]
    assert uniform_draws(seed, views, rows, 4).tolist() == expected


@pytest.mark.parametrize("over", ["rows", "views", "seeds"])
def test_draws_are_uniform_and_independent_over_rows_views_and_seeds(over: str) -> None:
    """Kolmogorov-Smirnov on each column; correlations within six standard errors."""
    many = np.arange(20_000)
    if over == "seeds":
        draws = np.concatenate([uniform_draws(seed, np.zeros(1, int), np.zeros(1, int), DRAWS) for seed in many[:4000]])
    else:
        still = np.full_like(many, 7)
        draws = uniform_draws(0, many if over == "views" else still, many if over == "rows" else still, DRAWS)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-5
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 6 / np.sqrt(len(column))
    correlations = np.corrcoef(draws.T)[np.triu_indices(DRAWS, 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(len(draws))


def test_draws_do_not_depend_on_their_order() -> None:
    rows = np.arange(100)
    order = np.random.default_rng(0).permutation(100)
    views = np.full(100, 2)
    assert np.array_equal(uniform_draws(1, views, rows, 5)[order], uniform_draws(1, views, rows[order], 5))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_changed_alike_whatever_batch_it_is_in(kind: Kind) -> None:
    """Whole batch, one by one, in uneven parts and shuffled: equal bit for bit."""
    images = pictures()
    augment = Augmentation(kind, flip=True, seed=5)
    positions = list(range(len(images)))
    shuffled = np.random.default_rng(1).permutation(len(images)).tolist()
    whole = by_row(augment, images, [positions])
    for batches in (
        [[position] for position in positions],
        [positions[:7], positions[7:64], positions[64:]],
        [shuffled],
        [shuffled[:50], shuffled[50:]],
    ):
        assert torch.equal(by_row(augment, images, batches), whole)
    if kind != "none":
        assert not torch.equal(whole, images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_an_image_is_changed_alike_whatever_process_it_is_in(kind: Kind, world_size: int) -> None:
    """Accelerate's sampler divides the batches among the ranks."""
    images = pictures()
    augment = Augmentation(kind, flip=True, seed=5)
    alone = by_row(augment, images, [list(range(len(images)))])
    shared = torch.full_like(images, -1.0)
    for rank in range(world_size):
        batches = BatchSampler(range(len(images)), batch_size=8, drop_last=False)
        of_process = list(BatchSamplerShard(batches, num_processes=world_size, process_index=rank))
        seen = sorted({position for batch in of_process for position in batch})
        shared[seen] = by_row(augment, images, of_process)[seen]
    assert torch.equal(shared, alone)


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_another_seed_epoch_or_row_changes_an_image_otherwise(kind: Kind) -> None:
    images = pictures(1).repeat(len(ROWS), 1, 1, 1)
    one = Augmentation(kind, flip=True, seed=5)(images, ROWS, 0)
    assert len({image.numpy().tobytes() for image in one}) > 0.8 * len(ROWS)
    assert not torch.equal(one, Augmentation(kind, flip=True, seed=6)(images, ROWS, 0))
    assert not torch.equal(one, Augmentation(kind, flip=True, seed=5)(images, ROWS, 1))


def test_none_leaves_the_images_as_they_are() -> None:
    images = pictures()
    assert Augmentation("none", flip=True, seed=0)(images, ROWS, 4) is images


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_stays_untouched_and_the_output_in_range(kind: Kind) -> None:
    images = pictures()
    before = images.clone()
    changed = Augmentation(kind, flip=True, seed=0)(images, ROWS, 0)
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    assert changed.min() >= 0
    assert changed.max() <= 1


@pytest.mark.parametrize("kind", ["light", "standard"])
@pytest.mark.parametrize("flip", [False, True])
def test_an_image_is_mirrored_only_where_flip_allows_it(kind: Kind, flip: bool) -> None:
    """A picture that grows darker from left to right keeps its brighter half; with flip, half are mirrored."""
    slope = torch.linspace(1.0, 0.0, 32).expand(3, 32, 32)
    rows = torch.arange(1000)
    changed = Augmentation(kind, flip=flip, seed=0)(slope.repeat(1000, 1, 1, 1), rows, 0)
    mirrored = int((changed[..., :16].mean((1, 2, 3)) < changed[..., 16:].mean((1, 2, 3))).sum())
    # Binomial(1000, 1/2): six standard deviations are 95.
    assert abs(mirrored - 500) < 95 if flip else mirrored == 0


def test_light_shows_almost_the_whole_image() -> None:
    """The window is 90 to 110 % of the area, its centre within 10 % of the side."""
    # The image is the coordinate of its own columns and rows, so a crop can be read off its pixels.
    axis = (torch.arange(64) * 2 + 1) / 64 - 1
    image = torch.stack([axis.expand(64, 64), axis[:, None].expand(64, 64), torch.zeros(64, 64)]) / 4 + 0.5
    rows = torch.arange(500)
    changed = (Augmentation("light", flip=False, seed=0)(image.repeat(500, 1, 1, 1), rows, 0) - 0.5) * 4
    inner = changed[:, :, 24:40, 24:40]
    width = (inner[:, 0, 0, -1] - inner[:, 0, 0, 0]) / (axis[39] - axis[24])
    height = (inner[:, 1, -1, 0] - inner[:, 1, 0, 0]) / (axis[39] - axis[24])
    area = width * height
    assert torch.allclose(width, height, atol=1e-4)
    assert area.min() >= 0.9 - 1e-4
    assert area.min() < 0.92
    assert area.max() <= 1.1 + 1e-4
    assert area.max() > 1.08
    shift = inner.mean((2, 3))[:, :2].abs()
    assert 0.18 < shift.max() <= 0.2 + 1e-4


def test_standard_crops_lie_inside_the_image_and_vary_in_shape() -> None:
    """50 to 100 % of the area unless the image is too small, aspect from 3/4 to 4/3."""
    matrices = crop_matrices(uniform_draws(0, np.zeros(4000, int), np.arange(4000), DRAWS), (0.5, 1.0), True, True)
    size = np.abs(matrices[:, [0, 1], [0, 1]])
    assert np.all(np.abs(matrices[:, :, 2]) + size <= 1 + 1e-9)
    ratio = size[:, 0] / size[:, 1]
    assert 3 / 4 - 1e-9 <= ratio.min() < 0.77
    assert 1.3 < ratio.max() <= 4 / 3 + 1e-9
    assert size.prod(1).max() <= 1 + 1e-9
    assert 0.5 - 1e-9 <= size.prod(1).min() < 0.51


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_epochs_cycle_through_the_views_from_an_offset_of_each_row(views: int) -> None:
    """View (e + offset) mod V, with offsets spread over the rows so that an epoch shows all views."""
    augment = Augmentation("light", flip=True, seed=9, views=views)
    rows = np.arange(500)
    expected = [splitmix64_reference((row + splitmix64_reference(9)) % 2**64) for row in rows.tolist()]
    for epoch in range(2 * views):
        assert augment.view(rows, epoch).tolist() == [(epoch + offset) % views for offset in expected]
    assert set(augment.view(rows, 0).tolist()) == set(range(views))


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_epochs_a_round_apart_show_the_same_image_and_those_within_a_round_differ(kind: Kind) -> None:
    """This is what a stored prefix relies on."""
    augment = Augmentation(kind, flip=True, seed=2, views=4)
    images = pictures()
    epochs = [augment(images, ROWS, epoch) for epoch in range(8)]
    for epoch in range(4):
        assert torch.equal(epochs[epoch], epochs[epoch + 4])
    for first in range(4):
        for second in range(first):
            same = (epochs[first] == epochs[second]).all(3).all(2).all(1)
            # A strength that has no effect (equalize, identity) leaves some of "trivial" alike at one place only.
            assert same.float().mean() < 0.05


def test_without_a_number_of_views_every_epoch_shows_a_new_one() -> None:
    """Nothing is stored then, so no view has to be repeated."""
    rows = np.arange(5)
    augment = Augmentation("light", flip=True, seed=2)
    assert [augment.view(rows, epoch).tolist() for epoch in (0, 1, 70)] == [[0] * 5, [1] * 5, [70] * 5]


@pytest.mark.parametrize("name", TRIVIAL_OPERATIONS)
def test_an_operation_stays_in_range_at_every_strength_and_changes_something_at_full(name: str) -> None:
    """In range after the clamp that `trivial` applies to all; finite in any case."""
    images = pictures(40)
    strength = np.linspace(0, 1, 40)
    for sign in (-1.0, 1.0):
        changed = TRIVIAL_OPERATIONS[name](images, strength * sign).clamp(0, 1)
        assert changed.shape == images.shape
        assert bool(torch.isfinite(changed).all())
        assert torch.equal(changed[-1], images[-1]) == (name == "identity")


@pytest.mark.parametrize("name", sorted(TRIVIAL_OPERATIONS.keys() - {"autocontrast", "equalize"}))
def test_an_operation_of_no_strength_is_the_identity(name: str) -> None:
    """The other two have no strength."""
    images = pictures(4) * 0.99
    none = np.zeros(4)
    for sign in (-1.0, 1.0):
        changed = TRIVIAL_OPERATIONS[name](images, none * sign)
        # Warping and blending round in float32.
        assert torch.allclose(changed, images, atol=1e-5)


def channel_means(image: Tensor) -> Tensor:
    return 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]


REFERENCES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "brightness": lambda image, s, sign: image * (1 + 0.99 * s * sign),
    "contrast": lambda image, s, sign: image.mean() + (image - image.mean()) * (1 + 0.99 * s * sign),
    "saturation": lambda image, s, sign: channel_means(image) + (image - channel_means(image)) * (1 + 0.99 * s * sign),
    "solarize": lambda image, s, sign: torch.where(image < 1 - s, image, 1 - image),
    "posterize": lambda image, s, sign: torch.from_numpy(
        ((image * 255).byte().numpy() & (256 - 2 ** (8 - (8 - round(6 * s))))) / np.float32(255)
    ),
    "autocontrast": lambda image, s, sign: (
        (image - image.amin((1, 2), True)) / (image.amax((1, 2), True) - image.amin((1, 2), True))
    ),
    "translate_x": lambda image, s, sign: image[:, :, (torch.arange(12) + round(12 * s * sign)).clamp(0, 11)],
    "translate_y": lambda image, s, sign: image[:, (torch.arange(12) + round(12 * s * sign)).clamp(0, 11)],
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("strength", [0.25, 0.5])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_an_operation_equals_its_definition(name: str, strength: float, sign: float) -> None:
    """Shifts are whole pixels here: 12 columns times the strength."""
    images = pictures(3)
    changed = TRIVIAL_OPERATIONS[name](images, np.full(3, strength * sign)).clamp(0, 1)
    expected = torch.stack([REFERENCES[name](image, strength, sign) for image in images]).clamp(0, 1)
    assert torch.allclose(changed, expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TRIVIAL_OPERATIONS))
@pytest.mark.parametrize("side", [12, 37])
def test_an_operation_gives_the_same_bits_in_every_batch(name: str, side: int) -> None:
    """Each with its own strength: one by one, in two parts, and in a batch of many copies."""
    images, strengths = pictures(9, side), np.linspace(-1, 1, 9)
    operation = TRIVIAL_OPERATIONS[name]
    together = operation(images, strengths)
    alone = [operation(images[[place]], strengths[[place]]) for place in range(9)]
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(
        torch.cat([operation(images[:2], strengths[:2]), operation(images[2:], strengths[2:])]), together
    )
    assert torch.equal(operation(images.repeat(30, 1, 1, 1), np.tile(strengths, 30))[-9:], together)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_operation_on_large_images_gives_the_same_bits_in_every_batch(threads: int) -> None:
    """Where torch divides the sum of one image among threads, but not that of many."""
    before, images, strengths = torch.get_num_threads(), pictures(16, 224), np.linspace(-1, 1, 16)
    torch.set_num_threads(threads)
    try:
        together = TRIVIAL_OPERATIONS["contrast"](images, strengths)
        alone = [TRIVIAL_OPERATIONS["contrast"](images[[place]], strengths[[place]]) for place in range(16)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sharpness", lambda image, strength: kornia.enhance.sharpness(image, 1 + 0.99 * strength)),
        ("posterize", lambda image, strength: kornia.enhance.posterize(image, 8 - round(6 * abs(strength)))),
        ("solarize", lambda image, strength: kornia.enhance.solarize(image, 1 - abs(strength))),
    ],
)
def test_an_operation_on_a_batch_equals_that_of_kornia_on_each_image(
    name: str, reference: Callable[[Tensor, float], Tensor]
) -> None:
    """Up to the rounding of its convolution."""
    images, strengths = pictures(41, 20), np.linspace(-1, 1, 41)
    changed = TRIVIAL_OPERATIONS[name](images, strengths).clamp(0, 1)
    expected = torch.cat([reference(images[[place]], float(strengths[place])) for place in range(41)])
    assert torch.allclose(changed, expected, rtol=0, atol=1e-6)


def test_a_rotation_of_full_strength_turns_by_135_degrees() -> None:
    """Two turns of 67.5 degrees, measured on the centre of a bright spot."""
    images = torch.zeros(1, 3, 65, 65)
    images[:, :, 30:35, 46:51] = 1.0
    axis = torch.arange(65) - 32.0
    for sign in (-1.0, 1.0):
        turned = TRIVIAL_OPERATIONS["rotate"](images, np.full(1, sign))[0, 0]
        x, y = (turned.sum(0) @ axis) / turned.sum(), (turned.sum(1) @ axis) / turned.sum()
        angle = np.rad2deg(np.arctan2(float(y), float(x)))
        assert abs(abs(angle) - 135) < 1
        assert np.hypot(float(x), float(y)) == pytest.approx(16, abs=0.2)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("equalize", ImageOps.equalize),
        ("posterize", lambda image: ImageOps.posterize(image, 5)),
        ("solarize", lambda image: ImageOps.solarize(image, 128)),
        ("sharpness", lambda image: ImageEnhance.Sharpness(image).enhance(1 + 0.99 * 0.5)),
    ],
)
def test_an_operation_on_eight_bit_pixels_equals_pillows(
    name: str, reference: Callable[[Image.Image], Image.Image]
) -> None:
    """Strength 1/2 each: 5 bits, a threshold of 127.5, a factor of 1.495. Pillow rounds each step."""
    # Dark and of low contrast, so that equalising has something to do.
    pixels = np.random.default_rng(0).normal(90, 20, (40, 40, 3)).clip(0, 255).astype(np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 255
    changed = TRIVIAL_OPERATIONS[name](image, np.full(1, 0.5)).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    expected = np.asarray(reference(Image.fromarray(pixels)), dtype=np.float64)
    assert np.abs(changed * 255.0 - expected).max() <= 1.3
    assert np.abs(expected - pixels).max() > 3
