"""Adapters are in the right layers, compute the formulas of their papers, and nothing else learns."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from hf_transfer.errors import UserError
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.adapter_files import merged
from hf_transfer.strategies.adapters import (
    Adapters,
    InfusedAdapters,
    KroneckerAdaptation,
    LowRankAdaptation,
    OtherAdapters,
    WeightDecomposedAdaptation,
)
from hf_transfer.strategies.freezing import set_trainable
from tests.tiny_models import ALL, logits, state
from tests.tiny_text_models import TEXT_ARCHITECTURES, model_and_inputs

STRATEGIES: dict[str, Adapters] = {
    "lora": LowRankAdaptation(),
    "dora": WeightDecomposedAdaptation(),
    "ia3": InfusedAdapters(),
    "lokr": KroneckerAdaptation(),
    "loha": OtherAdapters(peft_type="LOHA"),
}
NAMES = ("vit", "resnet_basic", "convnext", "swin", "bert", "roberta", "distilbert", "gpt2")
PREFIX = "base_model.model."
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Adapted:
    """A tiny model with adapters, its groups, and a batch."""

    model: nn.Module
    groups: list[Group]
    inputs: dict[str, Tensor]

    def layers(self) -> dict[str, BaseTunerLayer]:
        """The layers that have an adapter, by their names in the model without adapters."""
        return {
            name.removeprefix(PREFIX): layer
            for name, layer in self.model.named_modules()
            if isinstance(layer, BaseTunerLayer)
        }


def adapt(name: str, strategy: Adapters, *, seed: int = 0, random: bool = False, **settings: Any) -> Adapted:
    """With `random` the adapters get random values: at the start they have no effect."""
    model, inputs = model_and_inputs(name, **settings)
    adapted, groups = strategy.prepare(model, trace_groups(model, inputs), inputs, seed)
    if random:
        generator = torch.Generator().manual_seed(seed)
        learns = strategy.stages(groups, 1)[0].trainable
        with torch.no_grad():
            for key, value in adapted.named_parameters():
                if key in learns:
                    value.add_(torch.randn(value.shape, generator=generator) * 0.2)
    return Adapted(adapted.eval(), groups, inputs)


def matrix(layer: nn.Module, kind: str) -> Array:
    """A matrix of an adapter, by peft's name for it."""
    (parameter,) = [value for key, value in layer.named_parameters() if kind in key]
    array: Array = parameter.detach().double().numpy()
    return array


def adapted_weight(method: str, weight: Array, layer: nn.Module) -> Array:
    """The adapted weight [out, in, ...] by the formula of the paper; alpha is twice the rank."""
    factors: Array = np.ones(len(weight))
    if method == "ia3":
        factors = matrix(layer, "ia3_l").reshape(-1)
    elif method == "lokr":
        w2 = matrix(layer, "lokr_w2_a") @ matrix(layer, "lokr_w2_b")
        weight = weight + 2 * np.kron(matrix(layer, "lokr_w1"), w2).reshape(weight.shape)
    else:
        a, b = matrix(layer, "lora_A"), matrix(layer, "lora_B")
        weight = weight + 2 * (b.reshape(-1, 8) @ a.reshape(8, -1)).reshape(weight.shape)
    if method == "dora":
        length = np.sqrt((weight.reshape(len(weight), -1) ** 2).sum(1))
        factors = matrix(layer, "lora_magnitude_vector").reshape(-1) / length
    return weight * factors.reshape(-1, *[1] * (weight.ndim - 1))


def run(layer: Any, weight: Tensor, bias: Any, batch: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(batch, weight, bias, layer.stride, layer.padding)
    return functional.linear(batch, weight, bias)


@pytest.mark.parametrize(
    ("method", "name", "target"),
    [
        (method, name, target)
        for name, target in (
            ("vit", "vit.layers.1.mlp.fc1"),
            ("resnet_basic", "resnet.encoder.stages.1.layers.0.layer.0.convolution"),
            ("gpt2", "transformer.h.2.mlp.c_fc"),
        )
        for method in ("lora", "dora", "ia3", "lokr")
        if (method, name) != ("lokr", "gpt2")
    ],
)
def test_the_layers_compute_the_formula_of_the_paper(method: str, name: str, target: str) -> None:
    # Kronecker factors as small as these would have full rank with a rank of 8.
    strategy = KroneckerAdaptation(rank=1) if method == "lokr" else STRATEGIES[method]
    layer: Any = adapt(name, strategy, random=True).layers()[target]
    plain = layer.get_base_layer()
    weight = plain.weight.detach().double().numpy()
    weight = weight.T if isinstance(plain, Conv1D) else weight
    generator = torch.Generator().manual_seed(3)
    shape = (2, weight.shape[1], 9, 9) if weight.ndim == 4 else (2, 4, weight.shape[1])
    batch = torch.randn(shape, generator=generator)
    bias = plain.bias
    if method == "ia3" and bias is not None:
        bias = bias * torch.from_numpy(matrix(layer, "ia3_l")).float().reshape(-1)
    expected = run(plain, torch.from_numpy(adapted_weight(method, weight, layer)).float(), bias, batch)
    with torch.no_grad():
        actual = layer(batch)
        assert (actual - plain(batch)).abs().max() > 0.1
        assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "name"),
    # peft has neither LoKr nor LoHa for Conv1D.
    [(method, name) for name in NAMES for method in STRATEGIES if name != "gpt2" or method not in ("lokr", "loha")],
)
def test_at_the_start_adapters_do_not_change_the_logits(method: str, name: str) -> None:
    model, inputs = model_and_inputs(name)
    assert torch.allclose(
        logits(adapt(name, STRATEGIES[method]).model, inputs), logits(model, inputs), rtol=1e-5, atol=1e-5
    )


def candidates(name: str, **settings: Any) -> dict[str, bool]:
    """Layers in the blocks that the source code names, and whether each is a depthwise convolution."""
    blocks = (ALL | TEXT_ARCHITECTURES)[name].blocks
    return {
        key: getattr(layer, "groups", 1) > 1
        for key, layer in model_and_inputs(name, **settings)[0].named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | Conv1D) and any(key.startswith(f"{block}.") for block in blocks)
    }


@pytest.mark.parametrize(
    ("name", "count", "depthwise", "settings"),
    [
        ("vit", 18, 0, {}),
        ("resnet_basic", 10, 0, {}),
        ("convnext", 13, 5, {}),
        ("mobilenet_v2", 32, 16, {"tf_padding": False}),
        ("bert", 18, 0, {}),
        ("gpt2", 12, 0, {}),
    ],
)
def test_every_layer_of_the_blocks_that_peft_can_adapt_has_an_adapter(
    name: str, count: int, depthwise: int, settings: Mapping[str, Any]
) -> None:
    """(IA)³ can adapt depthwise convolutions, LoRA cannot."""
    layers = candidates(name, **settings)
    plain = {key for key, is_depthwise in layers.items() if not is_depthwise}
    assert (len(plain), len(layers) - len(plain)) == (count, depthwise)
    assert adapt(name, LowRankAdaptation(), **settings).layers().keys() == plain
    assert adapt(name, InfusedAdapters(), **settings).layers().keys() == layers.keys()


@pytest.mark.parametrize(("name", "top"), [("vit", 1), ("vit", 2), ("resnet_basic", 2), ("gpt2", 1), ("convnext", 4)])
def test_the_top_blocks_have_the_adapters(name: str, top: int) -> None:
    blocks = (ALL | TEXT_ARCHITECTURES)[name].blocks[-top:]
    layers = adapt(name, LowRankAdaptation(layers=top)).layers()
    expected = {key for key, depthwise in candidates(name).items() if key.startswith(blocks) and not depthwise}
    assert layers.keys() == expected


def test_in_a_model_without_blocks_the_whole_backbone_has_adapters() -> None:
    """But not the head; and a number of layers is refused."""
    model = Small()
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    groups = trace_groups(model, inputs)
    with pytest.raises(UserError) as caught:
        LowRankAdaptation(layers=1).prepare(model, groups, inputs, 0)
    assert str(caught.value) == (
        "Expected: a model with repeated blocks\nFound:    none\nDo this:  leave --adapter_layers out"
    )
    adapted, groups = LowRankAdaptation().prepare(model, groups, inputs, 0)
    assert Adapted(adapted, groups, inputs).layers().keys() == {"stem"}
    assert [group.name for group in groups] == ["backbone", "head"]


class Small(nn.Module):
    """A classifier without repeated blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.stem(pixel_values).mean((2, 3))))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_only_the_adapters_and_the_modules_saved_with_them_change(method: str, name: str) -> None:
    """BatchNorm statistics do not change either. The reference are the parameters that peft itself would train."""
    strategy = STRATEGIES[method]
    adapted = adapt(name, strategy, random=True)
    model = adapted.model
    expected = {key for key, value in model.named_parameters() if value.requires_grad}
    set_trainable(model, adapted.groups, strategy.stages(adapted.groups, 1)[0].trainable)
    before = state(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    functional.cross_entropy(model(**adapted.inputs).logits, torch.tensor([0, 1])).backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", {"classifier"}),
        ("resnet_basic", {"classifier.1"}),
        ("bert", {"classifier", "bert.pooler.dense"}),
        ("roberta", {"classifier"}),
        ("distilbert", {"classifier", "pre_classifier"}),
        ("gpt2", {"score"}),
    ],
)
def test_the_head_and_the_dense_layers_before_it_are_saved_whole(name: str, expected: set[str]) -> None:
    model = adapt(name, LowRankAdaptation()).model
    saved = {key for key, _ in model.named_modules() if key.endswith("modules_to_save")}
    assert saved == {f"{PREFIX}{key}.modules_to_save" for key in expected}


@pytest.mark.parametrize("method", ["lora", "dora", "lokr", "loha"])
def test_the_weights_depend_only_on_the_seed(method: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (state(adapt("vit", STRATEGIES[method], seed=seed).model) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    differ = {key for key, value in first.items() if not torch.equal(value, other[key])}
    assert len(differ) >= 18
    assert all("lora_" in key or "lokr_" in key or "hada_" in key for key in differ)


def test_an_adapter_that_is_merged_may_be_in_a_model_that_reads_the_strides_of_its_layers() -> None:
    """MobileNetV2 pads by them. In float64, since its random weights enlarge rounding."""
    one = adapt("mobilenet_v2", LowRankAdaptation(merges=True), random=True)
    model, pixels = one.model.double(), {"pixel_values": one.inputs["pixel_values"].double()}
    expected = logits(model, pixels)
    plain = merged(model)
    assert not any(isinstance(layer, BaseTunerLayer) for layer in plain.modules())
    torch.testing.assert_close(logits(plain, pixels), expected)
    before, _ = model_and_inputs("mobilenet_v2")
    assert not torch.allclose(logits(before.double(), pixels), expected)


def test_a_deep_copy_shares_no_weights() -> None:
    strategy = LowRankAdaptation()
    adapted = adapt("resnet_basic", strategy, random=True)
    set_trainable(adapted.model, adapted.groups, strategy.stages(adapted.groups, 1)[0].trainable)
    before = logits(adapted.model.eval(), adapted.inputs)
    twin = copy.deepcopy(adapted.model)
    assert torch.equal(logits(twin, adapted.inputs), before)
    with torch.no_grad():
        for value in twin.parameters():
            value.add_(1.0)
    assert torch.equal(logits(adapted.model, adapted.inputs), before)


def test_methods_with_dropout_use_it_only_in_training() -> None:
    for strategy in (LowRankAdaptation(dropout=0.5), KroneckerAdaptation(dropout=0.5), OtherAdapters(dropout=0.2)):
        adapted = adapt("vit", strategy, random=True)
        set_trainable(adapted.model, adapted.groups, strategy.stages(adapted.groups, 1)[0].trainable)
        torch.manual_seed(0)
        model = adapted.model.train()
        assert not torch.equal(logits(model, adapted.inputs), logits(model, adapted.inputs))
        model.eval()
        assert torch.equal(logits(model, adapted.inputs), logits(model, adapted.inputs))


@pytest.mark.parametrize(
    "peft_type",
    [
        "ADAMSS",
        "BOFT",
        "HRA",
        "IA3",
        "LOHA",
        "MISS",
        "OFT",
        "PVERA",
        "RANDLORA",
        "SHIRA",
        "TINYLORA",
        "UNILORA",
        "VERA",
    ],
)
def test_other_methods_train_the_parameters_that_peft_would_train(peft_type: str) -> None:
    strategy = OtherAdapters(peft_type=peft_type)
    adapted = adapt("vit", strategy)
    assert len(adapted.layers()) == 18
    model = model_and_inputs("vit")[0]
    groups = trace_groups(model, adapted.inputs)
    strategy.check(nn.Module.to(model, "meta"), groups)
    expected = {key for key, value in adapted.model.named_parameters() if value.requires_grad}
    assert strategy.stages(adapted.groups, 1)[0].trainable == expected


def test_a_layer_that_peft_would_compute_wrongly_gets_no_adapter() -> None:
    """peft 0.21 reshapes the patches of a 3x3 convolution wrongly for OFT: at the start outputs differ by 7.0."""
    adapted = adapt("resnet_bottleneck", OtherAdapters(peft_type="OFT"))
    sizes = {layer.get_base_layer().kernel_size for layer in adapted.layers().values()}
    assert sizes == {(1, 1)}
    plain, inputs = model_and_inputs("resnet_bottleneck")
    assert torch.allclose(logits(adapted.model, inputs), logits(plain, inputs), rtol=1e-4, atol=1e-4)


ATTACHABLE_TO_GPT2 = "LORA, IA3, VERA, FROD, PVERA, FOURIERFT, UNILORA, RANDLORA, HIRA, GRALORA, TINYLORA, DEFT"


@pytest.mark.parametrize(
    ("name", "strategy", "message"),
    [
        (
            "vit",
            LowRankAdaptation(layers=4),
            "Expected: --adapter_layers from 1 to 3, the blocks of this model\n"
            "Found:    4\n"
            "Do this:  lower it, or leave it out for all",
        ),
        (
            "gpt2",
            KroneckerAdaptation(),
            "Expected: layers that LOKR can adapt: linear layers, convolutions, depthwise convolutions\n"
            "Found:    in this model Conv1D(nf=72, nx=24); Conv1D(nf=24, nx=24); Conv1D(nf=32, nx=24); "
            "Conv1D(nf=24, nx=32)\n"
            f"Do this:  use --strategy adapter with --peft_type {ATTACHABLE_TO_GPT2}",
        ),
        (
            "gpt2",
            OtherAdapters(peft_type="ADALORA"),
            "Expected: a method of peft that adapts single layers and needs nothing else\n"
            "Found:    ADALORA: it needs the number of steps, and the training loop must call it to prune ranks\n"
            f"Do this:  use --strategy adapter with --peft_type {ATTACHABLE_TO_GPT2}",
        ),
        (
            "gpt2",
            OtherAdapters(peft_type="PROMPT_TUNING"),
            "Expected: a method of peft that adapts single layers and needs nothing else\n"
            "Found:    PROMPT_TUNING\n"
            f"Do this:  use --strategy adapter with --peft_type {ATTACHABLE_TO_GPT2}",
        ),
        (
            "mobilenet_v2",
            LowRankAdaptation(),
            "Expected: a model that runs with the layers by which LORA replaces its own\n"
            "Found:    MobileNetV2ForImageClassification: 'Conv2d' object has no attribute 'stride'\n"
            "Do this:  add --merge_adapter, use another kind of adapter, or --strategy partial or full",
        ),
    ],
)
def test_a_method_that_does_not_suit_the_model_is_refused_with_advice(
    name: str, strategy: Adapters, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        adapt(name, strategy)
    assert str(caught.value) == message
