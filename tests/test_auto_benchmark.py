"""How far `--strategy auto` is behind the best strategy: the figures of `benchmarks/auto.py`."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks import auto, training_defaults
from benchmarks.auto_cells import CELLS, VALIDATION_SHARE, config_of, data_of
from tests.conftest import REPOSITORY

ROWS = 1_000


def row(share: float, draw: int, **more: object) -> auto.Row:
    right = np.random.default_rng(draw).random(ROWS) < share
    return {"test": "".join(str(int(one)) for one in right), "cpu_seconds": 10.0, **more}


def test_the_best_of_equal_arms_is_no_better_than_another_one() -> None:
    """Chosen and scored on the same rows, the best of twenty would be ahead by two standard errors."""
    regrets = []
    for draw in range(20):
        arms = [row(0.7, 100 * draw + number) for number in range(20)]
        regrets.append(auto.regret([arms[0]], [arms])[0])
    luckiest = np.mean([
        max(auto.accuracy(row(0.7, 100 * draw + number)) for number in range(20)) - 0.7 for draw in range(20)
    ])  # fmt: skip
    assert abs(np.mean(regrets)) < 100 * luckiest / 2


def test_the_regret_of_a_worse_choice_is_how_much_worse_it_is() -> None:
    good, bad = row(0.9, 0), row(0.6, 1)
    point, low, high = auto.regret([bad], [[good, bad]])
    assert point == pytest.approx(100 * (auto.accuracy(good) - auto.accuracy(bad)))
    assert 20 < low < point < high < 40


def test_a_cell_is_shown_once_all_of_its_arms_are_measured() -> None:
    name = "intents, 8 per class"
    arms = [row(0.5, number, cell=name, arm=arm, seed=0) for number, arm in enumerate(CELLS[name].arms)]
    assert len([*auto.table(arms[:-1])]) == 2
    (line,) = [*auto.table(arms)][2:]
    assert line.startswith(f"| {name} |")
    assert f"{100 * auto.accuracy(arms[0]):.1f}" in line
    chosen = {**arms[0], "arm": "auto", "cpu_seconds": 15.0}
    (line,) = [*auto.table([*arms, chosen])][2:]
    assert line.endswith("| 25 % |")


def test_every_seed_draws_other_rows_and_has_the_same_test_split() -> None:
    cell = CELLS["intents, 8 per class"]
    first, again, other = (data_of(cell, REPOSITORY, seed) for seed in (0, 0, 1))
    assert first["train"]["text"] == again["train"]["text"] != other["train"]["text"]
    assert first["test"]["text"] == other["test"]["text"]
    counts = np.bincount(first["train"]["label"])
    assert set(counts) == {8}
    assert set(np.bincount(first["validation"]["label"])) == {8 // VALIDATION_SHARE}


@pytest.mark.parametrize("variant", training_defaults.VARIANTS)
def test_each_variant_of_the_defaults_suits_the_tasks_that_it_is_for(variant: str) -> None:
    given = {task: training_defaults.settings_for(*task, variant) for task in training_defaults.TASKS}
    assert any(settings is not None for settings in given.values())
    for (cell, pooling), settings in given.items():
        if settings is not None:
            config = config_of(CELLS[cell], REPOSITORY, "o", "c", strategy="full", **settings)
            assert settings.items() <= config.flat().items()
            assert config.flat().get("pooling", "") == pooling


def test_variants_are_compared_with_the_defaults_on_the_seeds_that_both_have() -> None:
    (cell, pooling), seconds = training_defaults.TASKS[0], {"defaults": 10.0, "ema_decay 0.99": 25.0}
    rows = [
        row(share, draw, cell=cell, pooling=pooling, variant=variant, seed=seed, cpu_seconds=seconds[variant])
        for draw, (variant, seed, share) in enumerate([
            ("defaults", 0, 0.5), ("defaults", 1, 0.6), ("ema_decay 0.99", 0, 0.7), ("ema_decay 0.99", 2, 0.1),
        ])
    ]  # fmt: skip
    rows += [{**rows[0], "pooling": "another"}]
    lines = [*training_defaults.table(rows)][2:]
    defaults, averaged = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert defaults[:4] == [cell, pooling, "defaults", "2"]
    assert defaults[5:] == ["", "10"]
    assert float(defaults[4]) == pytest.approx(50 * sum(auto.accuracy(one) for one in rows[:2]), abs=0.1)
    assert averaged[:4] == [cell, pooling, "ema_decay 0.99", "1"]
    points = 100 * (auto.accuracy(rows[2]) - auto.accuracy(rows[0]))
    assert float(averaged[5].split(" (")[0]) == pytest.approx(points, abs=0.1)
    assert averaged[6] == "25"


@pytest.mark.parametrize("benchmark", [auto, training_defaults])
def test_the_page_shows_the_figures_that_were_measured(benchmark: Any) -> None:
    rows = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    lines = [*benchmark.table(rows)]
    assert len(lines) > 2
    for line in lines:
        assert line in page, line
