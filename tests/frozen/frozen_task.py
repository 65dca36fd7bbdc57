"""A training whose frozen layers can be stored, run with the store and without."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from hf_transfer.data.batches import Batch, LabelledInputs, Loaders
from hf_transfer.frozen import prefix
from hf_transfer.frozen.prefix import FrozenPrefix
from hf_transfer.frozen.recording import Passes
from hf_transfer.frozen.store import Store
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.strategies.freezing import Strategy
from hf_transfer.targets.target import Metrics, Target
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.progress import Fit
from tests.tiny_models import ALL, logits
from tests.tiny_text_models import TEXT_ARCHITECTURES
from tests.training.toy_task import (
    TARGET,
    RowInputs,
    Rows,
    TextRows,
    fit_loaders,
    loaders_of,
    rows_for,
    settings,
    text_settings,
    tiny,
)

Edit = Callable[[nn.Module], object]
ARCHITECTURES = [*ALL, *TEXT_ARCHITECTURES]
ADAPTERS = ("lora", "dora", "ia3")
# Two epochs of 24 samples in two views, and 10 samples for validation.
SAMPLES, HELD_OUT, VIEWS = 24, 10, 2
CLOCKS = ("seconds", "samples_per_second", "frozen_seconds")


class ShiftedInputs(RowInputs):
    """In training each image has several views, which are shifted.

    Args:
        rows: by split.
        cycle: the number of views; 0: another one in every epoch.
        seed: of the views.
    """

    def __init__(self, rows: Mapping[str, Rows], cycle: int, seed: int) -> None:
        super().__init__(rows)
        self.cycle, self.seed = cycle, seed

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`."""
        labelled = super().__call__(batch, device, split, epoch)
        if epoch is None or self.cycle < 2 or "pixel_values" not in labelled.inputs:
            return labelled
        return labelled._replace(inputs={"pixel_values": labelled.inputs["pixel_values"].roll(epoch % VIEWS * 3, -1)})

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        view = "" if epoch is None or self.cycle < 2 else f"{self.seed}/{epoch % self.cycle}"
        return f"{super().fingerprint(split, epoch)} {view}"


def samples(name: str, size: int, **more: Any) -> Rows:
    """Samples of the size that an architecture needs."""
    rows = rows_for(name, size, **more)
    if name in ALL and ALL[name].side == 32:
        rows.inputs = {"pixel_values": rows.pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)}
    return rows


@dataclass
class Task:
    """A training that runs with the store and without.

    Attributes:
        folder: the cache folder.
        name: of the architecture.
        rows: training samples.
        validation: validation samples.
        cycle: views of a training sample; 0: another one in every epoch.
        seed: of the views.
        edit: changes the model before it is trained.
        model: settings of the model.
        make: makes another model than that of the architecture.
        target: what is predicted.
    """

    folder: Path
    name: str = "vit"
    rows: Rows = field(default_factory=lambda: Rows(SAMPLES))
    validation: Rows = field(default_factory=lambda: Rows(HELD_OUT, seed=1))
    cycle: int = 1
    seed: int = 0
    edit: Edit = str
    model: dict[str, Any] = field(default_factory=dict)
    make: Callable[[], nn.Module] | None = None
    target: Target = TARGET

    @classmethod
    def of(cls, folder: Path, name: str, *, masked: tuple[int, ...] = (), **more: Any) -> "Task":
        """The usual samples of an architecture; images in two views."""
        rows, validation = samples(name, SAMPLES, masked=masked), samples(name, HELD_OUT, seed=1)
        return cls(folder, name, rows, validation, **{"cycle": VIEWS if name in ALL else 1} | more)

    def config(self, **more: Any) -> RunConfig:
        """Two epochs; batches have the same size in training and evaluation."""
        make = text_settings if self.name in TEXT_ARCHITECTURES else settings
        chosen: dict[str, Any] = {
            "strategy": "partial", "trainable_layers": 1, "cache_frozen": "on", "cache_dir": str(self.folder),
            "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 5e-3,
            "warmup_steps": 0, "num_train_epochs": 2,
        }  # fmt: skip
        if more.get("strategy") in ADAPTERS:
            chosen["adapter_layers"] = 1
        return make(**(chosen | more))

    def loaders(self, accelerator: Accelerator, config: RunConfig) -> Loaders:
        """Loaders in which each view has its own fingerprint, as in the library."""
        training, rows = config.training, {"train": self.rows, "validation": self.validation}
        batch_size = training.train_batch_size(len(self.rows))
        loaders = loaders_of(accelerator, self.rows, self.validation, batch_size, training.seed)
        inputs = ShiftedInputs(rows, self.cycle, self.seed)
        return replace(loaders, target=self.target, to_inputs=inputs, cycle=self.cycle, views=max(0, self.cycle - 1))

    def prepared(self, config: RunConfig) -> tuple[nn.Module, list[Group]]:
        """A new copy of the model, prepared for its strategy."""
        model: nn.Module
        if self.make is None:
            model, groups, inputs = tiny(self.name, **self.model)
        else:
            model, inputs = self.make(), {name: column[:2] for name, column in self.rows.inputs.items()}
            groups = trace_groups(model, inputs)
        self.edit(model)
        return strategy_of(config).prepare(model, groups, inputs, config.training.seed)

    def run(self, **more: Any) -> Fit:
        """Train."""
        config = self.config(**more)
        model, groups = self.prepared(config)
        with start_accelerator(config) as accelerator:
            loaders = self.loaders(accelerator, config)
            return fit_loaders(model, strategy_of(config), groups, loaders, config, accelerator)

    def stores(self, **more: Any) -> dict[str, Store]:
        """The stores of the first stage, by split and view."""
        config = self.config(**more)
        model, groups = self.prepared(config)
        AcceleratorState._reset_state()
        (stage, *_) = strategy_of(config).stages(groups, config.training.num_train_epochs)
        with start_accelerator(config) as accelerator:
            plan = FrozenPrefix(model, groups, self.passes(accelerator, config))._plan(stage)
        assert plan is not None
        return {f"{split} {view or 0}": store for (split, view), store in plan.stores.items()}

    def passes(self, accelerator: Accelerator, config: RunConfig) -> Passes:
        """What passes over the samples need."""
        loaders = self.loaders(accelerator, config)
        return Passes.of(loaders, accelerator, config)

    def files(self) -> dict[str, bytes]:
        """All chunks, by their paths."""
        paths = sorted((self.folder / "frozen").rglob("*.safetensors"))
        return {str(path.relative_to(self.folder / "frozen")): path.read_bytes() for path in paths}


def strategy_of(config: RunConfig) -> Strategy:
    """The strategy that the settings name."""
    return choose_strategy(config.strategy, larger_head=False)


def without_clocks(history: Sequence[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in history]


def assert_equal(stored: Fit, live: Fit, validation: Rows, *, tolerance: float = 1e-5) -> None:
    """Losses, metrics, the best epoch, predictions and weights are equal."""
    for row, expected in zip(without_clocks(stored.history), without_clocks(live.history), strict=True):
        assert row == pytest.approx(expected, abs=tolerance)
    assert (stored.best_epoch, stored.soup, stored.trainable) == (live.best_epoch, live.soup, live.trainable)
    weights, expected_weights = stored.model.state_dict(), live.model.state_dict()
    assert list(weights) == list(expected_weights)
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance, msg=name)
    assert predictions(stored.model, validation) == predictions(live.model, validation)


def predictions(model: nn.Module, rows: Rows) -> list[int]:
    classes: list[int] = logits(model.eval(), rows.inputs).argmax(1).tolist()
    return classes


def texts(task: Task) -> list[TextRows]:
    assert isinstance(task.rows, TextRows)
    assert isinstance(task.validation, TextRows)
    return [task.rows, task.validation]


def weight(name: str) -> Edit:
    """Change one number of a weight."""

    def edit(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 1e-3

    return edit


def set_costs(monkeypatch: pytest.MonkeyPatch, compute: float, write: float, read: float) -> None:
    """Replace the measurement of costs: seconds for one sample."""
    monkeypatch.setattr(prefix, "measured_costs", lambda *_: (compute, write, read))


def damage(path: Path) -> None:
    """Change one bit of the last number."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
