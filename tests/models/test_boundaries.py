"""Where a model may be cut: with a stored activation, other pixels must not change the logits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_transfer.models.groups import check_boundary, describe_frozen, trace_groups
from tests.tiny_models import ALL, ARCHITECTURES, CLASSES, logits, pixels, state, tiny_model

Hook = Any


def store(model: nn.Module, module: str, inputs: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """The output of a module for these inputs, and the logits."""
    outputs: list[Any] = []
    handle = model.get_submodule(module).register_forward_hook(lambda _m, _a, output: outputs.append(output))
    result = logits(model, inputs)
    handle.remove()
    return outputs[-1], result


def resume_from(model: nn.Module, module: str, stored: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The logits if the output of a module is replaced by a stored one."""
    handle = model.get_submodule(module).register_forward_hook(lambda _m, _a, _o: stored)
    result = logits(model, inputs)
    handle.remove()
    return result


@pytest.mark.parametrize("name", ALL)
def test_every_group_ends_in_a_legal_boundary(name: str) -> None:
    model = tiny_model(name)
    groups = trace_groups(model, pixels(name))
    for count in range(1, len(groups)):
        boundary = check_boundary(model, groups, count, pixels(name))
        assert (boundary.legal, boundary.reason) == (True, ""), f"after {groups[count - 1].name}"
        assert not boundary.live or name == "beit"


@pytest.mark.parametrize("name", ALL)
def test_after_a_legal_boundary_the_logits_depend_only_on_the_stored_output(name: str) -> None:
    """With other pixels and the stored output, the logits are those of the first pixels, bit for bit."""
    model = tiny_model(name)
    groups = trace_groups(model, pixels(name))
    first, other = pixels(name, seed=5), pixels(name, seed=6)
    for count in range(1, len(groups)):
        module = check_boundary(model, groups, count, pixels(name)).module
        stored, live = store(model, module, first)
        assert torch.equal(resume_from(model, module, stored, other), live), f"after {groups[count - 1].name}"
        assert not torch.allclose(logits(model, other), live, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_boundary_module_is_in_the_last_group_before_the_boundary(name: str) -> None:
    model = tiny_model(name)
    groups = trace_groups(model, pixels(name))
    for count in range(1, len(groups)):
        assert check_boundary(model, groups, count, pixels(name)).module in groups[count - 1].modules


def test_a_shared_table_of_position_biases_stays_live_until_the_last_block() -> None:
    model = tiny_model("beit")
    groups = trace_groups(model, pixels("beit"))
    boundaries = [check_boundary(model, groups, count, pixels("beit")) for count in range(1, len(groups))]
    table = ("beit.shared_position_bias",)
    assert [boundary.live for boundary in boundaries] == [table, table, table, (), ()]
    # The table is needed: without it the blocks after the boundary have other outputs.
    stored, live = store(model, boundaries[1].module, pixels("beit"))
    with torch.no_grad():
        model.get_parameter("beit.shared_position_bias.relative_position_bias_table").zero_()
    assert not torch.allclose(resume_from(model, boundaries[1].module, stored, pixels("beit")), live, atol=1e-4)


def test_checking_a_boundary_does_not_change_the_model() -> None:
    model = tiny_model("resnet_basic")
    groups = trace_groups(model, pixels("resnet_basic"))
    model.train()
    model.get_submodule("resnet.embedder").eval()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    learns = [parameter.requires_grad for parameter in model.parameters()]
    weights = state(model)

    check_boundary(model, groups, 2, pixels("resnet_basic"))

    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Toy(nn.Module):
    """A stem and four equal blocks; later blocks may use a skip connection from the stem, or a shared table."""

    def __init__(self, *, skip: bool = False, table: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.table = nn.Embedding(4, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.classifier = nn.Linear(8, CLASSES)
        self.skip, self.with_table = skip, table
        self.register_buffer("places", torch.arange(4))

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        early = hidden = self.stem(pixel_values)
        biases = self.table(self.places) if self.with_table else torch.zeros(4, 8)
        for number, block in enumerate(self.blocks):
            hidden = torch.tanh(block(hidden)) + biases[number]
            if self.skip and number == 3:
                hidden = hidden + early
        return SimpleNamespace(logits=self.classifier(hidden))


EXAMPLE = {"pixel_values": torch.linspace(-1, 1, 12).reshape(2, 6)}


@pytest.mark.parametrize(("count", "legal"), [(1, True), (2, False), (3, False), (4, False), (5, False)])
def test_a_skip_connection_across_the_boundary_makes_the_cut_illegal(count: int, legal: bool) -> None:
    """It goes from the stem to the last block."""
    model = Toy(skip=True)
    groups = trace_groups(model, EXAMPLE)
    assert [group.name for group in groups] == ["embeddings", *(f"blocks.{n}" for n in range(4)), "head"]
    boundary = check_boundary(model, groups, count, EXAMPLE)
    assert boundary.legal is legal
    assert boundary.reason == ("" if legal else f"later layers depend on stem not only through {boundary.module}")
    # The same by hand: other pixels change the logits exactly where the cut is illegal.
    stored, live = store(model, boundary.module, EXAMPLE)
    other = {"pixel_values": EXAMPLE["pixel_values"].flip(1)}
    assert torch.equal(resume_from(model, boundary.module, stored, other), live) is legal


def test_a_table_that_no_data_flows_into_stays_live() -> None:
    model = Toy(table=True)
    groups = trace_groups(model, EXAMPLE)
    for count in (1, 2, 3, 4, 5):
        boundary = check_boundary(model, groups, count, EXAMPLE)
        assert boundary.module == ("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3")[count - 1]
        assert (boundary.legal, boundary.live) == (True, ("table",))


def test_there_is_no_boundary_before_the_first_group() -> None:
    model = Toy()
    boundary = check_boundary(model, trace_groups(model, EXAMPLE), 0, EXAMPLE)
    assert (boundary.legal, boundary.reason) == (False, "no module before this place is called")


def test_the_sentence_on_frozen_groups_names_the_place_of_the_cut() -> None:
    plain, table, skip = Toy(), Toy(table=True), Toy(skip=True)
    groups = trace_groups(plain, EXAMPLE)
    assert describe_frozen(plain, groups, 0, EXAMPLE) == "All 6 groups learn, from embeddings to head."
    frozen = "3 of 6 groups are frozen, from embeddings to blocks.1"
    assert describe_frozen(plain, groups, 3, EXAMPLE) == f"{frozen}; the model can be cut after blocks.1."
    groups = trace_groups(table, EXAMPLE)
    assert describe_frozen(table, groups, 3, EXAMPLE) == (
        f"{frozen}; the model can be cut after blocks.1, and table is still computed."
    )
    groups = trace_groups(skip, EXAMPLE)
    assert describe_frozen(skip, groups, 3, EXAMPLE) == (
        f"{frozen}; the model cannot be cut there: later layers depend on stem not only through blocks.1."
    )
