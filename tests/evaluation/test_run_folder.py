"""The same command again, other settings, a foreign folder, the lock, and a run repeated from its own settings."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from hf_transfer.errors import UserError
from hf_transfer.evaluation import run_folder
from hf_transfer.settings.run import VisionConfig
from tests.evaluation.conftest import Run, hashes, start


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("this must not be called")


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_the_same_command_again_prints_its_table_and_trains_nothing(copied_run: Run) -> None:
    """A finished run is not repeated."""
    before = hashes(copied_run.out)
    again = start(copied_run.argv(), fit=forbidden, open_data=forbidden)
    assert (again.code, again.err) == (0, "")
    table = copied_run.printed[copied_run.printed.index("scratch from sample:vit-glyphs on") :].splitlines()
    assert len(table) >= 8
    assert [line for line in again.out.splitlines() if line][:1] == table[:1]
    assert [line for line in table if line.startswith(("validation", "test", "trained"))] == [
        line for line in again.out.splitlines() if line.startswith(("validation", "test", "trained"))
    ]
    assert hashes(copied_run.out) == before
    finished = results(copied_run.out)["finished"].replace("T", " ")
    assert again.out.splitlines()[-1] == (
        f"From the run of {finished[:16]} UTC; nothing was trained now. --overwrite_output_dir trains again."
    )


def test_a_finished_run_says_that_its_data_have_changed(copied_run: Run, tmp_path: Path) -> None:
    """And since when it is there, also if it is of an earlier version."""
    saved = results(copied_run.out)
    saved["inputs"]["dataset_name"].update(files=53, names_and_sizes="of other files")
    (copied_run.out / "results.json").write_text(json.dumps(saved))
    again = start(copied_run.argv(), fit=forbidden)
    assert f"--dataset_name {copied_run.data} has changed since (53 files then, 54 now; " in again.out.splitlines()[-1]
    del saved["inputs"], saved["finished"]
    (copied_run.out / "results.json").write_text(json.dumps(saved))
    os.utime(copied_run.out / "results.json", (0, 0))
    assert "From the run of 1970-01-01 00:00 UTC;" in start(copied_run.argv(), fit=forbidden).out.splitlines()[-1]


def test_settings_that_change_no_result_may_change(copied_run: Run) -> None:
    again = start(copied_run.argv(dataloader_num_workers=1, cache_dir="elsewhere"), fit=forbidden)
    assert again.code == 0


def test_other_settings_are_refused_with_the_difference_and_nothing_changes(copied_run: Run) -> None:
    """Earlier results are never overwritten by accident."""
    before = hashes(copied_run.out)
    other = start(copied_run.argv(seed=7, weight_decay=0.5), fit=forbidden)
    assert other.code == 2
    assert "Traceback" not in other.err
    assert f"Expected: the settings of the run in {copied_run.out}\n" in other.err
    assert "Found:    other settings (there -> here): weight_decay: 0.05 -> 0.5; seed: 0 -> 7\n" in other.err
    assert "--overwrite_output_dir" in other.err.splitlines()[-2]
    assert hashes(copied_run.out) == before


def test_overwriting_replaces_the_run_and_leaves_other_files(copied_run: Run) -> None:
    """Files that no run writes stay in the folder."""
    (copied_run.out / "notes.txt").write_text("mine")
    (copied_run.out / "checkpoints").mkdir(exist_ok=True)
    (copied_run.out / "checkpoints/old").write_text("old")
    other = start([*copied_run.argv(seed=7, num_train_epochs=1), "--overwrite_output_dir"])
    assert other.code == 0, other.err
    new = results(copied_run.out)
    assert (new["seed"], len(new["history"])) == (7, 1)
    assert (copied_run.out / "notes.txt").read_text() == "mine"
    assert not (copied_run.out / "checkpoints/old").exists()
    assert "overwrite" not in (copied_run.out / "config.yaml").read_text()


def fails(*_: object, **__: object) -> None:
    raise MemoryError("on purpose")


@pytest.mark.parametrize("step", ["fit", "predict_split", "write_report"])
def test_a_run_that_fails_brings_back_the_run_that_it_was_to_replace(copied_run: Run, step: str) -> None:
    """Unless it has left a model: then both are kept, and the same command goes on."""
    before = hashes(copied_run.out)
    argv = [*copied_run.argv(seed=7, num_train_epochs=1, save_steps=0), "--overwrite_output_dir"]
    with pytest.raises(MemoryError):
        start(argv, **{step: fails})
    if step == "fit":
        assert hashes(copied_run.out) == before
        return
    assert hashes(copied_run.out / ".earlier-run").items() <= before.items()
    again = start(argv[:-1])
    assert again.code == 0, again.err
    assert f"the earlier run is kept in {copied_run.out / '.earlier-run'} until then" in again.out
    assert results(copied_run.out)["seed"] == 7
    assert not (copied_run.out / ".earlier-run").exists()


def test_an_interrupted_run_keeps_the_earlier_one_which_can_be_moved_and_used(
    copied_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, signals = torch.optim.AdamW.step, [signal.SIGTERM]

    def step_with_signal(self: Any, *arguments: Any, **more: Any) -> Any:
        if signals:
            signal.raise_signal(signals.pop())
        return step(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_with_signal)
    argv = copied_run.argv(seed=7)
    interrupted = start([*argv, "--overwrite_output_dir"])
    assert interrupted.code == 143
    with pytest.raises(UserError, match=f"name {copied_run.out / '.earlier-run'}, the run that it was to replace"):
        run_folder.finished_run(copied_run.out)
    # As the message says.
    (copied_run.out / ".earlier-run").rename(tmp_path / "moved")
    assert run_folder.finished_run(tmp_path / "moved")[0].seed == 0
    assert start(copied_run.argv(output_dir=tmp_path / "moved"), fit=forbidden).code == 0
    resumed = start(argv)
    assert resumed.code == 0, resumed.err
    assert results(copied_run.out)["resumed_at_steps"] == [2]


def test_a_run_that_reads_what_it_would_replace_is_refused_and_nothing_is_moved(copied_run: Run) -> None:
    """Also to evaluate the model alone, which leaves none."""
    before = hashes(copied_run.out)
    training = copied_run.argv(model_name_or_path=copied_run.out / "model")
    evaluation = [*copied_run.argv(model_name_or_path=copied_run.out / "model", **EVALUATION), "--evaluate_only"]
    for argv in (training, evaluation):
        refused = start([*argv, "--overwrite_output_dir"], fit=forbidden)
        assert refused.code == 2
        assert "Expected: a --model_name_or_path that this run does not replace\n" in refused.err
        assert hashes(copied_run.out) == before


def test_a_run_may_read_its_folders_settings_and_other_data_in_it(copied_run: Run) -> None:
    """What no run writes stays."""
    shutil.copytree(copied_run.data, copied_run.out / "data")
    files = {"config": copied_run.out / "config.yaml", "dataset_name": copied_run.out / "data"}
    argv = [f"--{name}={path}" for name, path in (files | {"output_dir": copied_run.out}).items()]
    again = start([*argv, "--num_train_epochs=1", "--overwrite_output_dir"])
    assert again.code == 0, again.err
    assert hashes(copied_run.out / "data") == hashes(copied_run.data)


def test_without_room_beside_the_earlier_run_nothing_is_moved(copied_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed as the message says, the earlier run makes room."""
    before = hashes(copied_run.out)
    argv = [*copied_run.argv(seed=7, num_train_epochs=1), "--overwrite_output_dir"]
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "free_bytes", lambda _: 1_000)
        refused = start(argv, fit=forbidden)
    assert refused.code == 2
    assert f" MB in {copied_run.out}\nFound:    1 kB free; " in refused.err
    assert f"remove an earlier run first: rm -r {copied_run.out}\n" in refused.err
    assert hashes(copied_run.out) == before


@pytest.mark.parametrize("with_settings", [False, True])
@pytest.mark.parametrize("flags", [[], ["--overwrite_output_dir"]])
def test_a_foreign_folder_is_refused_and_not_changed(
    copied_run: Run, tmp_path: Path, flags: list[str], with_settings: bool
) -> None:
    """Even with --overwrite_output_dir, and if it has a config.yaml of its own."""
    foreign = tmp_path / "foreign"
    (foreign / "model").mkdir(parents=True)
    (foreign / "model/thesis.txt").write_text("years")
    if with_settings:
        (foreign / "config.yaml").write_text("model: thesis\n")
    before = hashes(foreign)
    ended = start([*copied_run.argv(output_dir=foreign), *flags], fit=forbidden)
    assert ended.code == 2
    assert "Expected: an empty or new folder for --output_dir, or one with an earlier run\n" in ended.err
    assert f"Found:    {foreign} with other files and no config.yaml of ours\n" in ended.err
    assert hashes(foreign) == before


def test_a_file_in_the_place_of_the_folder_is_refused(copied_run: Run, tmp_path: Path) -> None:
    """Before anything slow."""
    (tmp_path / "file").write_text("x")
    ended = start(copied_run.argv(output_dir=tmp_path / "file"), fit=forbidden)
    assert ended.code == 2
    assert f"Expected: a folder for --output_dir\nFound:    a file, {tmp_path / 'file'}\n" in ended.err


def test_an_interrupted_run_is_repeated(copied_run: Run) -> None:
    """Settings without results: the run did not finish."""
    first = results(copied_run.out)
    for name in ("results.json", "report.md"):
        (copied_run.out / name).unlink()
    (copied_run.out / ".model-partial").mkdir()
    (copied_run.out / ".model-partial/half").write_text("x")
    again = start(copied_run.argv())
    assert again.code == 0, again.err
    assert results(copied_run.out)["metrics"] == first["metrics"]
    assert (copied_run.out / "report.md").is_file()
    assert not (copied_run.out / ".model-partial").exists()


def test_results_are_written_whole_or_not_at_all(copied_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the machine stops while they are written, the run must not look finished."""
    (copied_run.out / "results.json").unlink()
    write = Path.write_bytes

    def interrupted(path: Path, content: bytes) -> int:
        if b'"metrics"' in content:
            write(path, content[:50])
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(copied_run.argv(num_train_epochs=1, output_dir=copied_run.out / "inner"))
    assert not (copied_run.out / "inner/results.json").exists()


def test_a_run_repeats_from_its_own_settings_to_the_byte(finished_run: Run, tmp_path: Path) -> None:
    """As the end of every report says."""
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
    """Root can write into every folder, but not create one below a file."""
    (tmp_path / "file").write_text("x")
    config = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir=str(tmp_path / "file/out"))
    with (
        pytest.raises(UserError, match="can be written to"),
        run_folder.open_run_folder(config, Accelerator(cpu=True)),
    ):
        raise AssertionError("the folder was opened")


EVALUATION: dict[str, Any] = {"strategy": None, "num_train_epochs": None, "per_device_train_batch_size": None}


def test_the_saved_model_is_evaluated_again_with_its_own_head(finished_run: Run, tmp_path: Path) -> None:
    """--evaluate_only trains nothing."""
    new = tmp_path / "evaluated"
    flags = finished_run.argv(model_name_or_path=finished_run.out / "model", output_dir=new, **EVALUATION)
    evaluated = start([*flags, "--evaluate_only"], fit=forbidden)
    assert evaluated.code == 0, evaluated.err
    again, first = results(new), results(finished_run.out)
    assert again["metrics"] == first["metrics"]
    assert (again["strategy"], again["history"], again["parameters"]["trainable"]) == ("evaluate_only", [], 0)
    assert not (new / "model").exists()
    assert "curves.png" not in (new / "report.md").read_text()


def test_a_model_of_other_classes_is_not_evaluated(finished_run: Run, tmp_path: Path) -> None:
    """Its metrics would mean nothing."""
    config = json.loads((finished_run.out / "model/config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for path in (finished_run.out / "model").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config["id2label"] = {"0": "cat", "1": "dog", "2": "owl"}
    (other / "config.json").write_text(json.dumps(config))
    flags = finished_run.argv(model_name_or_path=other, output_dir=tmp_path / "evaluated", **EVALUATION)
    evaluated = start([*flags, "--evaluate_only"])
    assert evaluated.code == 2
    assert "only classes that the model has (cat, dog, owl)" in evaluated.err
    assert "Found:    'blue' in " in evaluated.err
    assert not (tmp_path / "evaluated").exists()
