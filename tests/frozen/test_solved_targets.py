"""Heads for labels and numbers: solved on features of a model, with outputs for samples that they were made without."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import Ridge
from torch import nn

from hf_transfer.data.batches import Batch, LabelledInputs
from hf_transfer.errors import UserError
from hf_transfer.frozen import probe
from hf_transfer.frozen.probe import SolvedHead, probe_layers, solve_head
from hf_transfer.frozen.ridge import REGULARISATIONS
from hf_transfer.frozen.solvers import SOLVERS, SolverOptions
from hf_transfer.frozen.standardised import Blocks, Solution
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.target import Target
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.predictions import predict_split
from tests.frozen.solved_heads import features as features_of_rows
from tests.frozen.solved_heads import options_of, passes_of
from tests.frozen.target_rows import CENTRE, LABELS, NUMBERS, SCALE, label_rows, number_rows
from tests.frozen.test_label_classifier import Samples, reference
from tests.frozen.test_probe import ShiftedViews
from tests.training.launched import two_forks
from tests.training.toy_task import Rows, loaders_of, settings, tiny

Floats = npt.NDArray[np.float64]
SOLVER_OF_LABELS = SOLVERS["one-vs-rest logistic"]


@dataclass(frozen=True)
class Run:
    """A solved head, and the samples that it was solved on."""

    model: nn.Module
    head: SolvedHead
    live: dict[str, float]
    train: Rows
    validation: Rows

    @property
    def layer(self) -> nn.Linear:
        layer = self.model.get_submodule("classifier")
        assert isinstance(layer, nn.Linear)
        return layer

    def features(self, rows: Rows) -> Floats:
        return features_of_rows(self.model, "vit", rows)[0]

    def targets(self, rows: Rows) -> npt.NDArray[Any]:
        return np.asarray(rows.split.targets[rows.split.counted])

    def outputs(self, rows: Rows) -> Floats:
        weight, bias = (parameter.detach().double().numpy() for parameter in (self.layer.weight, self.layer.bias))
        return np.asarray(self.features(rows) @ weight.T + bias)

    @property
    def left_out(self) -> Floats:
        """The outputs for training samples by heads that were made without them."""
        assert self.head.held_out is not None
        return np.asarray(self.head.held_out.outputs[self.validation.split.counted.sum() :])


def solve(target: Target, train: Rows, validation: Rows, *, views: Any = None, **more: Any) -> Run:
    """Solve the head of a tiny ViT."""
    model, *_ = tiny("vit")
    torch.manual_seed(0)
    model.set_submodule("classifier", nn.Linear(24, len(target.names)))
    config = settings(metric_for_best_model="loss", **more)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, train, validation, 4, target=target)
        if views is not None:
            inputs = views({"train": train, "validation": validation})
            loaders = replace(loaders, to_inputs=inputs, views=len(views.shifts) - 1)
        head = solve_head(model, "classifier", passes_of(loaders, accelerator, config), options_of(loaders, config))
        live = predict_split(model, loaders, "validation", accelerator).metrics()
    return Run(model, head, live, train, validation)


def shifted(rows: Rows, pixels: int) -> Rows:
    """The rows as one view sees them."""
    other = Rows(len(rows))
    other.labels, other.split = rows.labels, rows.split
    other.inputs = {"pixel_values": rows.pixels.roll(pixels, -1)}
    return other


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_a_head_for_labels_is_a_binary_problem_of_scikit_learn_for_each(weights: str) -> None:
    train, validation = label_rows(60, missing=0.1, masked=(3, 20)), label_rows(30, seed=1, masked=(5,))
    run = solve(LABELS, train, validation, class_weights=weights)
    given = Samples(run.features(train).astype(np.float32), run.targets(train))
    probabilities, chosen = expit(run.outputs(train)), run.head.row["regularisation"]
    for label in range(3):
        expected = reference(given, label, chosen, intercept=True, balanced=weights == "balanced")
        # The layer holds weights in single precision.
        assert probabilities[:, label] == pytest.approx(expected.probabilities, abs=1e-5)
    assert {key: run.head.row[key] for key in run.live} == pytest.approx(run.live, abs=1e-4)
    assert run.head.row["samples_per_second"] * run.head.row["seconds"] == pytest.approx(58)


def test_the_regularisation_of_labels_is_the_best_on_validation() -> None:
    train, validation = label_rows(60), label_rows(30, seed=1)
    run = solve(LABELS, train, validation)
    seen = Samples(run.features(train).astype(np.float32), run.targets(train))
    held_out = torch.from_numpy(run.features(validation))
    losses = {}
    for exponent in np.arange(1.0, -4.5, -0.5):
        (solution,) = seen.path([10.0**exponent])
        scores = held_out @ solution.weight.T + solution.bias
        losses[10.0**exponent] = LABELS.evaluate(scores, run.targets(validation))["loss"]
    assert run.head.row["loss"] == pytest.approx(min(losses.values()), abs=1e-3)
    assert run.head.row["regularisation"] == pytest.approx(min(losses, key=lambda one: losses[one]))


def refitted(features: Floats, numbers: Floats, regularisation: float, without: int | None, samples: int) -> Floats:
    """Scikit-learn's outputs for the first samples, made without one of them and its copies."""
    spread = features.std(0)
    rows = np.arange(len(features)) % samples != (-1 if without is None else without)
    outputs = []
    for output in range(numbers.shape[1]):
        known = rows & ~np.isnan(numbers[:, output])
        alpha = regularisation * (~np.isnan(numbers[:, output])).sum()
        model = Ridge(alpha=alpha, solver="svd").fit((features / spread)[known], numbers[known, output])
        outputs.append(model.predict((features / spread)[:samples]))
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize("views", [None, ShiftedViews])
def test_a_head_for_numbers_is_ridge_regression_chosen_by_leaving_each_sample_out(views: Any) -> None:
    """With all its views; the head learns standardised numbers, and the metric is in their own units."""
    train, validation = number_rows(30, masked=(3, 20)), number_rows(20, seed=1)
    run = solve(NUMBERS, train, validation, views=views)
    shifts = [0] if views is None else list(views.shifts.values())
    features = np.concatenate([run.features(shifted(train, pixels)) for pixels in shifts])
    numbers = (np.tile(run.targets(train), (len(shifts), 1)) - CENTRE) / SCALE
    losses = {}
    for regularisation in REGULARISATIONS:
        refits = [refitted(features, numbers, regularisation, sample, 28)[sample] for sample in range(28)]
        losses[regularisation] = float(np.square(np.stack(refits) - numbers[:28]).mean())
        if losses[regularisation] == min(losses.values()):
            left_out = np.stack(refits)
    best = min(losses, key=lambda one: losses[one])
    assert run.head.row["regularisation"] == pytest.approx(best)
    assert run.outputs(train) == pytest.approx(refitted(features, numbers, best, None, 28), abs=1e-4)
    assert run.left_out == pytest.approx(left_out, abs=1e-6)
    assert run.head.row["rmse"] == pytest.approx(run.live["rmse"], rel=1e-4)
    errors = run.outputs(validation) * SCALE + CENTRE - validation.split.targets
    assert run.head.row["rmse"] == pytest.approx(np.sqrt(np.square(errors).mean(0)).mean(), rel=1e-4)


def test_validation_does_not_choose_a_head_for_numbers() -> None:
    train, validation, other = number_rows(30), number_rows(20, seed=1), number_rows(20, seed=1)
    other.split.targets[:] = other.split.targets[::-1]
    weights = [solve(NUMBERS, train, rows).layer.weight for rows in (validation, other)]
    assert torch.equal(*weights)


@pytest.mark.parametrize(("target", "make"), [(LABELS, label_rows), (NUMBERS, number_rows)])
def test_predictions_to_calibrate_on_are_validation_and_then_training(target: Target, make: Any) -> None:
    train, validation = make(30, missing=0.1, masked=(3,)), make(20, seed=1, masked=(5, 6))
    run = solve(target, train, validation)
    held_out = run.head.held_out
    assert held_out is not None
    assert held_out.target == target
    assert held_out.outputs.shape == held_out.targets.shape == (18 + 29, len(target.names))
    expected = np.concatenate([run.targets(validation), run.targets(train)])
    assert np.array_equal(held_out.targets, expected, equal_nan=True)
    assert held_out.outputs[:18].numpy() == pytest.approx(run.outputs(validation), abs=1e-4)
    assert len(np.unique(held_out.index)) == len(held_out) == 47


@dataclass(frozen=True)
class Memory:
    """A problem that remembers its samples: its outputs are its number."""

    number: int
    outputs: int
    features: int

    def path(self, regularisations: Sequence[float] = (), *, rough: bool = False) -> Iterator[Solution]:
        weight = torch.zeros(self.outputs, self.features, dtype=torch.float64)
        bias = torch.full((self.outputs,), float(self.number), dtype=torch.float64)
        yield Solution(weight, bias, 1.0, 0.0, np.zeros(0))

    def sharpened(self, solution: Solution) -> Solution:
        return solution

    def near(self, solution: Solution) -> Solution:
        return next(self.path())


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> list[set[bytes]]:
    """The samples of each problem, in its order; the solver for labels only remembers them."""
    seen: list[set[bytes]] = []

    def remember(blocks: Blocks, outputs: int, /, *, intercept: bool, balanced: bool, copies: int, **_: Any) -> Memory:
        rows = torch.cat([features for features, _ in blocks()])
        seen.append({row.tobytes() for row in rows.numpy()})
        return Memory(len(seen) - 1, outputs, rows.shape[1])

    monkeypatch.setitem(SOLVERS, "one-vs-rest logistic", remember)
    return seen


@pytest.mark.parametrize("views", [None, ShiftedViews])
def test_each_training_sample_is_predicted_by_a_head_that_has_seen_no_view_of_it(
    views: Any, memories: list[set[bytes]]
) -> None:
    train = label_rows(33, masked=(3,))
    run = solve(LABELS, train, label_rows(10, seed=1), views=views)
    shifts = [0] if views is None else list(views.shifts.values())
    samples = [run.features(shifted(train, pixels)).astype(np.float32) for pixels in shifts]
    heads = run.left_out[:, 0].astype(int)
    # The first problem is that of the head itself.
    assert sorted(set(heads)) == [1, 2, 3, 4, 5]
    # In proportion to the labels, so the sizes are only about the same.
    assert set(np.bincount(heads)[1:]) <= {5, 6, 7, 8}
    for row, head in enumerate(heads):
        for view in samples:
            assert view[row].tobytes() not in memories[head]
            assert all(view[row].tobytes() in memories[other] for other in range(6) if other != head)


def test_predictions_out_of_fold_are_those_of_scikit_learn(memories: list[set[bytes]]) -> None:
    """For the folds that the seed gives, which do not depend on the solver."""
    train = label_rows(80)
    folds = solve(LABELS, train, label_rows(10, seed=1)).left_out[:, 0].astype(int)
    with pytest.MonkeyPatch.context() as context:
        context.setitem(SOLVERS, "one-vs-rest logistic", SOLVER_OF_LABELS)
        run = solve(LABELS, train, label_rows(30, seed=1))
    features, cells = run.features(train).astype(np.float32), run.targets(train)
    for fold in set(folds):
        given = Samples(features[folds != fold], cells[folds != fold])
        (solution,) = given.path([run.head.row["regularisation"]])
        scores = features[folds == fold].astype(np.float64) @ solution.weight.numpy().T + solution.bias.numpy()
        assert expit(run.left_out[folds == fold]) == pytest.approx(expit(scores), abs=1e-2)


def test_each_of_a_few_samples_is_left_out_and_a_single_one_cannot_be(memories: list[set[bytes]]) -> None:
    train = label_rows(3)
    run = solve(LABELS, train, label_rows(10, seed=1))
    for features, head in zip(run.features(train).astype(np.float32), run.left_out[:, 0].astype(int), strict=True):
        assert head > 0
        assert features.tobytes() not in memories[head]
    assert solve(LABELS, label_rows(1), label_rows(10, seed=1)).head.held_out is None


def test_with_many_samples_labels_are_calibrated_on_validation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left-out outputs of numbers cost nothing: there is no limit."""
    monkeypatch.setattr(probe, "MANY_ROWS", 29)
    assert solve(LABELS, label_rows(29), label_rows(10, seed=1)).head.held_out is not None
    assert solve(LABELS, label_rows(30), label_rows(10, seed=1)).head.held_out is None
    assert solve(NUMBERS, number_rows(30), number_rows(10, seed=1)).head.held_out is not None


class PlainLabels(LabelSets):
    """Labels of which nothing is calibrated."""

    is_calibrated: ClassVar[bool] = False


def test_a_target_that_is_not_calibrated_needs_no_folds(memories: list[set[bytes]]) -> None:
    run = solve(PlainLabels(LABELS.label_names), label_rows(30), label_rows(10, seed=1))
    assert run.head.held_out is None
    assert len(memories) == 1


class Unreadable(ShiftedViews):
    """A sample that can be read in all views but one."""

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`."""
        labelled = super().__call__(batch, device, split, epoch)
        return labelled._replace(counted=labelled.counted & ((labelled.rows != 4) | torch.tensor(epoch != 1)))


def test_a_sample_that_is_masked_in_one_view_is_masked_in_all() -> None:
    """Otherwise the views of the others would not belong together."""
    run = solve(NUMBERS, number_rows(30), number_rows(20, seed=1), views=Unreadable)
    without = solve(NUMBERS, number_rows(30, masked=(4,)), number_rows(20, seed=1), views=ShiftedViews)
    assert torch.equal(run.layer.weight, without.layer.weight)
    assert len(run.left_out) == 29


@pytest.mark.parametrize(
    ("target", "make", "shown"), [(LABELS, label_rows, "3 labels"), (NUMBERS, number_rows, "2 numbers (width, height)")]
)
@pytest.mark.parametrize("probe", ["svm", "knn"])
def test_a_probe_for_classes_is_refused(target: Target, make: Any, shown: str, probe: Any) -> None:
    model, *_ = tiny("vit")
    config = settings()
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, make(12), make(10, seed=1), 4, target=target)
        options = SolverOptions(Ranking.of(target, None), probe)
        with pytest.raises(UserError) as caught:
            solve_head(model, "classifier", passes_of(loaders, accelerator, config), options)
    assert str(caught.value) == (
        f"Expected: for --probe {probe} one class for each sample\nFound:    {shown}\nDo this:  leave out --probe"
    )


@pytest.mark.parametrize(
    ("target", "make", "metric"),
    [(LABELS, label_rows, "mAP"), (NUMBERS, number_rows, "RMSE")],
)
def test_earlier_layers_are_probed(target: Target, make: Any, metric: str, tmp_path: Path) -> None:
    """With the head that is best, whether the metric is better where it is higher or where it is lower."""
    model, groups, _ = tiny("vit")
    config = settings(cache_frozen="on", cache_dir=str(tmp_path))
    sentences: list[str] = []
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, make(60), make(30, seed=1), 4, target=target)
        passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
        probe_layers(model, groups, [1, 3], passes, options, sentences.append)
    pattern = re.compile(rf"Probe of layer (1|3|1 \+ 3) of 3: validation {metric} ([\d.]+), loss [\d.]+\.")
    matches = [pattern.fullmatch(sentence) for sentence in sentences]
    values = {match[1]: float(match[2]) for match in matches if match}
    assert values.keys() == {"1", "3", "1 + 3"}
    # Better than guessing: at most half of the samples have a label, and the spread of the numbers is above 30.
    assert all(value > 0.66 if target is LABELS else value < 30 for value in values.values())


def test_only_the_main_of_two_processes_solves_and_both_have_the_result(tmp_path: Path) -> None:
    ended = two_forks(Path(__file__).with_name("solved_run.py"), str(tmp_path))
    assert ended.returncode == 0, ended.output[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["processes"] == 2
    assert first["solved"] == ["LabelSets", "Numbers"]
