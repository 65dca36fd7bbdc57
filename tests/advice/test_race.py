"""The way of a decision, with arms whose training is replaced by given scores: nothing is tried twice."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_transfer.advice import race
from hf_transfer.advice.arms import Arm, Rejection
from hf_transfer.advice.auto import decided
from hf_transfer.advice.plan import Plan
from hf_transfer.data.complete_files import put
from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation.auto_record import AutoRecord, TriedArm, arm_folder
from hf_transfer.interruption import Interrupted
from hf_transfer.modalities import opening
from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import RunConfig, TextConfig

ROWS = 100
# What an arm gives: its number of right answers, or the error that it raises.
Outcomes = Mapping[str, int | BaseException]
NAMED = {"model_name_or_path": "m", "dataset_name": "d", "strategy": "auto"}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Replaces evidence and training: `tried(linear_probe=70, full=80)` -> the names that are tried from then on."""

    def replaced(enough: str = "", misses: str = "", **outcomes: int | BaseException) -> list[str]:
        names: list[str] = []

        def plan_of(config: RunConfig, data: datasets.DatasetDict | None = None) -> Plan:
            names.append("evidence")
            arms = [Arm(name, {"strategy": name}, "It may be good.", 10.0 * n) for n, name in enumerate(outcomes, 1)]
            return Plan({"rows": 200}, "accuracy", arms, [Rejection("dora", "It takes more time.")], enough, misses)

        def trained(self: Any, arm: TriedArm) -> TriedArm:
            names.append(arm.name)
            outcome = outcomes[arm.name]
            if isinstance(outcome, BaseException):
                raise outcome
            scores = [1.0] * outcome + [0.0] * (ROWS - outcome)
            folder = arm_folder(self._out, arm.name)
            folder.mkdir(parents=True)
            rows = list(range(ROWS))
            put(folder / race.SCORES_FILE, json.dumps({"rows": rows, "units": rows, "scores": scores}).encode())
            return replace(arm, state="trained", score=outcome / ROWS, standard_error=0.01)

        monkeypatch.setattr(opening, "open_inputs", lambda config, data: None)
        monkeypatch.setattr(race, "plan_of", plan_of)
        monkeypatch.setattr(race._Race, "_trained", trained)
        return names

    return replaced


def config(out: Path, **more: Any) -> TextConfig:
    return TextConfig.of(**NAMED | {"output_dir": str(out)} | more)


def record_in(out: Path) -> AutoRecord:
    record = AutoRecord.read(out)
    assert record is not None
    return record


def folders(out: Path) -> Sequence[str]:
    return sorted(path.name for path in (out / "auto/arms").glob("*"))


def test_the_best_arm_gives_the_settings_and_the_others_are_removed(
    tried: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tried(linear_probe=70, full=90, lora=95)
    final = decided(config(tmp_path, num_train_epochs=3, auto_seconds=None))
    assert names == ["evidence", "linear_probe", "full"]
    assert (final.strategy.strategy, final.training.num_train_epochs) == ("full", 3)
    assert folders(tmp_path) == ["full"]
    record = record_in(tmp_path)
    assert (record.chosen, record.samples, record.rejected) == ("full", ROWS, {"dora": "It takes more time."})
    assert record.estimate == pytest.approx(0.9, abs=0.01)
    assert (tmp_path / "config.yaml").read_text().count("strategy: full\n") == 1
    out = capsys.readouterr().out
    assert "Trying 2 of 2: full, about 20 s ... It may be good.\nfull: accuracy 0.9000 on validation rows, " in out
    assert "Chosen: full 0.9000 against linear_probe 0.7000 on 100 validation rows.\n" in out


def test_nothing_is_trained_beside_a_head_that_is_enough_and_that_is_said(
    tried: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tried("the head leaves 1 point to gain", linear_probe=99, full=100)
    assert decided(config(tmp_path)).strategy.strategy == "linear_probe"
    assert names == ["evidence", "linear_probe"]
    record, out = record_in(tmp_path), capsys.readouterr().out
    assert record.arms[1].note == "the head leaves 1 point to gain; --auto_seconds tries more"
    assert "The head leaves 1 point to gain: nothing is trained beside it.\nTrying 1 of 1: linear_probe" in out
    assert record.sentence == "Chosen: linear_probe, since the head leaves 1 point to gain."


def test_the_classes_for_which_more_is_trained_are_named(
    tried: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tried(misses="It misses rare (6 of 6).", linear_probe=99, full=100)
    decided(config(tmp_path))
    assert names == ["evidence", "linear_probe", "full"]
    assert "\nIt misses rare (6 of 6).\nTrying 1 of 2: linear_probe" in capsys.readouterr().out


def test_of_equal_arms_the_solved_head_is_taken(tried: Callable[..., list[str]], tmp_path: Path) -> None:
    tried(linear_probe=90, full=90)
    assert decided(config(tmp_path)).strategy.strategy == "linear_probe"


def test_the_same_settings_find_the_decision(tried: Callable[..., list[str]], tmp_path: Path) -> None:
    tried(linear_probe=70, full=90)
    first = decided(config(tmp_path))
    again = tried(linear_probe=90, full=70)
    assert decided(config(tmp_path)) == first
    assert again == []


def test_other_settings_are_refused_before_any_work(tried: Callable[..., list[str]], tmp_path: Path) -> None:
    tried(linear_probe=70, full=90)
    decided(config(tmp_path))
    names = tried(linear_probe=70, full=90)
    with pytest.raises(UserError, match=r"other settings \(there -> here\): seed: 0 -> 3\n"):
        decided(config(tmp_path, seed=3))
    assert names == []


def test_what_has_been_trained_is_not_trained_again_after_an_interruption(
    tried: Callable[..., list[str]], tmp_path: Path
) -> None:
    names = tried(linear_probe=70, full=Interrupted(15, "No checkpoint."))
    with pytest.raises(Interrupted):
        decided(config(tmp_path, overwrite_output_dir=True))
    assert names == ["evidence", "linear_probe", "full"]
    names = tried(linear_probe=70, full=90)
    assert decided(config(tmp_path)).strategy.strategy == "full"
    assert names == ["full"]


@pytest.mark.parametrize(("strategy", "starts_over"), [("auto", False), ("full", True)])
def test_the_command_that_is_printed_after_an_interruption_does_not_start_over(
    strategy: str, starts_over: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a plain run that has saved nothing, nothing is lost by it."""

    def main(given: TextConfig) -> None:
        raise Interrupted(15)

    flags = ["--model_name_or_path=m", "--dataset_name=d", "--output_dir=o", f"--strategy={strategy}"]
    monkeypatch.setattr("sys.argv", ["recipes/text.py", *flags, "--overwrite_output_dir"])
    with pytest.raises(SystemExit):
        run_recipe(main, TextConfig)
    assert ("--overwrite_output_dir" in capsys.readouterr().err) == starts_over


@pytest.mark.parametrize(("flag", "seed"), [("overwrite_output_dir", 3), ("no_resume", 0)])
def test_it_starts_over_if_it_is_told_to(tried: Callable[..., list[str]], tmp_path: Path, flag: str, seed: int) -> None:
    tried(linear_probe=70, full=Interrupted(15))
    with pytest.raises(Interrupted):
        decided(config(tmp_path))
    names = tried(linear_probe=70, full=90)
    assert decided(config(tmp_path, seed=seed, **{flag: True})).training.seed == seed
    assert names == ["evidence", "linear_probe", "full"]


def test_an_arm_that_fails_is_recorded_and_tried_again_by_the_next_command(
    tried: Callable[..., list[str]], tmp_path: Path
) -> None:
    full = user_error(expected="memory", found="none", do="buy some")
    tried(linear_probe=70, full=full, lora=60)
    assert decided(config(tmp_path)).strategy.strategy == "linear_probe"
    states = {arm.name: (arm.state, arm.note) for arm in record_in(tmp_path).arms}
    assert states == {"linear_probe": ("trained", ""), "full": ("failed", str(full)), "lora": ("trained", "")}


def test_if_all_fail_their_reasons_are_named(tried: Callable[..., list[str]], tmp_path: Path) -> None:
    first, second = (user_error(expected=what, found="none", do="get some") for what in ("memory", "disk space"))
    tried(linear_probe=first, full=second)
    with pytest.raises(UserError, match="at least one strategy that can be trained") as error:
        decided(config(tmp_path))
    assert "linear_probe: Expected: memory Found: none" in str(error.value)
    assert "full: Expected: disk space" in str(error.value)
    names = tried(linear_probe=70, full=90)
    assert decided(config(tmp_path)).strategy.strategy == "full"
    assert names == ["linear_probe", "full"]


def test_if_all_fail_for_the_same_reason_that_is_the_error(tried: Callable[..., list[str]], tmp_path: Path) -> None:
    same = user_error(expected="labels", found="none", do="add some")
    tried(linear_probe=same, full=same)
    with pytest.raises(UserError) as error:
        decided(config(tmp_path))
    assert str(error.value) == str(same)


def test_a_folder_with_other_files_or_another_run_is_refused(tried: Callable[..., list[str]], tmp_path: Path) -> None:
    names = tried(linear_probe=70, full=90)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(UserError, match="an empty or new folder for --output_dir"):
        decided(config(tmp_path / "other"))
    another = TextConfig.of(**NAMED | {"strategy": "lora", "output_dir": str(tmp_path)})
    another.save(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="strategy: lora -> auto"):
        decided(config(tmp_path))
    assert names == []


def test_another_strategy_is_refused_in_the_folder_of_a_decision_on_its_way(
    tried: Callable[..., list[str]], tmp_path: Path
) -> None:
    from hf_transfer.evaluation.run_folder import finished_results

    tried(linear_probe=70, full=Interrupted(15))
    with pytest.raises(Interrupted):
        decided(config(tmp_path))
    with pytest.raises(UserError, match="strategy: auto -> full"):
        finished_results(TextConfig.of(**NAMED | {"strategy": "full", "output_dir": str(tmp_path)}))


def test_a_strategy_that_is_given_is_left_as_it_is(tmp_path: Path) -> None:
    given = TextConfig.of(**NAMED | {"strategy": "full", "output_dir": str(tmp_path)})
    assert decided(given) is given
    (tmp_path / "auto").mkdir()
    decided(given)
    assert (tmp_path / "auto").is_dir()
    # A run that replaces another has been chosen by a person.
    decided(given.replaced(overwrite_output_dir=True))
    assert not (tmp_path / "auto").exists()


def test_a_name_that_is_no_strategy_for_the_samples_is_refused_first(
    tried: Callable[..., list[str]], tmp_path: Path
) -> None:
    names = tried(linear_probe=70)
    with pytest.raises(UserError, match="--auto_arms: strategies, each once"):
        decided(config(tmp_path, auto_arms=["magic"]))
    assert names == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"report_to": ["no such tracker"]}, "a precision and trackers that this machine has"),
        ({"torch_compile": True, "torch_compile_backend": "magic"}, "a --torch_compile_backend that torch knows"),
    ],
    ids=["tracker", "compiler"],
)  # fmt: skip
def test_what_the_arms_leave_out_or_fail_by_is_refused_first(
    tried: Callable[..., list[str]], tmp_path: Path, settings: dict[str, Any], expected: str
) -> None:
    """No arm has trackers, and a solved head compiles nothing."""
    names = tried(linear_probe=70, full=90)
    with pytest.raises(UserError, match=expected):
        decided(config(tmp_path, **settings))
    assert names == []


def test_an_error_before_the_first_arm_leaves_no_folder(
    tried: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a lock; a folder that was there stays, with what is in it."""
    tried(linear_probe=70)

    def fails(*_: object) -> Plan:
        raise user_error(expected="labels", found="none", do="add some")

    monkeypatch.setattr(race, "plan_of", fails)
    (tmp_path / "empty").mkdir()
    for folder in ("runs/first", "empty"):
        with pytest.raises(UserError, match="labels"):
            decided(config(tmp_path / folder))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
