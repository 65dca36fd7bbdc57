"""An earlier run in the folder of a run: kept aside until the run that replaces it is finished."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_transfer.checkpoints.files import PREFIX

EARLIER_RUN = ".earlier-run"
# Its name while files are moved into it or out of it.
MOVING = ".earlier-run-moving"


@dataclass(frozen=True)
class EarlierRun:
    """The earlier run in a folder, aside or not. One process at a time may change the folder: it holds the lock.

    Each step is one rename, in an order in which a killed process leaves nothing that `settle` cannot put right.

    Args:
        folder: of the run.
        settings: the file of its settings, which is never missing.
        results: the file that marks a finished run.
        names: the other files and folders that a run writes.
        model: that of them which has the model.
        checkpoints: that of them which has the checkpoints.
    """

    folder: Path
    settings: str
    results: str
    names: Sequence[str]
    model: str
    checkpoints: str

    @property
    def aside(self) -> Path:
        """Where it is kept."""
        return self.folder / EARLIER_RUN

    @property
    def moving(self) -> Path:
        """Where it is while files are moved."""
        return self.folder / MOVING

    def present(self) -> list[Path]:
        """The files and folders of a run that lie in the folder, the results first; not those that are aside."""
        return [path for name in (self.results, *self.names) if is_there(path := self.folder / name)]

    def move_aside(self) -> str:
        """Move the run in the folder aside; a sentence if there was one.

        If one is aside already, the run in the folder never finished: it is removed, and the one aside stays.
        """
        present = self.present()
        if is_there(self.aside) or not present:
            self._remove(present)
            return ""
        moving = self.moving
        moving.mkdir()
        try:
            shutil.copy2(self.folder / self.settings, moving)
            for path in present:
                path.rename(moving / path.name)
        except OSError:
            self._bring_back(moving)
            raise
        moving.rename(self.aside)
        return f"The earlier run is kept in {self.aside} until this one is finished."

    def remove_unfinished(self) -> None:
        """Remove what an unfinished run has left, except for its checkpoints."""
        self._remove([path for path in self.present() if path.name != self.checkpoints])

    def settle(self) -> str:
        """Put the folder right at the beginning and at the end of a run, whatever happened to the run before.

        An earlier run that is aside is removed if the later one is finished. It is brought back if the later one has
        neither a checkpoint nor a model. Otherwise it stays.

        Returns:
            A sentence on what was done; empty if there is no earlier run.
        """
        moving = self.moving
        if is_there(moving):
            # A process was killed while it moved files: the later run had not begun.
            self._bring_back(moving)
            return f"The earlier run in {self.folder} was being replaced when a process was killed: it is back."
        if not is_there(self.aside):
            return ""
        if (self.folder / self.results).is_file():
            # Network disks keep files that are still open: the next run removes them.
            shutil.rmtree(self.aside, ignore_errors=True)
            return f"The earlier run that this one has replaced was removed from {self.folder}."
        if self._has_something():
            return (
                f"The run that replaces it is not finished: the earlier run is kept in {self.aside} until then. To "
                f"keep it for good, move it to another folder: mv {self.aside} ANOTHER_FOLDER"
            )
        self._remove(self.present())
        self.aside.rename(moving)
        self._bring_back(moving)
        return f"The run that was to replace the earlier one in {self.folder} left nothing: the earlier one is back."

    def _has_something(self) -> bool:
        """Whether the later run has something that would be lost."""
        return any((self.folder / self.checkpoints).glob(f"{PREFIX}*")) or (self.folder / self.model).is_dir()

    def _bring_back(self, moving: Path) -> None:
        """Move everything back: the settings first and the results last, which say that all the rest is there."""
        first_and_last = {self.settings: 0, self.results: 2}
        for path in sorted(moving.iterdir(), key=lambda path: first_and_last.get(path.name, 1)):
            path.replace(self.folder / path.name)
        moving.rmdir()

    @staticmethod
    def _remove(paths: Sequence[Path]) -> None:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_there(path: Path) -> bool:
    """Whether there is a file, a folder or a link of this name, even one that leads nowhere."""
    return path.is_symlink() or path.exists()
