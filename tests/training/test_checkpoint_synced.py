"""What is called written is on the disk, and not on its way there."""

import errno
import os
import sys
from pathlib import Path

import pytest

from hf_transfer.config import UserError
from hf_transfer.training.checkpoint import RUN_FILE, Checkpoints
from tests.training.test_checkpoint import FILES, agrees, content, save


def test_a_disk_that_does_not_sync_folders_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And any other error of the disk is said."""
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid argument")))
    agrees(save(tmp_path / "a", 1).newest()[0], 1)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(UserError, match="Input/output error"):
        save(tmp_path / "b", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="files are told by their handles as Linux has it")
def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_the_name_thereafter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power would leave names of files that are empty; and no handle stays open."""
    handles, sync = Path("/proc/self/fd"), os.fsync
    synced: list[Path] = []

    def noting(handle: int) -> None:
        synced.append((handles / str(handle)).readlink())
        sync(handle)

    monkeypatch.setattr(os, "fsync", noting)
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
