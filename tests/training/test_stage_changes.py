"""Strategies of several stages on two processes: a stage that opens parameters must not let the processes part."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.launched import two_forks
from tests.training.stage_changes import CASES, EPOCHS

MOST_STAGES = 5


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `stage_changes.py` has left its findings."""
    folder = tmp_path_factory.mktemp("stages")
    ended = two_forks(Path(__file__).with_name("stage_changes.py"), str(folder))
    assert ended.returncode == 0, ended.said[-3000:]
    return folder


def read(folder: Path, case: str) -> Any:
    found = json.loads((folder / f"{case}.json").read_text())
    assert found["number"] == 2
    return found


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_weights_after_every_epoch(script: Path, case: str) -> None:
    """To the bit, statistics included, and at the end; a new stage wraps the model anew."""
    found = read(script, case)
    assert len(found["epochs"]) > EPOCHS
    for number, epoch in enumerate(found["epochs"]):
        first, second = (process["weights"] for process in epoch["processes"])
        assert first.keys() == second.keys()
        assert [key for key in first if first[key] != second[key]] == [], f"epoch {number}"


@pytest.mark.parametrize("case", [case for case in CASES if "soup_size" not in CASES[case][1]])
def test_what_each_stage_names_moves_on_both_processes_and_nothing_else(script: Path, case: str) -> None:
    found = read(script, case)
    stages = found["stages"]
    # One stage for each epoch; or a solved head and what follows; or the adapters alone.
    by_epoch = stages if len(stages) == EPOCHS else [*stages[:-1], *[stages[-1]] * EPOCHS]
    assert len(by_epoch) == len(found["history"])
    for named, epoch in zip(by_epoch, found["epochs"], strict=False):
        assert [sorted(process["moved"]) for process in epoch["processes"]] == [named, named]


def test_gradual_unfreezing_has_really_changed_its_stage_on_both(script: Path) -> None:
    for case in ("vit-gradual", "resnet_basic-gradual"):
        found = read(script, case)
        assert len(found["stages"]) == MOST_STAGES
        sizes = [len(stage) for stage in found["stages"]]
        assert sizes == sorted(set(sizes))


def test_a_soup_on_two_processes_is_no_worse_than_its_best_epoch(script: Path) -> None:
    """Their own statistics of BatchNorm are averaged."""
    found = read(script, "resnet_basic-gradual")
    assert 1 <= len(found["soup"]) <= 3
    best = max(range(EPOCHS), key=lambda n: (found["history"][n]["accuracy"], -found["history"][n]["loss"]))
    assert found["soup"][0] == best
