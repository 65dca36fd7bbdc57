"""An earlier run in a folder: moved aside, brought back or removed, also if a process is killed in between."""

from pathlib import Path

import pytest

from hf_transfer.checkpoints.earlier import EARLIER_RUN, EarlierRun
from tests.training.killed_children import killed_in_operation

NAMES = ("model", "report.md", "checkpoints")


def run_in(folder: Path) -> EarlierRun:
    return EarlierRun(folder, "config.yaml", "results.json", NAMES, "model", "checkpoints")


def write(folder: Path, which: str, *, finished: bool = True, checkpoint: bool = False) -> None:
    """Write the files of a run: each says which run it is of."""
    (folder / "model").mkdir(parents=True)
    names = ["config.yaml", "report.md", "model/weights", *(["results.json"] if finished else [])]
    if checkpoint:
        (folder / "checkpoints/checkpoint-00000001").mkdir(parents=True)
        names.append("checkpoints/checkpoint-00000001/state")
    for name in names:
        (folder / name).write_text(f"{name} of {which}")


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def first(tmp_path: Path) -> dict[str, str]:
    """A finished run in the folder, beside a file of the user's."""
    write(tmp_path, "the first")
    (tmp_path / "notes.txt").write_text("mine")
    return content(tmp_path)


def start_second(folder: Path) -> None:
    run_in(folder).move_aside()
    (folder / "config.yaml").write_text("config.yaml of the second")


def test_what_is_moved_aside_is_a_complete_run(tmp_path: Path, first: dict[str, str]) -> None:
    assert run_in(tmp_path).move_aside() == (
        f"The earlier run is kept in {tmp_path / EARLIER_RUN} until this one is finished."
    )
    assert content(tmp_path / EARLIER_RUN) == {name: text for name, text in first.items() if name != "notes.txt"}
    assert (tmp_path / "notes.txt").is_file()
    assert (tmp_path / "config.yaml").is_file()


def test_a_run_that_leaves_nothing_brings_the_earlier_one_back(tmp_path: Path, first: dict[str, str]) -> None:
    start_second(tmp_path)
    (tmp_path / "report.md").write_text("half of the second")
    (tmp_path / "checkpoints").mkdir()
    assert "the earlier one is back" in run_in(tmp_path).settle()
    assert content(tmp_path) == first
    assert run_in(tmp_path).settle() == ""


@pytest.mark.parametrize("left", ["model/weights", "checkpoints/checkpoint-00000004/state"])
def test_a_run_that_leaves_a_model_or_a_checkpoint_keeps_the_earlier_one_aside(
    left: str, tmp_path: Path, first: dict[str, str]
) -> None:
    """As the message says, it can be moved to another folder for good."""
    start_second(tmp_path)
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).write_text("of the second")
    sentence = run_in(tmp_path).settle()
    assert (tmp_path / left).read_text() == "of the second"
    command = sentence.partition("to another folder: ")[2].split()
    assert command == ["mv", str(tmp_path / EARLIER_RUN), "ANOTHER_FOLDER"]
    (tmp_path / EARLIER_RUN).rename(tmp_path / "ANOTHER_FOLDER")
    del first["notes.txt"]
    assert content(tmp_path / "ANOTHER_FOLDER") == first
    assert run_in(tmp_path).settle() == ""


def test_a_finished_run_removes_the_earlier_one(tmp_path: Path, first: dict[str, str]) -> None:
    start_second(tmp_path)
    (tmp_path / "results.json").write_text("results.json of the second")
    assert "was removed" in run_in(tmp_path).settle()
    assert not (tmp_path / EARLIER_RUN).exists()
    assert content(tmp_path)["results.json"] == "results.json of the second"
    assert "notes.txt" in first


def test_a_third_run_replaces_the_unfinished_second_and_keeps_the_first(tmp_path: Path, first: dict[str, str]) -> None:
    start_second(tmp_path)
    (tmp_path / "checkpoints/checkpoint-00000004").mkdir(parents=True)
    run_in(tmp_path).move_aside()
    assert not (tmp_path / "checkpoints").exists()
    assert content(tmp_path / EARLIER_RUN)["results.json"] == first["results.json"]


def test_an_unfinished_run_is_moved_aside_with_its_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, "the first", finished=False, checkpoint=True)
    before = content(tmp_path)
    start_second(tmp_path)
    run_in(tmp_path).settle()
    assert content(tmp_path) == before


def test_links_are_moved_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    """Such as to a larger disk, or to nowhere."""
    out, disk = tmp_path / "out", tmp_path / "disk"
    write(disk, "the first")
    out.mkdir()
    (out / "config.yaml").write_text("config.yaml of the first")
    (out / "model").symlink_to(disk / "model")
    (out / "report.md").symlink_to("nowhere")
    start_second(out)
    assert not (out / "model").exists()
    (out / "results.json").write_text("{}")
    run_in(out).settle()
    assert (disk / "model/weights").is_file()
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "results.json"]


def test_a_file_that_cannot_be_moved_leaves_everything_as_it_was(
    tmp_path: Path, first: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a folder on which another disk is mounted."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "report.md":
            raise OSError(16, "Device or resource busy")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="busy"):
            run_in(tmp_path).move_aside()
    assert content(tmp_path) == first


@pytest.mark.parametrize("operation", range(1, 30))
def test_a_kill_at_any_operation_on_files_loses_nothing(operation: int, tmp_path: Path) -> None:
    """The next start finds the first run again; or the second one finished, and the first one gone."""
    folder = tmp_path / "out"
    write(folder, "the first", checkpoint=True)
    before = content(folder)

    def replace(*, finish: bool = operation % 2 == 0) -> None:
        earlier = run_in(folder)
        earlier.settle()
        start_second(folder)
        if finish:
            (folder / "results.json").write_text("results.json of the second")
        earlier.settle()

    code = killed_in_operation(operation, folder, replace)
    assert code in (0, -9)
    run_in(folder).settle()
    if (folder / "results.json").read_text().endswith("second"):
        assert sorted(content(folder)) == ["config.yaml", "results.json"]
    else:
        assert content(folder) == before
