"""Checkpoints on disk: complete or absent, verified by hashes before they are read, the last one never deleted."""

import errno
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from hf_transfer.checkpoints.files import PREFIX, free_bytes, in_units
from hf_transfer.data.complete_files import put
from hf_transfer.errors import user_error

# Increment when the checkpoint format changes.
FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"
RUN_FILE = "run.json"
Tensors = dict[str, Tensor]


class BrokenCheckpointError(Exception):
    """A checkpoint is damaged; the message names the file and what is wrong with it."""


class OtherFormatError(BrokenCheckpointError):
    """A checkpoint is undamaged, but has a format that this version cannot read."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose files have been verified.

    Attributes:
        folder: its folder.
        step: optimizer steps taken before it was written.
        state: everything but tensors.
    """

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> Tensors:
        """The tensors of one of its files; none if there is no such file."""
        path = self.folder / f"{name}.safetensors"
        return safetensors.torch.load_file(path) if path.is_file() else {}


class Checkpoints:
    """The checkpoints of one run, in one folder; one process writes them.

    A checkpoint is written to a temporary folder: tensors, state, and finally a manifest with the size and the SHA-256
    of every file. After all files are synced to disk, the folder is renamed. Only then older checkpoints are removed,
    and at least one of them stays. So neither a kill nor a power failure destroys the last complete checkpoint.

    Args:
        folder: the folder of the checkpoints.
        keep: how many stay; at least 2, since the newest may turn out to be damaged.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        assert keep >= 2, "the newest may turn out to be damaged"
        self.folder, self.keep = folder, keep
        # Decisions of a new run that has not saved anything yet; None once they are in the file.
        self._unsaved: dict[str, Any] | None = None
        # A thread may write a checkpoint while the run makes decisions.
        self._lock = threading.RLock()

    @cached_property
    def run(self) -> str:
        """The name of the run, by which its checkpoints differ from those of another run in the same folder.

        If its file was lost, it is the run of the checkpoint with the most steps.
        """
        remembered = self.remembered().get("run")
        if isinstance(remembered, str) and remembered:
            return remembered
        known = (run for folder in reversed(self._by_step()) if (run := _run_of(folder)))
        name = next(known, uuid.uuid4().hex)
        self.remember("run", name)
        return name

    def begin(self, **remembered: Any) -> None:
        """Start another run with these decisions; until it first saves, the folder stays that of the earlier run."""
        self.run = uuid.uuid4().hex
        self._unsaved = {**remembered, "run": self.run}

    def remembered(self) -> dict[str, Any]:
        """Decisions of this run, to which it must keep when it is resumed."""
        if self._unsaved is not None:
            return dict(self._unsaved)
        try:
            content = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))
        except (ValueError, OSError):
            # It is missing or damaged.
            content = {}
        return content if isinstance(content, dict) else {}

    def remember(self, name: str, value: Any) -> None:
        """Remember a decision."""
        with self._lock:
            content = {**self.remembered(), name: value}
            if self._unsaved is None:
                self._write_run(content)
            else:
                self._unsaved = content

    def _write_run(self, content: Mapping[str, Any]) -> None:
        with _disk_errors_explained(self.folder, len(repr(content))):
            self.folder.mkdir(parents=True, exist_ok=True)
            put(self.folder / RUN_FILE, (json.dumps(content, indent=2) + "\n").encode())
            _sync(self.folder / RUN_FILE, self.folder)

    def save(self, step: int, files: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, and then remove the oldest ones.

        Args:
            step: optimizer steps taken so far.
            files: tensors by file and name.
            state: everything else, as JSON.

        Raises:
            UserError: the disk is full, or the folder cannot be written to; earlier checkpoints are not changed.
        """
        final = self.folder / f"{PREFIX}{step:08d}"
        if _run_of(final) == self.run:
            # Runs repeat exactly: a second checkpoint after the same step has the same weights.
            return final
        partial = self.folder / f".partial-{step}-{uuid.uuid4().hex[:8]}"
        needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        with _disk_errors_explained(self.folder, needed):
            try:
                partial.mkdir(parents=True)
                for name, tensors in files.items():
                    if tensors:
                        safetensors.torch.save_file(tensors, partial / f"{name}.safetensors")
                _write(partial / STATE, state)
                _write(partial / MANIFEST, self._manifest(step, partial))
                _sync(*partial.iterdir(), partial)
                if final.exists():
                    # It is damaged, or of another run. A rename cannot replace a folder that has files.
                    self._discard(final)
                partial.rename(final)
                _sync(self.folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            with self._lock:
                if self._unsaved is not None:
                    self._write_run(self._unsaved)
                    self._unsaved = None
            self._rotate(final)
        return final

    def refuse_without_room(self, size: int) -> None:
        """Before training: raise an error if there is no room for a checkpoint of so many bytes.

        Raises:
            UserError: there is too little room.
        """
        if size > (free := free_bytes(self.folder)):
            raise user_error(
                expected=f"room for a checkpoint of about {in_units(size)} in {self.folder}",
                found=f"{in_units(free)} free",
                do="make room, name another --output_dir, or set --save_steps 0 to train without checkpoints",
            )

    def newest(self) -> tuple[Saved | None, list[str]]:
        """The undamaged checkpoint with the most steps, and a sentence on each damaged one, which is renamed.

        Raises:
            UserError: it has the format of another version.
        """
        notes: list[str] = []
        for folder in reversed(self.folders()):
            try:
                return self.read(folder), notes
            except OtherFormatError as reason:
                raise user_error(
                    expected=f"a checkpoint that this version can read in {folder}",
                    found=str(reason),
                    do="resume with the version that wrote it, or start again with --no_resume",
                ) from reason
            except BrokenCheckpointError as reason:
                aside = folder.with_name(f"broken-{folder.name}-{uuid.uuid4().hex[:8]}")
                notes.append(f"Checkpoint {folder.name} is damaged ({reason}); renamed to {aside.name}.")
                folder.rename(aside)
        return None, notes

    def read(self, folder: Path) -> Saved:
        """Read a checkpoint, after comparing all its files with its manifest.

        Raises:
            BrokenCheckpointError: a file is missing or damaged.
        """
        manifest = _manifest_of(folder)
        try:
            for name, expected in manifest["files"].items():
                _verify(folder / name, expected["bytes"], expected["sha256"])
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        except OSError as error:
            raise BrokenCheckpointError(str(error)) from error
        return Saved(folder, manifest["step"], state)

    def sweep(self) -> None:
        """Delete the unfinished and half-deleted checkpoints of killed processes."""
        for remains in [*self.folder.glob(".partial-*"), *self.folder.glob(".deleted-*")]:
            shutil.rmtree(remains, ignore_errors=True)

    def _manifest(self, step: int, folder: Path) -> dict[str, Any]:
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())
        }
        return _signed({"format": FORMAT, "run": self.run, "step": step, "files": files})

    def folders(self) -> list[Path]:
        """Folders of this run's checkpoints by step; not by time, since clocks may be wrong.

        Damaged ones are among them: their run is unknown, and `newest` reports them.
        """
        return [folder for folder in self._by_step() if _run_of(folder) in (None, self.run)]

    def _by_step(self) -> list[Path]:
        return sorted((folder for folder in self.folder.glob(f"{PREFIX}*") if _step_of(folder) >= 0), key=_step_of)

    def _rotate(self, newest: Path) -> None:
        """Remove the oldest undamaged ones; damaged ones do not count, and the newest stays whatever its step."""
        older = [folder for folder in self._by_step() if _run_of(folder) == self.run and folder != newest]
        for folder in older[: 1 - self.keep]:
            self._discard(folder)

    def _discard(self, folder: Path) -> None:
        """Delete a checkpoint. It is renamed first: after a kill its remains are not mistaken for a checkpoint."""
        aside = folder.with_name(f".deleted-{folder.name}-{uuid.uuid4().hex[:8]}")
        folder.rename(aside)
        # Network disks keep files that are still open; `sweep` of the next run deletes them.
        shutil.rmtree(aside, ignore_errors=True)


def in_background(work: Callable[[], object]) -> Future[object]:
    """Do some work in a thread, which ends with it; the result of the future is awaited, and raises its error."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
    try:
        return executor.submit(work)
    finally:
        # Also if an error of a loader worker comes while the thread starts: it would wait for work for ever.
        executor.shutdown(wait=False)


def _step_of(folder: Path) -> int:
    """The number of steps in the name of a checkpoint's folder; -1 if it has another name."""
    step = folder.name.removeprefix(PREFIX)
    return int(step) if folder.is_dir() and folder.name != step and step.isdecimal() else -1


def _manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        BrokenCheckpointError: it is missing or damaged, or of another version.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        intact = manifest == _signed({key: manifest[key] for key in ("format", "run", "step", "files")})
        # A name with a folder in it could lead out of the checkpoint.
        safe = all(Path(name).name == name for name in manifest["files"])
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BrokenCheckpointError(f"{MANIFEST} is missing or cannot be read") from error
    if not intact or not safe or _step_of(folder) not in (-1, manifest["step"]):
        raise BrokenCheckpointError(f"{MANIFEST} has other content than was written")
    if manifest["format"] != FORMAT:
        raise OtherFormatError(f"it has format {manifest['format']}, and this version reads {FORMAT}")
    return manifest


def _run_of(folder: Path) -> str | None:
    """The run of a checkpoint; None if its manifest is missing or damaged, or of another version."""
    try:
        return str(_manifest_of(folder)["run"])
    except BrokenCheckpointError:
        return None


def _signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with its own hash."""
    text = json.dumps(manifest, sort_keys=True)
    return {**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _write(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, size: int, sha256: str) -> None:
    """Raise an error if a file is not as its manifest says."""
    if not path.is_file():
        raise BrokenCheckpointError(f"{path.name} is missing")
    if path.stat().st_size != size:
        raise BrokenCheckpointError(f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}")
    if _sha256(path) != sha256:
        raise BrokenCheckpointError(f"{path.name} has other content than was written")


def _sync(*paths: Path) -> None:
    """Wait until the content of files, and the names in folders, are written to the disk itself."""
    for path in paths:
        if path.is_dir() and os.name == "nt":
            # Windows cannot open a folder.
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            # Some network disks cannot sync folders.
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(handle)


@contextmanager
def _disk_errors_explained(folder: Path, needed: int) -> Iterator[None]:
    """Turn errors of the disk into a `UserError` that says what to do."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise user_error(
            expected=f"room for a checkpoint of {in_units(needed)} in {folder}",
            found=f"{error}; {in_units(free_bytes(folder))} are free",
            do="make room, or set --save_steps 0 to train without checkpoints; earlier checkpoints are not changed",
        ) from error
