"""Checkpoints on disk: each whole or absent, compared with its hashes before it is read, the last one never deleted."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
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

    @cached_property
    def run(self) -> str:
        """The name of the run: a checkpoint of another one, left in the same folder, is not taken for ours."""
        return str(self.remembered().get("run", "")) or self.begin()

    def begin(self) -> str:
        """Give the run a new name: what lies in the folder is another's from now on."""
        name = uuid.uuid4().hex
        self.remember("run", name)
        self.__dict__["run"] = name
        return name

    def remembered(self) -> dict[str, Any]:
        """What was decided in this run, and must be decided alike when it goes on."""
        path = self.folder / RUN_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (ValueError, OSError):
            found = {}
        return found if isinstance(found, dict) else {}

    def remember(self, name: str, value: Any) -> None:
        """Note a decision."""
        content = {**self.remembered(), name: value}
        with _refused_by_disk(self.folder, len(repr(content))):
            self.folder.mkdir(parents=True, exist_ok=True)
            put(self.folder / RUN_FILE, (json.dumps(content, indent=2) + "\n").encode())

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
                _on_disk(partial)
                if final.exists():
                    # Another run's: a folder cannot take another's place.
                    self._discard(final)
                partial.rename(final)
                _on_disk(self.folder, files=False)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            self._rotate()
        return final

    def newest(self) -> tuple[Saved | None, list[str]]:
        """The checkpoint with the most steps that is what was written, and what was found on the way, in sentences.

        A damaged one is set aside under another name.
        """
        notes: list[str] = []
        for folder in reversed(self.own()):
            try:
                return self.read(folder), notes
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
        for name, noted in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise BrokenCheckpointError(f"{name} is missing")
            if path.stat().st_size != noted["bytes"]:
                raise BrokenCheckpointError(f"{name} has {path.stat().st_size:,} bytes instead of {noted['bytes']:,}")
            if _sha256(path) != noted["sha256"]:
                raise BrokenCheckpointError(f"{name} has other content than was written")
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
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
            raise BrokenCheckpointError(f"it has format {manifest['format']}, and this version reads {FORMAT}")
        return dict(manifest)

    def own(self) -> list[Path]:
        """Folders of this run's checkpoints, by step; clocks may go wrong, and names may be those of another run."""
        folders = [folder for folder in self.folder.glob(f"{PREFIX}*") if _step_of(folder) >= 0]
        # Those that are damaged are named when they are read.
        return sorted((folder for folder in folders if self._is_own(folder, if_broken=True)), key=_step_of)

    def _is_own(self, folder: Path, *, if_broken: bool = False) -> bool:
        try:
            return bool(self._manifest_of(folder)["run"] == self.run)
        except BrokenCheckpointError:
            return if_broken

    def _rotate(self) -> None:
        for folder in self.own()[: -self.keep]:
            self._discard(folder)

    def _discard(self, folder: Path) -> None:
        """Delete a checkpoint; what is left of it after a kill is not taken for one."""
        aside = folder.with_name(f".deleted-{folder.name}-{uuid.uuid4().hex[:8]}")
        folder.rename(aside)
        shutil.rmtree(aside)


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


def _on_disk(folder: Path, *, files: bool = True) -> None:
    """Wait until the names in a folder, and the content of its files, are on the disk itself."""
    for path in [*(folder.iterdir() if files else ()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
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
