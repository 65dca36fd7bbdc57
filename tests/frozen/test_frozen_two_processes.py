"""Two processes divide the work of the frozen layers, and train on the activations that both have stored."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.frozen.frozen_run import CHUNK, HELD_OUT, SAMPLES
from tests.training.launched import two_forks

CHUNKS = -(-SAMPLES // CHUNK) + -(-HELD_OUT // CHUNK)
STRATEGIES = ["partial", "linear_probe"]
Results = dict[str, Any]
Script = Callable[[str], Path]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Returns the folder with the results of `frozen_run.py` for a strategy."""

    @cache
    def run(strategy: str) -> Path:
        folder = tmp_path_factory.mktemp("two")
        ended = two_forks(Path(__file__).with_name("frozen_run.py"), str(folder), strategy)
        assert ended.returncode == 0, ended.output[-3000:]
        return folder

    return run


def results_of(script: Script, strategy: str) -> list[Results]:
    """The results of each process."""
    ranks: list[Results] = [json.loads((script(strategy) / f"{strategy}-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    return ranks


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_chunk_is_computed_once_by_one_of_them(script: Script, strategy: str) -> None:
    first, second = results_of(script, strategy)
    one, other = set(first["on wrote"]), set(second["on wrote"])
    files = {
        f"{path.parent.name}/{int(path.stem)}"
        for path in (script(strategy) / strategy / "frozen").rglob("*.safetensors")
    }
    assert not one & other
    assert one | other == files
    assert len(first["on wrote"]) + len(second["on wrote"]) == len(files)
    assert len(files) == CHUNKS
    # The first process writes chunks 0, 2, 4 of training and 0, 2 of validation.
    assert (len(one), len(other)) == (5, 4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["on", "again", "auto"])
def test_the_run_equals_that_without_the_store(script: Script, strategy: str, kind: str) -> None:
    """In both processes; and stored chunks are not written again."""
    for rank in results_of(script, strategy):
        live, stored = rank["off"], rank[kind]
        assert len(stored["history"]) == len(live["history"]) == (1 if strategy == "linear_probe" else 2)
        for row, expected in zip(stored["history"], live["history"], strict=True):
            assert row == pytest.approx(expected, abs=1e-6)
        assert (stored["best"], stored["weights"]) == (live["best"], live["weights"])
        assert kind == "on" or rank[f"{kind} wrote"] == []
        assert rank["off wrote"] == [] or strategy == "linear_probe"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_processes_have_equal_results(script: Script, strategy: str) -> None:
    first, second = results_of(script, strategy)
    for kind in ("off", "on", "again", "auto"):
        assert first[kind] == second[kind]
