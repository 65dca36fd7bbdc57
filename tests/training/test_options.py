"""Options of training in the loop, against values that the tests compute themselves."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_transfer.modalities.mixing import Mixing
from hf_transfer.models.groups import Group
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.strategies.freezing import FullFineTuning, GradualUnfreezing, Stage, Strategy
from hf_transfer.training import loop
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.objective import Objective
from hf_transfer.training.predictions import predict_split
from hf_transfer.training.progress import Fit
from tests.tiny_models import ARCHITECTURES, logits, state
from tests.training.toy_task import TARGET, HeadAlone, Rows, loaders_of, settings, tiny, train, train_vit

Weights = dict[str, Tensor]
HEAD = ("classifier.weight", "classifier.bias")


class Steps:
    """Replaces `torch.optim.AdamW` and notes rates, gradients, and the parameters after each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.optimizers: list[torch.optim.Optimizer] = []
        self.rates: list[float] = []
        self.gradients: list[dict[nn.Parameter, Tensor]] = []
        self.after: list[dict[nn.Parameter, Tensor]] = []
        original, steps = torch.optim.AdamW, self

        class Watched(original):  # type: ignore[misc,valid-type]
            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                super().__init__(*arguments, **keywords)
                steps.optimizers.append(self)

            def step(self, closure: Any = None) -> Any:
                parameters = [p for group in self.param_groups for p in group["params"]]
                steps.rates.append(self.param_groups[0]["lr"])
                steps.gradients.append({p: p.grad.clone() for p in parameters if p.grad is not None})
                value = super().step(closure)
                steps.after.append({p: p.detach().clone() for p in parameters})
                return value

        monkeypatch.setattr(torch.optim, "AdamW", Watched)

    def of(self, model: nn.Module, key: str) -> dict[str, Any]:
        """What the last optimizer has for each parameter, by name."""
        names = {parameter: name for name, parameter in model.named_parameters()}
        return {names[p]: group[key] for group in self.optimizers[-1].param_groups for p in group["params"]}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """The weights that are evaluated, epoch by epoch."""
    evaluated: list[Weights] = []
    original = predict_split

    def predict(model: nn.Module, *arguments: Any, **more: Any) -> Any:
        evaluated.append(state(model))
        return original(model, *arguments)

    monkeypatch.setattr(loop, "predict_split", predict)
    return evaluated


def train_tiny(name: str, *, rows: Rows | None = None, strategy: Strategy | None = None, **chosen: Any) -> Fit:
    model, groups, _ = tiny(name)
    strategy = strategy or FullFineTuning(updates_statistics=True)
    return train(model, groups, strategy, settings(**chosen), rows or Rows(24), Rows(20, seed=1))


def test_rates_by_layer_and_of_the_head_arrive_in_the_optimizer(steps: Steps) -> None:
    fitted = train_vit(settings(learning_rate=2e-3, layer_lr_decay=0.5, head_learning_rate=7e-3, num_train_epochs=1))
    parts = ARCHITECTURES["vit"]
    slices = [*((block,) for block in (*parts.embeddings, *parts.blocks, *parts.final)), (parts.head,)]
    peaks = steps.of(fitted.model, "initial_lr")
    assert len(peaks) == len(list(fitted.model.parameters()))
    for name, peak in peaks.items():
        (distance,) = [d for d, (module,) in enumerate(reversed(slices)) if name.startswith(f"{module}.")]
        assert peak == pytest.approx(2e-3 * 0.5**distance if distance else 7e-3), name


def test_the_average_of_the_steps_is_evaluated_and_kept(steps: Steps, moments: list[Weights]) -> None:
    """The recursion, computed from the weights after each step."""
    model, groups, _ = tiny("vit")
    average = {name: value.double() for name, value in state(model).items()}
    fitted = train(model, groups, FullFineTuning(), settings(ema_decay=0.6, num_train_epochs=3), Rows(24), Rows(10))
    assert len(steps.after) == 18
    for number, after in enumerate(steps.after, start=1):
        kept = min(0.6, (1 + number) / (10 + number))
        for name, parameter in model.named_parameters():
            average[name] = kept * average[name] + (1 - kept) * after[parameter].double()
        if number % 6 == 0:
            for name, value in average.items():
                torch.testing.assert_close(moments[number // 6 - 1][name], value.float(), rtol=1e-5, atol=1e-6)
    best = moments[fitted.best_epoch]
    assert all(torch.equal(value, best[name]) for name, value in fitted.model.state_dict().items())
    raw = steps.after[6 * fitted.best_epoch + 5]
    moved = [name for name, p in model.named_parameters() if not torch.allclose(raw[p], best[name], atol=1e-5)]
    assert len(moved) > 0.9 * len(average)


def test_training_continues_from_the_weights_not_from_their_average(steps: Steps, moments: list[Weights]) -> None:
    train_vit(settings(ema_decay=0.9))
    with_average, steps.after = [list(after.values()) for after in steps.after], []
    train_vit(settings())
    for after, expected in zip(with_average, steps.after, strict=True):
        assert all(torch.equal(*pair) for pair in zip(after, expected.values(), strict=True))


def test_one_step_with_l2_sp_follows_the_formula(steps: Steps) -> None:
    """The size of AdamW's first step is its rate; the backbone is pulled back, and the head decays."""
    rate, alpha, decay = 0.01, 30.0, 0.2
    model, groups, _ = tiny("vit")
    start = state(model)
    chosen = settings(
        learning_rate=rate, l2_sp=alpha, weight_decay=decay, warmup_steps=0, num_train_epochs=1,
        per_device_train_batch_size=8,
    )  # fmt: skip
    train(model, groups, FullFineTuning(), chosen, Rows(8), Rows(10))
    (gradients,) = steps.gradients
    for name, parameter in model.named_parameters():
        gradient = gradients[parameter].double()
        before = start[name].double()
        shrunk = before * (1 - rate * decay) if name == "classifier.weight" else before
        after = shrunk - rate * gradient / (gradient.abs() + 1e-8)
        if name not in HEAD:
            after = after - rate * alpha * (after - before)
        torch.testing.assert_close(parameter.detach(), after.float(), rtol=1e-4, atol=1e-6)
    decays = steps.of(model, "weight_decay")
    assert {name for name, amount in decays.items() if amount} == {"classifier.weight"}


def unbalanced() -> Rows:
    rows = Rows(20)
    rows.labels[:11] = 0
    return rows


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_smoothed_and_weighted(smoothing: float, balanced: bool) -> None:
    rows, (model, *_) = unbalanced(), tiny("vit")
    labels = rows.labels.numpy()
    log_shares = torch.log_softmax(logits(model, rows.inputs).double(), 1).numpy()
    counts = np.bincount(labels, minlength=5)
    weights = 20 / (5 * counts) if balanced else np.ones(5)
    targets = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    expected = -(targets * weights * log_shares).sum() / weights[labels].sum()
    fitted = train_tiny(
        "vit", rows=unbalanced(), label_smoothing_factor=smoothing, class_weights="balanced" if balanced else "none",
        per_device_train_batch_size=20, num_train_epochs=1,
    )  # fmt: skip
    assert fitted.history[0]["train_loss"] == pytest.approx(expected, rel=1e-4)


def test_masked_samples_do_not_count_in_the_weights_of_the_classes() -> None:
    """A masked sample keeps its label in the table of the split."""
    losses = []
    for first in (0, 4):
        rows = Rows(20, masked=(0, 1, 2))
        rows.labels[:3] = first
        losses.append(train_tiny("vit", rows=rows, class_weights="balanced", num_train_epochs=1).history[0])
    assert losses[0]["train_loss"] == losses[1]["train_loss"]


class Seen:
    """The pixels and targets that the model and the loss get, in training and in evaluation."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pixels: dict[bool, list[Tensor]] = {True: [], False: []}
        self.targets: list[Tensor] = []
        original, seen = Objective.__call__, self

        def call(objective: Objective, outputs: Tensor, targets: Tensor, counted: Tensor, weight: Tensor) -> Tensor:
            seen.targets.append(targets)
            return original(objective, outputs, targets, counted, weight)

        def note(_: nn.Module, __: Any, inputs: dict[str, Tensor]) -> None:
            seen.pixels[torch.is_grad_enabled()].append(inputs["pixel_values"])

        monkeypatch.setattr(Objective, "__call__", call)
        model.register_forward_pre_hook(note, with_kwargs=True)


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_images_are_mixed_in_training_alone(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Targets are shares with a sum of one; the same in every run."""
    runs = []
    for _ in range(2):
        model, groups, _ = tiny("vit")
        seen, rows, validation = Seen(model, monkeypatch), Rows(24), Rows(10, seed=1)
        train(model, groups, FullFineTuning(), settings(**{kind: 1.0}), rows, validation)
        runs.append(seen)
        monkeypatch.undo()
    seen, again = runs
    assert torch.equal(torch.cat(seen.targets), torch.cat(again.targets))
    assert torch.equal(torch.cat(seen.pixels[True]), torch.cat(again.pixels[True]))
    targets = torch.cat(seen.targets)
    assert targets.shape == (48, 5)
    torch.testing.assert_close(targets.sum(1), torch.ones(48))
    assert ((targets > 0) & (targets < 1)).any(1).float().mean() > 0.4
    assert torch.equal(torch.cat(seen.pixels[False]), validation.pixels.repeat(2, 1, 1, 1))
    order = np.concatenate([np.random.default_rng((0, epoch)).permutation(24) for epoch in range(2)])
    changed = (torch.cat(seen.pixels[True]) != rows.pixels[order]).flatten(1).any(1)
    assert changed.float().mean() > 0.4
    # The seventh batch is the first of the second epoch: mixing depends on the epoch.
    first = order[24:28]
    mixing = Mixing(**({"mixup_alpha": 0.0, "cutmix_alpha": 0.0} | {kind: 1.0}), seed=0, target=TARGET)
    pixels, labels = {"pixel_values": rows.pixels[first]}, rows.labels[first]
    mixed, shares = mixing(pixels, labels, torch.ones(4, dtype=torch.bool), torch.from_numpy(first), 1)
    assert torch.equal(seen.targets[6], shares)
    assert torch.equal(seen.pixels[True][6], mixed["pixel_values"])


def soup(name: str, moments: list[Weights]) -> tuple[Fit, int]:
    """With wrong labels and large steps a mean of epochs is better; with the first seed for which it is on this CPU."""
    rows = Rows(24)
    rows.labels[::3] = (rows.labels[::3] + 1) % 5
    for seed in range(8):
        moments.clear()
        fitted = train_tiny(
            name, rows=rows, soup_size=3, num_train_epochs=12, learning_rate=5e-3, warmup_steps=0, seed=seed,
            metric_for_best_model="loss", lr_scheduler_type="constant_with_warmup",
        )  # fmt: skip
        if len(fitted.soup) > 1:
            return fitted, seed
    pytest.fail("no soup in eight runs")


@pytest.mark.parametrize("name", ["vit", "resnet_basic"])
def test_a_soup_is_the_mean_of_its_epochs_and_no_worse_than_the_best(name: str, moments: list[Weights]) -> None:
    fitted, _ = soup(name, moments)
    assert fitted.soup[0] == fitted.best_epoch
    assert 1 < len(fitted.soup) <= 3
    ranked = sorted(range(12), key=lambda epoch: fitted.history[epoch]["loss"])
    assert set(fitted.soup) <= set(ranked[:3])
    for key, value in fitted.model.named_parameters():
        mean = torch.stack([moments[epoch][key].double() for epoch in fitted.soup]).mean(0)
        torch.testing.assert_close(value.detach(), mean.float(), rtol=1e-5, atol=1e-6)
    with start_accelerator(settings()) as accelerator:
        loaders = loaders_of(accelerator, Rows(24), Rows(20, seed=1), 4)
        reached = predict_split(fitted.model, loaders, "validation", accelerator).metrics()
    assert reached["loss"] <= fitted.history[fitted.best_epoch]["loss"] + 1e-6


def test_statistics_of_a_soup_are_recomputed(moments: list[Weights]) -> None:
    """Against torch's own function, on the training split in the order of its first epoch."""
    (fitted, seed), rows = soup("resnet_basic", moments), Rows(24)
    twin = copy.deepcopy(fitted.model)
    for buffer in twin.buffers():
        buffer.zero_()
    batches = rows.pixels[np.random.default_rng((seed, 0)).permutation(24)].split(4)
    torch.optim.swa_utils.update_bn(list(batches), twin)
    expected, actual = state(twin), state(fitted.model)
    statistics = [key for key in actual if key.endswith(("running_mean", "running_var"))]
    assert len(statistics) >= 16
    for key in statistics:
        torch.testing.assert_close(actual[key], expected[key], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(actual[key], moments[fitted.best_epoch][key], atol=1e-5), key


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_without_a_soup_the_best_epoch_is_restored_to_the_bit(moments: list[Weights], ema_decay: float) -> None:
    """With the statistics of BatchNorm, also if the weights are moving averages."""
    fitted = train_tiny("resnet_basic", num_train_epochs=4, learning_rate=5e-3, ema_decay=ema_decay)
    assert fitted.soup == [fitted.best_epoch]
    assert len(moments) == 4
    best = moments[fitted.best_epoch]
    assert all(torch.equal(value, best[key]) for key, value in fitted.model.state_dict().items())


EVERYTHING: dict[str, Any] = {
    "layer_lr_decay": 0.7, "head_learning_rate": 8e-3, "l2_sp": 0.1, "ema_decay": 0.9, "label_smoothing_factor": 0.1,
    "class_weights": "balanced", "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "soup_size": 3, "num_train_epochs": 6,
    "gradient_accumulation_steps": 2, "learning_rate": 5e-3, "early_stopping_patience": 3,
}  # fmt: skip


@pytest.mark.parametrize(("name", "strategy"), [("resnet_basic", "gradual"), ("vit", "lp_ft"), ("vit", "lora")])
def test_two_runs_with_all_options_are_equal_to_the_bit(name: str, strategy: str) -> None:
    """With dropout, if the model has some."""
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = settings(strategy=strategy, **EVERYTHING)
        model, groups, inputs = tiny(name, **({"hidden_dropout_prob": 0.2} if name == "vit" else {}))
        chosen = choose_strategy(config.strategy)
        adapted, groups = chosen.prepare(model, groups, inputs, config.training.seed)
        runs.append(train(adapted, groups, chosen, config, Rows(24), Rows(20, seed=1)))
    first, second = runs
    weights = first.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in second.model.state_dict().items())
    timing = ("seconds", "frozen_seconds", "samples_per_second")
    rows = [[{k: v for k, v in row.items() if k not in timing} for row in run.history] for run in runs]
    assert rows[0] == rows[1]
    assert first.soup == second.soup


class TwoStages(FullFineTuning):
    """The head for four epochs, then everything for four."""

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        return [*HeadAlone().stages(groups, 4), *FullFineTuning().stages(groups, 4)]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """Replaces evaluation by these accuracies; the weights that are evaluated are returned."""
    accuracies = iter([0.5, 0.4, 0.3, 0.2, 0.1, 0.9])
    evaluated: list[Weights] = []

    def predict(model: nn.Module, *_: Any, **__: Any) -> Any:
        evaluated.append(state(model))
        return SimpleNamespace(metrics=lambda: {"accuracy": next(accuracies), "f1_macro": 0.5, "loss": 1.0})

    monkeypatch.setattr(loop, "predict_split", predict)
    return evaluated


def test_early_stopping_ends_a_stage_and_the_next_one_begins(scripted: list[Weights], steps: Steps) -> None:
    """After two epochs without a gain: the first stage ends after three epochs, the second after two."""
    model, groups, _ = tiny("vit")
    before = state(model)
    chosen = settings(early_stopping_patience=2, num_train_epochs=8)
    fitted = train(model, groups, TwoStages(), chosen, Rows(8), Rows(10))
    assert (len(fitted.history), fitted.best_epoch) == (5, 0)
    moved = [{name for name in before if not torch.equal(moment[name], before[name])} for moment in scripted]
    assert moved == [set(HEAD)] * 3 + [set(before)] * 2
    assert all(torch.equal(value, scripted[0][name]) for name, value in fitted.model.state_dict().items())


def test_the_schedule_of_a_stage_does_not_depend_on_when_the_one_before_ended(
    scripted: list[Weights], steps: Steps
) -> None:
    """The rates of the second stage start in the middle of the cosine, where it would have begun."""
    model, groups, _ = tiny("vit")
    chosen = settings(early_stopping_patience=2, num_train_epochs=8, warmup_steps=0, learning_rate=2e-3)
    train(model, groups, TwoStages(), chosen, Rows(8), Rows(10))
    expected = [2e-3 * 0.5 * (1 + np.cos(np.pi * step / 16)) for step in (*range(6), *range(8, 12))]
    assert steps.rates == pytest.approx(expected)


def test_the_next_stage_continues_with_the_moments_of_the_optimizer(steps: Steps) -> None:
    """AdamW counts steps for each parameter: those of the head continue, those of the blocks start."""
    model, groups, _ = tiny("vit")
    train(model, groups, GradualUnfreezing(), settings(num_train_epochs=5), Rows(8), Rows(10))
    assert len(steps.optimizers) == 5
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    counts = {names[p]: int(values["step"]) for p, values in steps.optimizers[-1].state.items()}
    parts = ARCHITECTURES["vit"]
    epochs = {parts.head: 5, "vit.layernorm": 5, **dict(zip(reversed(parts.blocks), (4, 3, 2), strict=True))}
    assert counts == {
        name: 2 * next((count for module, count in epochs.items() if name.startswith(f"{module}.")), 1)
        for name, _ in model.named_parameters()
    }
