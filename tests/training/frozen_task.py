"""A task whose frozen layers can be stored, trained with the store and without."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from hf_transfer.config import RunConfig
from hf_transfer.data.inputs import Loaders
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.training.frozen import Costs, FrozenPrefix
from hf_transfer.training.loop import fit, start_accelerator
from hf_transfer.training.predictions import Metrics
from hf_transfer.training.progress import Fit
from hf_transfer.training.store import Store
from tests.tiny_models import ALL, logits
from tests.tiny_text_models import TEXT_ARCHITECTURES
from tests.training.toy_task import (
    Rows,
    TextRows,
    fingerprint,
    loaders_of,
    rows_for,
    settings,
    text_settings,
    tiny,
    to_inputs,
)

Batch = dict[str, Tensor]


Edit = Callable[[nn.Module], object]


EVERY = [*ALL, *TEXT_ARCHITECTURES]


ADAPTERS = ("lora", "dora", "ia3")


# Two epochs of 24 samples in two views, and 10 to judge by.
SAMPLES, HELD_OUT, VIEWS = 24, 10, 2


CLOCKS = ("seconds", "samples_per_second", "frozen_seconds")


def shifted(batch: Batch, device: torch.device, split: str, epoch: int | None) -> tuple[Batch, Tensor, Tensor]:
    """In training each picture has two views."""
    inputs, labels, index = to_inputs(batch, device, split, epoch)
    if epoch is not None and "pixel_values" in inputs:
        inputs = {"pixel_values": inputs["pixel_values"].roll(epoch % VIEWS * 3, -1)}
    return inputs, labels, index


def samples(name: str, size: int, **more: Any) -> Rows:
    """Of the size that an architecture takes."""
    rows = rows_for(name, size, **more)
    if name in ALL and ALL[name].side == 32:
        rows.inputs = {"pixel_values": rows.pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)}
    return rows


@dataclass
class Task:
    """A training that can be had with the store and without.

    Attributes:
        folder: where stores lie.
        name: of the architecture.
        rows: samples to train on.
        validation: samples to judge by.
        cycle: views of a training sample; 0: every epoch another.
        seed: of the views.
        edit: changes the model before it is trained.
        model: settings of the model.
        make: makes another model than that of the architecture.
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

    @classmethod
    def of(cls, folder: Path, name: str, *, masked: tuple[int, ...] = (), **more: Any) -> "Task":
        """The usual samples of an architecture; pictures in two views."""
        rows, validation = samples(name, SAMPLES, masked=masked), samples(name, HELD_OUT, seed=1)
        return cls(folder, name, rows, validation, **{"cycle": VIEWS if name in ALL else 1} | more)

    def config(self, **more: Any) -> RunConfig:
        """Two epochs; a batch of training is as large as one of evaluation."""
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
        """As the library makes them, a view having a fingerprint of its own."""
        loaders = loaders_of(accelerator, self.rows, self.validation, config.per_device_train_batch_size, config.seed)
        rows = {"train": self.rows, "validation": self.validation}

        def told(split: str, epoch: int | None) -> str:
            view = "" if epoch is None or self.cycle < 2 else f"{self.seed}/{epoch % self.cycle}"
            return f"{fingerprint(rows[split])} {view}"

        change = shifted if self.cycle > 1 else to_inputs
        return replace(loaders, to_inputs=change, cycle=self.cycle, views=max(0, self.cycle - 1), fingerprint=told)

    def prepared(self, config: RunConfig) -> tuple[nn.Module, list[Group]]:
        """A fresh copy of the model, ready for its strategy."""
        model: nn.Module
        if self.make is None:
            model, groups, inputs = tiny(self.name, **self.model)
        else:
            model, inputs = self.make(), {name: column[:2] for name, column in self.rows.inputs.items()}
            groups = trace_groups(model, inputs)
        self.edit(model)
        return choose_strategy(config).prepare(model, groups, inputs, config.seed)

    def run(self, **more: Any) -> Fit:
        """The loop."""
        config = self.config(**more)
        model, groups = self.prepared(config)
        with start_accelerator(config) as accelerator:
            loaders = self.loaders(accelerator, config)
            return fit(model, choose_strategy(config), groups, loaders, config, accelerator)

    def stores(self, **more: Any) -> dict[str, Store]:
        """Those of the first stage, by split and view."""
        config = self.config(**more)
        model, groups = self.prepared(config)
        AcceleratorState._reset_state()
        (stage, *_) = choose_strategy(config).stages(groups, config.num_train_epochs)
        with start_accelerator(config) as accelerator:
            prefix = FrozenPrefix(model, groups, self.loaders(accelerator, config), config, accelerator)
            plan = prefix._plan(stage)
        assert plan is not None
        return {f"{split} {view or 0}": store for split, view, store in plan.every}

    def files(self) -> dict[str, bytes]:
        """All chunks, by their paths."""
        found = sorted((self.folder / "frozen").rglob("*.safetensors"))
        return {str(path.relative_to(self.folder / "frozen")): path.read_bytes() for path in found}


def without_clocks(history: Sequence[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in history]


def assert_equal(stored: Fit, live: Fit, validation: Rows, *, tolerance: float = 1e-5) -> None:
    """Losses, metrics, the best epoch, what the model predicts, and its weights."""
    for row, expected in zip(without_clocks(stored.history), without_clocks(live.history), strict=True):
        assert row == pytest.approx(expected, abs=tolerance)
    assert (stored.best_epoch, stored.soup, stored.trainable) == (live.best_epoch, live.soup, live.trainable)
    weights, expected_weights = stored.model.state_dict(), live.model.state_dict()
    assert list(weights) == list(expected_weights)
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance, msg=name)
    assert predictions(stored.model, validation) == predictions(live.model, validation)


def predictions(model: nn.Module, rows: Rows) -> list[int]:
    found: list[int] = logits(model.eval(), rows.inputs).argmax(1).tolist()
    return found


def texts(task: Task) -> list[TextRows]:
    assert isinstance(task.rows, TextRows)
    assert isinstance(task.validation, TextRows)
    return [task.rows, task.validation]


def weight(name: str) -> Edit:
    """Changes one number of a weight."""

    def edit(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 1e-3

    return edit


def costing(monkeypatch: pytest.MonkeyPatch, prefix: float, write: float, read: float) -> None:
    monkeypatch.setattr(FrozenPrefix, "_costs", lambda *_: Costs(prefix, write, read))


def damage(path: Path) -> None:
    """One bit of the last number."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
