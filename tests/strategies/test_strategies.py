"""A strategy is a pure answer to what learns, and when."""

from typing import Any

import pytest

from hf_transfer.config import UserError, VisionConfig
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.strategies.freezing import (
    FromScratch,
    FullFineTuning,
    LinearProbe,
    PartialFineTuning,
    Stage,
    Strategy,
    frozen_prefix,
)
from tests.tiny_models import pixels, state, tiny_model

GROUPS = [Group(name, (name,), (f"{name}.weight",)) for name in ("embeddings", "b.0", "b.1", "b.2", "final", "head")]
WITHOUT_BLOCKS = [Group(name, (name,), (f"{name}.weight",)) for name in ("backbone", "head")]
STRATEGIES: list[Strategy] = [LinearProbe(), PartialFineTuning(layers=2), FullFineTuning(), FromScratch()]


def settings(**more: Any) -> VisionConfig:
    return VisionConfig(model_name_or_path="m", dataset_name="d", output_dir="o", **more)


def learning(groups: list[Group], stages: list[Stage]) -> list[str]:
    """Names of the groups in which something learns; a group learns whole or not at all."""
    (stage,) = stages
    for group in groups:
        assert stage.trainable.issuperset(group.parameters) or stage.trainable.isdisjoint(group.parameters)
    return [group.name for group in groups if stage.trainable.intersection(group.parameters)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_question_gets_the_same_answer(strategy: Strategy) -> None:
    groups = list(GROUPS)
    first = strategy.stages(groups, 7)
    assert strategy.stages(groups, 7) == first
    assert groups == GROUPS
    assert [stage.epochs for stage in first] == [7]


@pytest.mark.parametrize("name", ["vit", "resnet_basic"])
def test_a_strategy_leaves_the_model_alone(name: str) -> None:
    model = tiny_model(name)
    groups = trace_groups(model, pixels(name))
    before = state(model)
    for strategy in STRATEGIES:
        strategy.stages(groups, 1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all((before[key] == value).all() for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "strategy", "expected"),
    [
        ("vit", LinearProbe(), ["head"]),
        ("vit", PartialFineTuning(1), ["vit.layers.2", "final", "head"]),
        ("vit", PartialFineTuning(2), ["vit.layers.1", "vit.layers.2", "final", "head"]),
        ("vit", PartialFineTuning(3), ["vit.layers.0", "vit.layers.1", "vit.layers.2", "final", "head"]),
        ("resnet_basic", LinearProbe(), ["head"]),
        ("resnet_basic", PartialFineTuning(1), ["resnet.encoder.stages.2", "head"]),
        ("resnet_basic", PartialFineTuning(2), ["resnet.encoder.stages.1", "resnet.encoder.stages.2", "head"]),
    ],
)
def test_the_top_learns_and_the_bottom_does_not(name: str, strategy: Strategy, expected: list[str]) -> None:
    """Mutation: hf_transfer/strategies/freezing.py: "blocks[-self.layers]" -> "blocks[self.layers - 1]" """
    groups = trace_groups(tiny_model(name), pixels(name))
    assert learning(groups, strategy.stages(groups, 1)) == expected


@pytest.mark.parametrize("name", ["vit", "resnet_basic"])
@pytest.mark.parametrize("strategy", [FullFineTuning(), FromScratch()])
def test_full_and_scratch_let_every_parameter_learn(name: str, strategy: Strategy) -> None:
    model = tiny_model(name)
    stages = strategy.stages(trace_groups(model, pixels(name)), 1)
    assert stages[0].trainable == {key for key, _ in model.named_parameters()}


def test_only_scratch_starts_from_fresh_weights() -> None:
    """Mutation: hf_transfer/strategies/freezing.py: "fresh_weights: bool = True" -> "fresh_weights: bool = 0" """
    assert [strategy.fresh_weights for strategy in STRATEGIES] == [False, False, False, True]


def test_gentler_strategies_have_higher_rates() -> None:
    """The head alone can take large steps; pretrained layers must not be torn up; fresh ones learn faster."""
    assert [strategy.learning_rate for strategy in STRATEGIES] == [3e-3, 3e-4, 1e-4, 1e-3]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"strategy": "linear_probe"}, LinearProbe()),
        ({"strategy": "partial", "trainable_layers": 3}, PartialFineTuning(layers=3)),
        ({"strategy": "full"}, FullFineTuning()),
        ({"strategy": "scratch"}, FromScratch()),
    ],
)
def test_settings_name_the_strategy(chosen: dict[str, Any], expected: Strategy) -> None:
    """Mutation: hf_transfer/strategies/choice.py: "layers=config.trainable_layers" -> "layers=1" """
    found = choose_strategy(settings(**chosen))
    assert (type(found), found) == (type(expected), expected)


def test_more_layers_than_blocks_are_refused() -> None:
    """Mutation: hf_transfer/strategies/freezing.py: "self.layers > len(blocks)" -> "self.layers > 9" """
    with pytest.raises(UserError) as caught:
        PartialFineTuning(layers=4).stages(GROUPS, 1)
    assert str(caught.value).splitlines() == [
        "Expected: --trainable_layers from 1 to 3, the blocks of this model",
        "Found:    4",
        "Do this:  lower it, or use --strategy full",
    ]


def test_partial_fine_tuning_needs_blocks() -> None:
    with pytest.raises(UserError) as caught:
        PartialFineTuning(layers=1).stages(WITHOUT_BLOCKS, 1)
    assert str(caught.value).splitlines() == [
        "Expected: a model with repeated blocks",
        "Found:    none",
        "Do this:  use --strategy linear_probe or full",
    ]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [(LinearProbe(), 5), (PartialFineTuning(1), 3), (PartialFineTuning(3), 1), (FullFineTuning(), 0)],
)
def test_the_frozen_prefix_ends_where_learning_begins(strategy: Strategy, expected: int) -> None:
    assert frozen_prefix(GROUPS, strategy.stages(GROUPS, 1)) == expected


def test_the_frozen_prefix_is_what_learns_in_no_stage() -> None:
    """Mutation: hf_transfer/strategies/freezing.py: "for stage in stages))" -> "for stage in stages[:1]))" """
    late = [Stage(frozenset({"head.weight"}), 1), Stage(frozenset({"b.1.weight"}), 1)]
    assert frozen_prefix(GROUPS, late) == 2
    assert frozen_prefix(GROUPS, []) == len(GROUPS)
