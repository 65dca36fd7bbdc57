"""A function for many items in threads: in order, with its errors, and without a task for each item."""

import threading

import pytest

from hf_transfer.data import threads
from hf_transfer.data.processors import allowed_processors
from hf_transfer.data.threads import in_threads


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ITEMS_OF_A_TASK", 3)
    monkeypatch.setattr(threads, "TASKS_AT_ONCE", 4)


@pytest.mark.parametrize("count", [0, 1, 3, 12, 13, 100])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    assert list(in_threads(lambda item: item * item, range(count))) == [item * item for item in range(count)]


def test_the_error_of_an_item_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 // (item - 50), range(100)))


@pytest.mark.skipif(allowed_processors() < 2, reason="one processor")
def test_several_threads_work_at_the_same_time() -> None:
    """Each of the first two waits for the other."""
    barrier = threading.Barrier(2)
    assert sorted(in_threads(lambda item: barrier.wait(240) if item in (0, 3) else 2, range(6))) == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("count", [2, 8, 63])
def test_few_items_are_shared_among_all_threads(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each can be a large photograph: as many as there are processors are computed at the same time."""
    monkeypatch.setattr(threads, "ITEMS_OF_A_TASK", 64)
    monkeypatch.setattr(threads, "allowed_processors", lambda: 8)
    together = min(8, count)
    barrier = threading.Barrier(together)
    entered: set[int] = set()

    def wait_for_the_others(item: int) -> int:
        if threading.get_ident() not in entered:
            entered.add(threading.get_ident())
            barrier.wait(240)
        return item

    assert list(in_threads(wait_for_the_others, range(count))) == list(range(count))
    assert len(entered) == together


def test_no_more_is_computed_ahead_than_a_few_tasks() -> None:
    computed: list[int] = []
    next(in_threads(computed.append, range(1000)))
    assert len(computed) <= 12
