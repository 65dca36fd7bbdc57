"""A run that goes on where an earlier process left it: what a checkpoint holds of a run, and how a run takes it up."""

import copy
import json
import random
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn

from hf_transfer.config import RunConfig, UserError, mistake
from hf_transfer.data.inputs import Loaders
from hf_transfer.training.averaging import BestCheckpoints
from hf_transfer.training.checkpoint import BrokenCheckpointError, Checkpoints, Saved, Tensors, Writer
from hf_transfer.training.frozen import FrozenPrefix
from hf_transfer.training.progress import Fit, Position
from hf_transfer.training.recording import identity
from hf_transfer.training.sharding import is_sharded
from hf_transfer.training.steps import Steps
from hf_transfer.versions import versions

FOLDER = "checkpoints"
# Of a run that went on from a checkpoint it was given: which.
BEGAN_FROM = "began from"
# Of what changes, in a checkpoint: weights, two moments, the best epoch.
COPIES = 4
# Without --save_steps: so many seconds apart, and further where a save holds training up for longer than this share.
SECONDS_BETWEEN = 60.0
SHARE_OF_TIME = 0.05
# How much of it writing is taken to need, until it is known.
SHARE_OF_WRITING = 0.1
# A checkpoint is refused if one of these differs; what else differs can be allowed.
BINDING = ("settings", "data", "frozen weights", "processes")


@dataclass
class Course:
    """A run while it goes on.

    Attributes:
        position: where it stands.
        result: what it has come to.
        steps: moments, averages, rates.
        frozen: what is out of the model at the moment.
        best: the weights of the best epochs.
        changing: names of the parameters and buffers that it can change.
    """

    position: Position
    result: Fit
    steps: Steps
    frozen: FrozenPrefix
    best: BestCheckpoints
    changing: Set[str]


@dataclass(frozen=True)
class Taken:
    """What was read of a checkpoint, on every process."""

    state: dict[str, Any]
    files: dict[str, Tensors]


class Kept(NamedTuple):
    """What there is to go back to, in a sentence, and whether the run has been saved as it stands."""

    sentence: str
    saved: bool


class Resuming:
    """Saves what a run has come to, and takes up what an earlier process has saved.

    Args:
        model: classifier, not wrapped, as it was loaded and prepared.
        changing: names of the parameters and buffers that the run can change.
        loaders: the batches of the run.
        config: settings: where checkpoints lie, and how often they are written.
        accelerator: the processes; the main one reads and writes.
    """

    def __init__(
        self, model: nn.Module, changing: Set[str], loaders: Loaders, config: RunConfig, accelerator: Accelerator
    ) -> None:
        self._model, self._changing, self._loaders = model, changing, loaders
        self._config, self._accelerator = config, accelerator
        self.checkpoints = Checkpoints(Path(config.output_dir) / FOLDER, config.save_total_limit)
        self._started = self._last = time.perf_counter()
        self._pause, self._writing = 0.0, SHARE_OF_WRITING * SECONDS_BETWEEN
        self._writer: Writer | None = None
        self._taken: Taken | None = None

    @property
    def decisions(self) -> Checkpoints | None:
        """Where decisions are remembered; None if nothing is to be written."""
        return None if self._config.save_steps == 0 else self.checkpoints

    @property
    def files(self) -> dict[str, Tensors] | None:
        """Tensors of the checkpoint that was taken up, until the run has gone on from it."""
        return None if self._taken is None else self._taken.files

    def take_up(self, course: Course) -> None:
        """Move a run to where its newest checkpoint has it, with its weights, if there is one.

        The optimizer and the random numbers follow when its stage begins.

        Raises:
            UserError: the checkpoint that was asked for is damaged, or it belongs to another run than this.
        """
        taken = self._shared(self._read() if self._accelerator.is_main_process else None)
        if taken is None:
            return
        state, own = taken.state, taken.state["ranks"][self._accelerator.process_index]
        vars(course.position).update({**state["position"], "loss": own["loss"], "seen": own["seen"]})
        # What is said of frozen layers from now on comes after what was said then.
        course.result.notes[:] = state["fit"]["notes"]
        vars(course.result).update(copy.deepcopy(state["fit"]) | {"notes": course.result.notes})
        course.result.resumed.append(course.position.steps)
        course.result.earlier_seconds = state["elapsed"]
        for number, kept in enumerate(state["best"]):
            course.best.offer(taken.files[f"best-{number}"], tuple(kept["scores"]), kept["epoch"])
        self._model.load_state_dict(taken.files["model"], strict=False)
        self._taken = taken
        self._accelerator.print(f"Going on after {course.position.steps:,} steps, in epoch {course.result.epochs + 1}.")

    def restore_random_numbers(self) -> None:
        """Let dropout go on as if the run had not been interrupted; the last thing before a step."""
        if self._taken is None:
            return
        rank = self._accelerator.process_index
        own, random_numbers = self._taken.state["ranks"][rank], self._taken.files["random"]
        version, numbers, gauss = own["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = own["numpy"]
        np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(random_numbers[f"cpu.{rank}"])
        if f"cuda.{rank}" in random_numbers:
            torch.cuda.set_rng_state(random_numbers[f"cuda.{rank}"], self._accelerator.device)
        if f"mps.{rank}" in random_numbers:
            torch.mps.set_rng_state(random_numbers[f"mps.{rank}"])
        if self._accelerator.scaler is not None and self._taken.state["scaler"]:
            self._accelerator.scaler.load_state_dict(self._taken.state["scaler"])
        self._taken = None

    def due(self, steps: int) -> bool:
        """Whether it is time to save, after so many steps; the main process knows."""
        if self._config.save_steps is not None:
            return self._config.save_steps > 0 and steps % self._config.save_steps == 0
        interval = max(SECONDS_BETWEEN, self._pause / SHARE_OF_TIME)
        # What was done since a copy was taken is safe only when the next one has been written: it is begun in time.
        return time.perf_counter() - self._last >= interval - min(self._writing, interval / 2)

    def save_if_due(self, course: Course) -> None:
        """Save between two stages, if it is time to."""
        if agreed(self._accelerator, self._accelerator.is_main_process and self.due(course.position.steps))[0]:
            self.save(course)

    def save(self, course: Course) -> None:
        """Copy the run as it stands; the copy is written while the run goes on. All processes call it together.

        With --save_steps the run waits for it: no more than so many steps are ever to be lost.

        Raises:
            UserError: this checkpoint or the one before it could not be written.
        """
        if self._config.save_steps == 0:
            return
        started = time.perf_counter()
        ranks: list[dict[str, Any]] = gather_object([_of_this_process(course.position, self._accelerator)])
        # By all together: what the processes share out among them is gathered.
        course.steps.gather()
        contents = self._files(course, ranks)
        if self._accelerator.is_main_process:
            self.wait()
            files = {name: _copied(tensors) for name, tensors in contents.items()}
            for rank in ranks:
                rank.pop("generators")
            state = copy.deepcopy(self._state(course, ranks))
            steps = course.position.steps
            self._writer = Writer(lambda: self._write(steps, files, state))
            if self._config.save_steps is not None:
                self.wait()
        self._last = time.perf_counter()
        self._pause = self._last - started

    def _write(self, steps: int, files: Mapping[str, Tensors], state: dict[str, Any]) -> None:
        started = time.perf_counter()
        self.checkpoints.save(steps, files, state)
        self._writing = time.perf_counter() - started

    def wait(self) -> None:
        """Until what was copied has been written.

        Raises:
            UserError: it could not be.
        """
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.result()

    def kept(self) -> Kept:
        """What there is to go back to, when all has been written; the main process knows."""
        if not self._accelerator.is_main_process:
            return Kept("", saved=False)
        failed = ""
        try:
            self.wait()
        except UserError as error:
            # An error is on its way already: this one must not take its place.
            failed = f" (the last one could not be: {' '.join(str(error).split())})"
        newest = self.checkpoints.own()[-1:]
        if not newest:
            return Kept(f"no checkpoint had been written{failed}", saved=False)
        return Kept(f"{newest[0]} is kept{failed}", saved=not failed)

    def _files(self, course: Course, ranks: Sequence[dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
        generators = {
            f"{kind}.{number}": state for number, rank in enumerate(ranks) for kind, state in rank["generators"].items()
        }
        best = {f"best-{number}": dict(kept.weights) for number, kept in enumerate(course.best.candidates)}
        moving = {name: dict(tensors) for name, tensors in course.steps.files().items()}
        return {"model": course.frozen.state_of(course.changing), "random": generators, **moving, **best}

    def _state(self, course: Course, ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        return {
            "position": asdict(course.position),
            "fit": course.result.numbers(),
            "best": [{"scores": kept.scores, "epoch": kept.epoch} for kept in course.best.candidates],
            "ranks": ranks,
            "scaler": scaler.state_dict() if scaler is not None else {},
            "elapsed": course.result.earlier_seconds + time.perf_counter() - self._started,
            "run": self._identity,
            "remembered": self._decisions_made(),
        }

    def _decisions_made(self) -> dict[str, Any]:
        return {name: value for name, value in self.checkpoints.remembered().items() if name not in ("run", BEGAN_FROM)}

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What a run must share with a checkpoint to go on from it. Known only while no layer is out of the model."""
        settings = self._config.resolved().items()
        own = identity(self._model, (), self._accelerator, self._changing)
        return {
            "settings": {name: value for name, value in settings if name not in self._config.without_effect},
            "data": {split: self._loaders.fingerprint(split, None) for split in ("train", "validation")},
            "frozen weights": [own.pop("weights"), own.pop("settings")],
            "processes": self._accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "accelerator": _accelerator_name(self._accelerator),
            **own,
        }

    def _read(self) -> Taken | None:
        """On the main process: the checkpoint to go on from, after it has been compared with this run."""
        if self._config.save_steps == 0 and not self._config.resume_from_checkpoint:
            return None
        self.checkpoints.sweep()
        asked = self._config.resume_from_checkpoint and str(Path(self._config.resume_from_checkpoint).resolve())
        saved = None
        # A run that was begun from there, and then interrupted, goes on when its command is repeated.
        if not asked or self.checkpoints.remembered().get(BEGAN_FROM) == asked:
            saved, notes = self.checkpoints.newest()
            for note in notes:
                print(note)
        if saved is None and asked:
            saved = self._asked_for(Path(asked))
            self._compare(saved)
            self.checkpoints.begin(**saved.state["remembered"], **{BEGAN_FROM: asked})
        elif saved is None:
            # Both now: later some layers may be out of the model, and decisions be made while a checkpoint is written.
            assert self._identity
            self.checkpoints.refuse_without_room(COPIES * size_of(self._model, self._changing))
            assert self.checkpoints.run
            return None
        else:
            self._compare(saved)
        names = [path.stem for path in saved.folder.glob("*.safetensors")]
        empty: dict[str, Tensors] = {"optimizer": {}, "average": {}, "start": {}}
        return Taken(saved.state, empty | {name: saved.tensors(name) for name in names})

    def _asked_for(self, folder: Path) -> Saved:
        try:
            return self.checkpoints.read(folder)
        except BrokenCheckpointError as reason:
            raise mistake(
                expected=f"a whole checkpoint in --resume_from_checkpoint {folder}",
                found=str(reason),
                do="name another one, or leave it out: the newest whole one in --output_dir is taken",
            ) from reason

    def _compare(self, saved: Saved) -> None:
        there, here = saved.state["run"], json.loads(json.dumps(self._identity))
        differing = [name for name in here if there.get(name) != here[name]]
        binding = [name for name in differing if name in BINDING]
        if not differing or (self._config.allow_mismatch and not binding):
            return
        shown = "; ".join(line for name in differing for line in _difference(name, there.get(name), here[name]))
        raise mistake(
            expected=f"the run that {saved.folder} was saved in",
            found=f"another (there -> here): {shown}",
            do="go on as it began, or begin anew with --no_resume"
            if binding
            else "go on as it began, or add --allow_mismatch: results may then differ in rounding",
        )

    def _shared(self, taken: Taken | None) -> Taken | None:
        """What the main process has read, on all of them: the others may have no access to its disk."""
        if self._accelerator.num_processes == 1:
            return taken
        told: list[Any] = [None]
        if taken is not None:
            forms = {
                name: {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
                for name, tensors in taken.files.items()
            }
            told = [(taken.state, forms)]
        broadcast_object_list(told)
        if told[0] is None:
            return None
        state, forms = told[0]
        device = self._accelerator.device

        def received(name: str, key: str, form: tuple[tuple[int, ...], torch.dtype]) -> Tensor:
            own = taken.files[name][key] if taken is not None else torch.empty(form[0], dtype=form[1])
            there: Tensor = broadcast(own.to(device))
            return there.cpu()

        files = {
            name: {key: received(name, key, form) for key, form in tensors.items()} for name, tensors in forms.items()
        }
        return Taken(state, files)


def agreed(accelerator: Accelerator, *numbers: int) -> list[int]:
    """Of each of some numbers the largest on any process."""
    if accelerator.num_processes == 1:
        return list(numbers)
    everyone: Tensor = accelerator.gather(torch.tensor([numbers], device=accelerator.device))
    largest: list[int] = everyone.amax(0).tolist()
    return largest


def size_of(model: nn.Module, names: Set[str]) -> int:
    """Bytes of some parameters and buffers."""
    return sum(value.nbytes for name, value in model.state_dict().items() if name in names)


def _of_this_process(position: Position, accelerator: Accelerator) -> dict[str, Any]:
    """What the processes do not share."""
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, place, has_gauss, gauss = numpy_state
    generators = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    if accelerator.device.type == "mps":
        generators["mps"] = torch.mps.get_rng_state()
    return {
        "loss": position.loss,
        "seen": position.seen,
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), place, has_gauss, gauss),
        "generators": generators,
    }


def _accelerator_name(accelerator: Accelerator) -> str:
    """GPUs of another kind round otherwise, and so do sums over parts of a gradient."""
    name = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else "none"
    return f"{name}, weights shared out" if is_sharded(accelerator) else name


def _copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies in the host's memory, in a layout that every file format has."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _difference(name: str, there: Any, here: Any) -> list[str]:
    """In words, short: settings one by one, hashes not at all."""
    if isinstance(there, dict) and isinstance(here, dict) and name in ("settings", "versions"):
        return [f"{key}: {there.get(key)} -> {value}" for key, value in here.items() if there.get(key) != value]
    if name in ("data", "frozen weights", "settings"):
        return [f"other {name}"]
    return [f"{name}: {there} -> {here}"]
