"""Groups of text models, and where they may be cut: with a stored activation, other texts change no logits."""

import pytest
import torch

from hf_transfer.models.groups import check_boundary, trace_groups
from tests.models.test_boundaries import resume_from, store
from tests.tiny_models import logits, state
from tests.tiny_text_models import TEXT_ARCHITECTURES, tiny_text_model, token_ids


def parameters_with_gradients(name: str) -> set[str]:
    """Names of the parameters that get a gradient from a backward pass of a random projection of the logits."""
    model = tiny_text_model(name)
    result = model(**token_ids(seed=3)).logits
    (result * torch.randn(result.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    return {key for key, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_groups_are_named_in_the_order_of_depth(name: str) -> None:
    """A large vocabulary must not outweigh the blocks."""
    for settings in ({}, {"vocab_size": 5000}):
        model = tiny_text_model(name, **settings)
        groups = trace_groups(model, token_ids())
        assert [group.name for group in groups] == TEXT_ARCHITECTURES[name].group_names


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_embeddings_final_and_head_have_the_modules_that_the_source_code_names(name: str) -> None:
    expected = TEXT_ARCHITECTURES[name]
    model = tiny_text_model(name)
    groups = {group.name: group for group in trace_groups(model, token_ids())}
    assert groups["head"].modules == (expected.head,)
    head = model.get_submodule(expected.head)
    assert groups["head"].parameters == tuple(f"{expected.head}.{key}" for key, _ in head.named_parameters())
    assert set(groups["embeddings"].modules) == set(expected.embeddings)
    assert set(groups["final"].modules) == set(expected.final)


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_every_parameter_with_a_gradient_is_in_exactly_one_group(name: str) -> None:
    groups = trace_groups(tiny_text_model(name), token_ids())
    grouped = [parameter for group in groups for parameter in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == parameters_with_gradients(name)
    parameters = {key for key, _ in tiny_text_model(name).named_parameters()}
    assert parameters - set(grouped) == set(TEXT_ARCHITECTURES[name].unused)


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_every_group_ends_in_a_legal_boundary_and_only_shared_tables_stay_live(name: str) -> None:
    """Data flows through token embeddings: they are not a table of biases."""
    model = tiny_text_model(name)
    groups = trace_groups(model, token_ids())
    for count in range(1, len(groups)):
        boundary = check_boundary(model, groups, count, token_ids())
        assert (boundary.legal, boundary.reason) == (True, ""), f"after {groups[count - 1].name}"
        assert boundary.module in groups[count - 1].modules
        if name != "deberta":
            assert boundary.live == ()


def test_the_relative_positions_of_deberta_stay_live_until_the_last_block() -> None:
    """Every block uses a table and its norm, through which no data flows; their outputs are not stored."""
    model = tiny_text_model("deberta")
    groups = trace_groups(model, token_ids())
    boundaries = [check_boundary(model, groups, count, token_ids()) for count in range(1, len(groups))]
    table = ("deberta.encoder.LayerNorm", "deberta.encoder.rel_embeddings")
    assert [boundary.live for boundary in boundaries] == [table, table, table, (), ()]
    assert boundaries[0].module == "deberta.embeddings"


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_after_a_legal_boundary_the_logits_depend_only_on_the_stored_output(name: str) -> None:
    """With other words and the stored output, the logits are those of the first words, bit for bit.

    The attention masks are the same, since parents compute masks from the inputs.
    """
    model = tiny_text_model(name)
    groups = trace_groups(model, token_ids())
    first = token_ids(seed=5, rows=4)
    other = first | {"input_ids": torch.where(first["attention_mask"] == 1, first["input_ids"].flip(0), 0)}
    other["input_ids"] = torch.where((other["input_ids"] == 0) & (first["attention_mask"] == 1), 9, other["input_ids"])
    for count in range(1, len(groups)):
        module = check_boundary(model, groups, count, token_ids()).module
        stored, live = store(model, module, first)
        assert torch.equal(resume_from(model, module, stored, other), live), f"after {groups[count - 1].name}"
        assert not torch.allclose(logits(model, other), live, atol=1e-4)


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_tracing_does_not_change_the_model(name: str) -> None:
    model = tiny_text_model(name)
    model.train()
    some = list(model.modules())[1::3]
    for module in some:
        module.training = False
    modes, weights = [module.training for module in model.modules()], state(model)

    groups = trace_groups(model, token_ids())
    check_boundary(model, groups, 2, token_ids())

    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("classes", [2, 24, 2000])
@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_the_number_of_classes_does_not_change_the_groups(name: str, classes: int) -> None:
    """Not even if it is the width of the blocks: their layers, and a pooler, then have the shape of a head."""
    groups = trace_groups(tiny_text_model(name, num_labels=classes), token_ids())
    assert [group.name for group in groups] == TEXT_ARCHITECTURES[name].group_names
    assert groups[-1].modules == (TEXT_ARCHITECTURES[name].head,)
