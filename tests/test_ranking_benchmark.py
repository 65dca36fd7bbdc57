"""How well a score orders models: the figures of `benchmarks/ranking.py`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import ranking, trials
from benchmarks.intervals import difference
from tests.conftest import REPOSITORY

Floats = npt.NDArray[np.float64]
ROWS = 400


def answers(share: float, seed: int = 0, *, seeds: int = 2) -> Floats:
    return (np.random.default_rng(seed).random((seeds, ROWS)) < share).astype(float)


RIGHT = {"small": answers(0.6), "middle": answers(0.75, 1), "large": answers(0.9, 2)}


def test_a_score_that_has_the_order_of_the_fine_tuned_models_is_perfect() -> None:
    quality = ranking.quality({"small": 1.0, "middle": 2.0, "large": 3.0}, RIGHT)
    assert quality == {"tau": 1.0, "chosen": "large", "best": "large", "regret": 0.0, "interval": (0.0, 0.0)}


def test_a_score_with_the_reverse_order_names_the_worst_model() -> None:
    quality = ranking.quality({"small": 3.0, "middle": 2.0, "large": 1.0}, RIGHT)
    assert quality["tau"] == pytest.approx(-1)
    assert (quality["chosen"], quality["best"]) == ("small", "large")
    assert quality["regret"] == pytest.approx(100 * (RIGHT["large"].mean() - RIGHT["small"].mean()))
    low, high = quality["interval"]
    assert 0 < low < quality["regret"] < high


def test_an_error_at_the_top_costs_more_than_one_at_the_bottom() -> None:
    top = ranking.quality({"small": 1.0, "middle": 3.0, "large": 2.0}, RIGHT)
    bottom = ranking.quality({"small": 2.0, "middle": 1.0, "large": 3.0}, RIGHT)
    assert top["tau"] < bottom["tau"] < 1


def test_the_interval_of_one_seed_is_that_of_paired_rows() -> None:
    """Against the standard error of the mean of the differences of paired rows."""
    one, other = answers(0.8, seeds=1), answers(0.7, 3, seeds=1)
    mean, low, high = difference(one, other)
    error = 100 * (one - other).std(ddof=1) / ROWS**0.5
    assert mean == pytest.approx(100 * (one.mean() - other.mean()))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_seeds_that_differ_make_the_interval_wider() -> None:
    steady = np.repeat(answers(0.8, seeds=1), 2, axis=0)
    unsteady = np.concatenate([answers(0.9, 4, seeds=1), answers(0.6, 5, seeds=1)])
    other = answers(0.7, 3)
    widths = [high - low for _, low, high in (difference(steady, other), difference(unsteady, other))]
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize("rows", [1, 8, 13])
def test_answers_are_read_as_they_were_written(rows: int) -> None:
    right = np.random.default_rng(0).random(rows) < 0.5
    row: dict[str, Any] = {"right": np.packbits(right).tobytes().hex(), "test_rows": rows}
    assert np.array_equal(trials.answers([row, row]), np.array([right, right], dtype=float))


def test_of_each_class_the_first_rows_are_used_and_the_test_split_is_whole(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "cut"
    data.mkdir()
    folder.mkdir()
    for split in ("train", "validation", "test"):
        lines = [f"{split} {number},{'ab'[number % 2]}" for number in range(40)]
        (data / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    cut = ranking.cut(data, folder, {"train": 16, "validation": 15})
    lengths = {split: len((cut / f"{split}.csv").read_text().splitlines()) - 1 for split in ("train", "validation")}
    assert lengths == {"train": 32, "validation": 30}
    assert (cut / "train.csv").read_text().splitlines()[1:3] == ["train 0,a", "train 1,b"]
    assert (cut / "test.csv").read_text() == (data / "test.csv").read_text()
    assert ranking.cut(data, folder, {"train": None}) == data


def test_a_set_is_shown_once_all_its_models_are_trained() -> None:
    """With the seeds that all of them have."""
    right = np.packbits(np.ones(8, dtype=bool)).tobytes().hex()

    def trained(model: str, seed: int) -> dict[str, Any]:
        return {"set": "stamps", "model": model, "seed": seed, "right": right, "test_rows": 8}

    models = ranking.SETS["stamps"].models
    first = [trained(model, 0) for model in models]
    assert ranking.trained_models("stamps", first[:-1]) == {}
    both = ranking.trained_models("stamps", [*first, trained(models[0], 1)])
    assert {model: answers.shape for model, answers in both.items()} == dict.fromkeys(models, (1, 8))


@pytest.mark.skipif(not ranking.RESULTS.is_file(), reason="nothing has been measured")
def test_the_tables_on_the_page_are_those_of_the_results() -> None:
    results = json.loads(ranking.RESULTS.read_text(encoding="utf-8"))
    assert "\n".join(ranking.tables(results)) in (REPOSITORY / "docs/benchmarks.md").read_text(encoding="utf-8")
