"""Each training sample is predicted by heads that were solved without it."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hf_transfer.data.folds import NO_FOLD, Folds
from hf_transfer.frozen.features import Features
from hf_transfer.frozen.out_of_fold import OutOfFold, left_out_path, predicted_out_of_fold
from hf_transfer.frozen.solvers import SOLVERS, SolverOptions
from hf_transfer.frozen.store import Column, Store
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.target import Target, Values
from tests.frozen.solved_heads import reference

WIDTH = 6
CLASSES, LABELS, NUMBERS = Classes(("a", "b", "c")), LabelSets(("a", "b", "c")), Numbers(("x",), (50.0,), (10.0,))
SIZE = 60


@dataclass(frozen=True)
class Task:
    """Features of which each target can be told, not without error."""

    target: Target
    features: npt.NDArray[np.float32]
    values: Values

    @classmethod
    def of(cls, target: Target) -> "Task":
        generator = np.random.default_rng(0)
        features = generator.normal(size=(SIZE, WIDTH)).astype(np.float32)
        noisy = features[:, :3] + 0.5 * generator.normal(size=(SIZE, 3))
        values = {
            CLASSES: noisy.argmax(1).astype(np.int64),
            LABELS: (noisy > 0.3).astype(np.float32),
            NUMBERS: 50 + 10 * noisy[:, :1].astype(np.float64),
        }
        return cls(target, features, values[target])

    def stored(self, folder: Path) -> Features:
        """In a store of three chunks."""
        like = torch.from_numpy(self.values)
        store = Store(
            folder, {"values": self.values.tolist()}, [Column((WIDTH,), torch.float32)], SIZE,
            target=Column(tuple(like.shape[1:]), like.dtype),
        )  # fmt: skip
        for number, rows in enumerate(store.chunks):
            chosen = slice(rows.start, rows.stop)
            store.write(
                number,
                [torch.from_numpy(self.features[chosen]), like[chosen], torch.ones(len(rows), dtype=torch.bool)],
            )
        return Features([store], None, self.target)

    def out_of_fold(self, folder: Path, folds: Folds) -> OutOfFold:
        assert self.target.solver is not None
        options = SolverOptions(Ranking.of(self.target, None))
        return predicted_out_of_fold(SOLVERS[self.target.solver], self.stored(folder), folds, options, intercept=True)


@pytest.fixture(autouse=True)
def small(small_chunks: None) -> None:
    """Chunks of seven samples."""


def some_folds(repeats: int = 2, count: int = 4) -> Folds:
    generator = np.random.default_rng(7)
    return Folds(np.stack([generator.permutation(SIZE) % count for _ in range(repeats)]), np.arange(SIZE))


def flipped(target: Target, values: Values, row: int) -> Values:
    """Another value for one row."""
    changed = values.copy()
    changed[row] = (values[row] + 1) % 3 if target is CLASSES else 1 - values[row] if target is LABELS else 500.0
    return changed


EACH_TARGET = pytest.mark.parametrize("target", [CLASSES, LABELS, NUMBERS], ids=lambda target: target.problem_type)


@EACH_TARGET
def test_a_wrong_label_leaves_the_predictions_for_its_own_sample_as_they_were(target: Target, tmp_path: Path) -> None:
    """With each regularisation, to the bit; those for other samples change."""
    task, row, folds = Task.of(target), 11, some_folds(repeats=2, count=3)
    changed = replace(task, values=flipped(target, task.values, row))
    assert target.solver is not None
    path = partial(left_out_path, SOLVERS[target.solver])
    options = SolverOptions(Ranking.of(target, None))
    pairs = zip(
        path(task.stored(tmp_path), folds, options, intercept=True),
        path(changed.stored(tmp_path), folds, options, intercept=True),
        strict=False,
    )
    compared = [
        (torch.equal(one.outputs[:, row], other.outputs[:, row]), torch.equal(one.outputs, other.outputs))
        for one, other in islice(pairs, 7)
    ]
    assert len(compared) == 7
    assert {same for same, _ in compared} == {True}
    assert {all_same for _, all_same in compared} == {False}


def test_predictions_are_those_of_scikit_learn_without_the_fold_averaged_over_repeats(tmp_path: Path) -> None:
    task, folds = Task.of(CLASSES), some_folds()
    result = task.out_of_fold(tmp_path, folds)
    expected, right = np.zeros((SIZE, 3)), np.zeros(SIZE)
    for numbers in folds.of_rows:
        for fold in range(4):
            out = numbers == fold
            weight, bias, _ = reference(
                task.features[~out].astype(np.float64), task.values[~out], result.regularisation
            )
            scores = task.features[out] @ weight.T + bias
            # Scikit-learn's intercepts are those with the mean 0; a constant for all classes changes nothing.
            expected[out] += (scores - scores.mean(1, keepdims=True)) / len(folds.of_rows)
            right[out] += (scores.argmax(1) == task.values[out]) / len(folds.of_rows)
    outputs = result.predictions.outputs.numpy()
    assert outputs - outputs.mean(1, keepdims=True) == pytest.approx(expected, abs=0.02)
    assert np.mean(np.abs(result.scores - right)) < 0.02
    assert result.score == pytest.approx(result.scores.mean())
    assert result.standard_error == pytest.approx(result.scores.std(ddof=1) / np.sqrt(SIZE))


@EACH_TARGET
def test_the_regularisation_is_the_best_one_on_the_left_out_samples(target: Target, tmp_path: Path) -> None:
    task, folds = Task.of(target), some_folds(repeats=1)
    result = task.out_of_fold(tmp_path, folds)
    options = SolverOptions(Ranking.of(target, None))
    assert target.solver is not None
    tried = left_out_path(SOLVERS[target.solver], task.stored(tmp_path), folds, options, intercept=True)
    scores = {one.regularisation: options.ranking.scores(target.evaluate(one.outputs[0], task.values)) for one in tried}
    assert scores[result.regularisation] == max(scores.values())


@EACH_TARGET
def test_features_that_tell_the_target_score_more_than_noise(target: Target, tmp_path: Path) -> None:
    task = Task.of(target)
    noise = replace(task, features=np.random.default_rng(9).normal(size=task.features.shape).astype(np.float32))
    good, bad = (one.out_of_fold(tmp_path / name, some_folds(repeats=1)) for name, one in (("a", task), ("b", noise)))
    assert good.score - bad.score > 2 * (good.standard_error + bad.standard_error)


def test_of_a_part_that_is_held_out_only_its_samples_are_predicted(tmp_path: Path) -> None:
    task = Task.of(CLASSES)
    numbers = np.where(np.arange(SIZE) % 5 == 0, 0, NO_FOLD)[None]
    result = task.out_of_fold(tmp_path, Folds(numbers, np.arange(SIZE)))
    assert result.predictions.index.tolist() == list(range(0, SIZE, 5))
    assert np.array_equal(result.predictions.targets, task.values[::5])
    assert bool(result.predictions.outputs.isfinite().all())
    assert len(result.scores) == 12


def test_samples_of_one_unit_make_the_standard_error_larger(tmp_path: Path) -> None:
    """Sixty samples that are twenty, three times each, tell no more than twenty."""
    task = Task.of(CLASSES)
    once = np.arange(SIZE) % 20
    task = replace(task, features=task.features[once], values=task.values[once])
    folds = Folds((once % 4)[None], once)
    result = task.out_of_fold(tmp_path, folds)
    apart = replace(result, units=np.arange(SIZE))
    assert result.standard_error == pytest.approx(result.scores[:20].std(ddof=1) / np.sqrt(20), rel=1e-6)
    assert result.standard_error > 1.5 * apart.standard_error
