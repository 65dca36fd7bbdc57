"""Models of timm without repeated modules: parts of like work, between which stored activations equal a live run."""

from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.models.vgg import VGG
from torch import Tensor, nn

from hf_transfer.models.cutting import Cut
from hf_transfer.models.groups import Group, check_boundary, trace_groups
from hf_transfer.models.stubs import with_stored
from hf_transfer.models.units import MOST_GROUPS, work_of
from hf_transfer.strategies.freezing import GradualUnfreezing, PartialFineTuning
from tests.tiny_models import logits, set_running_statistics
from tests.with_timm.tiny_timm import Classifier

CLASSES = 5
# The layers of VGG16 and VGG19 with an eighth of their channels.
VGG16 = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
VGG19 = [8, 8, "M", 16, 16, "M", *(32,) * 4, "M", *(64,) * 4, "M", *(64,) * 4, "M"]


def _timm(name: str, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, **arguments)
    return model


MODELS: dict[str, tuple[Any, int]] = {
    "vgg16": (lambda: VGG(VGG16, num_classes=CLASSES, mlp_ratio=1 / 64), 64),
    "vgg19": (lambda: VGG(VGG19, num_classes=CLASSES, mlp_ratio=1 / 64), 64),
    "inception_v3": (lambda: _timm("inception_v3"), 80),
    "inception_v4": (lambda: _timm("inception_v4"), 80),
    "resnet18": (lambda: _timm("resnet18"), 64),
    "mobilenetv3": (lambda: _timm("mobilenetv3_small_050"), 64),
    "densenet": (lambda: _timm("densenet121", growth_rate=8, block_config=(2, 4, 6, 4)), 64),
    "regnet": (lambda: _timm("regnetx_002"), 64),
    "efficientnet": (lambda: _timm("test_efficientnet"), 64),
}  # fmt: skip
# The largest of them take more than ten seconds.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if "inception" in name else name for name in MODELS]


def batch(name: str, seed: int, rows: int = 2) -> dict[str, Tensor]:
    side = MODELS[name][1]
    return {"pixel_values": torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))}


@cache
def grouped(name: str) -> tuple[nn.Module, list[Group]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(MODELS[name][0]())
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.1)
        set_running_statistics(model, batch(name, 0, rows=8))
    model.eval()
    return model, trace_groups(model, batch(name, 0))


@pytest.mark.parametrize("name", NAMES)
def test_stored_activations_give_the_logits_of_a_live_run_at_every_cut(name: str) -> None:
    model, groups = grouped(name)
    other = batch(name, 1, rows=3)
    live = logits(model, other)
    assert not torch.allclose(live[0], live[1])
    for count in range(1, len(groups)):
        cut = Cut(model, groups, count, batch(name, 0))
        recorded = cut.record(model, other)
        with cut.skipped(model):
            stored = logits(model, with_stored(cut.blank(other), recorded))
        assert torch.equal(stored, live), groups[count - 1].name


@pytest.mark.parametrize("name", NAMES)
def test_the_head_gets_the_gradient_of_a_live_run_from_what_is_stored_in_front_of_it(name: str) -> None:
    """Not from its own outputs, which some models flatten behind it."""
    model, groups = grouped(name)
    inputs = batch(name, 2)
    weight = model.get_parameter(groups[-1].parameters[0])
    (expected,) = torch.autograd.grad(model(**inputs).logits.square().sum(), [weight])
    cut = Cut(model, groups, len(groups) - 1, inputs)
    recorded = cut.record(model, inputs)
    with cut.skipped(model):
        (gradient,) = torch.autograd.grad(
            model(**with_stored(cut.blank(inputs), recorded)).logits.square().sum(), [weight]
        )
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_a_few_groups_of_which_none_does_most_of_the_work(name: str) -> None:
    model, groups = grouped(name)
    blocks = [group for group in groups if group.is_block]
    assert 4 <= len(blocks) <= MOST_GROUPS
    flops = work_of(model, batch(name, 0)).flops
    work = [sum(flops[module] for module in group.modules) for group in blocks]
    assert max(work) < 0.45 * sum(work)
    # Each of them learns something.
    assert all(group.parameters for group in blocks)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    model, groups = grouped(name)
    grouped_names = [parameter for group in groups for parameter in group.parameters]
    assert sorted(grouped_names) == sorted(parameter for parameter, _ in model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_strategies_find_blocks(name: str) -> None:
    _, groups = grouped(name)
    (stage,) = PartialFineTuning(layers=2).stages(groups, epochs=3)
    blocks = [group for group in groups if group.is_block]
    assert set(blocks[-1].parameters) | set(blocks[-2].parameters) <= stage.trainable
    assert stage.trainable.isdisjoint(blocks[-3].parameters)
    assert len(GradualUnfreezing().stages(groups, epochs=20)) >= len(blocks)


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_a_vgg_is_cut_behind_its_pooling_layers_where_least_is_stored(name: str) -> None:
    model, groups = grouped(name)
    behind = [check_boundary(model, groups, count, batch(name, 0)).module for count in range(1, len(groups) - 1)]
    pooling = [name for name, one in model.named_modules() if isinstance(one, nn.MaxPool2d)]
    assert set(pooling[:4]) <= set(behind)
