"""Layers for whose weights a method is not defined get no adapter."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_transfer.errors import UserError
from hf_transfer.models.groups import trace_groups
from hf_transfer.strategies.adapters import LowRankAdaptation, OtherAdapters, WeightDecomposedAdaptation
from tests.strategies.test_adapters import Adapted, Small, adapt, candidates
from tests.tiny_models import logits
from tests.tiny_text_models import model_and_inputs


@pytest.mark.parametrize("name", ["vit", "resnet_basic", "bert", "gpt2"])
def test_dora_leaves_out_layers_with_a_vector_of_zeros_which_has_no_direction(name: str) -> None:
    """Pretrained networks have such filters; the outputs would be NaN."""
    model, inputs = model_and_inputs(name)
    layers = candidates(name)
    first, *_, last = layers
    for key in (first, last):
        layer: Any = model.get_submodule(key)
        with torch.no_grad():
            (layer.weight.T if isinstance(layer, Conv1D) else layer.weight)[1] = 0
    strategy = WeightDecomposedAdaptation()
    adapted, groups = strategy.prepare(model, trace_groups(model, inputs), inputs, 0)
    assert Adapted(adapted, groups, inputs).layers().keys() == layers.keys() - {first, last}
    assert torch.isfinite(logits(adapted, inputs)).all()


@pytest.mark.parametrize("peft_type", ["LOHA", "LOKR"])
def test_layers_whose_rows_dropout_may_all_drop_have_no_adapter(peft_type: str) -> None:
    """peft divides by the share of rows that are left: of few rows it is 0 sooner or later, and 0 / 0 is NaN."""
    strategy = OtherAdapters(peft_type=peft_type, dropout=0.5)
    assert not strategy.suits(nn.Conv2d(32, 1, 1))
    assert not strategy.suits(nn.Linear(32, 20))
    assert strategy.suits(nn.Linear(32, 48))
    assert OtherAdapters(peft_type=peft_type, dropout=0.0).suits(nn.Conv2d(32, 1, 1))
    assert OtherAdapters(peft_type="LORA", dropout=0.5).suits(nn.Conv2d(32, 1, 1))


def test_a_model_of_such_layers_alone_is_refused_and_takes_the_advice() -> None:
    with pytest.raises(UserError) as caught:
        adapt("vit", OtherAdapters(dropout=0.9))
    assert str(caught.value) == (
        "Expected: layers that LOHA can adapt with a dropout of 0.9\n"
        "Found:    only layers with weights of zeros, or of so few rows that dropout may drop all\n"
        "Do this:  use --adapter_dropout 0, or --strategy lora"
    )
    assert adapt("vit", OtherAdapters(dropout=0.0)).layers()
    assert adapt("vit", LowRankAdaptation(dropout=0.9)).layers()


def test_an_adapted_model_with_a_layer_of_one_output_computes_numbers_in_every_step() -> None:
    """Squeeze-and-excitation of small networks has such layers."""
    torch.manual_seed(0)
    model = Small()
    model.stem = nn.Sequential(nn.Conv2d(3, 48, 1), nn.Conv2d(48, 1, 1), nn.Conv2d(1, 48, 1))
    model.head = nn.Linear(48, 4)
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8)}
    strategy = OtherAdapters(peft_type="LOHA", dropout=0.3)
    adapted, _ = strategy.prepare(model, trace_groups(model, inputs), inputs, 0)
    adapted.train()
    assert all(bool(logits(adapted, inputs).isfinite().all()) for _ in range(100))
