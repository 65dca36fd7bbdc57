"""A strategy is a pure answer to what learns, and when."""

import itertools

import pytest

from hf_transfer.config import UserError
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.freezing import (
    BiasTuning,
    FromScratch,
    FullFineTuning,
    GradualUnfreezing,
    LinearProbe,
    LinearProbeThenFineTuning,
    PartialFineTuning,
    Stage,
    Strategy,
    frozen_prefix,
)
from tests.tiny_models import pixels, state, tiny_model
from tests.tiny_text_models import tiny_text_model, token_ids

GROUPS = [Group(name, (name,), (f"{name}.weight",)) for name in ("embeddings", "b.0", "b.1", "b.2", "final", "head")]
WITHOUT_BLOCKS = [Group(name, (name,), (f"{name}.weight",)) for name in ("backbone", "head")]
STRATEGIES: list[Strategy] = [LinearProbe(), PartialFineTuning(layers=2), FullFineTuning(), FromScratch()]


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
    groups = trace_groups(tiny_model(name), pixels(name))
    assert learning(groups, strategy.stages(groups, 1)) == expected


@pytest.mark.parametrize("name", ["vit", "resnet_basic"])
@pytest.mark.parametrize("strategy", [FullFineTuning(), FromScratch()])
def test_full_and_scratch_let_every_parameter_learn(name: str, strategy: Strategy) -> None:
    model = tiny_model(name)
    stages = strategy.stages(trace_groups(model, pixels(name)), 1)
    assert stages[0].trainable == {key for key, _ in model.named_parameters()}


def test_only_scratch_starts_from_fresh_weights() -> None:
    assert [strategy.fresh_weights for strategy in STRATEGIES] == [False, False, False, True]


def test_gentler_strategies_have_higher_rates() -> None:
    """The head alone can take large steps; pretrained layers must not be torn up; fresh ones learn faster."""
    assert [strategy.learning_rate for strategy in STRATEGIES] == [3e-3, 3e-4, 1e-4, 1e-3]


def test_more_layers_than_blocks_are_refused() -> None:
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
    late = [Stage(frozenset({"head.weight"}), 1), Stage(frozenset({"b.1.weight"}), 1)]
    assert frozen_prefix(GROUPS, late) == 2
    assert frozen_prefix(GROUPS, []) == len(GROUPS)


def chain(blocks: int, *, final: bool = True, embeddings: bool = True) -> list[Group]:
    """Groups of a model with so many blocks, each of one parameter, called by its letter or number."""
    names = ["embeddings"] * embeddings + [str(number) for number in range(blocks)] + ["final"] * final + ["head"]
    return [Group(name, (name,), (name if name.isdigit() else name[0],)) for name in names]


def openings(groups: list[Group], epochs: int) -> list[tuple[str, int]]:
    """What learns in each stage, from the input to the head, and for how long."""
    stages = GradualUnfreezing().stages(groups, epochs)
    order = [name for group in groups for name in group.parameters]
    assert not any(stage.solved for stage in stages)
    return [("".join(name for name in order if name in stage.trainable), stage.epochs) for stage in stages]


@pytest.mark.parametrize(
    ("groups", "epochs", "expected"),
    [
        (chain(3), 5, [("fh", 1), ("2fh", 1), ("12fh", 1), ("012fh", 1), ("e012fh", 1)]),
        (chain(3), 9, [("fh", 1), ("2fh", 1), ("12fh", 1), ("012fh", 1), ("e012fh", 5)]),
        (chain(3), 3, [("2fh", 1), ("012fh", 1), ("e012fh", 1)]),
        (chain(3), 2, [("12fh", 1), ("e012fh", 1)]),
        (chain(3), 1, [("e012fh", 1)]),
        (chain(1), 2, [("0fh", 1), ("e0fh", 1)]),
        (chain(1), 20, [("fh", 1), ("0fh", 1), ("e0fh", 18)]),
        (chain(6), 4, [("5fh", 1), ("345fh", 1), ("12345fh", 1), ("e012345fh", 1)]),
        (chain(3, final=False), 4, [("2h", 1), ("12h", 1), ("012h", 1), ("e012h", 1)]),
        (chain(2, final=False, embeddings=False), 4, [("h", 1), ("1h", 1), ("01h", 2)]),
        (WITHOUT_BLOCKS, 3, [("head.weight", 1), ("backbone.weighthead.weight", 2)]),
    ],
)
def test_gradual_unfreezing_opens_from_the_top(
    groups: list[Group], epochs: int, expected: list[tuple[str, int]]
) -> None:
    """One opening in each epoch, several where epochs are few; the last lasts as long as epochs remain."""
    assert openings(groups, epochs) == expected


@pytest.mark.parametrize("blocks", [1, 2, 12, 24])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 26, 40])
def test_gradual_unfreezing_keeps_to_its_epochs_and_ends_with_all(blocks: int, epochs: int) -> None:
    groups = chain(blocks)
    stages = GradualUnfreezing().stages(groups, epochs)
    assert sum(stage.epochs for stage in stages) == epochs
    assert all(first.trainable < second.trainable for first, second in itertools.pairwise(stages))
    assert stages[-1].trainable == {name for group in groups for name in group.parameters}
    assert len(stages) == min(epochs, blocks + 2)


@pytest.mark.parametrize(("epochs", "steps_of_the_head"), [(1, 1), (4, 1), (5, 2), (20, 5)])
def test_the_head_is_solved_and_then_all_is_tuned(epochs: int, steps_of_the_head: int) -> None:
    """A quarter more for the head, where it cannot be solved."""
    head, everything = LinearProbeThenFineTuning().stages(GROUPS, epochs)
    assert head == Stage(frozenset({"head.weight"}), steps_of_the_head, solved=True)
    assert everything == Stage(frozenset(f"{group.name}.weight" for group in GROUPS), epochs)


@pytest.mark.parametrize("name", ["vit", "resnet_basic", "bert"])
def test_bitfit_names_every_bias_and_the_head(name: str) -> None:
    """By the layers' own attribute, not by their parameters' names."""
    text = name == "bert"
    model = tiny_text_model(name) if text else tiny_model(name)
    groups = trace_groups(model, token_ids() if text else pixels(name))
    (stage,) = BiasTuning().stages(groups, 7)
    own = {id(m.bias) for m in model.modules() if getattr(m, "bias", None) is not None}
    biases = {key for key, value in model.named_parameters() if id(value) in own}
    assert len(biases) > 9
    assert stage == Stage(frozenset(biases | set(groups[-1].parameters)), 7)


def test_rates_of_the_strategies_of_many_stages_and_of_biases() -> None:
    found = [strategy.learning_rate for strategy in (GradualUnfreezing(), LinearProbeThenFineTuning(), BiasTuning())]
    assert found == [3e-4, 1e-4, 1e-3]


def test_a_backbone_without_biases_is_refused_for_bitfit() -> None:
    """It would be a linear probe, trained step by step."""
    groups = [Group("b.0", ("b",), ("b.weight",)), Group("head", ("head",), ("head.weight", "head.bias"))]
    with pytest.raises(UserError, match="for --strategy bitfit a backbone with biases"):
        BiasTuning().stages(groups, 1)
    own = Group("b.0", ("b",), ("b.weight", "b.q_bias"))
    assert BiasTuning().stages([own, groups[1]], 1)[0].trainable == {"b.q_bias", "head.weight", "head.bias"}
