"""What the table of `benchmarks/automl.py` shows."""

from typing import Any

import numpy as np

from benchmarks import automl

ROWS = 200


def row(arm: str, accuracy: float, validation: float, *, seed: int = 0, seconds: float = 10.0) -> dict[str, Any]:
    right = np.arange(ROWS) < accuracy * ROWS
    return {
        "set": "wordnet", "arm": arm, "seed": seed, "accuracy": accuracy, "test_rows": ROWS,
        "right": np.packbits(right).tobytes().hex(), "validation": validation, "cpu_seconds": seconds,
    }  # fmt: skip


MEASURED = [
    row("Trainer, rate 5e-05", 0.9, 0.6, seconds=20),
    row("Trainer, rate 0.0001", 0.7, 0.8, seconds=30),
    row("Trainer, rate 0.0003", 0.8, 0.7, seconds=40),
    row("ours, full", 0.75, 0.75),
    row("AutoGluon", 0.65, 0.7),
]


def test_the_rate_of_trainer_is_chosen_on_validation() -> None:
    """The one that is best on test is another."""
    assert [*automl.chosen_rows(MEASURED)] == ["Trainer, rate 0.0001", "ours, full", "AutoGluon"]


def test_the_table_compares_with_both_and_shows_what_the_rates_of_trainer_cost() -> None:
    lines = [line.split("|")[2:-1] for line in list(automl.table(MEASURED))[2:]]
    cells = {name.strip(): [cell.strip() for cell in others] for name, *others in lines}
    assert [*cells] == ["ours, full", "Trainer, rate 0.0001", "AutoGluon"]
    assert [cell[0].split(" (")[0] for cell in cells.values()] == ["75.0 %", "70.0 %", "65.0 %"]
    assert [cell[1].split(" (")[0] for cell in cells.values()] == ["+5.0", "", "-5.0"]
    assert [cell[2].split(" (")[0] for cell in cells.values()] == ["+10.0", "+5.0", ""]
    assert [cell[3] for cell in cells.values()] == ["10", "30; all rates 90", "10"]


def test_only_seeds_that_both_have_are_compared() -> None:
    more = [*MEASURED, row("ours, full", 0.95, 0.9, seed=1)]
    (line,) = (line for line in automl.table(more) if "ours, full" in line)
    assert line.split("|")[4].strip().startswith("+5.0 ")
    assert line.split("|")[3].strip().startswith("85.0 %")


def test_without_trainer_nothing_is_compared() -> None:
    (line,) = (line for line in automl.table([row("AutoGluon", 0.65, 0.7)]) if line.startswith("| wordnet"))
    assert [cell.strip() for cell in line.split("|")[4:6]] == ["", ""]
