"""A run with stored activations is the run without them, and computes frozen layers once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_transfer.data.batches import Loaders
from hf_transfer.frozen import prefix, recording
from hf_transfer.frozen.store import Store
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.target import Metrics, Values
from hf_transfer.training import loop
from hf_transfer.training.progress import Fit
from tests.frozen.frozen_task import ARCHITECTURES, HELD_OUT, SAMPLES, Edit, Task, assert_equal, without_clocks
from tests.tiny_models import CLASSES, state
from tests.training.toy_task import TARGET


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, "partial") for name in ARCHITECTURES),
        *((name, "gradual") for name in ("vit", "resnet_basic", "beit", "deberta")),
        *((name, "lp_ft") for name in ("vit", "resnet_basic", "roberta")),
        *((name, "lora") for name in ("vit", "convnext", "bert", "gpt2")),
        # Only its embeddings have no biases.
        ("gpt2", "bitfit"),
    ],
)
def test_a_run_with_the_store_is_the_run_without(tmp_path: Path, name: str, strategy: str) -> None:
    """With two views of each image and a masked row, for every architecture."""
    task = Task.of(tmp_path, name, masked=(3,))
    more = {"strategy": strategy, "num_train_epochs": 3 if strategy == "gradual" else 2}
    stored, live = task.run(**more), task.run(cache_frozen="off", **more)
    assert_equal(stored, live, task.validation)
    assert task.files(), "nothing was stored"
    assert (stored.frozen_seconds > 0, stored.notes, live.notes) == (True, [], [])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_bfloat16_a_run_with_the_store_has_the_weights_of_the_run_without_to_the_bit(
    tmp_path: Path, name: str
) -> None:
    """Nothing is rounded on its way through the store; frozen layers are run in batches of another size."""
    task = Task.of(tmp_path, name, masked=(3,))
    more = {"bf16": True, "per_device_eval_batch_size": 64}
    stored, live = task.run(**more), task.run(cache_frozen="off", **more)
    assert without_clocks(stored.history) == without_clocks(live.history)
    expected = live.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in stored.model.state_dict().items())
    assert task.files(), "nothing was stored"


@pytest.mark.parametrize(
    ("name", "settings", "dtype"),
    [
        ("vit", {}, torch.float32),
        # The sums of residual connections stay in float32, the outputs of convolutions do not.
        ("vit", {"bf16": True}, torch.float32),
        ("bert", {"bf16": True}, torch.float32),
        ("resnet_basic", {"bf16": True}, torch.bfloat16),
        ("resnet_basic", {"bf16": True, "cache_dtype": "float32"}, torch.float32),
        ("vit", {"bf16": True, "cache_dtype": "bfloat16"}, torch.bfloat16),
        ("vit", {"cache_dtype": "bfloat16"}, torch.bfloat16),
    ],
)
def test_activations_are_stored_in_the_type_in_which_they_are_computed_unless_another_is_set(
    tmp_path: Path, name: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    stores = Task.of(tmp_path, name).stores(**settings)
    assert {store.columns["0"].dtype for store in stores.values()} == {dtype}


class Shares(Classes):
    """A target whose values are float vectors: the shares of the classes."""

    solver: ClassVar[str | None] = None

    def evaluate(self, outputs: Tensor, targets: Values, only: str | None = None) -> Metrics:
        """See `Target.evaluate`."""
        return super().evaluate(outputs, targets.argmax(1), only)


@pytest.mark.parametrize("name", ["vit", "bert"])
@pytest.mark.parametrize("strategy", ["partial", "linear_probe"])
def test_a_target_of_float_vectors_is_stored_too(tmp_path: Path, name: str, strategy: str) -> None:
    """And masked rows do not count; a head without a solver is trained, here on a stored backbone."""
    task = Task.of(tmp_path, name, masked=(3,), target=Shares(TARGET.label_names))
    for seed, rows in enumerate((task.rows, task.validation)):
        shares = np.random.default_rng(seed).dirichlet(np.ones(CLASSES), len(rows)) * rows.split.counted[:, None]
        rows.split = replace(rows.split, targets=shares.astype(np.float32))
    stored, live = task.run(strategy=strategy), task.run(strategy=strategy, cache_frozen="off")
    assert_equal(stored, live, task.validation)
    assert task.files(), "nothing was stored"
    assert len(stored.history) == 2


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
def test_options_have_the_same_effect_with_the_store(tmp_path: Path, name: str, option: dict[str, Any]) -> None:
    task = Task.of(tmp_path, name, masked=(3,))
    assert_equal(task.run(**option), task.run(cache_frozen="off", **option), task.validation)


def test_options_that_reach_across_stages_have_the_same_effect(tmp_path: Path) -> None:
    """Averages and starting points of parameters that learn only in a later stage begin with it."""
    task = Task.of(tmp_path, "vit")
    more = {"strategy": "gradual", "num_train_epochs": 3, "ema_decay": 0.9, "l2_sp": 0.05, "layer_lr_decay": 0.5}
    assert_equal(task.run(**more), task.run(cache_frozen="off", **more), task.validation)


WORSE = {"accuracy": [0.2, 0.8, 0.4], "f1_macro": [0.5, 0.5, 0.5], "loss": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize("name", ["vit", "resnet_basic"])
@pytest.mark.parametrize("soup", [1, 2])
def test_the_best_epoch_of_an_early_stage_is_restored_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, soup: int
) -> None:
    """Groups that were frozen then, and learned later, have the values that they had then."""

    def scripted(cache_frozen: str) -> tuple[Fit, dict[str, Tensor]]:
        states: list[dict[str, Tensor]] = []

        def predict(model: nn.Module, loaders: Loaders, *_: Any, **__: Any) -> Any:
            epoch = min(len(states), 2)
            states.append(state(model))
            row = {metric: column[epoch] for metric, column in WORSE.items()}
            return type("Scripted", (), {"metrics": lambda self: row})()

        monkeypatch.setattr(loop, "predict_split", predict)
        task = Task.of(tmp_path, name, cycle=1)
        fitted = task.run(strategy="gradual", num_train_epochs=3, cache_frozen=cache_frozen, soup_size=soup)
        return fitted, states[1]

    stored, _ = scripted("on")
    live, _ = scripted("off")
    assert (stored.best_epoch, stored.soup) == (live.best_epoch, live.soup)
    expected = live.model.state_dict()
    assert {key for key, value in stored.model.state_dict().items() if not torch.equal(value, expected[key])} == set()


@dataclass
class SampleCounter:
    """Counts the samples that pass a module, by what the loop is doing."""

    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("else", "fill", "epochs"), 0))
    phase: str = "else"

    def edit(self, name: str) -> Edit:
        """Count in a module."""

        def count(_: nn.Module, args: Any) -> None:
            self.seen[self.phase] += len(args[0])

        return lambda model: model.get_submodule(name).register_forward_pre_hook(count)

    def within(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with what it does counted as a phase."""

        def call(*arguments: Any, **more: Any) -> Any:
            before, self.phase = self.phase, phase
            try:
                return function(*arguments, **more)
            finally:
                self.phase = before

        return call


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> SampleCounter:
    counter = SampleCounter()
    monkeypatch.setattr(prefix, "fill", counter.within("fill", recording.fill))
    for name in ("train_epoch", "predict_split"):
        monkeypatch.setattr(loop, name, counter.within("epochs", vars(loop)[name]))
    return counter


FROZEN = {"vit": "vit.layers.1", "resnet_basic": "resnet.encoder.stages.1", "bert": "bert.encoder.layer.1"}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_layers_run_once_for_each_view_and_in_no_epoch(
    tmp_path: Path, counter: SampleCounter, name: str
) -> None:
    task = Task.of(tmp_path, name, edit=counter.edit(FROZEN[name]))
    task.run(num_train_epochs=3)
    assert counter.seen["fill"] == SAMPLES * task.cycle + HELD_OUT
    assert counter.seen["epochs"] == 0
    # The cut was tested with a few samples, and the loss of the first batch was compared.
    assert 0 < counter.seen["else"] < SAMPLES
    task.run(cache_frozen="off", num_train_epochs=3)
    assert counter.seen["epochs"] == 3 * (SAMPLES + HELD_OUT)


def test_each_stage_of_gradual_unfreezing_has_its_own_stores(tmp_path: Path, counter: SampleCounter) -> None:
    """Four groups learn in the second of three epochs, and all of them in the third."""
    task = Task(tmp_path, edit=counter.edit("vit.embeddings"))
    task.run(strategy="gradual", num_train_epochs=3)
    assert counter.seen["fill"] == 2 * (SAMPLES + HELD_OUT)
    assert counter.seen["epochs"] == SAMPLES + HELD_OUT
    assert len(task.files()) == 4


def test_a_second_run_with_another_rate_computes_nothing(
    tmp_path: Path, counter: SampleCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.of(tmp_path, "vit", edit=counter.edit("vit.layers.1"))
    task.run()
    first, files = dict(counter.seen), task.files()
    monkeypatch.setattr(Store, "write", lambda *_: pytest.fail("it is stored already"))
    second = task.run(learning_rate=1e-3)
    assert counter.seen["fill"] == first["fill"]
    assert counter.seen["epochs"] == 0
    assert second.frozen_seconds < second.seconds
    assert task.files() == files
    monkeypatch.undo()
    assert_equal(second, task.run(learning_rate=1e-3, cache_frozen="off"), task.validation)
