"""The frozen store: the same run, without the work."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_transfer.data.inputs import Loaders
from hf_transfer.training import frozen, loop, recording
from hf_transfer.training.progress import Fit
from hf_transfer.training.store import Store
from tests.tiny_models import state
from tests.training.frozen_task import EVERY, HELD_OUT, SAMPLES, Edit, Task, assert_equal


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, "partial") for name in EVERY),
        *((name, "gradual") for name in ("vit", "resnet_basic", "beit", "deberta")),
        *((name, "lp_ft") for name in ("vit", "resnet_basic", "roberta")),
        *((name, "lora") for name in ("vit", "convnext", "bert", "gpt2")),
        # Nothing but its embeddings has no biases.
        ("gpt2", "bitfit"),
    ],
)
def test_a_run_with_the_store_is_the_run_without(tmp_path: Path, name: str, strategy: str) -> None:
    """With two views of each picture and a masked row, for every architecture."""
    task = Task.of(tmp_path, name, masked=(3,))
    more = {"strategy": strategy, "num_train_epochs": 3 if strategy == "gradual" else 2}
    stored, live = task.run(**more), task.run(cache_frozen="off", **more)
    assert_equal(stored, live, task.validation)
    assert task.files(), "nothing was stored"
    assert (stored.frozen_seconds > 0, stored.notes, live.notes) == (True, [], [])


@pytest.mark.parametrize("name", ["vit", "resnet_basic", "bert"])
@pytest.mark.parametrize(
    "option",
    [
        {"ema_decay": 0.9},
        {"l2_sp": 0.05},
        {"layer_lr_decay": 0.5},
        {"soup_size": 2},
        {"gradient_accumulation_steps": 4, "max_grad_norm": 0.5},
        {"class_weights": "balanced", "label_smoothing_factor": 0.1, "early_stopping_patience": 1},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_do_with_the_store_what_they_do_without(tmp_path: Path, name: str, option: dict[str, Any]) -> None:
    task = Task.of(tmp_path, name, masked=(3,))
    assert_equal(task.run(**option), task.run(cache_frozen="off", **option), task.validation)


def test_options_that_reach_across_stages_do_the_same(tmp_path: Path) -> None:
    """What is opened in a later stage is remembered and averaged from then on."""
    task = Task.of(tmp_path, "vit")
    more = {"strategy": "gradual", "num_train_epochs": 3, "ema_decay": 0.9, "l2_sp": 0.05, "layer_lr_decay": 0.5}
    assert_equal(task.run(**more), task.run(cache_frozen="off", **more), task.validation)


WORSE = {"accuracy": [0.2, 0.8, 0.4], "f1_macro": [0.5, 0.5, 0.5], "loss": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize("name", ["vit", "resnet_basic"])
@pytest.mark.parametrize("soup", [1, 2])
def test_the_best_epoch_of_an_early_stage_comes_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, soup: int
) -> None:
    """Groups that were frozen then, and learned later, have the values that they had then."""

    def scripted(cache_frozen: str) -> tuple[Fit, dict[str, Tensor]]:
        moments: list[dict[str, Tensor]] = []

        def predict(model: nn.Module, loaders: Loaders, *_: Any, **__: Any) -> Any:
            epoch = min(len(moments), 2)
            moments.append(state(model))
            row = {metric: column[epoch] for metric, column in WORSE.items()}
            return type("Scripted", (), {"metrics": lambda self: row})()

        monkeypatch.setattr(loop, "predict_split", predict)
        task = Task.of(tmp_path, name, cycle=1)
        found = task.run(strategy="gradual", num_train_epochs=3, cache_frozen=cache_frozen, soup_size=soup)
        return found, moments[1]

    stored, _ = scripted("on")
    live, _ = scripted("off")
    assert (stored.best_epoch, stored.soup) == (live.best_epoch, live.soup)
    expected = live.model.state_dict()
    assert {key for key, value in stored.model.state_dict().items() if not torch.equal(value, expected[key])} == set()


@dataclass
class Watch:
    """Samples that a module has seen, by what the loop was at."""

    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("else", "fill", "epochs"), 0))
    phase: str = "else"

    def edit(self, name: str) -> Edit:
        """Watches a module."""

        def count(_: nn.Module, given: Any) -> None:
            self.seen[self.phase] += len(given[0])

        return lambda model: model.get_submodule(name).register_forward_pre_hook(count)

    def within(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a phase of its own."""

        def call(*arguments: Any, **more: Any) -> Any:
            before, self.phase = self.phase, phase
            try:
                return function(*arguments, **more)
            finally:
                self.phase = before

        return call


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(frozen, "fill", watch.within("fill", recording.fill))
    for name in ("train_epoch", "predict_split"):
        monkeypatch.setattr(loop, name, watch.within("epochs", vars(loop)[name]))
    return watch


FROZEN = {"vit": "vit.layers.1", "resnet_basic": "resnet.encoder.stages.1", "bert": "bert.encoder.layer.1"}


@pytest.mark.parametrize("name", FROZEN)
def test_no_frozen_layer_runs_in_an_epoch_and_each_view_passes_it_once(tmp_path: Path, watch: Watch, name: str) -> None:
    task = Task.of(tmp_path, name, edit=watch.edit(FROZEN[name]))
    task.run(num_train_epochs=3)
    assert watch.seen["fill"] == SAMPLES * task.cycle + HELD_OUT
    assert watch.seen["epochs"] == 0
    # The places to cut were tried with a few samples, and the first batch was looked at.
    assert 0 < watch.seen["else"] < SAMPLES
    task.run(cache_frozen="off", num_train_epochs=3)
    assert watch.seen["epochs"] == 3 * (SAMPLES + HELD_OUT)


def test_gradual_unfreezing_stores_anew_what_each_stage_leaves_frozen(tmp_path: Path, watch: Watch) -> None:
    """Four groups learn in the second of three epochs, and all of them in the third."""
    task = Task(tmp_path, edit=watch.edit("vit.embeddings"))
    task.run(strategy="gradual", num_train_epochs=3)
    assert watch.seen["fill"] == 2 * (SAMPLES + HELD_OUT)
    assert watch.seen["epochs"] == SAMPLES + HELD_OUT
    assert len(task.files()) == 4


def test_a_second_run_with_another_rate_builds_nothing(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.of(tmp_path, "vit", edit=watch.edit("vit.layers.1"))
    task.run()
    built, files = dict(watch.seen), task.files()
    monkeypatch.setattr(Store, "write", lambda *_: pytest.fail("it was there already"))
    second = task.run(learning_rate=1e-3)
    assert watch.seen["fill"] == built["fill"]
    assert watch.seen["epochs"] == 0
    assert second.frozen_seconds < second.seconds
    assert task.files() == files
    monkeypatch.undo()
    assert_equal(second, task.run(learning_rate=1e-3, cache_frozen="off"), task.validation)
