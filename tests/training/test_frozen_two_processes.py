"""Two processes share the work of the frozen layers, and train on what both have stored."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.training.frozen_run import CHUNK, HELD_OUT, SAMPLES
from tests.training.launched import two_forks

CHUNKS = -(-SAMPLES // CHUNK) + -(-HELD_OUT // CHUNK)
STRATEGIES = ["partial", "linear_probe"]
Found = dict[str, Any]
Script = Callable[[str], Path]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """The folder in which `frozen_run.py` has left its findings on a strategy."""

    @cache
    def run(strategy: str) -> Path:
        folder = tmp_path_factory.mktemp("two")
        ended = two_forks(Path(__file__).with_name("frozen_run.py"), str(folder), strategy)
        assert ended.returncode == 0, ended.said[-3000:]
        return folder

    return run


def found(script: Script, strategy: str) -> list[Found]:
    """What each process has found."""
    ranks: list[Found] = [json.loads((script(strategy) / f"{strategy}-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    return ranks


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_chunk_is_computed_once_by_one_of_them(script: Script, strategy: str) -> None:
    first, second = found(script, strategy)
    one, other = set(first["on wrote"]), set(second["on wrote"])
    files = {
        f"{path.parent.name}/{int(path.stem)}"
        for path in (script(strategy) / strategy / "frozen").rglob("*.safetensors")
    }
    assert not one & other
    assert one | other == files
    assert len(first["on wrote"]) + len(second["on wrote"]) == len(files)
    assert len(files) == CHUNKS
    # Chunks of training 0, 2, 4 and of validation 0, 2 are the first's.
    assert (len(one), len(other)) == (5, 4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["on", "again", "auto"])
def test_the_run_is_that_without_the_store(script: Script, strategy: str, kind: str) -> None:
    """In both processes, to the last digit; and what is there is not written again."""
    for rank in found(script, strategy):
        live, stored = rank["off"], rank[kind]
        assert len(stored["history"]) == len(live["history"]) == (1 if strategy == "linear_probe" else 2)
        for row, expected in zip(stored["history"], live["history"], strict=True):
            assert row == pytest.approx(expected, abs=1e-6)
        assert (stored["best"], stored["weights"]) == (live["best"], live["weights"])
        assert kind == "on" or rank[f"{kind} wrote"] == []
        assert rank["off wrote"] == [] or strategy == "linear_probe"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_hold_equal_weights(script: Script, strategy: str) -> None:
    first, second = found(script, strategy)
    for kind in ("off", "on", "again", "auto"):
        assert first[kind] == second[kind]
