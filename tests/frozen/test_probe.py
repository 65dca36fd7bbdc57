"""The solved head against scikit-learn, on features that the test computes itself."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from hf_transfer.data.batches import Batch, LabelledInputs
from hf_transfer.errors import UserError
from hf_transfer.frozen.linear_classifier import LinearProblem
from hf_transfer.frozen.probe import probe_layers, solvable_layer, solve_head
from hf_transfer.frozen.solvers import LOGISTIC, SOLVERS, SolverOptions
from hf_transfer.frozen.standardised import Solution
from hf_transfer.models.groups import Group
from hf_transfer.strategies.freezing import LinearProbe, set_trainable
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.target import Metrics
from hf_transfer.training.devices import start_accelerator
from tests.frozen.solved_heads import (
    HEADS,
    TRIED,
    Floats,
    Solved,
    assert_agrees,
    loss,
    options_of,
    passes_of,
    reference,
    solve,
)
from tests.tiny_models import state
from tests.training.toy_task import TARGET, RowInputs, Rows, loaders_of, rows_for, settings, tiny, train


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_scikit_learns(name: str) -> None:
    solved = solve(name, rows_for(name, 40), rows_for(name, 20, seed=1))
    assert_agrees(solved)
    assert (solved.head.bias is None) is (name == "gpt2")


@pytest.mark.parametrize("name", HEADS)
def test_the_regularisation_is_the_best_on_validation(name: str) -> None:
    """By the loss, which tells solutions apart more finely than accuracy."""
    solved = solve(name, rows_for(name, 40), rows_for(name, 20, seed=1), metric_for_best_model="loss")
    seen, labels = solved.features(solved.train)
    held_out, expected = solved.features(solved.validation)
    losses = []
    for regularisation in TRIED:
        weight, bias, _ = reference(seen, labels, regularisation, intercept=name != "gpt2")
        losses.append(loss(held_out @ weight.T + bias, expected))
    assert solved.row["loss"] == pytest.approx(min(losses), abs=1e-3)
    assert TRIED[int(np.argmin(losses))] == pytest.approx(solved.row["regularisation"])


@pytest.mark.parametrize("name", HEADS)
def test_the_logged_metrics_are_those_of_the_model(name: str) -> None:
    solved = solve(name, rows_for(name, 40), rows_for(name, 20, seed=1))
    assert {key: solved.row[key] for key in solved.live} == pytest.approx(solved.live, abs=1e-4)


def test_a_head_without_a_bias_gets_no_intercept() -> None:
    solved = solve(
        "vit", Rows(40), Rows(20, seed=1), edit=lambda model: setattr(model, "classifier", nn.Linear(24, 5, bias=False))
    )
    assert_agrees(solved)


def test_two_classes_are_solved_as_two_rows() -> None:
    solved = solve(
        "vit", Rows(40, classes=2), Rows(20, seed=1, classes=2),
        edit=lambda model: setattr(model, "classifier", nn.Linear(24, 2)), target=Classes(TARGET.label_names[:2]),
    )  # fmt: skip
    assert_agrees(solved)
    assert solved.row["regularisation"] in TRIED


def test_two_of_five_classes_are_solved_alike() -> None:
    """The penalty does not depend on how many classes training has."""
    rows, validation = (rows_for("bert", 60, seed=seed, classes=2) for seed in (0, 1))
    for part in (rows, validation):
        # Some labels are wrong, so that the best penalty is not small.
        part.labels[::5] = 1 - part.labels[::5]
    solved = solve("bert", rows, validation)
    assert_agrees(solved)
    assert solved.row["regularisation"] > 1e-3


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_a_class_that_training_lacks_never_wins(name: str) -> None:
    solved = solve(name, rows_for(name, 40, classes=4), rows_for(name, 20, seed=1))
    seen, _ = solved.features(solved.validation)
    bias = 0 if solved.head.bias is None else solved.head.bias.detach().double().numpy()
    scores = seen @ solved.head.weight.detach().double().numpy().T + bias
    assert set(scores.argmax(1)) <= {0, 1, 2, 3}
    if name == "vit":
        assert_agrees(solved)
        assert torch.softmax(torch.from_numpy(scores), 1)[:, 4].max() < 1e-6


def test_masked_rows_have_no_effect() -> None:
    """Whatever they contain."""
    solutions = []
    for garbage in (0.0, 7.0):
        rows, validation = Rows(40, masked=(3, 20)), Rows(20, seed=1, masked=(5,))
        rows.pixels[[3, 20]] = garbage
        validation.pixels[5] = garbage
        solved = solve("vit", rows, validation)
        assert_agrees(solved)
        solutions.append(solved.head.weight.detach().clone())
    assert torch.equal(*solutions)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_a_support_vector_machine_is_scikit_learns(weights: str) -> None:
    """Each class against the rest, on standardised features."""
    solved = solve(
        "vit",
        unbalanced(80),
        unbalanced(40, seed=1),
        strategy="linear_probe",
        probe="svm",
        class_weights=weights,
        metric_for_best_model="loss",
    )
    seen, labels = solved.features(solved.train)
    spread, counts, regularisation = seen.std(0), np.bincount(labels), solved.row["regularisation"]
    importance = (len(labels) / (len(counts) * counts))[labels] if weights == "balanced" else np.ones(len(labels))
    standard = (seen - seen.mean(0)) / spread
    expected = LinearSVC(
        loss="squared_hinge", dual=False, C=1 / (regularisation * len(labels)), tol=1e-9, max_iter=100_000,
        # It penalises the intercept, too: the large scale makes this penalty a millionth.
        intercept_scaling=1e3,
    ).fit(standard, labels, sample_weight=importance)  # fmt: skip

    def objective(weight: Floats, bias: Floats) -> float:
        signs = np.where(np.arange(len(weight)) == labels[:, None], 1.0, -1.0)
        hinges = (np.maximum(0.0, 1.0 - signs * (standard @ weight.T + bias)) ** 2).sum(1)
        return float((hinges * importance).mean() + regularisation / 2 * np.square(weight).sum())

    weight = solved.head.weight.detach().double().numpy()
    bias = solved.head.bias.detach().double().numpy() + weight @ seen.mean(0)
    assert objective(weight * spread, bias) == pytest.approx(objective(expected.coef_, expected.intercept_), abs=2e-5)
    assert weight * spread == pytest.approx(expected.coef_, abs=2e-2)
    assert loss(standard @ (weight * spread).T + bias, labels) == pytest.approx(solved.row["train_loss"], abs=1e-5)


def unbalanced(size: int, seed: int = 0) -> Rows:
    """Three quarters have the first class, and half of all labels are wrong."""
    rows = Rows(size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(size, generator=generator) < 0.75
    rows.labels[common] = 0
    return rows


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_each_class_counts_the_same_if_asked_for(weights: str) -> None:
    solved = solve("vit", unbalanced(80), unbalanced(40, seed=1), class_weights=weights)
    assert_agrees(solved, balanced=weights == "balanced")


def test_constant_features_do_no_harm() -> None:
    def flatten(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter("vit.layernorm.weight")[:5] = 0

    solved = solve("vit", Rows(40), Rows(20, seed=1), edit=flatten)
    assert_agrees(solved)
    assert solved.head.weight[:, :5].abs().max() < 1e-3


class Plain(nn.Module):
    """The pixels themselves are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(48, 5)

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=self.classifier(pixel_values[..., ::4, ::4].flatten(1)))


def solve_plain(rows: Rows, validation: Rows) -> Metrics:
    config = settings(metric_for_best_model="loss")
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 8)
        passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
        return solve_head(Plain(), "classifier", passes, options).row


def test_with_wrong_labels_in_validation_the_strongest_regularisation_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation has the label of the next class everywhere; the search ends after two decades without a gain."""
    tried: list[float] = []
    path = LinearProblem.path

    def counted(problem: LinearProblem, **more: Any) -> Iterator[Solution]:
        for solution in path(problem, **more):
            tried.append(solution.regularisation)
            yield solution

    monkeypatch.setattr(LinearProblem, "path", counted)
    validation = Rows(60, seed=1)
    validation.labels[:] = (validation.labels + 1) % 5
    solved = solve_plain(Rows(60), validation)
    assert solved["regularisation"] == 10.0
    assert tried == pytest.approx(TRIED[:5])


def test_on_separable_samples_the_weakest_regularisation_is_best() -> None:
    """Without a warning, although the last solutions end at the limit of iterations."""
    rows = Rows(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solved = solve_plain(rows, rows)
    assert solved["regularisation"] == pytest.approx(1e-6)
    assert solved["loss"] < 1e-3


class ShiftedViews(RowInputs):
    """Samples as they are (None), or shifted by another number of pixels in each view."""

    shifts: ClassVar[dict[int | None, int]] = {None: 0, 0: 3, 1: 7}

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`."""
        labelled = super().__call__(batch, device, split, epoch)
        return labelled._replace(inputs={"pixel_values": labelled.inputs["pixel_values"].roll(self.shifts[epoch], -1)})

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        return f"{super().fingerprint(split, epoch)} {self.shifts[epoch]}"


def test_augmented_views_are_more_samples() -> None:
    """Training samples as they are and in each view; validation samples only as they are."""
    model, _, _ = tiny("vit")
    rows, validation, config = Rows(20), Rows(20, seed=1), settings()
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 4)
        inputs = ShiftedViews({"train": rows, "validation": validation})
        loaders = replace(loaders, to_inputs=inputs, views=2)
        passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
        row = solve_head(model, "classifier", passes, options).row
    several = Rows(60)
    several.labels = rows.labels.repeat(3)
    several.inputs = {"pixel_values": torch.cat([rows.pixels.roll(shift, -1) for shift in inputs.shifts.values()])}
    assert_agrees(Solved(model, row, {}, "vit", several, validation))


def modes(model: nn.Module) -> list[tuple[type, bool]]:
    return [(type(module), module.training) for module in model.modules()]


def frozen(name: str) -> tuple[nn.Module, list[Group]]:
    """A model as it is in the loop before the head is solved."""
    model, groups, _ = tiny(name)
    set_trainable(model, groups, LinearProbe().stages(groups, 1)[0].trainable)
    model.train()
    return model, groups


@pytest.mark.parametrize("name", HEADS)
def test_the_backbone_and_all_modes_are_not_changed(name: str) -> None:
    model, _ = frozen(name)
    before, before_modes, layer = state(model), modes(model), model.get_submodule(HEADS[name])
    in_training: list[bool] = []
    hook = model.register_forward_pre_hook(
        lambda *_: in_training.append(
            any(module.training for module in model.modules() if type(module) is not nn.Identity)
        )
    )
    with start_accelerator(settings()) as accelerator:
        loaders = loaders_of(accelerator, rows_for(name, 12), rows_for(name, 10, seed=1), 4)
        passes, options = passes_of(loaders, accelerator, settings()), options_of(loaders, settings())
        solve_head(model, HEADS[name], passes, options)
    hook.remove()
    assert in_training
    assert not any(in_training), "the output of dropout before the last layer would be stored"
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    head = {f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"}
    assert changed == head & before.keys()
    assert modes(model) == before_modes
    assert model.get_submodule(HEADS[name]) is layer
    assert {key for key, value in model.named_parameters() if value.requires_grad} == changed


def test_a_pass_that_fails_leaves_the_model_as_it_was() -> None:
    model, _ = frozen("vit")
    before, before_modes, layer = state(model), modes(model), model.get_submodule("classifier")
    hook = model.register_forward_pre_hook(lambda *_: pytest.fail("no more memory"))
    with start_accelerator(settings()) as accelerator:
        loaders = loaders_of(accelerator, Rows(12), Rows(10, seed=1), 4)
        passes, options = passes_of(loaders, accelerator, settings()), options_of(loaders, settings())
        with pytest.raises(pytest.fail.Exception, match="no more memory"):
            solve_head(model, "classifier", passes, options)
    hook.remove()
    assert model.get_submodule("classifier") is layer
    assert modes(model) == before_modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_two_heads_are_trained_step_by_step() -> None:
    """The logits of a distilled DeiT are the mean of two layers: no single layer can be solved."""
    model, groups, _ = tiny("deit", architectures=["DeiTForImageClassificationWithTeacher"])
    assert solvable_layer(model, groups[-1], TARGET) is None
    before = state(model)
    fitted = train(model, groups, LinearProbe(), settings(num_train_epochs=3), Rows(24), Rows(10, seed=1))
    assert len(fitted.history) == 3
    assert not any("regularisation" in row for row in fitted.history)
    moved = {key for key, value in fitted.model.state_dict().items() if not torch.equal(value, before[key])}
    heads = ("cls_classifier", "distillation_classifier")
    assert moved == {f"{head}.{part}" for head in heads for part in ("weight", "bias")}


def test_the_loop_returns_the_solution() -> None:
    """One row of history, only the head counted as trainable, and its weights in the returned model."""
    model, groups, _ = tiny("vit")
    fitted = train(model, groups, LinearProbe(), settings(num_train_epochs=9), Rows(40), Rows(20, seed=1))
    direct = solve("vit", Rows(40), Rows(20, seed=1))
    assert (len(fitted.history), fitted.best_epoch, fitted.soup) == (1, 0, [0])
    assert fitted.trainable == 24 * 5 + 5
    assert torch.equal(fitted.model.get_parameter("classifier.weight"), direct.head.weight)
    assert fitted.history[0]["regularisation"] == direct.row["regularisation"]


class OtherSolver(Classes):
    """A target whose head has another solver than that of classes."""

    solver: ClassVar[str | None] = "another"


class NoSolver(Classes):
    """A target whose head is trained."""

    solver: ClassVar[str | None] = None


def test_the_target_names_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver is a line in the table."""
    made: list[tuple[int, bool, bool]] = []

    def another(blocks: Any, outputs: int, /, *, intercept: bool, balanced: bool, copies: int) -> LinearProblem:
        made.append((outputs, intercept, balanced))
        return LinearProblem(blocks, outputs, intercept=intercept, balanced=balanced)

    monkeypatch.setitem(SOLVERS, "another", another)
    model, groups, _ = tiny("vit")
    config, target = settings(class_weights="balanced"), OtherSolver(TARGET.label_names)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, Rows(40), Rows(20, seed=1), 4, target=target)
        assert solvable_layer(model, groups[-1], target) == "classifier"
        passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
        row = solve_head(model, "classifier", passes, options).row
        probe_layers(model, groups, [1], passes, options, lambda _: None)
    assert made == [(5, True, True)] * 2
    expected = solve("vit", Rows(40), Rows(20, seed=1), class_weights="balanced")
    assert torch.equal(model.get_parameter("classifier.weight"), expected.head.weight)
    assert row["regularisation"] == expected.row["regularisation"]


def test_without_a_solver_the_head_is_trained() -> None:
    model, groups, _ = tiny("vit")
    assert TARGET.solver == LOGISTIC
    assert solvable_layer(model, groups[-1], NoSolver(TARGET.label_names)) is None


@pytest.mark.parametrize("probe", ["svm", "knn"])
def test_a_probe_for_classes_is_refused_for_another_target(probe: Any) -> None:
    """Before any forward pass."""
    model, *_ = tiny("vit")
    model.register_forward_pre_hook(lambda *_: pytest.fail("it is an error already"))
    config, target = settings(), OtherSolver(TARGET.label_names)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, Rows(12), Rows(10, seed=1), 4, target=target)
        options = SolverOptions(Ranking.of(target, None), probe)
        with pytest.raises(UserError, match=f"(?s)for --probe {probe} one class for each sample.*leave out --probe"):
            solve_head(model, "classifier", passes_of(loaders, accelerator, config), options)
