"""L2-SP and moving averages against formulas in numpy, statistics against torch's own function."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn

from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.freezing import FullFineTuning, PartialFineTuning, set_trainable
from hf_transfer.training.averaging import (
    ExponentialMovingAverage,
    StartingPoint,
    Weights,
    recompute_batch_norm,
)
from tests.tiny_models import pixels, state, tiny_model


def prepared(name: str, *, layers: int | None = None) -> tuple[nn.Module, list[Group]]:
    """A model in training, of which all or the top `layers` blocks learn."""
    model = tiny_model(name)
    groups = trace_groups(model, pixels(name))
    make_trainable(model, groups, layers)
    return model, groups


def make_trainable(model: nn.Module, groups: list[Group], layers: int | None) -> None:
    strategy = FullFineTuning() if layers is None else PartialFineTuning(layers=layers)
    learns = strategy.stages(groups, 1)[0].trainable
    set_trainable(model, groups, learns, updates_statistics=learns)
    model.train()


def learn(model: nn.Module, name: str, optimizer: torch.optim.Optimizer, step: int) -> None:
    cross_entropy(model(**pixels(name, seed=step, rows=4)).logits, torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    optimizer.zero_grad()


def trainable_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def starting_point(model: nn.Module, groups: list[Group], alpha: float) -> StartingPoint:
    """For a model whose first stage begins."""
    start = StartingPoint(groups, alpha)
    start.extend(model)
    return start


def moving_average(model: nn.Module, decay: float) -> ExponentialMovingAverage:
    """For a model whose first stage begins."""
    average = ExponentialMovingAverage(decay)
    average.extend(model)
    return average


def equal(weights: Weights, expected: Weights) -> bool:
    return weights.keys() == expected.keys() and all(
        torch.equal(weights[name], value) for name, value in expected.items()
    )


# L2-SP


def test_a_pull_moves_by_a_share_of_the_way_back_at_the_rate_of_each_group() -> None:
    """w - rate * alpha * (w - w0), in numpy; the head does not change."""
    model, groups = prepared("vit")
    start = state(model)
    pull = starting_point(model, groups, alpha=0.3)
    head = {"classifier.weight", "classifier.bias"}
    slow = {name for name in start if name.startswith("vit.embeddings")}
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [parameters[name] for name in parameters if name in slow], "lr": 0.1},
            {"params": [parameters[name] for name in parameters if name not in slow], "lr": 0.5},
        ]
    )
    learn(model, "vit", optimizer, 0)
    moved = state(model)
    pull.pull(model, optimizer)
    for name, value in model.state_dict().items():
        w, w0 = moved[name].double().numpy(), start[name].double().numpy()
        strength = 0.0 if name in head else 0.3 * (0.1 if name in slow else 0.5)
        assert value.numpy() == pytest.approx(w - strength * (w - w0), abs=1e-6), name
        if name in head:
            assert torch.equal(value, moved[name])


def test_a_pull_of_one_moves_all_the_way_back() -> None:
    model, groups = prepared("vit")
    start = state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pull = starting_point(model, groups, alpha=2.0)
    learn(model, "vit", optimizer, 0)
    pull.pull(model, optimizer)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_only_trainable_values_are_copied_and_a_later_stage_adds_its_own() -> None:
    model, groups = prepared("vit", layers=1)
    start = state(model)
    pull = starting_point(model, groups, alpha=0.3)
    first = trainable_names(model) - {"classifier.weight", "classifier.bias"}
    assert pull.state_dict().keys() == first
    learn(model, "vit", torch.optim.SGD(model.parameters(), lr=0.5), 0)
    make_trainable(model, groups, None)
    pull.extend(model)
    expected = trainable_names(model) - {"classifier.weight", "classifier.bias"}
    assert first < expected
    assert equal(pull.state_dict(), {name: start[name] for name in expected})


def test_parameters_that_the_optimizer_does_not_have_are_not_pulled() -> None:
    model, groups = prepared("vit")
    pull = starting_point(model, groups, alpha=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = state(model)
    optimized = model.get_parameter("vit.layernorm.weight")
    pull.pull(model, torch.optim.SGD([optimized], lr=0.5))
    assert {name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)} == {
        "vit.layernorm.weight"
    }


def test_a_starting_point_can_be_saved_and_restored() -> None:
    model, groups = prepared("vit")
    saved = {name: value.clone() for name, value in starting_point(model, groups, alpha=0.3).state_dict().items()}
    learn(model, "vit", torch.optim.SGD(model.parameters(), lr=0.5), 0)
    resumed = starting_point(model, groups, alpha=0.3)
    assert not equal(resumed.state_dict(), saved)
    resumed.load_state_dict(saved)
    assert equal(resumed.state_dict(), saved)


# The moving average


@pytest.mark.parametrize("decay", [0.25, 0.999])
def test_the_average_follows_its_recursion(decay: float) -> None:
    """In numpy, with a decay that grows up to its limit; statistics of BatchNorm are the latest ones."""
    model, _ = prepared("resnet_basic")
    average = moving_average(model, decay)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {name: value.double().numpy() for name, value in state(model).items()}
    for step in range(1, 6):
        learn(model, "resnet_basic", optimizer, step)
        average.update(model)
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in state(model).items():
            is_statistic = "running" in name or "num_batches" in name
            now = value.double().numpy()
            expected[name] = now if is_statistic else kept * expected[name] + (1 - kept) * now
    with average.applied(model):
        for name, value in model.state_dict().items():
            assert value.numpy() == pytest.approx(expected[name], abs=1e-6), name


def test_only_what_learns_is_averaged() -> None:
    model, _ = prepared("vit", layers=1)
    averaged = {name.removeprefix("average.") for name in moving_average(model, 0.9).state_dict()}
    assert averaged == {*trainable_names(model), "steps"}


def averaged_resnet() -> tuple[nn.Module, ExponentialMovingAverage]:
    model, _ = prepared("resnet_basic")
    average = moving_average(model, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        learn(model, "resnet_basic", optimizer, step)
        average.update(model)
    return model, average


def test_the_weights_are_restored_to_the_bit() -> None:
    """Also statistics that were recomputed meanwhile, and their counters."""
    model, average = averaged_resnet()
    before, storages = state(model), {name: value.data_ptr() for name, value in model.state_dict().items()}
    with average.applied(model):
        assert not equal(state(model), before)
        recompute_batch_norm(model, [pixels("resnet_basic", seed=9, rows=4)])
    assert equal(state(model), before)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == storages


def test_the_weights_are_restored_after_an_error() -> None:
    model, average = averaged_resnet()
    before = state(model)
    with pytest.raises(KeyboardInterrupt), average.applied(model):
        raise KeyboardInterrupt
    assert equal(state(model), before)


def test_using_the_averages_does_not_change_them() -> None:
    model, average = averaged_resnet()
    before = {name: value.clone() for name, value in average.state_dict().items()}
    with average.applied(model):
        learn(model, "resnet_basic", torch.optim.SGD(model.parameters(), lr=0.5), 0)
    assert equal(average.state_dict(), before)


def test_a_copy_of_the_model_has_the_same_average() -> None:
    model, average = averaged_resnet()
    twin, twins_average = copy.deepcopy((model, average))
    for one, its_average in ((model, average), (twin, average), (twin, twins_average)):
        with its_average.applied(one):
            averaged = state(one)
        with average.applied(model):
            assert equal(averaged, state(model))
    average.update(twin)
    assert not equal(average.state_dict(), twins_average.state_dict())


def test_a_stage_with_more_trainable_parameters_continues_the_average() -> None:
    model, groups = prepared("vit", layers=1)
    average = moving_average(model, 0.9)
    first = trainable_names(model)
    learn(model, "vit", torch.optim.SGD(model.parameters(), lr=0.5), 0)
    average.update(model)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    make_trainable(model, groups, None)
    average.extend(model)
    after = average.state_dict()
    assert equal({name: after[name] for name in before}, before)
    added = {name: after[f"average.{name}"] for name in trainable_names(model) - first}
    assert added
    assert equal(added, {name: model.get_parameter(name).detach() for name in added})


def test_an_average_can_be_saved_and_restored() -> None:
    model, average = averaged_resnet()
    saved = {name: value.clone() for name, value in average.state_dict().items()}
    resumed = moving_average(model, 0.9)
    resumed.load_state_dict(saved)
    learn(model, "resnet_basic", torch.optim.SGD(model.parameters(), lr=0.1), 5)
    average.update(model)
    resumed.update(model)
    assert equal(resumed.state_dict(), average.state_dict())
    assert not equal(resumed.state_dict(), saved)


# Recomputed statistics


def batches(name: str) -> list[dict[str, Tensor]]:
    """The last one is smaller."""
    return [pixels(name, seed=seed, rows=rows) for seed, rows in ((3, 4), (4, 4), (5, 2))]


def statistics(model: nn.Module) -> Weights:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name or "batches" in name}


@pytest.mark.parametrize("name", ["resnet_basic", "mobilenet_v2"])
def test_statistics_are_those_of_torchs_own_function(name: str) -> None:
    """Both models are without dropout."""
    model, _ = prepared(name)
    twin = copy.deepcopy(model)
    recompute_batch_norm(model, batches(name))
    update_bn([batch["pixel_values"] for batch in batches(name)], twin)
    assert equal(state(model), state(twin))


def test_frozen_statistics_stay() -> None:
    model, _ = prepared("resnet_basic", layers=1)
    before = statistics(model)
    recompute_batch_norm(model, batches("resnet_basic"))
    changed = {name for name, value in statistics(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("resnet.encoder.stages.2")}


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_momenta_and_modes_are_as_before_also_after_an_error(training: bool, broken: bool) -> None:

    def some_batches() -> Iterator[dict[str, Tensor]]:
        yield batches("resnet_basic")[0]
        if broken:
            raise KeyboardInterrupt

    def modes() -> list[tuple[bool, Any]]:
        return [(module.training, getattr(module, "momentum", None)) for module in model.modules()]

    model, _ = prepared("resnet_basic", layers=1)
    model.train(training)
    before = modes()
    try:
        recompute_batch_norm(model, some_batches())
    except KeyboardInterrupt:
        assert broken
    assert modes() == before


def test_for_a_model_without_batch_norm_no_batch_is_read() -> None:

    def no_batches() -> Iterator[dict[str, Tensor]]:
        pytest.fail("asked for a batch")
        yield {}

    model, _ = prepared("vit")
    recompute_batch_norm(model, no_batches())


def test_dropout_is_off_and_no_random_number_is_drawn() -> None:

    class Noisy(nn.Sequential):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return super().forward(pixel_values)  # type: ignore[no-any-return,no-untyped-call]

    model = Noisy(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    images = pixels("resnet_basic", seed=3, rows=4)
    generator = torch.get_rng_state()
    recompute_batch_norm(model, [images])
    assert torch.equal(torch.get_rng_state(), generator)
    expected = images["pixel_values"].mean((0, 2, 3))
    torch.testing.assert_close(model.get_buffer("1.running_mean"), expected)
