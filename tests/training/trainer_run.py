"""Trainings with `transformers.Trainer` on tiny models and data; also a script for two processes.

The script writes, for each case and process, the weights after each epoch into a folder.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_transfer.strategies.adapters import LowRankAdaptation
from hf_transfer.strategies.freezing import (
    BiasTuning,
    FullFineTuning,
    GradualUnfreezing,
    LinearProbe,
    LinearProbeThenFineTuning,
    PartialFineTuning,
    Strategy,
)
from hf_transfer.training.trainer_callback import PreparedForTrainer, prepare_for_trainer
from tests.tiny_models import ALL, CLASSES, Architecture, pixels, state, tiny_model
from tests.tiny_text_models import TEXT_ARCHITECTURES, tiny_text_model, token_ids

ROWS, BATCH = 24, 4
STEPS = ROWS // BATCH  # of an epoch
STRATEGIES: dict[str, Strategy] = {
    "full": FullFineTuning(updates_statistics=True),
    "linear_probe": LinearProbe(),
    "partial": PartialFineTuning(layers=1, updates_statistics=True),
    "gradual": GradualUnfreezing(updates_statistics=True),
    "lp_ft": LinearProbeThenFineTuning(updates_statistics=True),
    "bitfit": BiasTuning(),
    "lora": LowRankAdaptation(),
}
# Dropout, if an architecture has it, so that a resumed run must continue the random numbers.
DROPOUT: dict[str, dict[str, Any]] = {"vit": {"hidden_dropout_prob": 0.1}, "bert": {}, "resnet_basic": {}}
Row = dict[str, Tensor]
Moved = list[set[str]]


class Rows(Dataset[Row]):
    """Noise that shows the label."""

    def __init__(self, name: str) -> None:
        self.columns = token_ids(rows=ROWS) if name == "bert" else pixels(name, rows=ROWS)
        self.columns["labels"] = torch.arange(ROWS) % CLASSES
        if name != "bert":
            self.columns["pixel_values"] += self.columns["labels"][:, None, None, None]

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, position: int) -> Row:
        return {name: column[position] for name, column in self.columns.items()}


@dataclass
class Epochs(TrainerCallback):
    """Keeps copies of weights and statistics, before training and after each epoch.

    Attributes:
        weights: the copies, one more than epochs.
        losses: by step.
        stop_after: step after which training is interrupted.
    """

    weights: list[Row] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stop_after: int | None = None

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.weights.append(state(kwargs["model"]))

    def on_epoch_end(self, *_: Any, **kwargs: Any) -> None:
        self.weights.append(state(kwargs["model"]))

    def on_log(self, *_: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.losses.append(kwargs["logs"]["loss"])

    def on_step_end(self, *arguments: Any, **_: Any) -> None:
        if arguments[1].global_step == self.stop_after:
            arguments[2].should_training_stop = True


class Trainable(TrainerCallback):
    """Notes in each epoch which parameters require a gradient."""

    def __init__(self) -> None:
        self.names: Moved = []

    def on_epoch_begin(self, *_: Any, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        self.names.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})


class CutShort(TrainerCallback):
    """Ends the first epoch after half of its steps."""

    def on_step_end(self, *arguments: Any, **_: Any) -> None:
        arguments[2].should_epoch_stop = arguments[1].global_step == STEPS // 2


class Batches:
    """Keeps the inputs of a model in training."""

    def __init__(self, model: nn.Module) -> None:
        self.kept: list[Row] = []
        model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, model: nn.Module, _: Any, inputs: dict[str, Any]) -> None:
        if model.training:
            self.kept.append({name: inputs[name].clone() for name in ("pixel_values", "labels")})


def model_of(name: str) -> PreTrainedModel:
    """A tiny classifier."""
    return tiny_text_model(name) if name == "bert" else tiny_model(name, **DROPOUT.get(name, {}))


def batch_of(name: str) -> Row:
    """A small batch to trace a model with."""
    return token_ids() if name == "bert" else pixels(name)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    """Three epochs on the CPU, without reports and checkpoints."""
    chosen: dict[str, Any] = {
        "num_train_epochs": 3, "per_device_train_batch_size": BATCH, "learning_rate": 1e-2, "weight_decay": 0.1,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
        "dataloader_pin_memory": False, "seed": 7,
    }  # fmt: skip
    return TrainingArguments(str(folder), **(chosen | more))


def trainer_for(
    name: str, strategy: Strategy, args: TrainingArguments, *, model: nn.Module | None = None, **more: Any
) -> tuple[Trainer, PreparedForTrainer, Epochs]:
    """A Trainer with the callback, what was prepared for it, and what notes its epochs."""
    prepared = prepare_for_trainer(model or model_of(name), strategy, batch_of(name), args, **more)
    watch = Epochs()
    trainer = Trainer(
        prepared.model,
        args,
        train_dataset=Rows(name),
        eval_dataset=Rows(name),
        optimizers=(prepared.optimizer, None),
        callbacks=[prepared.callback, watch],
    )
    return trainer, prepared, watch


def parts_of(name: str) -> Architecture:
    return TEXT_ARCHITECTURES[name] if name in TEXT_ARCHITECTURES else ALL[name]


def moved(weights: Sequence[Row]) -> Moved:
    """Names of the parameters and statistics that each epoch changed."""
    return [
        {key for key, value in after.items() if not torch.equal(value, before[key])}
        for before, after in itertools.pairwise(weights)
    ]


def expected_to_move(name: str, strategy: str, keys: Sequence[str]) -> Moved:
    """Names that must move in each epoch, by the module names of the architecture, not by our groups."""
    parts = parts_of(name)
    head, top = (parts.head,), (*parts.final, parts.head)

    def inside(modules: Sequence[str]) -> set[str]:
        return {key for key in keys if key.startswith(tuple(f"{module}." for module in modules))}

    everything, last = set(keys), inside((parts.blocks[-1], *top))
    biases = {key for key in keys if key.endswith(".bias")}
    adapters = {key for key in keys if ".lora_" in key or ".modules_to_save." in key}
    return {
        "full": [everything] * 3,
        "linear_probe": [inside(head)] * 3,
        "partial": [last] * 3,
        "gradual": [last, inside((*parts.blocks, *top)), everything],
        "lp_ft": [inside(head), everything, everything],
        "bitfit": [biases | inside(head)] * 3,
        "lora": [adapters] * 3,
    }[strategy]


def main(folder: Path) -> None:
    """All cases in one start, which takes most of the time."""
    for name, strategy in (("resnet_basic", "gradual"), ("vit", "gradual"), ("bert", "lora")):
        args = arguments(folder / "out")
        model = None
        if name == "vit":
            # Compared with one process: without dropout, and without Adam, which amplifies rounding errors.
            args = arguments(
                folder / "out", optim="sgd", per_device_train_batch_size=BATCH // 2, gradient_accumulation_steps=2
            )
            model = tiny_model("vit")
        trainer, _, watch = trainer_for(name, STRATEGIES[strategy], args, model=model)
        trainer.train()
        assert trainer.args.world_size == 2
        assert isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel)
        for epoch, weights in enumerate(watch.weights):
            save_file(weights, folder / f"{name}-{epoch}-{trainer.args.process_index}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
