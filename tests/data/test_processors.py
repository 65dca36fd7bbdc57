"""Loader workers: together not more than the machine has processors, however many processes a run has on it."""

import os

import pytest

from hf_transfer.data import processors
from hf_transfer.data.processors import allowed_processors, sharing_processes, workers_for


@pytest.mark.parametrize(
    ("wanted", "rows", "allowed", "workers"),
    [(None, 1_999, 8, 0), (None, 2_000, 8, 4), (None, 2_000, 2, 2), (0, 10**6, 8, 0), (3, 1, 8, 3), (6, 1, 2, 6)],
)
def test_many_rows_are_read_by_up_to_four_workers_unless_a_number_is_set(
    wanted: int | None, rows: int, allowed: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "allowed_processors", lambda: allowed)
    assert processors.ROWS_THAT_NEED_WORKERS == 2_000
    assert workers_for(wanted, rows, {}) == workers


@pytest.mark.parametrize("wanted", [None, 1, 4, 16, 24])
@pytest.mark.parametrize("processes", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("allowed", [1, 2, 16])
def test_all_processes_of_a_machine_together_have_no_more_workers_than_processors_or_than_are_wanted(
    wanted: int | None, processes: int, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But each has at least one."""
    monkeypatch.setattr(processors, "allowed_processors", lambda: allowed)
    workers = workers_for(wanted, 10_000, {"LOCAL_WORLD_SIZE": str(processes), "WORLD_SIZE": "64"})
    assert 1 <= workers <= (wanted or 4)
    assert workers == 1 or workers * processes <= max(allowed, wanted or 0)


def test_eight_processes_with_sixteen_workers_each_have_two_on_sixteen_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processors, "allowed_processors", lambda: 16)
    assert workers_for(16, 1, {"LOCAL_WORLD_SIZE": "8"}) == 2


@pytest.mark.parametrize(
    ("environment", "sharing"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, 4),
        # srun has started each process, with processors of its own.
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_NTASKS_PER_NODE": "4"}, 1),
        # torchrun in one task of each machine.
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_NTASKS_PER_NODE": "1"}, 4),
    ],
)
def test_processes_share_processors_unless_slurm_has_started_each(environment: dict[str, str], sharing: int) -> None:
    assert sharing_processes(environment) == sharing


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_processors_that_this_process_may_not_use_do_not_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert allowed_processors() == 1
    finally:
        os.sched_setaffinity(0, before)
