"""What the tests of intervals of labels and of numbers share."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


def draws_asked_for(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, compute: Callable[[], object], cells: int
) -> list[int]:
    """How many bootstrap samples a module draws if it may resample its cells 1,000 times, 500 times, and once."""
    asked: list[int] = []

    def bootstrap(samples: int, computed: Any, resamples: int, at_once: int) -> dict[str, tuple[float, float]]:
        asked.append(resamples)
        return {}

    monkeypatch.setattr(module, "bootstrap_intervals", bootstrap)
    for times in (1000, 500, 1):
        monkeypatch.setattr(module, "RESAMPLED_CELLS", times * cells)
        compute()
    return asked
