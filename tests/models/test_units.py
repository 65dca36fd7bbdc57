"""A model in which nothing repeats is divided into parts of like work, where it can be cut."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hf_transfer.models.groups import check_boundary, trace_groups
from hf_transfer.models.units import work_of

INPUTS = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


class Branches(nn.Module):
    """Two layers that run one after another, but read the same input; their outputs are added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        left: Tensor = self.left(pixels)
        right: Tensor = self.right(pixels)
        return pixels + left + right


class Chain(nn.Module):
    """Layers of many kinds, and a head with one output for each of 5 classes, flattened behind it."""

    def __init__(self, *, skip: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            Branches(),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(16, 5), nn.Flatten())
        self.skip = skip

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        hidden = pixel_values
        for place, layer in enumerate(self.body):
            if place == 6:
                early = hidden.mean((1, 2, 3))
            hidden = layer(hidden)
        if self.skip:
            hidden = hidden + early[:, None]
        return SimpleNamespace(logits=self.head(hidden))


def test_work_is_counted_as_products_and_sums_of_each_layer() -> None:
    work = work_of(Chain().eval(), INPUTS)
    assert work.flops["body.0"] == 2 * 2 * (16 * 16) * (3 * 8 * 9)
    assert work.flops["head.1"] == 2 * 2 * (16 * 5)
    assert work.flops["body.6"] == 2 * work.flops["body.6.left"]
    assert work.calls["body.6"] == 1


def test_parts_end_where_least_is_stored_and_no_branch_is_parted() -> None:
    groups = trace_groups(Chain(), INPUTS)
    assert [(group.name, group.modules) for group in groups] == [
        ("body.0", ("body.0", "body.1", "body.2")),
        ("body.3", ("body.3", "body.4", "body.5")),
        ("body.6", ("body.6",)),
        ("body.7", ("body.7", "body.8")),
        ("body.9", ("body.9", "body.10", "body.11", "head.0")),
        ("head", ("head.1",)),
    ]
    assert all(group.is_block for group in groups[:-1])
    model = Chain()
    assert all(check_boundary(model, groups, count, INPUTS).legal for count in range(1, len(groups)))


def test_there_is_no_boundary_under_a_connection_that_skips_it() -> None:
    groups = trace_groups(Chain(skip=True), INPUTS)
    assert [group.name for group in groups] == ["body.0", "body.3", "body.9", "head"]
    assert groups[2].modules[0] == "body.6"


def test_what_runs_behind_the_head_belongs_to_no_group() -> None:
    groups = trace_groups(Chain(), INPUTS)
    assert not any("head.2" in group.modules for group in groups)


@pytest.mark.parametrize("sides", [8, 32])
def test_tracing_draws_no_random_numbers_and_leaves_statistics(sides: int) -> None:
    model = Chain()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    trace_groups(model, {"pixel_values": torch.ones(2, 3, sides, sides)})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class BesidePixels(Chain):
    """A chain whose later layers also read the pixels."""

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.body(pixel_values) + pixel_values.mean((1, 2, 3))[:, None]))


def test_there_is_no_boundary_in_front_of_a_layer_that_reads_pixels() -> None:
    """They are not there when activations are stored."""
    assert [group.name for group in trace_groups(BesidePixels(), INPUTS)] == ["backbone", "head"]
