"""Strategies of several stages on two processes: the processes must hold the same weights in all stages."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.launched import two_forks
from tests.training.stage_changes import CASES, EPOCHS

MOST_STAGES = 5


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the results of `stage_changes.py`."""
    folder = tmp_path_factory.mktemp("stages")
    ended = two_forks(Path(__file__).with_name("stage_changes.py"), str(folder))
    assert ended.returncode == 0, ended.output[-3000:]
    return folder


def read(folder: Path, case: str) -> Any:
    content = json.loads((folder / f"{case}.json").read_text())
    assert content["number"] == 2
    return content


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_weights_after_every_epoch(script: Path, case: str) -> None:
    """To the bit, with statistics, and at the end; each stage wraps the model anew."""
    results = read(script, case)
    assert len(results["epochs"]) > EPOCHS
    for number, epoch in enumerate(results["epochs"]):
        first, second = (process["weights"] for process in epoch["processes"])
        assert first.keys() == second.keys()
        assert [key for key in first if first[key] != second[key]] == [], f"epoch {number}"


@pytest.mark.parametrize("case", [case for case in CASES if "soup_size" not in CASES[case][1]])
def test_the_parameters_of_each_stage_move_on_both_processes_and_no_others(script: Path, case: str) -> None:
    results = read(script, case)
    stages = results["stages"]
    # One stage for each epoch; or a solved head and one stage; or adapters alone.
    by_epoch = stages if len(stages) == EPOCHS else [*stages[:-1], *[stages[-1]] * EPOCHS]
    assert len(by_epoch) == len(results["history"])
    for names, epoch in zip(by_epoch, results["epochs"], strict=False):
        assert [sorted(process["moved"]) for process in epoch["processes"]] == [names, names]


def test_gradual_unfreezing_goes_through_all_stages(script: Path) -> None:
    for case in ("vit-gradual", "resnet_basic-gradual"):
        results = read(script, case)
        assert len(results["stages"]) == MOST_STAGES
        sizes = [len(stage) for stage in results["stages"]]
        assert sizes == sorted(set(sizes))


def test_a_soup_on_two_processes_is_no_worse_than_its_best_epoch(script: Path) -> None:
    """The statistics of BatchNorm of both processes are averaged."""
    results = read(script, "resnet_basic-gradual")
    assert 1 <= len(results["soup"]) <= 3
    best = max(range(EPOCHS), key=lambda n: (results["history"][n]["accuracy"], -results["history"][n]["loss"]))
    assert results["soup"][0] == best
