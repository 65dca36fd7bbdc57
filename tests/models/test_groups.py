"""A model's groups: in depth order, without overlap; tracing does not change the model."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hf_transfer.errors import UserError
from hf_transfer.models.groups import Group, trace_groups
from tests.tiny_models import ALL, ARCHITECTURES, CLASSES, pixels, state, tiny_model


def parameters_with_gradients(name: str) -> set[str]:
    """Names of the parameters that get a gradient from a backward pass of a random projection of the logits."""
    model = tiny_model(name)
    logits = model(**pixels(name, seed=3)).logits
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    return {key for key, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ALL)
def test_groups_are_named_in_the_order_of_depth(name: str) -> None:
    groups = trace_groups(tiny_model(name), pixels(name))
    assert [group.name for group in groups] == ALL[name].group_names


@pytest.mark.parametrize("name", ALL)
def test_embeddings_final_and_head_have_the_modules_that_the_source_code_names(name: str) -> None:
    """`final` has only what runs after the last block."""
    expected = ALL[name]
    groups = {group.name: group for group in trace_groups(tiny_model(name), pixels(name))}
    assert groups["head"].modules == (expected.head,)
    assert groups["head"].parameters == (f"{expected.head}.weight", f"{expected.head}.bias")
    for end, modules in (("embeddings", expected.embeddings), ("final", expected.final)):
        assert (set(groups[end].modules) if end in groups else set()) == set(modules)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_with_a_gradient_is_in_exactly_one_group(name: str) -> None:
    groups = trace_groups(tiny_model(name), pixels(name))
    grouped = [parameter for group in groups for parameter in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == parameters_with_gradients(name)
    parameters = {key for key, _ in tiny_model(name).named_parameters()}
    assert parameters - set(grouped) == set(ALL[name].unused)


@pytest.mark.parametrize("name", ALL)
def test_the_modules_of_groups_are_disjoint_and_outermost(name: str) -> None:
    model = tiny_model(name)
    groups = trace_groups(model, pixels(name))
    modules = [module for group in groups for module in group.modules]
    for position, module in enumerate(modules):
        for other in modules[:position] + modules[position + 1 :]:
            assert not module.startswith(f"{other}."), f"{module} is a part of {other}"
            assert module != other
    # Whole modules: each has only parameters of its group.
    for group in groups:
        for module in group.modules:
            parameters = {f"{module}.{key}" for key, _ in model.get_submodule(module).named_parameters()}
            assert parameters - set(ALL[name].unused) <= set(group.parameters)


@pytest.mark.parametrize("name", ["poolformer"])
def test_a_downsampling_layer_belongs_to_the_stage_that_it_feeds(name: str) -> None:
    groups = {group.name: group for group in trace_groups(tiny_model(name), pixels(name))}
    for stage in (1, 2, 3):
        modules = groups[f"poolformer.encoder.block.{stage}.0"].modules
        assert set(modules) == {f"poolformer.encoder.patch_embeddings.{stage}", f"poolformer.encoder.block.{stage}.0"}


@pytest.mark.parametrize("name", ALL)
def test_tracing_does_not_change_the_model(name: str) -> None:
    model = tiny_model(name)
    model.train()
    some = list(model.modules())[1::3]
    for module in some:
        module.training = False
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    hooks = {key: [len(m._forward_hooks), len(m._forward_pre_hooks)] for key, m in model.named_modules()}
    modes = [module.training for module in model.modules()]
    learns = [parameter.requires_grad for parameter in model.parameters()]
    weights = state(model)

    trace_groups(model, pixels(name))

    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    assert {key: [len(m._forward_hooks), len(m._forward_pre_hooks)] for key, m in model.named_modules()} == hooks
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tracing_does_not_change_the_model_if_the_forward_fails() -> None:
    model = tiny_model("vit")
    model.train()
    with pytest.raises(ValueError, match="channel"):
        trace_groups(model, {"pixel_values": torch.zeros(2, 4, 16, 16)})
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_number_of_classes_does_not_change_the_groups(name: str) -> None:
    """Two thousand classes outweigh the blocks of a tiny backbone."""
    groups = trace_groups(tiny_model(name, num_labels=2000), pixels(name))
    assert [group.name for group in groups] == ARCHITECTURES[name].group_names


def test_the_number_of_classes_may_equal_the_width_of_the_blocks() -> None:
    """Linear layers in the blocks then have the shape of a head."""
    groups = trace_groups(tiny_model("vit", num_labels=24), pixels("vit"))
    assert groups[-1] == Group("head", ("classifier",), ("classifier.weight", "classifier.bias"))
    assert [group.name for group in groups] == ARCHITECTURES["vit"].group_names


class WithoutBlocks(nn.Module):
    """Two convolutions of different kinds and a Linear."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
        self.head = head

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.body(pixel_values)).flatten(1))


def test_a_model_without_repeated_modules_is_one_backbone_and_a_head() -> None:
    """A body and a head of the same type are not blocks."""
    model = WithoutBlocks(nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES)))
    groups = trace_groups(model, {"pixel_values": torch.randn(2, 3, 8, 8)})
    assert [(group.name, group.modules) for group in groups] == [
        ("backbone", ("body", "head.0")),
        ("head", ("head.1",)),
    ]


def test_a_model_that_ends_in_a_convolution_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        trace_groups(WithoutBlocks(nn.Conv2d(4, CLASSES, 1)), {"pixel_values": torch.randn(2, 3, 8, 8)})
    assert str(caught.value) == (
        "Expected: a classifier that ends in a Linear layer with one output for each class\n"
        "Found:    WithoutBlocks without one\n"
        "Do this:  choose another --model_name_or_path"
    )
