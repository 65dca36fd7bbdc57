"""Runs of the toy task in children that can be killed, and the weights that they end with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.adapters import LowRankAdaptation
from hf_transfer.strategies.freezing import (
    BiasTuning,
    FullFineTuning,
    GradualUnfreezing,
    LinearProbeThenFineTuning,
    PartialFineTuning,
    Strategy,
)
from hf_transfer.targets.target import Target
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.progress import Fit
from tests.training.killed_children import exit_code, killed_in_step
from tests.training.toy_task import (
    TARGET,
    Rows,
    as_label_sets,
    as_numbers,
    fit_loaders,
    loaders_of,
    rows_for,
    settings,
    text_settings,
    tiny,
)

STEPS = 12


@dataclass(frozen=True)
class Case:
    """A training of twelve steps, in two epochs, of a tiny model with dropout.

    Attributes:
        model: name of its architecture.
        strategy: what learns.
        more: further settings.
        relabel: gives the rows another kind of target; None: classes.
    """

    model: str
    strategy: Strategy
    more: dict[str, Any] = field(default_factory=dict)
    relabel: Callable[[Rows], Target] | None = None

    def config(self, out: Path, **more: Any) -> RunConfig:
        """The settings, for an output folder."""
        make = text_settings if self.model == "bert" else settings
        return make(**{"save_steps": 2, "output_dir": str(out), "cache_dir": str(out / "cache"), **self.more, **more})

    def run(
        self, out: Path, *, rows: Rows | None = None, seed: int = 0, target: Target = TARGET,
        save_at_end: bool = False, **more: Any,
    ) -> Fit:  # fmt: skip
        """The loop in this process; the weights go into `out/weights.safetensors`."""
        config = self.config(out, **more)
        model, groups, inputs = tiny(self.model, seed=seed)
        prepared, groups = self.strategy.prepare(model, groups, inputs, config.training.seed)
        with start_accelerator(config) as accelerator:
            train = rows if rows is not None else rows_for(self.model, 24)
            validation = rows_for(self.model, 10, seed=1)
            if self.relabel is not None:
                target = self.relabel(train)
                self.relabel(validation)
            loaders = loaders_of(accelerator, train, validation, 4, config.training.seed, target)
            result = fit_loaders(prepared, self.strategy, groups, loaders, config, accelerator, save_at_end=save_at_end)
            if accelerator.is_main_process:
                save_weights(result.model, out / "weights.safetensors")
        return result


CASES = {
    "full": Case("vit", FullFineTuning(), {"ema_decay": 0.9, "soup_size": 2, "l2_sp": 0.05}),
    "full_text": Case("bert", FullFineTuning(), {"layer_lr_decay": 0.8, "rdrop_alpha": 1.0}),
    "accumulated": Case("vit", FullFineTuning(), {"gradient_accumulation_steps": 2, "num_train_epochs": 4}),
    "gradual": Case("bert", GradualUnfreezing(), {"num_train_epochs": 3, "ema_decay": 0.9, "l2_sp": 0.05}),
    "solved_first": Case("vit", LinearProbeThenFineTuning(), {"num_train_epochs": 3}),
    "partial": Case("bert", PartialFineTuning(layers=1), {"cache_frozen": "on", "rdrop_alpha": 0.5}),
    "statistics": Case("resnet_bottleneck", FullFineTuning(), {"soup_size": 2}),
    "bitfit": Case("vit", BiasTuning(), {"early_stopping_patience": 1, "num_train_epochs": 3}),
    "label_sets": Case("vit", LinearProbeThenFineTuning(), {"num_train_epochs": 3}, as_label_sets),
    "numbers": Case("bert", LinearProbeThenFineTuning(), {"num_train_epochs": 3}, as_numbers),
    "lora": Case("bert", LowRankAdaptation(rank=2, dropout=0.2)),
}


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write all weights and statistics of a model."""
    values = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(values, path)


def weights(out: Path) -> bytes:
    """The weights that a run has written."""
    return (out / "weights.safetensors").read_bytes()


def run_to_the_end(case: Case, out: Path, **more: Any) -> int:
    """The exit code of a child that is not killed."""
    return exit_code(lambda: case.run(out, **more))


def killed(case: Case, out: Path, step: int, *, written: bool = True, **more: Any) -> int:
    """The exit code of a child that is killed in one of its steps, if it takes so many."""
    return killed_in_step(step, lambda: case.run(out, **more), written=written)


def error_message(work: Callable[[], object]) -> str:
    """The message of the error that a run ends with."""
    try:
        work()
    except Exception as error:
        return str(error)
    raise AssertionError("no error")
