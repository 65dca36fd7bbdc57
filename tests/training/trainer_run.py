"""Trainings with `transformers.Trainer` on tiny models and data; run by torchrun, they are trained on two processes.

As a script it writes into the folder that it is given, for each case and process, the weights after each epoch.
"""

import sys
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
from tests.tiny_models import CLASSES, pixels, state, tiny_model
from tests.tiny_text_models import tiny_text_model, token_ids

ROWS, BATCH = 24, 4
STRATEGIES: dict[str, Strategy] = {
    "full": FullFineTuning(),
    "linear_probe": LinearProbe(),
    "partial": PartialFineTuning(layers=1),
    "gradual": GradualUnfreezing(),
    "lp_ft": LinearProbeThenFineTuning(),
    "bitfit": BiasTuning(),
    "lora": LowRankAdaptation(),
}
# Dropout, where an architecture has it, so that a resumed run must find its place among the random numbers.
DROPOUT: dict[str, dict[str, Any]] = {"vit": {"hidden_dropout_prob": 0.1}, "bert": {}, "resnet_basic": {}}
Row = dict[str, Tensor]


class Rows(Dataset[Row]):
    """Noise, with labels that it can be told by."""

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
    """Keeps the weights and statistics before training, and after each epoch.

    Attributes:
        weights: copies, one more than epochs.
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

    def on_step_end(self, *given: Any, **_: Any) -> None:
        if given[1].global_step == self.stop_after:
            given[2].should_training_stop = True


def model_of(name: str) -> PreTrainedModel:
    """A tiny classifier."""
    return tiny_text_model(name) if name == "bert" else tiny_model(name, **DROPOUT.get(name, {}))


def batch_of(name: str) -> Row:
    """A small batch to trace it with."""
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
    """A Trainer with the plugin, what was prepared for it, and what watches it."""
    prepared = prepare_for_trainer(model or model_of(name), strategy, batch_of(name), args, **more)
    watch = Epochs()
    trainer = Trainer(
        prepared.model,
        args,
        train_dataset=Rows(name),
        optimizers=(prepared.optimizer, None),
        callbacks=[prepared.callback, watch],
    )
    return trainer, prepared, watch


def main(folder: Path) -> None:
    """Both cases in one start, which is what takes the time."""
    for name, strategy in (("resnet_basic", "gradual"), ("vit", "gradual"), ("bert", "lora")):
        args = arguments(folder / "out")
        model = None
        if name == "vit":
            # To be compared with one process: without dropout, and without Adam, which makes noise large.
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
