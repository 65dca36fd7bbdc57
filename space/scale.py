"""A line for numbers with round ticks, and numbers with as many digits as they deserve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (1, 2, 5, 10)
MOST_STEPS = 4
# Of single precision.
DIGITS = 7
# Beyond these a number is shown as 1.23e+12.
LARGEST, MOST_DECIMALS = 1e12, 8


@dataclass(frozen=True)
class Scale:
    """A line from its first tick to its last one.

    Attributes:
        ticks: numbers at the same distance from each other, in rising order.
        step: their distance.
    """

    ticks: tuple[float, ...]
    step: float

    def place(self, value: float) -> float:
        """Where a number lies, from 0 (the first tick) to 1 (the last)."""
        return (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    def labels(self) -> list[tuple[float, str]]:
        """The place of each tick, and its number as it is shown."""
        return [(self.place(tick), shown(tick, 10 * self.step)) for tick in self.ticks]


def scale_over(values: Sequence[float]) -> Scale | None:
    """The shortest line with round ticks that holds all numbers; None if they have no extent.

    Reference: the steps are those of Heckbert, "Nice numbers for graph labels", Graphics Gems 1990.
    """
    low, high = min(values), max(values)
    # Below the resolution of single precision there are no ticks between them.
    if not math.isfinite(high - low) or high - low <= 1e-6 * max(abs(low), abs(high)):
        return None
    power = 10.0 ** math.floor(math.log10((high - low) / MOST_STEPS))
    step = next(factor * power for factor in STEPS if (high - low) / (factor * power) <= MOST_STEPS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(tuple(number * step for number in range(first, last + 1)), step)


def plain(value: float, digits: int = DIGITS) -> str:
    """A number with these many digits at most, without zeros at its end."""
    return f"{value:,.0f}" if 10 ** (digits - 1) <= abs(value) < LARGEST else f"{value:,.{digits}g}"


def shown(value: float, precision: float) -> str:
    """A number for people.

    Args:
        value: the number.
        precision: it is rounded to the second digit of this number, 0.37 to two decimals, say; 0: to a whole number.
    """
    if not math.isfinite(value):
        return str(value)
    decimals = 1 - math.floor(math.log10(precision)) if precision > 0 and math.isfinite(precision) else 0
    if abs(value) >= LARGEST or decimals > MOST_DECIMALS:
        return f"{value:.4g}"
    # Not -0.
    return f"{round(value, max(decimals, 0)) + 0.0:,.{max(decimals, 0)}f}"
