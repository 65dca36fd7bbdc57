"""Rates, decay and schedules against their formulas; moments against one optimizer for the whole training."""

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.training.rates import (
    Schedule,
    learning_rate_schedule,
    moments_of,
    parameter_groups,
    set_moments,
)
from tests.tiny_models import ARCHITECTURES, pixels, tiny_model

SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear", "constant_with_warmup")


def prepared(name: str) -> tuple[nn.Module, list[Group]]:
    """A model in which every parameter that gets a gradient is trainable."""
    model = tiny_model(name)
    groups = trace_groups(model, pixels(name))
    names = {name for group in groups for name in group.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model, groups


def by_name(model: nn.Module, made: list[dict[str, Any]], key: str) -> dict[str, Any]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [(names[id(parameter)], group[key]) for group in made for parameter in group["params"]]
    assert len(dict(listed)) == len(listed), "a parameter is in two groups"
    return dict(listed)


def trainable_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_one_rate_matrices_decay_and_vectors_do_not(name: str) -> None:
    """In two groups and in model order: another order would change results."""
    model, groups = prepared(name)
    made = parameter_groups(model, groups, learning_rate=0.3, weight_decay=0.07)
    sizes = {name: parameter.ndim for name, parameter in model.named_parameters() if parameter.requires_grad}
    made.sort(key=lambda group: -group["weight_decay"])
    assert [list(by_name(model, [group], "lr")) for group in made] == [
        [name for name, dimensions in sizes.items() if dimensions > 1],
        [name for name, dimensions in sizes.items() if dimensions == 1],
    ]
    assert [(group["lr"], group["weight_decay"]) for group in made] == [(0.3, 0.07), (0.3, 0.0)]


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_rates_fall_by_the_factor_from_group_to_group(name: str) -> None:
    """Compared by the module names of the architecture, not by our groups."""
    model, groups = prepared(name)
    parts = ARCHITECTURES[name]
    slices = [parts.embeddings, *((block,) for block in parts.blocks), parts.final, (parts.head,)]
    made = parameter_groups(model, groups, learning_rate=0.4, weight_decay=0.1, layer_lr_decay=0.5)
    rates = by_name(model, made, "lr")
    for distance, modules in enumerate(reversed(slices)):
        inside = [parameter for parameter in rates if parameter.startswith(tuple(f"{module}." for module in modules))]
        assert inside
        for parameter in inside:
            assert rates.pop(parameter) == pytest.approx(0.4 * 0.5**distance), parameter
    assert rates == {}


def test_a_group_without_parameters_does_not_count_in_the_decay() -> None:
    """A residual network has a pooling layer between its last stage and its head."""
    model, groups = prepared("resnet_basic")
    assert [group.name for group in groups if not group.parameters] == ["final"]
    made = parameter_groups(model, groups, learning_rate=1.0, weight_decay=0.1, layer_lr_decay=0.5)
    rates = by_name(model, made, "lr")
    by_group = {group.name: {rates[name] for name in group.parameters} for group in groups if group.parameters}
    stages = [f"resnet.encoder.stages.{number}" for number in range(3)]
    assert by_group == {
        "embeddings": {1 / 16}, stages[0]: {1 / 8}, stages[1]: {1 / 4}, stages[2]: {1 / 2}, "head": {1.0},
    }  # fmt: skip


def test_each_rate_has_one_group_with_decay_and_one_without() -> None:
    """The final norm has nothing that decays."""
    model, groups = prepared("vit")
    made = parameter_groups(model, groups, learning_rate=1.0, weight_decay=0.1, layer_lr_decay=0.5)
    rates_and_decays = sorted((group["lr"], group["weight_decay"]) for group in made)
    assert rates_and_decays == sorted(
        (0.5**distance, decay) for distance in range(6) for decay in (0.0, 0.1) if (distance, decay) != (1, 0.1)
    )
    assert sorted(by_name(model, made, "lr")) == sorted(trainable_names(model))


def test_the_head_may_have_another_rate() -> None:
    model, groups = prepared("vit")
    made = parameter_groups(model, groups, learning_rate=0.1, weight_decay=0.1, head_learning_rate=0.7)
    assert len(made) == 4
    for name, rate in by_name(model, made, "lr").items():
        assert rate == (0.7 if name.startswith("classifier.") else 0.1), name


def test_the_rate_of_the_head_does_not_change_the_rates_below_it() -> None:
    model, groups = prepared("vit")
    rates = [
        by_name(
            model,
            parameter_groups(
                model, groups, learning_rate=0.1, weight_decay=0.0, layer_lr_decay=0.5, head_learning_rate=rate
            ),
            "lr",
        )
        for rate in (None, 0.7)
    ]
    differing = {name for name in rates[0] if rates[0][name] != rates[1][name]}
    assert differing == {"classifier.weight", "classifier.bias"}


def test_with_l2_sp_only_the_head_decays() -> None:
    model, groups = prepared("vit")
    made = parameter_groups(model, groups, learning_rate=0.1, weight_decay=0.1, decayed_elsewhere=True)
    decay = by_name(model, made, "weight_decay")
    assert {name for name, amount in decay.items() if amount} == {"classifier.weight"}
    assert sorted(decay) == sorted(trainable_names(model))


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_frozen_parameters_are_left_out_and_do_not_change_other_rates(factor: float) -> None:
    model, groups = prepared("vit")
    settings: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.1, "layer_lr_decay": factor}
    whole = by_name(model, parameter_groups(model, groups, **settings), "lr")
    trainable = {name for group in groups[-3:] for name in group.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    top = by_name(model, parameter_groups(model, groups, **settings), "lr")
    assert top == {name: whole[name] for name in trainable}


def test_a_trainable_parameter_outside_all_groups_is_a_bug() -> None:
    model, groups = prepared("dinov2")
    model.get_parameter("dinov2.embeddings.mask_token").requires_grad_()
    with pytest.raises(AssertionError, match=r"dinov2\.embeddings\.mask_token"):
        parameter_groups(model, groups, learning_rate=0.1, weight_decay=0.1)


def expected_rate(kind: str, step: int, *, peak: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * step / warmup
    if kind == "constant_with_warmup":
        return peak
    progress = (step - warmup) / (total - warmup)
    return peak * (0.5 * (1 + math.cos(math.pi * progress)) if kind == "cosine" else 1 - progress)


def two_rates() -> torch.optim.AdamW:
    return torch.optim.AdamW([{"params": [torch.zeros(2)], "lr": rate} for rate in (0.2, 0.01)])


def run(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> list[list[float]]:
    """The rates that the steps of the optimizer use, in the order of the loop."""
    used = []
    for _ in range(steps):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return used


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("warmup_steps", "warmup"), [(0.25, 3), (5, 5), (0, 0), (0.3, 4)])
def test_each_schedule_follows_its_formula(kind: Schedule, warmup_steps: float, warmup: int) -> None:
    optimizer = two_rates()
    used = run(optimizer, learning_rate_schedule(optimizer, kind, warmup_steps, 12), 12)
    for step, rates in enumerate(used):
        assert rates == pytest.approx(
            [expected_rate(kind, step, peak=peak, warmup=warmup, total=12) for peak in (0.2, 0.01)]
        )


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("done", [1, 3, 7, 11, 12])
def test_a_schedule_that_starts_in_the_middle_equals_one_that_never_stopped(kind: Schedule, done: int) -> None:
    """With a new optimizer, as in a later stage or a resumed run, and without a warning."""
    whole = two_rates()
    used = run(whole, learning_rate_schedule(whole, kind, 0.25, 12), 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        later = two_rates()
        schedule = learning_rate_schedule(later, kind, 0.25, 12, steps_done=done)
        assert run(later, schedule, 12 - done) == used[done:]
        assert schedule.get_last_lr() == [group["lr"] for group in whole.param_groups]


def test_a_schedule_uses_the_peaks_of_a_loaded_optimizer() -> None:
    """The optimizer of a checkpoint has the present rates in `lr`, and the peaks in `initial_lr`."""
    whole = two_rates()
    used = run(whole, learning_rate_schedule(whole, "cosine", 2, 12), 5)
    saved = copy.deepcopy(whole.state_dict())
    resumed = two_rates()
    resumed.load_state_dict(saved)
    used += run(resumed, learning_rate_schedule(resumed, "cosine", 2, 12, steps_done=5), 7)
    expected = [[expected_rate("cosine", s, peak=p, warmup=2, total=12) for p in (0.2, 0.01)] for s in range(12)]
    assert used == [pytest.approx(rates) for rates in expected]


def layers() -> tuple[nn.Linear, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 3), nn.Linear(3, 3)


def learn(optimizer: torch.optim.Optimizer, bottom: nn.Linear, top: nn.Linear, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        top(bottom(inputs)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_of_the_next_stage_continues_with_the_moments(fused: bool) -> None:
    """Like one optimizer with all parameters from the start, of which the lower ones had no gradient at first."""
    bottom, top = layers()
    bottom.requires_grad_(False)
    first = torch.optim.AdamW(top.parameters(), lr=0.1, fused=fused)
    learn(first, bottom, top, range(4))
    bottom.requires_grad_()
    second = torch.optim.AdamW([*bottom.parameters(), *top.parameters()], lr=0.1, fused=fused)
    both = nn.Sequential(bottom, top)
    set_moments(second, both, moments_of(first, both))
    assert set(second.state) == set(top.parameters())
    learn(second, bottom, top, range(4, 8))

    lower, upper = layers()
    lower.requires_grad_(False)
    single = torch.optim.AdamW([*lower.parameters(), *upper.parameters()], lr=0.1, fused=fused)
    learn(single, lower, upper, range(4))
    lower.requires_grad_()
    learn(single, lower, upper, range(4, 8))
    assert torch.equal(top.weight, upper.weight)
    assert torch.equal(bottom.weight, lower.weight)


def test_moments_of_parameters_that_no_longer_learn_are_dropped() -> None:
    bottom, top = layers()
    first = torch.optim.AdamW([*bottom.parameters(), *top.parameters()])
    learn(first, bottom, top, range(2))
    second = torch.optim.AdamW(bottom.parameters())
    both = nn.Sequential(bottom, top)
    set_moments(second, both, moments_of(first, both))
    assert set(second.state) == set(bottom.parameters())
