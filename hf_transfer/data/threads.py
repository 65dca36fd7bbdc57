"""A function for many items, in threads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from hf_transfer.data.processors import allowed_processors

Item = TypeVar("Item")
Result = TypeVar("Result")
# One task for each of a million items would take gigabytes, and more time than short functions do.
ITEMS_OF_A_TASK = 64
TASKS_AT_ONCE = 256
# Of few items, so that no thread waits long for the one that has the slowest.
TASKS_OF_A_THREAD = 4


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of a function, in the order of the items; both are taken little by little.

    Args:
        function: may wait for disks, or compute without Python's lock.
        items: its arguments.
    """

    def each(some: Sequence[Item]) -> list[Result]:
        return [function(item) for item in some]

    rest, threads = iter(items), allowed_processors()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        while part := list(islice(rest, ITEMS_OF_A_TASK * TASKS_AT_ONCE)):
            size = min(ITEMS_OF_A_TASK, -(-len(part) // (threads * TASKS_OF_A_THREAD)))
            tasks = [part[first : first + size] for first in range(0, len(part), size)]
            for results in pool.map(each, tasks):
                yield from results
