"""Only trainable parameters change; frozen groups are completely frozen."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.freezing import (
    FromScratch,
    FullFineTuning,
    LinearProbe,
    LinearProbeThenFineTuning,
    PartialFineTuning,
    Strategy,
    set_trainable,
    unfreeze,
)
from tests.tiny_models import ALL, pixels, state, tiny_model

STRATEGIES: dict[str, Strategy] = {
    "linear_probe": LinearProbe(),
    "partial": PartialFineTuning(layers=1),
    "full": FullFineTuning(),
    "full, updated": FullFineTuning(updates_statistics=True),
    "partial, updated": PartialFineTuning(layers=1, updates_statistics=True),
    "scratch": FromScratch(),
}
ARCHITECTURES = ("vit", "resnet_basic", "mobilenet_v2")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def prepared(name: str, strategy: Strategy, **settings: Any) -> tuple[PreTrainedModel, list[Group]]:
    """A traced model whose trainable parameters are those of a strategy."""
    model = tiny_model(name, **settings)
    groups = trace_groups(model, pixels(name))
    stage = strategy.stages(groups, 1)[0]
    set_trainable(model, groups, stage.trainable, updates_statistics=stage.updates_statistics)
    return model, groups


def train(model: nn.Module, name: str, *, steps: int) -> None:
    """Steps like those of `transformers.Trainer`, which calls `train()` before each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        model.train()
        cross_entropy(model(**pixels(name, seed=step, rows=4)).logits, torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        optimizer.zero_grad()


def expected_to_learn(name: str, strategy: str) -> set[str]:
    """By the names of the modules in the source code, not by our groups."""
    parts, model = ALL[name], tiny_model(name)
    top: tuple[str, ...] = {
        "linear_probe": (parts.head,),
        "partial": (parts.blocks[-1], *parts.final, parts.head),
        "full": ("",),
        "scratch": ("",),
    }[strategy.removesuffix(", updated")]
    return {
        parameter
        for parameter, _ in model.named_parameters()
        if any(not module or parameter.startswith(f"{module}.") for module in top) and parameter not in parts.unused
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exactly_the_named_parameters_change(name: str, strategy: str) -> None:
    model, _ = prepared(name, STRATEGIES[strategy])
    before = state(model)
    train(model, name, steps=1)
    changed = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert changed == expected_to_learn(name, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["resnet_basic", "resnet_bottleneck", "mobilenet_v2"])
def test_statistics_follow_the_batches_only_where_they_are_to_and_the_layer_learns(name: str, strategy: str) -> None:
    model, _ = prepared(name, STRATEGIES[strategy])
    before = state(model)
    train(model, name, steps=3)
    follow = strategy == "scratch" or strategy.endswith("updated")
    learns = expected_to_learn(name, strategy) if follow else set()
    statistics = [key for key in before if key.endswith(STATISTICS)]
    assert len(statistics) >= 15
    for key in statistics:
        norm = key.rpartition(".")[0]
        drifted = not torch.equal(model.state_dict()[key], before[key])
        assert drifted is (f"{norm}.weight" in learns), key


def test_a_model_that_keeps_its_statistics_trains_with_the_outputs_that_it_is_evaluated_with() -> None:
    """Otherwise a head that was solved on the pretrained features starts on features that it has never seen."""
    model, groups = prepared("resnet_basic", LinearProbeThenFineTuning())
    stage = LinearProbeThenFineTuning().stages(groups, 1)[1]
    images = pixels("resnet_basic", rows=4)
    with torch.no_grad():
        evaluated = model.eval()(**images).logits
        set_trainable(model, groups, stage.trainable, updates_statistics=stage.updates_statistics)
        trained = model.train()(**images).logits
        set_trainable(model, groups, stage.trainable, updates_statistics=stage.trainable)
        updated = model.train()(**images).logits
    assert torch.equal(trained, evaluated)
    assert not torch.allclose(updated, evaluated, atol=1e-3)


def test_dropout_is_off_in_frozen_groups_and_on_in_learning_ones() -> None:
    model, groups = prepared(
        "vit", PartialFineTuning(layers=1), hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5
    )
    outputs: dict[str, list[torch.Tensor]] = {group.name: [] for group in groups if group.name.startswith("vit.")}
    for name, kept in outputs.items():

        def keep(_m: nn.Module, _a: Any, output: Any, kept: list[torch.Tensor] = kept) -> None:
            kept.append((output[0] if isinstance(output, tuple) else output).detach())

        model.get_submodule(name).register_forward_hook(keep)
    model.train()
    for _ in range(2):
        model(**pixels("vit"))
    same = {name: torch.equal(*kept) for name, kept in outputs.items()}
    assert same == {"vit.layers.0": True, "vit.layers.1": True, "vit.layers.2": False}
    modes = {
        name: {module.training for module in model.get_submodule(name).modules()}
        for name in ("vit.embeddings", "vit.layers.1", "vit.layers.2", "classifier")
    }
    assert modes == {"vit.embeddings": {False}, "vit.layers.1": {False}, "vit.layers.2": {True}, "classifier": {True}}


def test_freezing_survives_deep_copies_and_every_further_call_of_train() -> None:
    model, _ = prepared("resnet_basic", LinearProbe())
    twin = copy.deepcopy(copy.deepcopy(model))
    before = state(twin)
    for _ in range(3):
        twin.train()
    train(twin, "resnet_basic", steps=2)
    changed = {key for key, value in twin.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    embedder = twin.get_submodule("resnet.embedder")
    assert not any(module.training for module in embedder.modules())
    assert not any(module.training for module in embedder.train().modules())


def test_unfreezing_restores_the_class_and_the_behaviour() -> None:
    model, groups = tiny_model("resnet_basic"), trace_groups(tiny_model("resnet_basic"), pixels("resnet_basic"))
    classes = [type(module) for module in model.modules()]
    twin = copy.deepcopy(model)
    everything = FullFineTuning().stages(groups, 1)[0].trainable
    for names in (LinearProbe().stages(groups, 1)[0].trainable, frozenset[str](), everything):
        set_trainable(model, groups, names)
        set_trainable(model, groups, names)
    unfreeze(model, groups)
    assert [type(module) for module in model.modules()] == classes
    train(model, "resnet_basic", steps=2)
    train(twin, "resnet_basic", steps=2)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.train().modules())


@pytest.mark.parametrize(("strategy", "mode"), [(FullFineTuning(), True), (LinearProbe(), False)])
def test_a_group_without_parameters_has_the_mode_of_the_group_before_it(strategy: Strategy, mode: bool) -> None:
    """Such as dropout between the last block and the head."""
    model = tiny_model("resnet_basic")
    model.set_submodule("classifier.0", nn.Sequential(nn.Flatten(), nn.Dropout(0.5)))
    groups = trace_groups(model, pixels("resnet_basic"))
    assert groups[-2].parameters == ()
    set_trainable(model, groups, strategy.stages(groups, 1)[0].trainable)
    model.train()
    assert {module.training for module in model.get_submodule("classifier.0").modules()} == {mode}


def test_a_frozen_module_is_still_an_instance_of_its_class() -> None:
    """Parents may check its class or the name of the class."""
    model, _ = prepared("resnet_basic", LinearProbe())
    plain = tiny_model("resnet_basic")
    for frozen, module in zip(model.modules(), plain.modules(), strict=True):
        assert isinstance(frozen, type(module))
        assert type(frozen).__name__ == type(module).__name__
        assert type(frozen).__module__ == type(module).__module__


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_with_frozen_groups_is_saved_as_a_plain_one(name: str, tmp_path: Path) -> None:
    model, _ = prepared(name, PartialFineTuning(layers=1))
    train(model, name, steps=1)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(tiny_model(name))
    model.eval()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    # Not bit for bit: a convolution may round differently if its weights are at another address.
    with torch.no_grad():
        torch.testing.assert_close(loaded(**pixels(name)).logits, model(**pixels(name)).logits, rtol=1e-4, atol=1e-4)


def test_a_group_with_one_learning_parameter_is_not_frozen() -> None:
    model = tiny_model("vit", hidden_dropout_prob=0.5)
    groups = trace_groups(model, pixels("vit"))
    set_trainable(model, groups, {"vit.layers.0.mlp.fc1.bias"})
    model.train()
    assert all(module.training for module in model.get_submodule("vit.layers.0").modules())
    assert not any(module.training for module in model.get_submodule("vit.layers.1").modules())
    assert [key for key, value in model.named_parameters() if value.requires_grad] == ["vit.layers.0.mlp.fc1.bias"]


def test_unknown_names_are_refused_before_anything_is_changed() -> None:
    model = tiny_model("vit")
    groups = trace_groups(model, pixels("vit"))
    with pytest.raises(
        ValueError, match=r"No parameters \['classifier.wait'\]; there are, for example, \['classifier.b"
    ):
        set_trainable(model, groups, {"classifier.weight", "classifier.wait"})
    assert all(parameter.requires_grad for parameter in model.parameters())
