"""Random choices that are the same with every version of Python and NumPy."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


class Draws:
    """A sequence of random choices, given by its seed.

    They come from the raw values of a bit generator: these NumPy promises to keep the same for all its versions, and
    not what its generators make of them (Kern, "NEP 19: Random number generator policy", 2018,
    https://numpy.org/neps/nep-0019-rng-policy.html).

    Args:
        seed: a whole number, from 0.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, count: int) -> int:
        """A whole number from 0 to `count` - 1."""
        return int(self._bits.random_raw()) % count

    def one(self, items: Sequence[Item]) -> Item:
        """One of them."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All of them, in random order."""
        keys = [int(self._bits.random_raw()) for _ in items]
        return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]
