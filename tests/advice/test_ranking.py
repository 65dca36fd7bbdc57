"""The order of models, which of them are equal, and on which rows they are compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
import torch

from hf_transfer.advice.candidates import folder_of_model, short_names
from hf_transfer.advice.ranking import ModelRanking
from hf_transfer.advice.scoring import ScoredModel, Task, best_column, training_alone
from hf_transfer.advice.shown import draw_ranking, ranking_table
from hf_transfer.data.checked import units_of_rows
from hf_transfer.data.groups import Groups
from hf_transfer.data.splits import Split, Splits
from hf_transfer.frozen.out_of_fold import OutOfFold
from hf_transfer.frozen.solvers import SolverOptions
from hf_transfer.frozen.transferability import Scores
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.run import TextConfig
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.predictions import Predictions, Ranking
from tests.frozen.test_out_of_fold import CLASSES, SIZE, some_folds
from tests.frozen.test_out_of_fold import Task as FeatureTask

Floats = npt.NDArray[np.float64]
ROWS = 200


def split_of(values: npt.NDArray[np.int64]) -> Split:
    return Split(
        datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(len(values))]}), np.arange(len(values)), values
    )


def splits_of(values: npt.NDArray[np.int64], target: Classes = CLASSES) -> Splits:
    few = split_of(values[:30])
    return Splits(split_of(values), few, few, target, {}, "texts", {"test": 3}, [])


def scored(name: str, right: Floats, *, truncated: int | None = None) -> ScoredModel:
    outputs = torch.eye(3)[torch.from_numpy(np.where(right > 0.5, 0, 1))]
    predictions = Predictions(CLASSES, outputs, np.zeros(len(right), dtype=np.int64), np.arange(len(right)))
    probe = OutOfFold(predictions, right, np.arange(len(right)), 0.1)
    return ScoredModel(
        name, "mean_3", probe, Scores(0.5, -0.2, 3.0), 2_500_000, 40.0, 1 << 30, truncated, {"model_name_or_path": name}
    )


def ranking_of(*models: ScoredModel) -> ModelRanking:
    task = Task(split_of(np.zeros(ROWS, dtype=np.int64)), CLASSES, some_folds(), ["200 train texts of 3 classes."])
    return ModelRanking.of("data", task, models, {})


def right(share: float, seed: int = 0) -> Floats:
    return (np.random.default_rng(seed).random(ROWS) < share).astype(float)


def test_models_are_in_the_order_of_their_probes_and_near_ones_are_equal() -> None:
    best = right(0.8)
    near = np.where(np.random.default_rng(1).random(ROWS) < 0.05, 1 - best, best)
    ranking = ranking_of(scored("far", right(0.4, 2)), scored("near", near), scored("best", best))
    assert [place.model.name for place in ranking.places] == ["best", "near", "far"]
    assert [place.is_equal for place in ranking.places] == [False, True, False]
    assert ranking.places[0].behind is None
    low, high = ranking.places[2].behind or (0, 0)
    assert low < best.mean() - right(0.4, 2).mean() < high
    assert low > 0


def test_of_equal_models_the_one_that_was_named_first_comes_first() -> None:
    ranking = ranking_of(scored("b", right(0.6)), scored("a", right(0.6)))
    assert [place.model.name for place in ranking.places] == ["b", "a"]
    assert ranking.places[1].behind == (0.0, 0.0)


def test_the_table_has_a_line_for_each_model_and_says_what_is_not_known(tmp_path: Path) -> None:
    other = replace(scored("x/small", right(0.3, 1)), scores=Scores(None, None, None), peak_memory_bytes=None)
    ranking = ranking_of(scored("x/large", right(0.9), truncated=7), other)
    lines = {line.split()[0]: line for line in ranking_table(ranking).splitlines() if line}
    assert lines["large"].split()[1:] == [
        f"{right(0.9).mean():.3f}", "±", f"{right(0.9).std(ddof=1) / ROWS**0.5:.3f}",
        "mean_3", "0.500", "-0.200", "3.00", "2.5M", "40", "1.07", "GB", "7",
    ]  # fmt: skip
    assert lines["small"].split()[-7:] == ["-", "-", "-", "2.5M", "40", "-", "-"]
    assert len({len(line.rstrip()) for line in (lines["model"], lines["large"], lines["small"])}) == 1
    draw_ranking(tmp_path / "a.png", ranking)
    assert (tmp_path / "a.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a/x", "b/y"], ["x", "y"]), (["a/x", "b/x"], ["a/x", "b/x"]), (["sample:x"], ["sample:x"]),
        (["a/x + b/t", "a/x + b/u"], ["x + t", "x + u"]), (["a/x + b/t", "c/x + b/t"], ["a/x + b/t", "c/x + b/t"]),
    ],
)  # fmt: skip
def test_names_are_short_where_that_tells_them_apart(names: list[str], short: list[str]) -> None:
    assert list(short_names(names).values()) == short


@pytest.mark.parametrize(("name", "folder"), [("a/x", "x"), ("sample:x", "sample-x"), ("a/x + sample:t", "x+sample-t")])
def test_the_folder_of_a_run_has_the_name_of_its_models(name: str, folder: str) -> None:
    assert folder_of_model(name) == folder


@pytest.mark.parametrize(
    ("rows", "classes", "expected"), [(5_000, 3, 5_000), (6_000, 3, 1_000), (6_000, 40, 2_000), (6_000, 130, 6_000)]
)
def test_of_many_rows_some_of_each_class_are_used(rows: int, classes: int, expected: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(rows) % classes)
    target = Classes(tuple(str(number) for number in range(classes)))
    chosen = training_alone(splits_of(values, target), 0).train
    assert len(chosen) == pytest.approx(expected, abs=classes)
    counts = np.bincount(chosen.targets, minlength=classes)
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(training_alone(splits_of(values, target), 0).train.rows, chosen.rows)


def test_no_other_split_is_left() -> None:
    splits = training_alone(splits_of(np.arange(100) % 3), 0)
    assert [name for name, _ in splits.items()] == ["train"]


def test_rows_of_a_group_and_copies_are_a_unit() -> None:
    texts = ["one", "two", "one", "three", "four", "five"]
    split = Split(datasets.Dataset.from_dict({"text": texts}), np.arange(6), np.zeros(6, dtype=np.int64))
    config = TextConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o")
    groups = Groups("author", {"train": ["x", "y", None, "y", None, None]})
    of_rows = units_of_rows(split, groups, config, TextModality()).of_rows
    assert (of_rows[0] == of_rows[2], of_rows[1] == of_rows[3]) == (True, True)
    assert len(set(of_rows.tolist())) == 4
    assert len(set(units_of_rows(split, None, config, TextModality()).of_rows.tolist())) == 5


def test_the_features_with_the_best_probe_are_chosen(tmp_path: Path) -> None:
    task = FeatureTask.of(CLASSES)
    noise = replace(task, features=np.random.default_rng(9).normal(size=task.features.shape).astype(np.float32))
    both: dict[str, Any] = {"noise": noise.stored(tmp_path / "a"), "good": task.stored(tmp_path / "b")}
    name, probe = best_column(both, some_folds(repeats=1), SolverOptions(Ranking.of(CLASSES, None)), intercept=True)
    assert name == "good"
    assert len(probe.scores) == SIZE
