"""Random choices for the samples: fair, and given by the seed alone."""

from collections import Counter

import numpy as np

from hf_transfer.data.draws import Draws


def test_one_seed_gives_the_same_choices_and_another_others() -> None:
    first, again, other = (Draws(seed).shuffled(range(50)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_every_number_below_is_about_equally_frequent() -> None:
    draws = Draws(3)
    counts = Counter(draws.below(6) for _ in range(6_000))
    assert counts.keys() == set(range(6))
    assert all(abs(count - 1_000) < 4 * np.sqrt(6_000 * 1 / 6 * 5 / 6) for count in counts.values())


def test_shuffling_keeps_all_items_and_puts_each_anywhere() -> None:
    draws = Draws(5)
    orders = [draws.shuffled("abcd") for _ in range(2_400)]
    assert all(sorted(order) == list("abcd") for order in orders)
    counts = Counter("".join(order) for order in orders)
    assert len(counts) == 24
    assert all(60 < count < 140 for count in counts.values())


def test_one_of_the_items_is_chosen() -> None:
    draws = Draws(11)
    assert {draws.one("abc") for _ in range(50)} == set("abc")
