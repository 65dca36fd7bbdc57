"""The same command again, other settings, somebody else's folder, and a run repeated from its own settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.config import UserError, VisionConfig
from hf_transfer.evaluation import run_folder
from tests.evaluation.conftest import Run, hashes, start


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("trained again")


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_the_same_command_again_prints_its_table_and_trains_nothing(own_copy: Run) -> None:
    """A finished run is not done twice."""
    before = hashes(own_copy.out)
    again = start(own_copy.argv(), fit=forbidden, load_image_splits=forbidden)
    assert (again.code, again.err) == (0, "")
    table = own_copy.said[own_copy.said.index("scratch from sample:vit-glyphs on") :].splitlines()
    assert len(table) >= 8
    assert [line for line in again.out.splitlines() if line][:1] == table[:1]
    assert [line for line in table if line.startswith(("validation", "test", "learned"))] == [
        line for line in again.out.splitlines() if line.startswith(("validation", "test", "learned"))
    ]
    assert hashes(own_copy.out) == before


def test_settings_that_change_no_result_may_change(own_copy: Run) -> None:
    again = start(own_copy.argv(dataloader_num_workers=1, cache_dir="elsewhere"), fit=forbidden)
    assert again.code == 0


def test_other_settings_are_refused_with_the_difference_and_nothing_changes(own_copy: Run) -> None:
    """An earlier result is never replaced by accident."""
    before = hashes(own_copy.out)
    other = start(own_copy.argv(seed=7, weight_decay=0.5), fit=forbidden)
    assert other.code == 2
    assert "Traceback" not in other.err
    assert f"Expected: the settings of the run that is in {own_copy.out}\n" in other.err
    assert "Found:    other settings (there -> here): weight_decay: 0.05 -> 0.5; seed: 0 -> 7\n" in other.err
    assert "--overwrite_output_dir" in other.err.splitlines()[-2]
    assert hashes(own_copy.out) == before


def test_overwriting_replaces_the_run_and_leaves_other_files(own_copy: Run) -> None:
    """What is not ours in the folder stays; what is ours is new."""
    (own_copy.out / "notes.txt").write_text("mine")
    (own_copy.out / "checkpoints").mkdir(exist_ok=True)
    (own_copy.out / "checkpoints/old").write_text("old")
    other = start([*own_copy.argv(seed=7, num_train_epochs=1), "--overwrite_output_dir"])
    assert other.code == 0, other.err
    found = results(own_copy.out)
    assert (found["seed"], len(found["history"])) == (7, 1)
    assert (own_copy.out / "notes.txt").read_text() == "mine"
    assert not (own_copy.out / "checkpoints/old").exists()
    assert "overwrite" not in (own_copy.out / "config.yaml").read_text()


@pytest.mark.parametrize("with_settings", [False, True])
@pytest.mark.parametrize("flags", [[], ["--overwrite_output_dir"]])
def test_somebody_elses_folder_is_refused_and_left_alone(
    own_copy: Run, tmp_path: Path, flags: list[str], with_settings: bool
) -> None:
    """Even with --overwrite_output_dir, and if it has a config.yaml of its own."""
    foreign = tmp_path / "foreign"
    (foreign / "model").mkdir(parents=True)
    (foreign / "model/thesis.txt").write_text("years")
    if with_settings:
        (foreign / "config.yaml").write_text("model: thesis\n")
    before = hashes(foreign)
    ended = start([*own_copy.argv(output_dir=foreign), *flags], fit=forbidden)
    assert ended.code == 2
    assert "Expected: an empty or new folder for --output_dir, or one with an earlier run\n" in ended.err
    assert f"Found:    {foreign} with other files and no config.yaml of ours\n" in ended.err
    assert hashes(foreign) == before


def test_a_file_in_the_place_of_the_folder_is_refused(own_copy: Run, tmp_path: Path) -> None:
    """The folder is looked at before anything slow."""
    (tmp_path / "file").write_text("x")
    ended = start(own_copy.argv(output_dir=tmp_path / "file"), fit=forbidden)
    assert ended.code == 2
    assert f"Expected: a folder for --output_dir\nFound:    a file, {tmp_path / 'file'}\n" in ended.err


def test_an_interrupted_run_is_done_again(own_copy: Run) -> None:
    """Settings without results: the run did not reach its end."""
    first = results(own_copy.out)
    for name in ("results.json", "report.md"):
        (own_copy.out / name).unlink()
    (own_copy.out / ".model-partial").mkdir()
    (own_copy.out / ".model-partial/half").write_text("x")
    again = start(own_copy.argv())
    assert again.code == 0, again.err
    assert results(own_copy.out)["metrics"] == first["metrics"]
    assert (own_copy.out / "report.md").is_file()
    assert not (own_copy.out / ".model-partial").exists()


def test_results_are_written_whole_or_not_at_all(own_copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stops while they are written must not leave a run that looks finished."""
    (own_copy.out / "results.json").unlink()
    write = Path.write_text

    def stops(path: Path, text: str, *more: Any, **options: Any) -> int:
        if '"metrics"' in text:
            write(path, text[:50], *more, **options)
            raise KeyboardInterrupt
        return write(path, text, *more, **options)

    monkeypatch.setattr(Path, "write_text", stops)
    with pytest.raises(KeyboardInterrupt):
        start(own_copy.argv(num_train_epochs=1, output_dir=own_copy.out / "inner"))
    assert not (own_copy.out / "inner/results.json").exists()


def test_a_run_repeats_from_its_own_settings_to_the_byte(finished_run: Run, tmp_path: Path) -> None:
    """The promise at the end of every report."""
    new = tmp_path / "new"
    again = start(["--config", str(finished_run.out / "config.yaml"), "--output_dir", str(new)])
    assert again.code == 0, again.err
    same = ("model/model.safetensors", "model/config.json", "model/preprocessor_config.json", "confusion.png")
    ours, theirs = hashes(finished_run.out), hashes(new)
    assert {name: theirs[name] for name in same} == {name: ours[name] for name in same}
    first, second = results(finished_run.out), results(new)
    assert second["metrics"] == first["metrics"]
    losses = [[row["train_loss"], row["loss"], row["learning_rate"]] for row in first["history"]]
    assert [[row["train_loss"], row["loss"], row["learning_rate"]] for row in second["history"]] == losses
    assert len({tuple(row) for row in losses}) == 2


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """As root every folder can be written, but none can be made below a file."""
    from accelerate import Accelerator

    (tmp_path / "file").write_text("x")
    config = VisionConfig(model_name_or_path="m", dataset_name="d", output_dir=str(tmp_path / "file/out"))
    with pytest.raises(UserError, match="can be written to"):
        run_folder.open_run_folder(config, Accelerator(cpu=True))


def test_only_the_saved_model_itself_is_evaluated_again(finished_run: Run, tmp_path: Path) -> None:
    """--evaluate_only judges the model with its own head, and trains nothing."""
    new = tmp_path / "judged"
    flags = finished_run.argv(model_name_or_path=finished_run.out / "model", output_dir=new)
    judged = start([*flags, "--evaluate_only"], fit=forbidden)
    assert judged.code == 0, judged.err
    found, first = results(new), results(finished_run.out)
    assert found["metrics"] == first["metrics"]
    assert (found["strategy"], found["history"], found["parameters"]["trainable"]) == ("evaluate_only", [], 0)
    assert not (new / "model").exists()
    assert "curves.png" not in (new / "report.md").read_text()


def test_a_model_of_other_classes_is_not_evaluated(finished_run: Run, tmp_path: Path) -> None:
    """Its numbers would mean nothing."""
    config = json.loads((finished_run.out / "model/config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for path in (finished_run.out / "model").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config["id2label"] = {"0": "cat", "1": "dog", "2": "owl"}
    (other / "config.json").write_text(json.dumps(config))
    flags = finished_run.argv(model_name_or_path=other, output_dir=tmp_path / "judged")
    judged = start([*flags, "--evaluate_only"])
    assert judged.code == 2
    assert "a model with the classes of the data set, in their order: blue, green, red" in judged.err
    assert f"Found:    {other} with cat, dog, owl" in judged.err
    assert not (tmp_path / "judged").exists()
