"""A few runs of `make test-faults`: recipes that are killed twice end with the same bytes."""

import importlib
from pathlib import Path

import pytest

from tests import faults

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("processes", "runs"), [(1, 5), (2, 3)])
def test_recipes_that_are_killed_twice_end_with_the_same_bytes(processes: int, runs: int, tmp_path: Path) -> None:
    for name in faults.SHARED_MODULES:
        importlib.import_module(name)
    outcomes = faults.campaign(runs, 7, [processes], tmp_path)
    assert [outcome.task for outcome in outcomes if not outcome.equal] == []
    assert sum(len(outcome.killed) for outcome in outcomes) >= runs
    assert max(outcome.lost for outcome in outcomes) <= faults.SAVE_STEPS
