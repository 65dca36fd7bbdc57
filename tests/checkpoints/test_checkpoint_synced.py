"""A checkpoint has been written to the disk itself before it gets its name."""

import errno
import os
import sys
from pathlib import Path

import pytest

from hf_transfer.checkpoints.checkpoint import RUN_FILE, Checkpoints
from hf_transfer.errors import UserError
from tests.checkpoints.test_checkpoint import FILES, assert_saved, content, save


def test_a_disk_that_cannot_sync_folders_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error of the disk is an error of the run."""
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid argument")))
    assert_saved(save(tmp_path / "a", 1).newest()[0], 1)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(UserError, match="Input/output error"):
        save(tmp_path / "b", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the test reads /proc/self/fd")
def test_files_are_synced_before_the_checkpoint_is_renamed_and_its_folder_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power failure would leave empty files. No handle stays open."""
    handles, sync = Path("/proc/self/fd"), os.fsync
    synced: list[Path] = []

    def record(handle: int) -> None:
        synced.append((handles / str(handle)).readlink())
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.begin()
    checkpoints.save(1, content(1), {"note": "step 1"})
    opened = [os.path.realpath(handle) for handle in handles.iterdir()]
    assert not [path for path in opened if path.startswith(str(tmp_path))]
    staged = {path for path in synced if ".partial" in str(path)}
    assert {path.name for path in staged if path.suffix} == set(FILES)
    (partial,) = {path for path in staged if not path.suffix}
    assert {path.parent for path in staged - {partial}} == {partial}
    assert synced[len(staged) :] == [checkpoints.folder, checkpoints.folder / RUN_FILE, checkpoints.folder]
