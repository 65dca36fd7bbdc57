"""Convolutions lie in memory as libraries compute with them; nothing else about a model changes."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hf_transfer.models.memory_format import contiguous, in_channels_last
from hf_transfer.training.sharding import placed_like
from tests.tiny_models import logits
from tests.tiny_text_models import model_and_inputs


@pytest.mark.parametrize("name", ["resnet_basic", "mobilenet_v2", "convnext", "vit", "bert"])
def test_values_names_and_answers_stay_the_same(name: str) -> None:
    model, inputs = model_and_inputs(name)
    before = copy.deepcopy(model)
    after = in_channels_last(model)
    assert after is model
    assert list(after.state_dict()) == list(before.state_dict())
    for key, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], value)
    torch.testing.assert_close(logits(after, inputs), logits(before, inputs), rtol=1e-4, atol=1e-5)


def test_only_convolutions_over_images_are_changed_and_can_be_changed_back() -> None:
    model: Any = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.Linear(4, 4))
    model.register_parameter("positions", nn.Parameter(torch.zeros(1, 4, 5, 6)))
    strides = {name: value.stride() for name, value in model.named_parameters()}
    in_channels_last(model)
    assert {name for name, value in model.named_parameters() if value.stride() != strides[name]} == {"0.weight"}
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    contiguous(model)
    assert {name: value.stride() for name, value in model.named_parameters()} == strides


def test_an_optimizer_that_continues_steps_as_one_without_a_break() -> None:
    """The kernels of fused optimizers read weights, gradients and moments in the order of the memory."""

    def steps(model: Any, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 8, 8)
    model = in_channels_last(nn.Sequential(nn.Conv2d(3, 5, 3)))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=True)
    steps(model, optimizer)
    resumed = copy.deepcopy(model)
    again = torch.optim.AdamW(resumed.parameters(), 0.01, fused=True)
    for old, new in zip(model.parameters(), resumed.parameters(), strict=True):
        # As read from a checkpoint.
        again.state[new] = {
            key: placed_like(value.clone().contiguous(), new) for key, value in optimizer.state[old].items()
        }
    steps(model, optimizer)
    steps(resumed, again)
    for old, new in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(old, new)
