"""A strategy for each of two towers: which parameters change, when, at which rates, and what is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_transfer.errors import UserError
from hf_transfer.evaluation.saved_model import save_model
from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.groups import Group
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.strategies.freezing import Stage, frozen_towers, set_trainable
from hf_transfer.training.rates import parameter_groups
from tests.tiny_models import state
from tests.tiny_pairs import PAIRS, tiny_pair
from tests.training.toy_pairs import pair_settings, prepared_pair

ADAPTERS = {"lora": "lora_", "dora": "lora_", "ia3": "ia3_", "lokr": "lokr_", "adapter": "hada_"}
STRATEGIES = ["linear_probe", "partial", "gradual", "lp_ft", "full", "scratch", "bitfit", *ADAPTERS]
TOWERS = ("image_tower.", "text_tower.")
# The last block of each tower and the layers after it, by their names in the source code.
TOP = {
    "vit": ("image_tower.layers.2.", "image_tower.layernorm.", "text_tower.encoder.layer.2."),
    "resnet_basic": ("image_tower.encoder.stages.2.", "text_tower.encoder.layer.2."),
    "clip": (
        "image_tower.encoder.layers.1.", "image_tower.post_layernorm.", "text_tower.encoder.layers.1.",
        "text_tower.final_layer_norm.",
    ),
}  # fmt: skip


def loss(model: FusionModel, inputs: dict[str, Tensor]) -> Tensor:
    output = model(**{**inputs, "image_present": torch.tensor([True, False]), "labels": torch.tensor([0, 1])})
    total: Tensor = output.loss + output.image_logits.square().sum() + output.text_logits.square().sum()
    return total


def changed(model: FusionModel, groups: list[Group], stage: Stage, inputs: dict[str, Tensor]) -> set[str]:
    """Names of all weights and statistics that two steps of a stage have changed."""
    before = state(model)
    set_trainable(model, groups, stage.trainable)
    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model, inputs).backward()
        optimizer.step()
    return {name for name, value in state(model).items() if not torch.equal(value, before[name])}


def expected(name: str, strategy: str, names: set[str]) -> set[str]:
    """Names of the parameters that learn in the last stage."""
    head = {key for key in names if not key.startswith(TOWERS)}
    if strategy in ADAPTERS:
        return head | {key for key in names if ADAPTERS[strategy] in key}
    if strategy == "bitfit":
        return head | {key for key in names if key.endswith(".bias")}
    if strategy == "partial":
        return head | {key for key in names if key.startswith(TOP[name])}
    return head if strategy == "linear_probe" else names


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", PAIRS)
def test_only_the_named_parameters_change_and_the_saved_model_has_the_same_outputs(
    name: str, strategy: str, tmp_path: Path
) -> None:
    """Weights and running statistics, in the last stage; then saved, with adapters merged, and loaded again."""
    config = pair_settings(strategy=strategy, modality_dropout=0.0)
    model, groups, inputs = prepared_pair(config, name)
    names = {key for group in groups for key in group.parameters}
    stage = choose_strategy(config.strategy).stages(groups, config.training.num_train_epochs)[-1]
    learns = expected(name, strategy, names)
    assert set(stage.trainable) == learns
    changes = changed(model, groups, stage, inputs)
    parameters = {key for key, _ in model.named_parameters()}
    assert changes & parameters == learns
    # Running statistics change with their block.
    for key in changes - parameters:
        assert any(other.startswith(key.rpartition(".")[0]) for other in learns), key
    model.train(False)
    with torch.no_grad():
        live = model(**inputs)
    save_model(model, tmp_path, merge=True)
    again = FusionModel.from_pretrained(tmp_path)
    assert state(again).keys() == state(tiny_pair(name)).keys()
    with torch.no_grad():
        loaded = again.train(False)(**inputs)
    for part in ("logits", "image_logits", "text_logits"):
        assert torch.allclose(loaded[part], live[part], atol=1e-4), part
        assert strategy in ADAPTERS or torch.equal(loaded[part], live[part]), part


@pytest.mark.parametrize(
    ("image", "text", "updating"),
    [
        ("full", "full", set()), ("scratch", "linear_probe", {"image_tower"}), ("full", "scratch", {"text_tower"}),
        ("lora", "partial", set()),
    ],
)  # fmt: skip
def test_statistics_of_batches_are_kept_in_each_tower_that_does_not_start_from_fresh_weights(
    image: str, text: str, updating: set[str]
) -> None:
    """Whatever the other tower does."""
    config = pair_settings(image_strategy=image, text_strategy=text)
    _, groups, _ = prepared_pair(config)
    stage = choose_strategy(config.strategy).stages(groups, 2)[-1]
    assert {name.partition(".")[0] for name in stage.updates_statistics} & {"image_tower", "text_tower"} == updating
    assert stage.updates_statistics <= stage.trainable


def test_each_tower_has_its_own_strategy_and_the_longer_one_determines_the_end() -> None:
    """A new stage begins whenever one begins in either tower."""
    config = pair_settings(image_strategy="gradual", text_strategy="lp_ft", num_train_epochs=4)
    _, groups, _ = prepared_pair(config)
    stages = choose_strategy(config.strategy).stages(groups, 4)
    assert [stage.epochs for stage in stages] == [1, 1, 1, 2]
    assert not any(stage.solved for stage in stages)
    learns = [
        [sum(key.startswith(tower) for key in stage.trainable) > 0 for tower in ("text_tower.", "image_tower.layers.0")]
        for stage in stages
    ]
    assert learns == [[False, False], [True, False], [True, True], [True, True]]
    assert all("classifier.weight" in stage.trainable for stage in stages)
    frozen = frozen_towers(groups, stages[:1])
    assert [group.name for group in frozen["text"]] == ["embeddings", *(f"text_tower.encoder.layer.{n}" for n in "012")]
    assert [group.name for group in frozen["image"]] == ["embeddings", "image_tower.layers.0", "image_tower.layers.1"]


def test_each_tower_can_have_another_kind_of_adapters() -> None:
    config = pair_settings(image_strategy="lora", text_strategy="ia3")
    model, groups, _ = prepared_pair(config)
    learns = choose_strategy(config.strategy).stages(groups, 2)[0].trainable
    kinds = {kind: {key.split(".")[0] for key in learns if kind in key} for kind in ("lora_", "ia3_")}
    assert kinds == {"lora_": {"image_tower"}, "ia3_": {"text_tower"}}
    assert {key for key in learns if not key.startswith(TOWERS)} == set(groups[-1].parameters)
    again, _, _ = prepared_pair(config)
    assert all(torch.equal(value, state(again)[key]) for key, value in state(model).items())


def test_one_tower_can_start_from_fresh_weights_and_the_other_from_pretrained_ones() -> None:
    before = state(tiny_pair())
    config = pair_settings(image_strategy="linear_probe", text_strategy="scratch")
    model, _, _ = prepared_pair(config)
    after = state(model)
    unchanged = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert {key for key in after if key.startswith("image_tower.")} <= unchanged
    matrices = {key for key in after if key.startswith("text_tower.") and after[key].ndim > 1}
    assert matrices
    assert not matrices & unchanged
    again, _, _ = prepared_pair(config)
    assert all(torch.equal(value, state(again)[key]) for key, value in after.items())


def rates(config: Any, **more: Any) -> dict[str, float]:
    model, groups, _ = prepared_pair(config)
    strategy = choose_strategy(config.strategy)
    set_trainable(model, groups, strategy.stages(groups, 2)[-1].trainable)
    optimizer_groups = parameter_groups(model, groups, learning_rate=1e-3, weight_decay=0.1, **more)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group["lr"] for group in optimizer_groups for parameter in group["params"]}


def test_rates_decay_within_each_tower_and_the_head_has_its_own() -> None:
    by_name = rates(pair_settings(strategy="full"), layer_lr_decay=0.5, head_learning_rate=0.02)
    assert by_name["text_tower.encoder.layer.2.output.dense.weight"] == pytest.approx(5e-4)
    assert by_name["text_tower.embeddings.word_embeddings.weight"] == pytest.approx(1e-3 / 2**4)
    # There is a norm between the blocks and the head.
    assert by_name["image_tower.layers.2.mlp.fc1.weight"] == pytest.approx(2.5e-4)
    for key in ("classifier.weight", "image_projection.weight", "missing.weight", "inner.0.bias"):
        assert by_name[key] == 0.02
    assert set(rates(pair_settings(strategy="full")).values()) == {1e-3}


def test_by_default_the_head_has_a_higher_rate_than_the_towers() -> None:
    strategy = choose_strategy(pair_settings(image_strategy="full", text_strategy="lora").strategy)
    assert (strategy.learning_rate, strategy.head_learning_rate) == (1e-4, 1e-3)


def test_more_layers_than_one_tower_has_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="--trainable_layers from 1 to 2, the blocks of this model"):
        prepared_pair(pair_settings(text_strategy="partial", trainable_layers=3), "clip")
