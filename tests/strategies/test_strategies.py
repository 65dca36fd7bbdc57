"""Which parameters learn in which stage, for each strategy."""

import itertools

import pytest

from hf_transfer.errors import UserError
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
    frozen_towers,
)
from tests.tiny_models import pixels, state, tiny_model
from tests.tiny_text_models import tiny_text_model, token_ids

GROUPS = [Group(name, (name,), (f"{name}.weight",)) for name in ("embeddings", "b.0", "b.1", "b.2", "final", "head")]
WITHOUT_BLOCKS = [Group(name, (name,), (f"{name}.weight",)) for name in ("backbone", "head")]
STRATEGIES: list[Strategy] = [LinearProbe(), PartialFineTuning(layers=2), FullFineTuning(), FromScratch()]


def learning(groups: list[Group], stages: list[Stage]) -> list[str]:
    """Names of the groups that learn; each learns completely or not at all."""
    (stage,) = stages
    for group in groups:
        assert stage.trainable.issuperset(group.parameters) or stage.trainable.isdisjoint(group.parameters)
    return [group.name for group in groups if stage.trainable.intersection(group.parameters)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_arguments_give_equal_stages(strategy: Strategy) -> None:
    groups = list(GROUPS)
    first = strategy.stages(groups, 7)
    assert strategy.stages(groups, 7) == first
    assert groups == GROUPS
    assert [stage.epochs for stage in first] == [7]


@pytest.mark.parametrize("name", ["vit", "resnet_basic"])
def test_making_stages_does_not_change_the_model(name: str) -> None:
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
def test_only_the_top_groups_learn(name: str, strategy: Strategy, expected: list[str]) -> None:
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


def test_each_strategy_has_its_own_default_rate() -> None:
    """The head can take large steps; pretrained layers need a low rate; layers with fresh weights a higher one."""
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
def test_the_frozen_prefix_ends_before_the_first_group_that_learns(strategy: Strategy, expected: int) -> None:
    assert len(frozen_towers(GROUPS, strategy.stages(GROUPS, 1))[""]) == expected


def test_the_frozen_prefix_has_only_groups_that_learn_in_no_stage() -> None:
    late = [Stage(frozenset({"head.weight"}), 1), Stage(frozenset({"b.1.weight"}), 1)]
    assert len(frozen_towers(GROUPS, late)[""]) == 2
    assert len(frozen_towers(GROUPS, [])[""]) == len(GROUPS)


def chain(blocks: int, *, final: bool = True, embeddings: bool = True) -> list[Group]:
    """Groups of a model with so many blocks, each with one parameter, whose name is a letter or number."""
    names = ["embeddings"] * embeddings + [str(number) for number in range(blocks)] + ["final"] * final + ["head"]
    return [Group(name, (name,), (name if name.isdigit() else name[0],)) for name in names]


def gradual_stages(groups: list[Group], epochs: int) -> list[tuple[str, int]]:
    """For each stage, the parameters that learn, from the input to the head, and the number of epochs."""
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
def test_gradual_unfreezing_starts_at_the_top(
    groups: list[Group], epochs: int, expected: list[tuple[str, int]]
) -> None:
    """One group in each epoch, several if there are few epochs; the last stage has the remaining epochs."""
    assert gradual_stages(groups, epochs) == expected


@pytest.mark.parametrize("blocks", [1, 2, 12, 24])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 26, 40])
def test_gradual_unfreezing_has_the_given_epochs_and_ends_with_the_whole_model(blocks: int, epochs: int) -> None:
    groups = chain(blocks)
    stages = GradualUnfreezing().stages(groups, epochs)
    assert sum(stage.epochs for stage in stages) == epochs
    assert all(first.trainable < second.trainable for first, second in itertools.pairwise(stages))
    assert stages[-1].trainable == {name for group in groups for name in group.parameters}
    assert len(stages) == min(epochs, blocks + 2)


@pytest.mark.parametrize(("epochs", "epochs_of_the_head"), [(1, 1), (4, 1), (5, 2), (20, 5)])
def test_lp_ft_solves_the_head_and_then_trains_the_whole_model(epochs: int, epochs_of_the_head: int) -> None:
    """If the head cannot be solved, it is trained for a quarter more epochs."""
    head, everything = LinearProbeThenFineTuning().stages(GROUPS, epochs)
    assert head == Stage(frozenset({"head.weight"}), epochs_of_the_head, solved=True)
    assert everything == Stage(frozenset(f"{group.name}.weight" for group in GROUPS), epochs)


@pytest.mark.parametrize("name", ["vit", "resnet_basic", "bert"])
def test_bitfit_names_every_bias_and_the_head(name: str) -> None:
    """By an attribute of the layers, not by the names of their parameters."""
    text = name == "bert"
    model = tiny_text_model(name) if text else tiny_model(name)
    groups = trace_groups(model, token_ids() if text else pixels(name))
    (stage,) = BiasTuning().stages(groups, 7)
    of_layers = {id(m.bias) for m in model.modules() if getattr(m, "bias", None) is not None}
    biases = {key for key, value in model.named_parameters() if id(value) in of_layers}
    assert len(biases) > 9
    assert stage == Stage(frozenset(biases | set(groups[-1].parameters)), 7)


def test_default_rates_of_the_strategies_of_many_stages_and_of_biases() -> None:
    strategies = (GradualUnfreezing(), LinearProbeThenFineTuning(), BiasTuning())
    assert [strategy.learning_rate for strategy in strategies] == [3e-4, 1e-4, 1e-3]


def test_a_backbone_without_biases_is_refused_for_bitfit() -> None:
    """Only the head would learn, in steps."""
    groups = [Group("b.0", ("b",), ("b.weight",)), Group("head", ("head",), ("head.weight", "head.bias"))]
    with pytest.raises(UserError, match="for --strategy bitfit a backbone with biases"):
        BiasTuning().stages(groups, 1)
    with_bias = Group("b.0", ("b",), ("b.weight", "b.q_bias"))
    assert BiasTuning().stages([with_bias, groups[1]], 1)[0].trainable == {"b.q_bias", "head.weight", "head.bias"}
