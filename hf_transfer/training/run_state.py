"""The state of a run: what a checkpoint saves and restores."""

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from hf_transfer.checkpoints.checkpoint import Tensors
from hf_transfer.frozen.prefix import FrozenPrefix
from hf_transfer.targets.predictions import Ranking
from hf_transfer.training.averaging import BestEpochs
from hf_transfer.training.progress import Fit, Position
from hf_transfer.training.steps import Steps


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that was read, on every process.

    Attributes:
        state: everything but tensors.
        tensors: by file and name.
    """

    state: Mapping[str, Any]
    tensors: Mapping[str, Tensors]


@dataclass
class RunState:
    """The state of a run in training.

    Attributes:
        result: what it has produced so far.
        steps: moments, averages, rates.
        frozen: the frozen layers, which may be skipped at the moment.
        best: the weights of the best epochs.
        changing: names of the parameters and buffers that training can change.
        ranking: how epochs are compared.
        position: how far it has come.
    """

    result: Fit
    steps: Steps
    frozen: FrozenPrefix
    best: BestEpochs
    changing: Set[str]
    ranking: Ranking
    position: Position = field(default_factory=Position)

    def numbers(self) -> dict[str, Any]:
        """Everything but tensors, for a checkpoint."""
        return {
            "position": asdict(self.position),
            "fit": {**self.result.numbers(), "notes": self.frozen.notes},
            "best": [{"scores": epoch.scores, "epoch": epoch.epoch} for epoch in self.best.candidates],
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file and name, for a checkpoint; not copies. All processes call it together."""
        best = {f"best-{number}": dict(epoch.weights) for number, epoch in enumerate(self.best.candidates)}
        # First, because it updates the model from its sharded copy.
        self.steps.gather()
        moving = {name: dict(tensors) for name, tensors in self.steps.tensors().items()}
        return {"model": self.frozen.state_of(self.changing), **moving, **best}

    def restore(self, checkpoint: LoadedCheckpoint, rank: int) -> None:
        """Continue from a checkpoint; the model has its weights already.

        Moments and averages are restored when the stage is prepared, random numbers right before its first step.
        """
        state, process = checkpoint.state, checkpoint.state["ranks"][rank]
        self.position = Position(**state["position"])
        self.position.set_loss(process["loss"], process["seen"])
        self.result = Fit.restored(self.result.model, state["fit"], steps=self.position.steps, seconds=state["elapsed"])
        self.frozen.restore_notes(state["fit"]["notes"])
        for number, epoch in enumerate(state["best"]):
            self.best.offer(checkpoint.tensors[f"best-{number}"], tuple(epoch["scores"]), epoch["epoch"])
