"""Checkpoints on disk: complete or absent, whatever happens while they are written, and never read when damaged."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_transfer.checkpoints import checkpoint
from hf_transfer.checkpoints.checkpoint import MANIFEST, STATE, BrokenCheckpointError, Checkpoints, Saved, in_background
from hf_transfer.errors import UserError
from tests.training.killed_children import killed_in_operation

FILES = ("model.safetensors", "optimizer.safetensors", STATE, MANIFEST)


def content(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors that differ from step to step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.randn(100, generator=generator), "count": torch.tensor(step)},
        "optimizer": {"exp_avg.weight": torch.randn(100, generator=generator)},
        "average": {},
    }


def save(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, content(step), {"note": f"step {step}"})
    return checkpoints


def assert_saved(saved: Saved | None, step: int) -> None:
    assert saved is not None
    assert saved.step == step
    assert saved.state == {"note": f"step {step}"}
    for name, tensors in content(step).items():
        read = saved.tensors(name)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[key], value) for key, value in tensors.items())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_checkpoint_is_read_and_the_oldest_are_removed(tmp_path: Path) -> None:
    checkpoints = save(tmp_path / "c", 2, 10, 100, 30)
    assert names(tmp_path / "c") == ["checkpoint-00000030", "checkpoint-00000100", "run.json"]
    assert_saved(checkpoints.newest()[0], 100)
    assert_saved(Checkpoints(tmp_path / "c").newest()[0], 100)
    assert names(save(tmp_path / "d", 1, 2, 3, 4, keep=3).folder)[:3] == [f"checkpoint-0000000{n}" for n in (2, 3, 4)]


def test_looking_for_checkpoints_does_not_create_the_folder(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "new").newest() == (None, [])
    assert not (tmp_path / "new").exists()


def test_the_same_step_is_not_written_twice(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 5)
    before = (tmp_path / "checkpoint-00000005" / STATE).stat().st_ino
    checkpoints.save(5, content(6), {"note": "step 6"})
    assert_saved(checkpoints.newest()[0], 5)
    assert (tmp_path / "checkpoint-00000005" / STATE).stat().st_ino == before


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [missing, empty, half, flipped])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path: Path, name: str, damage: Any) -> None:
    checkpoints = save(tmp_path, 1, 2)
    broken = tmp_path / "checkpoint-00000002"
    damage(broken / name)
    with pytest.raises(BrokenCheckpointError, match=name):
        checkpoints.read(broken)
    saved, (note,) = checkpoints.newest()
    assert_saved(saved, 1)
    assert note.startswith(f"Checkpoint checkpoint-00000002 is damaged ({name}")
    (aside,) = tmp_path.glob("broken-*")
    assert note.endswith(f"renamed to {aside.name}.")
    # It is not in the way when the run reaches this step again.
    checkpoints.save(2, content(2), {"note": "step 2"})
    assert_saved(checkpoints.newest()[0], 2)


def test_if_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2)
    for step in (1, 2):
        half(tmp_path / f"checkpoint-0000000{step}" / "model.safetensors")
    saved, notes = checkpoints.newest()
    assert saved is None
    assert [note.split()[1] for note in notes] == ["checkpoint-00000002", "checkpoint-00000001"]


def test_steps_tell_which_is_newest_and_no_clock(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 8, 9)
    os.utime(tmp_path / "checkpoint-00000009", (0, 0))
    assert_saved(checkpoints.newest()[0], 9)
    checkpoints.save(10, content(10), {"note": "step 10"})
    assert names(tmp_path) == ["checkpoint-00000009", "checkpoint-00000010", "run.json"]


def test_a_checkpoint_of_another_run_is_not_ours(tmp_path: Path) -> None:
    """It is not read, not counted, and replaced if the step is the same."""
    save(tmp_path / "other", 3, 9999)
    ours = save(tmp_path / "ours", 1, 2)
    for name in ("checkpoint-00000003", "checkpoint-00009999"):
        shutil.copytree(tmp_path / "other" / name, tmp_path / "ours" / name)
    assert_saved(ours.newest()[0], 2)
    ours.save(3, content(3), {"note": "step 3"})
    assert_saved(ours.newest()[0], 3)
    assert "checkpoint-00009999" in names(ours.folder)


def test_a_new_run_does_not_read_the_checkpoints_of_the_earlier_one(tmp_path: Path) -> None:
    """Until it first saves, the folder stays that of the earlier run."""
    checkpoints = save(tmp_path, 1, 2)
    checkpoints.begin(store=True)
    checkpoints.remember("batch", 8)
    assert checkpoints.newest() == (None, [])
    assert_saved(Checkpoints(tmp_path).newest()[0], 2)
    assert Checkpoints(tmp_path).remembered().keys() == {"run"}
    checkpoints.save(1, content(1), {"note": "step 1"})
    again = Checkpoints(tmp_path)
    assert_saved(again.newest()[0], 1)
    assert again.remembered() == {"store": True, "run": checkpoints.run, "batch": 8}


def test_a_renamed_checkpoint_is_damaged(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2)
    (tmp_path / "checkpoint-00000002").rename(tmp_path / "checkpoint-00000077")
    saved, notes = checkpoints.newest()
    assert_saved(saved, 1)
    assert "checkpoint-00000077" in notes[0]


def test_a_checkpoint_of_another_version_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hf_transfer.checkpoints.checkpoint.FORMAT", 99)
        save(tmp_path, 1)
    with pytest.raises(BrokenCheckpointError, match="it has format 99, and this version reads 2"):
        Checkpoints(tmp_path).read(tmp_path / "checkpoint-00000001")


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("s")
    inside = {"secret": {"bytes": 1, "sha256": "0"}}
    original = Checkpoints._manifest

    def hostile(self: Checkpoints, step: int, folder: Path) -> dict[str, Any]:
        manifest = original(self, step, folder)
        files = {f"../../{name}": entry for name, entry in inside.items()} | manifest["files"]
        return checkpoint._signed({**{key: manifest[key] for key in ("format", "run", "step")}, "files": files})

    monkeypatch.setattr(Checkpoints, "_manifest", hostile)
    save(tmp_path / "c", 1)
    with pytest.raises(BrokenCheckpointError, match=f"{MANIFEST} has other content than was written"):
        Checkpoints(tmp_path / "c").read(tmp_path / "c" / "checkpoint-00000001")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"run": 7}', '"x"'])
def test_with_a_damaged_run_file_the_checkpoints_are_still_those_of_the_run(tmp_path: Path, text: str) -> None:
    checkpoints = save(tmp_path, 1, 2)
    (tmp_path / "checkpoint-00000077").mkdir()
    (tmp_path / "run.json").write_text(text)
    again = Checkpoints(tmp_path)
    assert again.run == checkpoints.run
    assert_saved(again.newest()[0], 2)
    assert json.loads((tmp_path / "run.json").read_text())["run"] == checkpoints.run


def test_without_a_run_file_and_checkpoints_the_run_is_new(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path).run
    (tmp_path / "run.json").unlink()
    assert Checkpoints(tmp_path).run != first


def test_a_file_that_cannot_be_read_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, because of a bad block of the disk."""
    checkpoints = save(tmp_path, 1, 2)
    original = checkpoint._sha256

    def unreadable(path: Path) -> str:
        if path.parent.name == "checkpoint-00000002":
            raise OSError(5, "Input/output error")
        return original(path)

    monkeypatch.setattr(checkpoint, "_sha256", unreadable)
    saved, (note,) = checkpoints.newest()
    assert_saved(saved, 1)
    assert note.startswith("Checkpoint checkpoint-00000002 is damaged ([Errno 5] Input/output error)")


def test_checkpoints_of_another_version_are_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path).newest()
    expected, found, do = str(caught.value).splitlines()
    assert expected == f"Expected: a checkpoint that this version can read in {tmp_path / 'checkpoint-00000001'}"
    assert found == "Found:    it has format 2, and this version reads 99"
    assert do == "Do this:  resume with the version that wrote it, or start again with --no_resume"
    assert (tmp_path / "checkpoint-00000001").is_dir()


def test_a_folder_that_cannot_be_deleted_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network disks keep open files."""
    checkpoints = save(tmp_path, 1, 2)
    original = os.rmdir

    def busy(path: Any, *more: Any, **others: Any) -> None:
        if ".deleted" in str(path):
            raise OSError(16, "Device or resource busy")
        original(path, *more, **others)

    monkeypatch.setattr(os, "rmdir", busy)
    checkpoints.save(3, content(3), {"note": "step 3"})
    assert_saved(checkpoints.newest()[0], 3)
    monkeypatch.undo()
    checkpoints.sweep()
    assert names(tmp_path) == ["checkpoint-00000002", "checkpoint-00000003", "run.json"]


def test_a_disk_with_too_little_room_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 1_999_999)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.refuse_without_room(1_999_999)
    with pytest.raises(UserError) as caught:
        checkpoints.refuse_without_room(2_000_000)
    expected, found, do = str(caught.value).splitlines()
    assert expected == f"Expected: room for a checkpoint of about 2 MB in {tmp_path / 'c'}"
    assert found == "Found:    2 MB free"
    assert do == "Do this:  make room, name another --output_dir, or set --save_steps 0 to train without checkpoints"


def test_damaged_checkpoints_do_not_count_when_the_oldest_are_removed(tmp_path: Path) -> None:
    """And the newest stays, also after a run has gone back to an earlier step."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 5, 6):
        checkpoints.save(step, content(step), {"note": f"step {step}"})
    for step in (5, 6):
        half(tmp_path / f"checkpoint-0000000{step}" / MANIFEST)
    for step in (2, 3):
        written = checkpoints.save(step, content(step), {"note": f"step {step}"})
        assert written.is_dir()
        assert_saved(Checkpoints(tmp_path).read(written), step)


def test_several_decisions_are_remembered(tmp_path: Path) -> None:
    """Also before the folder exists."""
    folder = tmp_path / "new" / "checkpoints"
    checkpoints = Checkpoints(folder)
    run = checkpoints.run
    checkpoints.remember("store", True)
    checkpoints.remember("batch", 8)
    assert Checkpoints(folder).remembered() == {"run": run, "store": True, "batch": 8}


def third_save(folder: Path) -> None:
    """A save after which the oldest checkpoint is removed."""
    Checkpoints(folder).save(3, content(3), {"note": "step 3"})


def test_a_kill_at_any_operation_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """All operations of a save and of the removal of the oldest are tried: each time a file is opened, renamed or
    deleted, and the middle of every file of tensors.
    """
    save(tmp_path / "before", 1, 2)
    killed = 0
    for operation in range(1, 200):
        folder = tmp_path / f"at-{operation}"
        shutil.copytree(tmp_path / "before", folder)
        code = killed_in_operation(operation, folder, lambda folder=folder: third_save(folder))  # type: ignore[misc]
        checkpoints = Checkpoints(folder)
        saved, notes = checkpoints.newest()
        assert notes == [], f"killed at operation {operation}"
        assert saved is not None
        assert_saved(saved, saved.step)
        assert saved.step in (2, 3)
        assert len(checkpoints.folders()) >= 2
        checkpoints.sweep()
        assert all(name.startswith(("checkpoint-", "run.json")) for name in names(folder))
        third_save(folder)
        assert_saved(checkpoints.newest()[0], 3)
        if code == 0:
            break
        assert code == -9
        killed += 1
    assert code == 0, "not all operations were reached"
    assert killed >= 15


def test_a_full_disk_leaves_the_earlier_checkpoints(small_disk: Path) -> None:
    checkpoints = save(small_disk / "c", 1, 2)
    large = {"model": {"weight": torch.zeros(300_000)}}
    with pytest.raises(UserError) as caught:
        checkpoints.save(3, large, {})
    expected, found, do = str(caught.value).splitlines()
    assert expected == f"Expected: room for a checkpoint of 1.2 MB in {small_disk / 'c'}"
    assert "No space left on device" in found
    assert found.endswith("MB are free")
    assert "--save_steps 0" in do
    assert_saved(checkpoints.newest()[0], 2)
    assert names(small_disk / "c") == ["checkpoint-00000001", "checkpoint-00000002", "run.json"]


def test_a_folder_that_cannot_be_written_to_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"(?s)room for a checkpoint.*Not a directory"):
        save(tmp_path / "file" / "c", 1)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    """Only tensors and JSON: reading a checkpoint cannot run code."""
    (folder,) = save(tmp_path, 1).folders()
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    for path in folder.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def test_a_thread_whose_start_is_interrupted_ends_with_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's error on the death of a loader worker; else the process would wait for the thread when it ends."""
    start, started, done = threading.Thread.start, list[threading.Thread](), threading.Event()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise RuntimeError("DataLoader worker (pid 14884) is killed by signal: Killed. ")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
            in_background(done.set)
    # While the traceback keeps every frame alive.
    assert caught.value.__traceback__ is not None
    (thread,) = started
    thread.join(10)
    assert not thread.is_alive()
    assert done.is_set()
