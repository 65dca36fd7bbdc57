"""The loop against formulas: rates, decay, accumulation, clipping, masks, the best epoch."""

import gc
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_transfer.errors import UserError
from hf_transfer.models.groups import trace_groups
from hf_transfer.strategies.freezing import BiasTuning, FromScratch, FullFineTuning, Stage
from hf_transfer.targets.predictions import Ranking
from hf_transfer.training import loop
from hf_transfer.training.averaging import BestEpochs
from hf_transfer.training.devices import start_accelerator
from tests.tiny_models import pixels, state, tiny_model
from tests.training.toy_task import TARGET, HeadAlone, Rows, loaders_of, settings, train_vit, vit


class Recorder:
    """Replaces `torch.optim.AdamW` and notes the rates and gradients of each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rates: list[float] = []
        self.norms: list[float] = []
        original = torch.optim.AdamW
        recorder = self

        class Watched(original):  # type: ignore[misc,valid-type]
            def step(self, closure: Any = None) -> Any:
                gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
                recorder.rates.append(self.param_groups[0]["lr"])
                recorder.norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
                return super().step(closure)

        monkeypatch.setattr(torch.optim, "AdamW", Watched)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def cosine(step: int, *, peak: float, warmup: int, total: int) -> float:
    """The formula of Goyal et al. 2017 and Loshchilov and Hutter 2017."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@pytest.mark.parametrize(("warmup_steps", "warmup"), [(0.25, 3), (5, 5), (0, 0)])
def test_the_rate_warms_up_and_follows_a_cosine(recorder: Recorder, warmup_steps: float, warmup: int) -> None:
    fitted = train_vit(settings(warmup_steps=warmup_steps, learning_rate=2e-3))
    expected = [cosine(step, peak=2e-3, warmup=warmup, total=12) for step in range(12)]
    assert recorder.rates == pytest.approx(expected)
    assert [row["learning_rate"] for row in fitted.history] == pytest.approx([expected[5], expected[11]])


def test_the_rate_counts_optimizer_steps_not_batches(recorder: Recorder) -> None:
    """Six batches of four per step: two steps per epoch."""
    train_vit(settings(gradient_accumulation_steps=4, warmup_steps=1, learning_rate=2e-3))
    assert recorder.rates == pytest.approx([cosine(step, peak=2e-3, warmup=1, total=4) for step in range(4)])


@pytest.mark.parametrize("strategy", [BiasTuning(), FullFineTuning(), FromScratch()])
def test_without_a_rate_in_the_settings_that_of_the_strategy_is_the_peak(recorder: Recorder, strategy: Any) -> None:
    train_vit(settings(learning_rate=None, warmup_steps=1, num_train_epochs=1), strategy=strategy)
    assert max(recorder.rates) == pytest.approx(strategy.learning_rate)


def test_norms_and_biases_do_not_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the optimizer that the loop makes."""
    made: list[torch.optim.Optimizer] = []
    original = torch.optim.AdamW

    def make(*arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        made.append(original(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr(torch.optim, "AdamW", make)
    fitted = train_vit(settings(weight_decay=0.07, num_train_epochs=1))
    names = {id(value): name for name, value in fitted.model.named_parameters()}
    decay = {names[id(value)]: group["weight_decay"] for group in made[0].param_groups for value in group["params"]}
    assert decay.keys() == set(names.values())
    for name, amount in decay.items():
        exempt = name.endswith(".bias") or "layernorm" in name
        assert amount == (0.0 if exempt else 0.07), name


def test_two_accumulated_batches_equal_one_of_twice_the_size() -> None:
    whole = train_vit(settings(per_device_train_batch_size=8, warmup_steps=0))
    halves = train_vit(settings(per_device_train_batch_size=4, gradient_accumulation_steps=2, warmup_steps=0))
    single = train_vit(settings(per_device_train_batch_size=4, warmup_steps=0))
    other = state(halves.model)
    for name, value in whole.model.state_dict().items():
        # The bias of the keys has no gradient (softmax ignores it): AdamW amplifies its rounding errors.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6)
    assert not torch.allclose(state(single.model)["classifier.weight"], other["classifier.weight"], atol=1e-5)


def test_gradients_are_clipped_to_the_norm(recorder: Recorder) -> None:
    train_vit(settings(max_grad_norm=0.5, num_train_epochs=1))
    clipped, recorder.norms = recorder.norms, []
    train_vit(settings(max_grad_norm=0, num_train_epochs=1))
    assert max(clipped) == pytest.approx(0.5, rel=1e-4)
    assert min(recorder.norms) > 0.5


@pytest.mark.parametrize(
    ("metric", "best"),
    # By hand: 2 and 3 share the best accuracy and 3 has the lower loss; 1 has the best F1; 4 has the lowest loss.
    [("accuracy", 3), ("f1_macro", 1), ("loss", 4)],
)
def test_each_metric_selects_its_epoch_and_ties_go_to_the_lower_loss(metric: str, best: int) -> None:
    columns = {
        "accuracy": [0.5, 0.6, 0.8, 0.8, 0.7, 0.8],
        "f1_macro": [0.5, 0.9, 0.7, 0.8, 0.6, 0.7],
        "loss": [1.0, 0.9, 0.8, 0.7, 0.1, 0.7],
    }
    history = [{name: column[epoch] for name, column in columns.items()} for epoch in range(6)]
    kept = BestEpochs(1)
    for epoch, row in enumerate(history):
        kept.offer({}, Ranking.of(TARGET, metric).scores(row), epoch)
    assert kept.candidates[0].epoch == best


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Replaces evaluation by these accuracies, epoch by epoch; the weights that are evaluated are returned."""
    accuracies = iter([0.2, 0.8, 0.4, 0.3, 0.9, 0.1])
    moments: list[dict[str, Tensor]] = []

    def predict(model: nn.Module, *_: Any, **__: Any) -> Any:
        moments.append(state(model))
        accuracy = next(accuracies)
        return type("Scripted", (), {"metrics": lambda self: {"accuracy": accuracy, "f1_macro": 0.5, "loss": 1.0}})()

    monkeypatch.setattr(loop, "predict_split", predict)
    return moments


def test_the_weights_of_the_best_epoch_are_restored(scripted: list[dict[str, Tensor]]) -> None:
    fitted = train_vit(settings(num_train_epochs=4))
    assert (fitted.best_epoch, len(fitted.history)) == (1, 4)
    assert all(torch.equal(value, scripted[1][name]) for name, value in fitted.model.state_dict().items())
    assert not torch.equal(scripted[3]["classifier.weight"], scripted[1]["classifier.weight"])


@pytest.mark.parametrize(("patience", "epochs", "best"), [(2, 4, 1), (3, 6, 4), (0, 6, 4)])
def test_training_stops_after_so_many_epochs_without_a_better_one(
    scripted: list[dict[str, Tensor]], patience: int, epochs: int, best: int
) -> None:
    fitted = train_vit(settings(num_train_epochs=6, early_stopping_patience=patience), rows=8)
    assert (len(fitted.history), fitted.best_epoch) == (epochs, best)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model, groups = vit()
    with torch.no_grad():
        model.get_parameter("classifier.bias").fill_(float("nan"))
    config = settings(learning_rate=0.25)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, Rows(8), Rows(10), 4)
        with pytest.raises(UserError) as caught:
            loop.fit(model, FullFineTuning(), groups, loaders, config, accelerator)
    rows = sorted(np.random.default_rng((config.training.seed, 0)).permutation(8)[:4].tolist())
    assert str(caught.value).splitlines() == [
        "Expected: a finite loss and a finite gradient",
        "Found:    a loss of nan and a gradient of norm nan in step 1 (epoch 1, peak rate 2.5e-01), with the samples "
        f"of training rows {', '.join(map(str, rows))}; the step was not taken, no checkpoint had been written",
        "Do this:  look at these samples, lower --learning_rate, or leave out --fp16; then run it again",
    ]


def test_a_masked_row_does_not_change_the_weights() -> None:
    """Whatever its pixels are."""
    config = settings(per_device_train_batch_size=8, num_train_epochs=1)
    weights = []
    for garbage in (0.0, 3.0):
        model, groups = vit()
        with start_accelerator(config) as accelerator:
            rows = Rows(16, masked=(2, 11))
            rows.pixels[[2, 11]] = garbage
            loaders = loaders_of(accelerator, rows, Rows(10, seed=1), 8)
            weights.append(state(loop.fit(model, FullFineTuning(), groups, loaders, config, accelerator).model))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-6)


def test_the_history_counts_epochs_samples_and_learning_parameters() -> None:
    fitted = train_vit(settings(), strategy=HeadAlone())
    assert [row["epoch"] for row in fitted.history] == [0, 1]
    assert all(row["samples_per_second"] * row["seconds"] == pytest.approx(24) for row in fitted.history)
    assert fitted.trainable == 24 * 5 + 5
    assert fitted.seconds == pytest.approx(sum(row["seconds"] for row in fitted.history))


def test_two_runs_of_the_same_settings_give_equal_weights_to_the_bit() -> None:
    """With dropout, which draws from the global generator; another seed gives other weights."""
    torch.manual_seed(1)
    first = state(train_vit(settings(), hidden_dropout_prob=0.2).model)
    torch.manual_seed(2)
    again = state(train_vit(settings(), hidden_dropout_prob=0.2).model)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    other = state(train_vit(settings(seed=1), hidden_dropout_prob=0.2).model)
    assert not torch.equal(other["classifier.weight"], first["classifier.weight"])


def test_the_model_really_learns_the_task() -> None:
    fitted = train_vit(settings(num_train_epochs=12, learning_rate=5e-3), rows=40)
    assert fitted.history[fitted.best_epoch]["accuracy"] >= 0.9
    assert fitted.history[-1]["train_loss"] < 0.5 * fitted.history[0]["train_loss"]


class TwoStages(FullFineTuning):
    """First the head, then everything."""

    def stages(self, groups: Any, epochs: int) -> list[Stage]:
        head = HeadAlone().stages(groups, 1)
        return [*head, *FullFineTuning().stages(groups, epochs - 1)]


def test_in_a_second_stage_more_parameters_learn(scripted: list[dict[str, Tensor]]) -> None:
    before = state(vit()[0])
    fitted = train_vit(settings(num_train_epochs=2), strategy=TwoStages())
    moved = [{name for name in before if not torch.equal(moment[name], before[name])} for moment in scripted[:2]]
    assert moved[0] == {"classifier.weight", "classifier.bias"}
    assert moved[1] == set(before)
    assert fitted.trainable == sum(value.numel() for value in before.values())


class HeadAfterAll(TwoStages):
    """First everything, then the head."""

    def stages(self, groups: Any, epochs: int) -> list[Stage]:
        return [*FullFineTuning().stages(groups, 1), *HeadAlone().stages(groups, epochs - 1)]


def test_the_best_weights_include_the_parameters_of_all_stages(scripted: list[dict[str, Tensor]]) -> None:
    """The best epoch is in the first stage; the second changes the head again."""
    monitored = settings(num_train_epochs=3, metric_for_best_model="f1_macro")
    fitted = train_vit(monitored, strategy=HeadAfterAll())
    assert fitted.best_epoch == 0
    with torch.no_grad():
        assert all(torch.equal(value, scripted[0][name]) for name, value in fitted.model.state_dict().items())
    again = train_vit(settings(num_train_epochs=1), strategy=FullFineTuning())
    assert fitted.trainable == again.trainable


def test_statistics_of_batch_norm_are_restored_with_the_best_epoch(scripted: list[dict[str, Tensor]]) -> None:
    """The statistics of a later epoch would not fit the weights."""
    model = tiny_model("resnet_basic")
    groups = trace_groups(model, pixels("resnet_basic"))
    strategy = FullFineTuning(updates_statistics=True)
    config = settings(num_train_epochs=3)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, Rows(16), Rows(10), 8)
        fitted = loop.fit(model, strategy, groups, loaders, config, accelerator)
    assert all(torch.equal(value, scripted[1][name]) for name, value in fitted.model.state_dict().items())


def test_the_modules_of_the_finished_model_have_their_original_classes() -> None:
    """The classes that freezing makes can be neither pickled nor trained further."""
    fitted = train_vit(settings(num_train_epochs=1), strategy=HeadAlone())
    kinds = {type(module) for module in vit()[0].modules()}
    assert {type(module) for module in fitted.model.modules()} == kinds
    assert all(module.training for module in fitted.model.train().modules())


def test_the_rate_in_the_history_is_the_highest() -> None:
    """The rate of the embeddings is a thousandth of it."""
    options: dict[str, Any] = {"layer_lr_decay": 0.25, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0}
    fitted = train_vit(settings(**options, learning_rate=1e-3, num_train_epochs=1))
    assert fitted.history[0]["learning_rate"] == pytest.approx(1e-3)


def test_objects_that_the_caller_has_frozen_stay_frozen() -> None:
    """Garbage collection skips them; other objects are frozen only for a moment."""
    gc.freeze()
    with start_accelerator(settings()) as accelerator:
        loop._free_memory(accelerator)
        assert gc.get_freeze_count() > 0
        gc.unfreeze()
        loop._free_memory(accelerator)
    assert gc.get_freeze_count() == 0
