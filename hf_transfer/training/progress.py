"""How far a run has come, and what it has come to."""

from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from hf_transfer.training.predictions import Metrics, is_better


@dataclass
class Fit:
    """What training came to.

    Attributes:
        model: the unwrapped model with the weights of the best epoch.
        history: a row of numbers for each epoch.
        best_epoch: position of the best in `history`; -1 if nothing was trained.
        soup: positions of the epochs whose weights were averaged; one of them if none was worth adding.
        trainable: how many parameters learned.
        seconds: time spent in training, without evaluation.
        frozen_seconds: time spent in storing what frozen layers make of the samples.
        earlier_seconds: time that processes took which were interrupted, up to their last checkpoint.
        resumed: the optimizer steps at which a process took the run up again.
        notes: what was decided about frozen layers, in sentences.
    """

    model: nn.Module
    history: list[Metrics] = field(default_factory=list)
    best_epoch: int = -1
    soup: list[int] = field(default_factory=list)
    trainable: int = 0
    seconds: float = 0.0
    frozen_seconds: float = 0.0
    earlier_seconds: float = 0.0
    resumed: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """How many have been judged."""
        return len(self.history)

    def enter(self, row: Metrics, metric: str) -> bool:
        """Add a judged epoch to the history; whether it leads."""
        leads = is_better(row, self.history, self.best_epoch, metric)
        self.best_epoch = len(self.history) if leads else self.best_epoch
        self.history.append({"epoch": float(len(self.history)), **row})
        self.seconds += row["seconds"]
        self.frozen_seconds += row.get("frozen_seconds", 0.0)
        return leads

    def numbers(self) -> dict[str, Any]:
        """Everything but the model, for a checkpoint."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "model"}


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        stage: number of the stage.
        epoch: epochs of the stage that have been trained and judged.
        batches: batches of the next epoch that each process has taken in.
        steps: optimizer steps of the run.
        schedule: steps of the learning rate's schedule.
        without_gain: epochs since the best one of the stage.
        loss: sum of the losses of this process's samples in the epoch so far.
        seen: how many these are.
        seconds: time spent in the epoch so far.
        rate: the learning rate that was used last.
    """

    stage: int = 0
    epoch: int = 0
    batches: int = 0
    steps: int = 0
    schedule: int = 0
    without_gain: int = 0
    loss: float = 0.0
    seen: float = 0.0
    seconds: float = 0.0
    rate: float = 0.0

    def next_epoch(self, *, gained: bool) -> None:
        """Move to the beginning of the next epoch."""
        self.epoch, self.batches = self.epoch + 1, 0
        self.loss = self.seen = self.seconds = 0.0
        self.without_gain = 0 if gained else self.without_gain + 1

    def next_stage(self) -> None:
        """Move to the beginning of the next stage."""
        self.stage, self.epoch, self.without_gain = self.stage + 1, 0, 0
