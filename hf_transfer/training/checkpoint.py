"""Checkpoints on disk: each whole or absent, compared with its hashes before it is read, the last one never deleted."""

import errno
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from hf_transfer.config import mistake
from hf_transfer.training.store import free_bytes, in_units, put

# To be raised whenever checkpoints of an older form must not be read.
FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
RUN_FILE = "run.json"
PREFIX = "checkpoint-"
Tensors = dict[str, Tensor]


class BrokenCheckpointError(Exception):
    """A checkpoint is not what was written; the message names the file and what is wrong with it."""


class OtherFormatError(BrokenCheckpointError):
    """A checkpoint is whole, but of a version that this one cannot read."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose files have been checked.

    Attributes:
        folder: where it lies.
        step: optimizer steps that lie behind it.
        state: everything but tensors.
    """

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> Tensors:
        """Those of one of its files, none if it has no such file."""
        path = self.folder / f"{name}.safetensors"
        return safetensors.torch.load_file(path) if path.is_file() else {}


class Checkpoints:
    """The checkpoints of one run, in one folder; one process writes.

    A checkpoint is written to one side: tensors, state, and at last a manifest with the size and the SHA-256 of every
    file. When all of it is on the disk itself, it gets its name. Only then are older ones removed, of which one at
    least stays. Neither a kill nor a loss of power leaves less than what was there before.

    Args:
        folder: where they lie.
        keep: how many stay; at least 2, since the newest may turn out to be damaged.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        assert keep >= 2, "the newest may turn out to be damaged"
        self.folder, self.keep = folder, keep
        # What is remembered of a run that has saved nothing yet; None once it is in the file.
        self._unsaved: dict[str, Any] | None = None
        # A checkpoint may be being written while the run goes on and decides.
        self._changing = threading.RLock()

    @cached_property
    def run(self) -> str:
        """The name of the run: a checkpoint of another one, left in the same folder, is not taken for ours.

        Where it is not known any more, it is that of the checkpoint with the most steps.
        """
        known = self.remembered().get("run")
        if isinstance(known, str) and known:
            return known
        name = self._run_of_newest() or uuid.uuid4().hex
        self.remember("run", name)
        return name

    def begin(self, **remembered: Any) -> None:
        """Be another run, with what it has decided; those in the folder stay what they were until it first saves."""
        self._unsaved = {**remembered, "run": uuid.uuid4().hex}
        self.__dict__["run"] = self._unsaved["run"]

    def remembered(self) -> dict[str, Any]:
        """What was decided in this run, and must be decided alike when it goes on."""
        if self._unsaved is not None:
            return dict(self._unsaved)
        path = self.folder / RUN_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (ValueError, OSError):
            found = {}
        return found if isinstance(found, dict) else {}

    def remember(self, name: str, value: Any) -> None:
        """Note a decision."""
        with self._changing:
            content = {**self.remembered(), name: value}
            if self._unsaved is None:
                self._write_run(content)
            else:
                self._unsaved = content

    def _write_run(self, content: Mapping[str, Any]) -> None:
        with _refused_by_disk(self.folder, len(repr(content))):
            self.folder.mkdir(parents=True, exist_ok=True)
            put(self.folder / RUN_FILE, (json.dumps(content, indent=2) + "\n").encode())
            _on_disk(self.folder / RUN_FILE, self.folder)

    def save(self, step: int, files: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, and then remove the oldest ones.

        Args:
            step: optimizer steps that lie behind it.
            files: tensors by file and name.
            state: everything else, as JSON has it.

        Raises:
            UserError: the disk is full, or the folder cannot be written to; earlier checkpoints are as they were.
        """
        final = self.folder / f"{PREFIX}{step:08d}"
        if self._is_own(final):
            # The run stands where it stood, but for what it would do again.
            return final
        partial = self.folder / f".partial-{step}-{uuid.uuid4().hex[:8]}"
        needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        with _refused_by_disk(self.folder, needed):
            try:
                partial.mkdir(parents=True)
                for name, tensors in files.items():
                    if tensors:
                        safetensors.torch.save_file(tensors, partial / f"{name}.safetensors")
                _write(partial / STATE, state)
                _write(partial / MANIFEST, self._manifest(step, partial))
                _on_disk(*partial.iterdir(), partial)
                if final.exists():
                    # Another run's: a folder cannot take another's place.
                    self._discard(final)
                partial.rename(final)
                _on_disk(self.folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            with self._changing:
                if self._unsaved is not None:
                    self._write_run(self._unsaved)
                    self._unsaved = None
            self._rotate(final)
        return final

    def refuse_without_room(self, size: int) -> None:
        """Before hours are spent: is there room for a checkpoint of so many bytes?

        Raises:
            UserError: there is none.
        """
        if size > (free := free_bytes(self.folder)):
            raise mistake(
                expected=f"room for a checkpoint of about {in_units(size)} in {self.folder}",
                found=f"{in_units(free)} free",
                do="make room, name another --output_dir, or set --save_steps 0 to go without checkpoints",
            )

    def newest(self) -> tuple[Saved | None, list[str]]:
        """The checkpoint with the most steps that is what was written, and what was found on the way, in sentences.

        A damaged one is set aside under another name.

        Raises:
            UserError: it was written by a version of another format.
        """
        notes: list[str] = []
        for folder in reversed(self.own()):
            try:
                return self.read(folder), notes
            except OtherFormatError as reason:
                raise mistake(
                    expected=f"a checkpoint that this version can read in {folder}",
                    found=str(reason),
                    do="go on with the version that wrote it, or begin anew with --no_resume",
                ) from reason
            except BrokenCheckpointError as reason:
                aside = folder.with_name(f"broken-{folder.name}-{uuid.uuid4().hex[:8]}")
                notes.append(f"Checkpoint {folder.name} is damaged ({reason}); set aside as {aside.name}.")
                folder.rename(aside)
        return None, notes

    def read(self, folder: Path) -> Saved:
        """A checkpoint, after all its files have been compared with its manifest.

        Raises:
            BrokenCheckpointError: something is missing, or is not what was written.
        """
        manifest = self._manifest_of(folder)
        try:
            for name, noted in manifest["files"].items():
                _compare(folder / name, noted["bytes"], noted["sha256"])
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        except OSError as error:
            raise BrokenCheckpointError(str(error)) from error
        return Saved(folder, manifest["step"], state)

    def sweep(self) -> None:
        """Remove what a killed process has left half written or half deleted."""
        for left in [*self.folder.glob(".partial-*"), *self.folder.glob(".deleted-*")]:
            shutil.rmtree(left, ignore_errors=True)

    def _manifest(self, step: int, folder: Path) -> dict[str, Any]:
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())
        }
        return _signed({"format": FORMAT, "run": self.run, "step": step, "files": files})

    def _manifest_of(self, folder: Path) -> dict[str, Any]:
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            whole = manifest == _signed({key: manifest[key] for key in ("format", "run", "step", "files")})
            plain = all(Path(name).name == name for name in manifest["files"])
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise BrokenCheckpointError(f"{MANIFEST} is missing or cannot be read") from error
        if not whole or not plain or _step_of(folder) not in (-1, manifest["step"]):
            raise BrokenCheckpointError(f"{MANIFEST} has other content than was written")
        if manifest["format"] != FORMAT:
            raise OtherFormatError(f"it has format {manifest['format']}, and this version reads {FORMAT}")
        return dict(manifest)

    def own(self) -> list[Path]:
        """Folders of this run's checkpoints, by step; clocks may go wrong, and names may be those of another run."""
        # Those that are damaged are named when they are read.
        return [folder for folder in self._by_step() if self._is_own(folder, if_broken=True)]

    def _by_step(self) -> list[Path]:
        return sorted((folder for folder in self.folder.glob(f"{PREFIX}*") if _step_of(folder) >= 0), key=_step_of)

    def _is_own(self, folder: Path, *, if_broken: bool = False) -> bool:
        try:
            return bool(self._manifest_of(folder)["run"] == self.run)
        except BrokenCheckpointError:
            return if_broken

    def _run_of_newest(self) -> str:
        for folder in reversed(self._by_step()):
            try:
                return str(self._manifest_of(folder)["run"])
            except BrokenCheckpointError:
                continue
        return ""

    def _rotate(self, newest: Path) -> None:
        """Remove the oldest whole ones; damaged ones do not count, and what has just been written stays."""
        whole = [folder for folder in self.own() if self._is_own(folder) and folder != newest]
        for folder in whole[: 1 - self.keep]:
            self._discard(folder)

    def _discard(self, folder: Path) -> None:
        """Delete a checkpoint; what is left of it after a kill is not taken for one."""
        aside = folder.with_name(f".deleted-{folder.name}-{uuid.uuid4().hex[:8]}")
        folder.rename(aside)
        # Some disks keep a file that is still open; the next run sweeps it up.
        shutil.rmtree(aside, ignore_errors=True)


class Writer:
    """Something that is done on the side, and whose error is not lost."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def result(self) -> None:
        """Wait until it is done.

        Raises:
            BaseException: whatever went wrong.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error


def _step_of(folder: Path) -> int:
    """The steps that a checkpoint's folder is named after; -1 if it is named otherwise."""
    step = folder.name.removeprefix(PREFIX)
    return int(step) if folder.is_dir() and folder.name != step and step.isdecimal() else -1


def _signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with a hash of itself."""
    text = json.dumps(manifest, sort_keys=True)
    return {**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _write(path: Path, content: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(path: Path, size: int, sha256: str) -> None:
    """Refuse a file that is not as the manifest has it."""
    if not path.is_file():
        raise BrokenCheckpointError(f"{path.name} is missing")
    if path.stat().st_size != size:
        raise BrokenCheckpointError(f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}")
    if _sha256(path) != sha256:
        raise BrokenCheckpointError(f"{path.name} has other content than was written")


def _on_disk(*paths: Path) -> None:
    """Wait until the content of files, and the names in folders, are on the disk itself."""
    for path in paths:
        if path.is_dir() and os.name == "nt":
            # There, a folder cannot be opened.
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            # Some network disks know no such thing for folders.
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(handle)


@contextmanager
def _refused_by_disk(folder: Path, needed: int) -> Iterator[None]:
    """Turns what the disk refuses into an error that says what to do."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise mistake(
            expected=f"room for a checkpoint of {in_units(needed)} in {folder}",
            found=f"{error}; {in_units(free_bytes(folder))} are free",
            do="make room, or set --save_steps 0 to go without checkpoints; the earlier ones are as they were",
        ) from error
