"""Where a run stands, and what it has produced so far."""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Metrics, Values


@dataclass
class Fit:
    """The result of training.

    Attributes:
        model: the unwrapped model with the weights of the best epoch.
        history: metrics of each epoch.
        best_epoch: position of the best in `history`; -1 if nothing was trained.
        soup: positions of the epochs whose weights were averaged; only the best one if averaging did not help.
        trainable: how many parameters learned.
        seconds: time spent in training, without evaluation.
        frozen_seconds: time spent in computing stored activations.
        earlier_seconds: time of earlier processes that were interrupted, up to their last checkpoint.
        resumed: the optimizer steps at which the run was resumed.
        notes: sentences on the frozen layers.
        held_out: of a solved head: outputs for samples of which it was solved without, their true values, and the epoch
            in which it was solved; None: there are none.
        solved_layer: name of the model's last layer, if it was solved in the last stage; None: it was trained, or the
            model that is kept is another one.
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
    held_out: dict[str, Tensor] | None = None
    solved_layer: str | None = None

    @property
    def epochs(self) -> int:
        """How many epochs have been evaluated."""
        return len(self.history)

    def add_epoch(self, row: Metrics, *, is_best: bool) -> None:
        """Append an evaluated epoch to the history; `is_best`: of all so far."""
        self.best_epoch = len(self.history) if is_best else self.best_epoch
        self.history.append({"epoch": float(len(self.history)), **row})
        self.seconds += row["seconds"]
        self.frozen_seconds += row.get("frozen_seconds", 0.0)

    def hold_out(self, predictions: Predictions | None) -> None:
        """Keep predictions for held-out samples, of the epoch that is added next, if there are any."""
        if predictions is not None:
            targets = torch.from_numpy(predictions.targets)
            self.held_out = {"outputs": predictions.outputs, "targets": targets, "epoch": torch.tensor(self.epochs)}

    def held_out_predictions(self) -> tuple[Tensor, Values] | None:
        """Outputs for held-out samples, and their true values, if they are those of the weights that were kept."""
        if self.held_out is None or self.soup != [int(self.held_out["epoch"])]:
            return None
        return self.held_out["outputs"], self.held_out["targets"].numpy()

    def count_trainable(self) -> None:
        """Count the parameters that require a gradient now; the largest count of all stages is kept."""
        count = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        self.trainable = max(self.trainable, count)

    def finished(
        self, model: nn.Module, soup: list[int], frozen_seconds: float, notes: list[str], solved_layer: str | None
    ) -> Self:
        """The result with what is known only at the end.

        Args:
            model: what is kept of the trained model; parameters that are left out did not learn.
            soup: see the attributes.
            frozen_seconds: they are added.
            notes: see the attributes.
            solved_layer: of the model that was trained.
        """
        return replace(
            self, model=model, trainable=self.trainable - _parameters(self.model) + _parameters(model), soup=soup,
            frozen_seconds=self.frozen_seconds + frozen_seconds, notes=notes,
            solved_layer=solved_layer if model is self.model else None,
        )  # fmt: skip


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        stage: number of the stage.
        epoch: epochs of the stage that have been trained and evaluated.
        batches: batches of the present epoch that each process has trained on.
        steps: optimizer steps of the run.
        schedule: steps of the learning rate's schedule.
        without_gain: epochs since the best one of the stage.
        loss: what this process adds to the sum of the losses of the epoch's samples so far.
        seen: how many samples have counted on all processes.
        seconds: time spent in the epoch so far.
        rate: the last learning rate used.
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

    def next_batches(self, count: int, rate: float) -> None:
        """Count the batches of a step, trained at this learning rate."""
        self.batches, self.rate = self.batches + count, rate

    def next_step(self, schedule: int, seconds: float) -> None:
        """Count an optimizer step.

        Args:
            schedule: steps of the learning rate's schedule.
            seconds: time spent in the epoch so far.
        """
        self.steps, self.schedule, self.seconds = self.steps + 1, schedule, seconds

    def set_loss(self, total: float, samples: float) -> None:
        """Note this process's part of the sum of the losses of the epoch so far, and of how many samples that is."""
        self.loss, self.seen = total, samples

    def next_epoch(self, *, gained: bool) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.batches = self.epoch + 1, 0
        self.loss = self.seen = self.seconds = 0.0
        self.without_gain = 0 if gained else self.without_gain + 1

    def next_stage(self) -> None:
        """Move to the start of the next stage."""
        self.stage, self.epoch, self.without_gain = self.stage + 1, 0, 0
