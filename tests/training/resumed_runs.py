"""Runs of the toy task in children that can be killed, and what comes out of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch

from hf_transfer.config import RunConfig
from hf_transfer.strategies.adapters import LowRankAdaptation
from hf_transfer.strategies.freezing import (
    BiasTuning,
    FullFineTuning,
    GradualUnfreezing,
    LinearProbeThenFineTuning,
    PartialFineTuning,
    Strategy,
)
from hf_transfer.training.loop import fit, start_accelerator
from hf_transfer.training.progress import Fit
from tests.training.killed_children import exit_code, killed_in_step
from tests.training.toy_task import Rows, loaders_of, rows_for, settings, text_settings, tiny

STEPS = 12


@dataclass(frozen=True)
class Case:
    """What is trained: twelve steps, in two epochs, of a tiny model with dropout."""

    model: str
    strategy: Strategy
    more: dict[str, Any] = field(default_factory=dict)

    def config(self, out: Path, **more: Any) -> RunConfig:
        make = text_settings if self.model == "bert" else settings
        given = {"save_steps": 2, "output_dir": str(out), "cache_dir": str(out / "cache"), **self.more, **more}
        return make(**given)

    def run(self, out: Path, *, rows: Rows | None = None, seed: int = 0, **more: Any) -> Fit:
        """The loop in this process; the weights go into `out/weights.safetensors`."""
        config = self.config(out, **more)
        model, groups, inputs = tiny(self.model, seed=seed)
        prepared, its_groups = self.strategy.prepare(model, groups, inputs, config.seed)
        with start_accelerator(config) as accelerator:
            train = rows if rows is not None else rows_for(self.model, 24)
            batches = loaders_of(accelerator, train, rows_for(self.model, 10, seed=1), 4, config.seed)
            result = fit(prepared, self.strategy, its_groups, batches, config, accelerator)
            if accelerator.is_main_process:
                weights = {name: value.clone().contiguous() for name, value in result.model.state_dict().items()}
                safetensors.torch.save_file(weights, out / "weights.safetensors")
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
    "lora": Case("bert", LowRankAdaptation(rank=2, dropout=0.2)),
}


def weights(out: Path) -> bytes:
    return (out / "weights.safetensors").read_bytes()


def whole(case: Case, out: Path, **more: Any) -> int:
    """The exit code of a child that runs to the end."""
    return exit_code(lambda: case.run(out, **more))


def killed(case: Case, out: Path, step: int, *, written: bool = True, **more: Any) -> int:
    """The exit code of a child that is killed in one of its steps, if it takes so many."""
    return killed_in_step(step, lambda: case.run(out, **more), written=written)


def failure(work: Callable[[], object]) -> str:
    """The words of the error that a run ends with."""
    try:
        work()
    except Exception as error:
        return str(error)
    raise AssertionError("no error")
