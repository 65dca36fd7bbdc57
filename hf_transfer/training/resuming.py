"""The state of a run, saving it in checkpoints, and resuming it from one."""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object, get_data_structure, recursively_apply
from accelerate.utils.operations import is_tensor_information
from torch import Tensor, nn

from hf_transfer.checkpoints.checkpoint import STATE, BrokenCheckpointError, Checkpoints, Saved, Tensors, in_background
from hf_transfer.errors import UserError, user_error
from hf_transfer.frozen.prefix import FrozenPrefix
from hf_transfer.settings.output import CHECKPOINTS_FOLDER, CheckpointSettings
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.predictions import Ranking
from hf_transfer.training.averaging import BestEpochs
from hf_transfer.training.identity import Identity, refuse_other_run
from hf_transfer.training.progress import Fit, Position
from hf_transfer.training.random_numbers import random_state, set_random_state
from hf_transfer.training.steps import Steps

FOLDER = CHECKPOINTS_FOLDER
HELD_OUT = "held-out"
# In the file of a run that resumed from a checkpoint that the user named: which one.
BEGAN_FROM = "began from"
# A checkpoint holds about so many copies of the parameters that change: weights, two moments, the best epoch.
COPIES = 4
# Without --save_steps: seconds between checkpoints, and the largest share of the time that saving may pause training.
SECONDS_BETWEEN = 60.0
SHARE_OF_TIME = 0.05
# The share of these seconds that writing is expected to take, until it has been measured.
SHARE_OF_WRITING = 0.1


class LoadedCheckpoint(NamedTuple):
    """A checkpoint that was read, on every process.

    Attributes:
        state: everything but tensors.
        tensors: by file and name.
        begins: whether the run begins with a checkpoint that the settings name, and was not interrupted.
    """

    state: Mapping[str, Any]
    tensors: Mapping[str, Tensors]
    begins: bool


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
        fit = {name: value for name, value in vars(self.result).items() if name not in ("model", "held_out")}
        return {
            "position": asdict(self.position),
            "fit": {**fit, "notes": self.frozen.notes},
            "best": [{"scores": epoch.scores, "epoch": epoch.epoch} for epoch in self.best.candidates],
        }

    def tensors(self) -> dict[str, Tensors]:
        """Tensors by file and name, for a checkpoint; not copies. All processes call it together."""
        best = {f"best-{number}": epoch.weights for number, epoch in enumerate(self.best.candidates)}
        # First, because it updates the model from its sharded copy.
        self.steps.gather()
        held_out = {} if self.result.held_out is None else {HELD_OUT: self.result.held_out}
        return {"model": self.frozen.state_of(self.changing), **self.steps.tensors(), **best, **held_out}

    def restore(self, checkpoint: LoadedCheckpoint, rank: int) -> None:
        """Continue from a checkpoint; the model has its weights already.

        Random numbers are restored right before the first step.
        """
        state, fit, process = checkpoint.state, checkpoint.state["fit"], checkpoint.state["ranks"][rank]
        self.position = Position(**{**state["position"], "loss": process["loss"], "seen": process["seen"]})
        self.result = replace(
            self.result, **{**fit, "earlier_seconds": state["elapsed"]}, held_out=checkpoint.tensors.get(HELD_OUT)
        )
        self.steps.restore(checkpoint.tensors)
        self.frozen.notes = fit["notes"]
        for number, epoch in enumerate(state["best"]):
            self.best.offer(checkpoint.tensors[f"best-{number}"], tuple(epoch["scores"]), epoch["epoch"])


class LastCheckpoint(NamedTuple):
    """The last checkpoint of a run that ends early.

    Attributes:
        sentence: which one it is, or that there is none.
        saved: whether it has the present state of the run.
    """

    sentence: str
    saved: bool


class Checkpointing:
    """Saves the state of a run, and resumes it.

    Args:
        model: classifier, not wrapped, as it was loaded and prepared.
        changing: names of the parameters and buffers that training can change.
        identity: returns what a checkpoint must share with this run; it is called while no layer is skipped.
        checkpoints: the checkpoints of the run.
        settings: how often they are written, and which one to resume from.
        accelerator: the processes; the main one reads and writes.
    """

    def __init__(
        self, model: nn.Module, changing: Set[str], identity: Callable[[], Identity], checkpoints: Checkpoints,
        settings: CheckpointSettings, accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self._model, self._changing, self._identity = model, changing, cache(identity)
        self._checkpoints, self._settings, self._accelerator = checkpoints, settings, accelerator
        self._started = self._last = time.perf_counter()
        self._pause, self._writing = 0.0, SHARE_OF_WRITING * SECONDS_BETWEEN
        self._writer: Future[object] | None = None
        self._loaded: LoadedCheckpoint | None = None

    def resume(self, state: RunState, stages: int) -> None:
        """Restore the state and the weights of a run from its newest checkpoint, if there is one.

        The random numbers follow when the stage begins. A run that begins with the end of another was not interrupted.

        Args:
            state: of a run that has not been trained yet.
            stages: how many it has.

        Raises:
            UserError: the checkpoint that the settings name is damaged, or a checkpoint belongs to another run.
        """
        loaded = self._shared(self._read() if self._accelerator.is_main_process else None)
        if loaded is None:
            return
        self._model.load_state_dict(loaded.tensors["model"], strict=False)
        state.restore(loaded, self._accelerator.process_index)
        self._loaded = loaded
        steps = state.position.steps
        if loaded.begins and state.position.stage == stages:
            self._accelerator.print(f"Training is complete: {steps:,} steps, from a checkpoint.")
            return
        state.result.resumed = [*state.result.resumed, steps]
        self._accelerator.print(f"Resuming after {steps:,} steps, in epoch {state.result.epochs + 1}.")

    def restore_random_numbers(self) -> None:
        """Continue the random numbers of a run that is resumed; call it right before its first step."""
        if self._loaded is None:
            return
        state, generators = self._loaded.state, self._loaded.tensors["random"].items()
        rank, scaler = self._accelerator.process_index, self._accelerator.scaler
        of_process = {name.removesuffix(f".{rank}"): value for name, value in generators if name.endswith(f".{rank}")}
        set_random_state(state["ranks"][rank], of_process)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        self._loaded = None

    def due_after_count(self, steps: int) -> bool:
        """Whether --save_steps asks for a checkpoint after so many steps; all processes know."""
        every = self._settings.save_steps
        return every is not None and every > 0 and steps % every == 0

    def due(self, steps: int) -> bool:
        """Whether to save after so many steps; only the main process knows."""
        if self._settings.save_steps is not None:
            return self.due_after_count(steps)
        interval = max(SECONDS_BETWEEN, self._pause / SHARE_OF_TIME)
        # Steps are safe only when the copy after them has been written: the copy is taken earlier by that time.
        return time.perf_counter() - self._last >= interval - min(self._writing, interval / 2)

    def save_if_due(self, state: RunState) -> None:
        """Save between two stages, if a checkpoint is due."""
        if largest_of_all(self._accelerator, self._accelerator.is_main_process and self.due(state.position.steps))[0]:
            self.save(state)

    def save(self, state: RunState) -> None:
        """Copy the state of the run, and write the copy in the background. All processes call it together.

        With --save_steps the run waits for the writing: no more than so many steps may be lost.

        Raises:
            UserError: this checkpoint or the one before it could not be written.
        """
        if self._settings.save_steps == 0:
            return
        started, rank = time.perf_counter(), self._accelerator.process_index
        plain, generators = random_state(self._accelerator.device)
        process = {**plain, "loss": state.position.loss, "seen": state.position.seen}
        named_generators = {f"{kind}.{rank}": generator for kind, generator in generators.items()}
        processes: list[tuple[dict[str, Any], Tensors]] = gather_object([(process, named_generators)])
        contents = state.tensors()
        if self._accelerator.is_main_process:
            self.wait()
            contents["random"] = {name: value for _, named in processes for name, value in named.items()}
            tensors = {name: copied(values) for name, values in contents.items()}
            numbers = copy.deepcopy(self._numbers(state, [numbers for numbers, _ in processes]))
            steps = state.position.steps
            self._writer = in_background(lambda: self._write(steps, tensors, numbers))
            if self._settings.save_steps is not None:
                self.wait()
        self._last = time.perf_counter()
        self._pause = self._last - started

    def _write(self, steps: int, tensors: Mapping[str, Tensors], numbers: dict[str, Any]) -> None:
        started = time.perf_counter()
        self._checkpoints.save(steps, tensors, numbers)
        self._writing = time.perf_counter() - started

    def wait(self) -> None:
        """Wait until the last copy has been written.

        Raises:
            UserError: it could not be written.
        """
        if self._writer is None:
            return
        writer = self._writer
        try:
            writer.result()
        finally:
            # Else an error of a loader worker has come meanwhile: whoever handles it waits for the copy again.
            if writer.done():
                self._writer = None

    def finish(self, state: RunState, *, save: bool) -> None:
        """Wait for the last copy; and, if wanted, save the finished state.

        Raises:
            UserError: it could not be written.
        """
        if save:
            self.save(state)
        self.wait()

    def last_checkpoint(self) -> LastCheckpoint:
        """The last checkpoint, after waiting until it is written; only the main process knows."""
        if not self._accelerator.is_main_process:
            return LastCheckpoint("", saved=False)
        failure = ""
        try:
            self.wait()
        except UserError as error:
            # The run ends with another error, which this one must not hide.
            failure = f" (the last one could not be written: {' '.join(str(error).split())})"
        newest = self._checkpoints.folders()[-1:]
        if not newest:
            return LastCheckpoint(f"no checkpoint had been written{failure}", saved=False)
        return LastCheckpoint(f"{newest[0]} is kept{failure}", saved=not failure)

    def _numbers(self, state: RunState, processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Everything but tensors."""
        scaler = self._accelerator.scaler
        decisions = self._checkpoints.remembered().items()
        return {
            **state.numbers(),
            "ranks": processes,
            "scaler": scaler.state_dict() if scaler is not None else {},
            "elapsed": state.result.earlier_seconds + time.perf_counter() - self._started,
            "run": self._identity(),
            "remembered": {name: value for name, value in decisions if name not in ("run", BEGAN_FROM)},
        }

    def _read(self) -> LoadedCheckpoint | None:
        """On the main process: the checkpoint to resume from, if it belongs to this run."""
        named = self._settings.resume_from_checkpoint
        if self._settings.save_steps == 0 and not named:
            return None
        self._checkpoints.sweep()
        named = named and str(Path(named).resolve())
        saved, begins = None, False
        # If a run that resumed from a named checkpoint is interrupted, the same command resumes from its newest one.
        if not named or self._checkpoints.remembered().get(BEGAN_FROM) == named:
            saved, notes = self._checkpoints.newest()
            for note in notes:
                print(note)
        if saved is None and named:
            saved, begins = self._named(Path(named)), True
        # Identity and name are found now: later some layers may be skipped, or a checkpoint is just being written.
        identity = self._identity()
        if saved is None:
            self._checkpoints.refuse_without_room(COPIES * size_of(self._model, self._changing))
            assert self._checkpoints.run
            return None
        refuse_other_run(saved.folder, saved.state["run"], identity, allow_mismatch=self._settings.allow_mismatch)
        if begins:
            self._checkpoints.begin(**saved.state["remembered"], **{BEGAN_FROM: named})
        names = [path.stem for path in saved.folder.glob("*.safetensors")]
        return LoadedCheckpoint(saved.state, {name: saved.tensors(name) for name in names}, begins)

    def _named(self, folder: Path) -> Saved:
        try:
            return self._checkpoints.read(folder)
        except BrokenCheckpointError as reason:
            raise user_error(
                expected=f"an intact checkpoint in --resume_from_checkpoint {folder}",
                found=str(reason),
                do="name another one, or leave it out to resume from the newest intact one in --output_dir",
            ) from reason

    def _shared(self, loaded: LoadedCheckpoint | None) -> LoadedCheckpoint | None:
        """What the main process has read, on all processes: the others may have no access to its disk."""
        if self._accelerator.num_processes == 1:
            return loaded
        (outline,) = broadcast_object_list([get_data_structure(loaded)])
        buffers = loaded or recursively_apply(_empty, outline, test_type=is_tensor_information)
        device = self._accelerator.device
        # One after the other: the device need not have room for all of them.
        shared: LoadedCheckpoint | None = recursively_apply(lambda value: broadcast(value.to(device)).cpu(), buffers)
        return shared


def checkpoints_of(config: RunConfig) -> Checkpoints:
    """The checkpoints of a run, in its folder."""
    return Checkpoints(Path(config.output.output_dir) / FOLDER, config.checkpoints.save_total_limit)


def remembered_in(folder: Path) -> dict[str, Any]:
    """Decisions of the run that wrote a checkpoint; none if it is damaged, which is an error when it is read."""
    try:
        return dict(json.loads((folder / STATE).read_text(encoding="utf-8"))["remembered"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def largest_of_all(accelerator: Accelerator, *numbers: int) -> list[int]:
    """For each number the largest value on any process."""
    if accelerator.num_processes == 1:
        return list(numbers)
    largest: list[int] = accelerator.reduce(torch.tensor(numbers, device=accelerator.device), "max").tolist()
    return largest


def _empty(outline: Any) -> Tensor:
    return torch.empty(outline.shape, dtype=outline.dtype)


def size_of(model: nn.Module, names: Set[str]) -> int:
    """Bytes of some parameters and buffers."""
    return sum(value.nbytes for name, value in model.state_dict().items() if name in names)


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies in host memory, in a layout that every file format supports."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
