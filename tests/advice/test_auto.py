"""`--strategy auto` from data to files, with tiny models: what is chosen, and that nothing is computed twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from hf_transfer.advice.decision_folder import record_before
from hf_transfer.errors import UserError
from hf_transfer.evaluation.auto_record import AutoRecord, arm_folder
from hf_transfer.evaluation.results import Results
from hf_transfer.settings.run import TextConfig
from hf_transfer.whole_run import run_all_steps, train
from tests.advice.auto_runs import LEARNS, settings, write_texts
from tests.conftest import REPOSITORY
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

WEIGHTS = "model/model.safetensors"
SECONDS = 240.0


def decision(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "auto/decision.json").read_text(encoding="utf-8"))
    return content


def states(out: Path) -> dict[str, str]:
    return {arm["name"]: arm["state"] for arm in decision(out)["arms"]}


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose label no linear head on frozen features can read, and beside them the run that has learned them."""
    folder = write_texts(tmp_path_factory.mktemp("parity") / "data", parity=True)
    run_all_steps(settings(folder, auto_arms=["full"], **LEARNS))
    return folder


@pytest.mark.slow
def test_a_label_that_frozen_features_do_not_tell_is_learned_by_training(parity: Path) -> None:
    results = Results.read(parity.parent / "out")
    solved, full = results.auto["arms"]
    assert (results.strategy, results.auto["chosen"], full["name"]) == ("full", "full", "full")
    assert solved["score"] < 0.8 < 0.95 < full["score"]
    assert results.metrics["test"]["accuracy"] > 0.9
    assert full["score"] == results.metrics["validation"]["accuracy"]
    low, high = results.auto["interval"]
    assert low < results.auto["estimate"] <= high
    assert results.auto["samples"] == 60


@pytest.mark.slow
def test_the_model_is_the_one_that_the_strategy_gives_alone(parity: Path, tmp_path: Path) -> None:
    """To the byte: its training has not been repeated, and nothing of it was lost."""
    out = parity.parent / "out"
    alone = run_all_steps(
        settings(parity, strategy="full", pooling=pooling_of(out), output_dir=str(tmp_path / "alone"), **LEARNS)
    )
    assert (tmp_path / "alone" / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    results = Results.read(out)
    assert alone.metrics == results.metrics
    # Every epoch stands in the history, though the last process has trained none.
    assert [row["loss"] for row in results.history] == [row["loss"] for row in Results.read(tmp_path / "alone").history]
    # It was not interrupted.
    assert results.resumed_at_steps == []


def pooling_of(out: Path) -> str:
    return str(decision(out)["arms"][1]["settings"].get("pooling", "own"))


@pytest.mark.slow
def test_the_same_command_shows_the_run_again(parity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = parity.parent / "out"
    before = (out / "results.json").read_bytes()
    capsys.readouterr()
    run_all_steps(settings(parity, auto_arms=["full"], **LEARNS))
    shown = capsys.readouterr().out
    assert "nothing was trained now" in shown
    assert "epoch " not in shown
    assert "Trying" not in shown
    assert "tried        full        " in shown
    assert (out / "results.json").read_bytes() == before
    with pytest.raises(UserError, match=r"other settings \(there -> here\): auto_arms: \['full'\] -> \[\]"):
        run_all_steps(settings(parity, **LEARNS))


@pytest.mark.slow
def test_only_the_figures_of_what_was_tried_stay(parity: Path) -> None:
    out = parity.parent / "out"
    assert sorted(path.name for path in (out / "auto").iterdir()) == ["decision.json"]
    report, card = ((out / name).read_text(encoding="utf-8") for name in ("report.md", "model/README.md"))
    assert "## How the strategy was chosen" in report
    assert "| full (chosen) | " in report
    assert "- `lora`: It is not among --auto&#95;arms." in report
    assert "It was chosen by `--strategy auto` among" in card
    assert "without the optimism of a choice by the same 60 rows." in card
    assert (out / "config.yaml").read_text().count("strategy: full\n") == 1


@pytest.mark.slow
def test_a_label_that_frozen_features_tell_is_learned_by_a_solved_head_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_texts(tmp_path / "data", parity=False, rows=(400, 40, 40))
    run = run_all_steps(settings(folder))
    assert run.results is not None
    assert run.results.strategy in ("linear_probe", "deep_probe")
    assert run.results.metrics["test"]["accuracy"] > 0.9
    # It leaves nothing to gain, and without a choice there is no optimism of a choice.
    assert [arm["state"] for arm in run.results.auto["arms"][:2]] == ["trained", "left out"]
    assert run.results.auto["estimate"] is None
    # The run is not marked as one that repeats its checkpoint: a head is solved again, from its features.
    assert run.results.resumed_at_steps == []
    shown, out = capsys.readouterr().out, tmp_path / "out"
    reason = "the solved head leaves training only about "
    assert f", since {reason}" in (out / "report.md").read_text(encoding="utf-8")
    assert f", since {reason}" in (out / "model/README.md").read_text(encoding="utf-8")
    names = ", ".join(arm["name"] for arm in run.results.auto["arms"][1:])
    assert f"\nnot tried    {names}: {reason}" in shown
    assert "the optimism" not in shown
    assert f" is finished now: judged on validation and test, and written to {out}." in shown


@pytest.mark.slow
def test_a_head_of_several_layers_is_trained_once_and_compared(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a distilled DeiT no head can be solved: the first one that is tried has epochs, too."""
    model = save_checkpoint(tmp_path / "model", "deit", architectures=["DeiTForImageClassificationWithTeacher"])
    run = train(
        picture_folder(cat=20, dog=20), str(model), output_dir=tmp_path / "out", cache_dir=str(tmp_path / "cache"),
        strategy="auto", augmentation="none", auto_seconds=0.01,
    )  # fmt: skip
    assert run.results is not None
    assert run.results.strategy == "linear_probe"
    assert "so it cannot be solved and judged beforehand" in run.results.auto["arms"][0]["reason"]
    assert capsys.readouterr().out.count("\nepoch ") == len(run.results.history) > 1


@pytest.mark.slow
def test_without_time_the_solved_head_is_taken_and_the_reason_said(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "data", parity=True, rows=(80, 40, 40))
    run = run_all_steps(settings(folder, auto_seconds=0.01))
    assert run.results is not None
    auto = run.results.auto
    assert run.results.strategy in ("linear_probe", "deep_probe")
    assert [arm["state"] for arm in auto["arms"]] == ["trained"] + ["left out"] * (len(auto["arms"]) - 1)
    assert auto["arms"][1]["note"].endswith(" s needed, 0 s of --auto_seconds left")
    assert auto["sentence"].endswith("the only one that was trained.")


@pytest.mark.slow
@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_numbers_and_labels_are_learned(problem_type: str, tmp_path: Path) -> None:
    words = [f"word{number % 37} word{number % 11} word{number % 5}" for number in range(90)]
    label = [number % 5 * 1.5 for number in range(90)]
    labels = [["a"] * (number % 5 < 2) + ["b"] * (number % 11 < 5) for number in range(90)]
    frame = pandas.DataFrame({"text": words, "label": label if problem_type == "regression" else labels})
    run = train(
        frame, str(save_text_checkpoint(tmp_path / "model")), output_dir=tmp_path / "out", strategy="auto",
        auto_arms=["partial"], num_train_epochs=1, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert run.results is not None
    assert run.results.problem_type == problem_type
    assert run.results.auto["score_title"] == {"regression": "absolute error"}.get(problem_type, "F1 per sample")
    assert set(states(tmp_path / "out").values()) == {"trained"}


@pytest.mark.slow
def test_an_earlier_run_stays_until_the_new_one_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_texts(tmp_path / "data", parity=False, rows=(60, 30, 30)), tmp_path / "out"
    run_all_steps(settings(folder, strategy="linear_probe"))
    with pytest.raises(UserError, match="strategy: linear_probe -> auto"):
        run_all_steps(settings(folder, num_train_epochs=1))
    again = settings(folder, num_train_epochs=1, overwrite_output_dir=True)
    run = run_all_steps(again)
    assert run.results is not None
    assert run.results.auto
    assert "The earlier run that this one has replaced was removed" in capsys.readouterr().out
    assert Results.read(out).auto["chosen"]
    # A plain run that replaces it was not chosen.
    run_all_steps(settings(folder, strategy="linear_probe", overwrite_output_dir=True))
    assert Results.read(out).auto == {}
    assert not (out / "auto").exists()


@pytest.mark.slow
def test_the_pooling_of_a_strategy_that_is_given_is_chosen_once(
    parity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = settings(parity, strategy="linear_probe", pooling="auto", output_dir=str(tmp_path / "out"))
    run = run_all_steps(given)
    assert "--pooling auto: the head reads " in capsys.readouterr().out
    pooling = decision(tmp_path / "out")["arms"][0]["settings"]["pooling"]
    assert f"pooling: {pooling}\n" in (tmp_path / "out/config.yaml").read_text()
    assert run.results is not None
    assert run.results.strategy == "linear_probe"
    assert "How the strategy was chosen" not in (tmp_path / "out/report.md").read_text()
    alone = settings(parity, strategy="linear_probe", pooling=pooling, output_dir=str(tmp_path / "alone"))
    assert run_all_steps(alone).metrics == run.metrics
    capsys.readouterr()
    run_all_steps(given)
    assert "nothing was trained now" in capsys.readouterr().out


def command(config: TextConfig, *launcher: str) -> Sequence[str]:
    given = {one.name: config.flat()[one.name] for topic in vars(config).values() for one in topic.given()}
    named = {name: config.flat()[name] for name in ("model_name_or_path", "dataset_name", "output_dir")}
    flags = [f"--{name}={value}" for name, value in (given | named).items() if not isinstance(value, list)]
    lists = [part for name, value in given.items() if isinstance(value, list) for part in (f"--{name}", *value)]
    return [*(launcher or [sys.executable]), str(REPOSITORY / "recipes/text.py"), *flags, *lists]


def killed(words: Sequence[str], when: Callable[[], bool], number: signal.Signals) -> subprocess.Popen[str]:
    """The ended process of a command that was sent a signal as soon as something was so."""
    process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and not when() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(SECONDS)
    return process


@pytest.mark.slow
def test_a_decision_that_is_killed_three_times_ends_with_the_same_model(parity: Path, tmp_path: Path) -> None:
    """While the head is solved, while a strategy is trained, and after the decision."""
    config = settings(parity, auto_arms=["full"], output_dir=str(tmp_path / "out"), **LEARNS, save_steps=15)
    out, words = tmp_path / "out", command(config)

    def state(name: str) -> str:
        record = AutoRecord.read(out)
        return next((arm.state for arm in record.arms if arm.name != "full"), "") if name == "solved" and record else ""

    first = killed(words, lambda: state("solved") == "planned", signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    checkpoints = arm_folder(out, "full") / "checkpoints"
    second = killed(words, lambda: any(checkpoints.glob("checkpoint-*")), signal.SIGTERM)
    assert second.returncode == 143
    assert second.stdout is not None
    assert "To resume:   python" in second.stdout.read()
    assert states(out)["full"] == "planned"
    solved = next(arm for arm in decision(out)["arms"] if arm["name"] != "full")
    assert solved["state"] == "trained"
    third = killed(words, lambda: (record := AutoRecord.read(out)) is not None and bool(record.chosen), signal.SIGKILL)
    assert third.returncode == -signal.SIGKILL
    # What was trained before the first interruption has not been trained again.
    assert next(arm for arm in decision(out)["arms"] if arm["name"] != "full") == solved
    assert not (out / "results.json").exists()
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "epoch   1" not in done.stdout
    assert (out / WEIGHTS).read_bytes() == (parity.parent / "out" / WEIGHTS).read_bytes()
    before = Results.read(parity.parent / "out")
    assert Results.read(out).metrics == before.metrics
    assert Results.read(out).auto["estimate"] == before.auto["estimate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sharding", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}], ids=["whole", "sharded"]
)
def test_two_processes_decide_the_same(tmp_path: Path, sharding: dict[str, str]) -> None:
    folder = write_texts(tmp_path / "data", parity=True, rows=(80, 40, 40))
    config = settings(folder, auto_arms=["full"], num_train_epochs=2)
    words = command(config, str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node", "2")
    environment = os.environ | {"ACCELERATE_USE_CPU": "1"} | sharding
    done = [
        subprocess.run(
            words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        for _ in range(2)
    ]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-3000:] + done[1].stderr[-3000:]
    results = Results.read(tmp_path / "out")
    assert results.processes == 2
    assert results.strategy == results.auto["chosen"]
    assert done[0].stdout.count("Trying 2 of 2: full, about ") == 1
    assert "nothing was trained now" in done[1].stdout


def test_an_error_before_anything_is_trained_leaves_no_decision_that_corrected_settings_differ_from(
    tmp_path: Path,
) -> None:
    folder = write_texts(tmp_path / "data", parity=False)
    for table in folder.glob("*.csv"):
        first, *lines = table.read_text(encoding="utf-8").splitlines()
        table.write_text("\n".join([f"{first},language", *(f"{line},en" for line in lines)]), encoding="utf-8")
    with pytest.raises(UserError, match="at least 2 classes"):
        run_all_steps(settings(folder, label_column_name="language"))
    assert record_before(settings(folder)) is None


@pytest.mark.slow
def test_on_one_row_of_each_class_a_head_is_compared_with_what_is_trained(tmp_path: Path) -> None:
    """Where no head can be judged beforehand."""
    folder = write_texts(tmp_path / "data", parity=False)
    run_all_steps(settings(folder, max_train_samples_per_class=1, num_train_epochs=1))
    assert states(tmp_path / "out") == {
        "linear_probe": "trained", "full": "trained", "gradual": "left out", "partial": "left out",
    }  # fmt: skip


def test_a_decision_is_shown_without_training_from_the_results_alone(tmp_path: Path) -> None:
    """If the folder of the decision was removed by hand."""
    written = AutoRecord(began="2030", settings={"seed": 1}, chosen="")
    written.write(tmp_path)
    shutil.move(tmp_path / "auto/decision.json", tmp_path / "decision.json")
    (tmp_path / "results.json").write_text(json.dumps({"auto": json.loads((tmp_path / "decision.json").read_text())}))
    assert AutoRecord.read(tmp_path) == written
