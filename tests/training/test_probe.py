"""The solved head against scikit-learn on features that the test computes itself."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from hf_transfer.models.groups import Group
from hf_transfer.strategies.freezing import LinearProbe, set_trainable
from hf_transfer.training.linear_classifier import LinearProblem, Solution
from hf_transfer.training.loop import start_accelerator
from hf_transfer.training.predictions import Metrics
from hf_transfer.training.probe import last_layer, solve_head
from tests.tiny_models import state
from tests.training.solved_heads import HEADS, TRIED, Floats, Solved, agrees, loss, reference, solve
from tests.training.toy_task import Rows, loaders_of, rows_for, settings, tiny, to_inputs, train


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_scikit_learns(name: str) -> None:
    found = solve(name, rows_for(name, 40), rows_for(name, 20, seed=1))
    agrees(found)
    assert (found.head.bias is None) is (name == "gpt2")


@pytest.mark.parametrize("name", HEADS)
def test_the_regularisation_is_the_best_on_validation(name: str) -> None:
    """By the loss, which tells solutions apart more finely than accuracy."""
    found = solve(name, rows_for(name, 40), rows_for(name, 20, seed=1), metric_for_best_model="loss")
    seen, labels = found.features(found.train)
    held_out, expected = found.features(found.validation)
    losses = []
    for regularisation in TRIED:
        weight, bias, _ = reference(seen, labels, regularisation, intercept=name != "gpt2")
        losses.append(loss(held_out @ weight.T + bias, expected))
    assert found.row["loss"] == pytest.approx(min(losses), abs=1e-3)
    assert TRIED[int(np.argmin(losses))] == pytest.approx(found.row["regularisation"])


@pytest.mark.parametrize("name", HEADS)
def test_what_is_logged_is_what_the_model_says_live(name: str) -> None:
    found = solve(name, rows_for(name, 40), rows_for(name, 20, seed=1))
    assert {key: found.row[key] for key in found.live} == pytest.approx(found.live, abs=1e-4)


def test_a_head_without_a_bias_gets_no_intercept() -> None:
    found = solve(
        "vit", Rows(40), Rows(20, seed=1), edit=lambda model: setattr(model, "classifier", nn.Linear(24, 5, bias=False))
    )
    agrees(found)


def test_two_classes_are_solved_as_two_rows() -> None:
    found = solve(
        "vit", Rows(40, classes=2), Rows(20, seed=1, classes=2),
        edit=lambda model: setattr(model, "classifier", nn.Linear(24, 2)),
    )  # fmt: skip
    agrees(found)
    assert found.row["regularisation"] in TRIED


def test_two_of_five_classes_are_solved_alike() -> None:
    """The penalty does not depend on how many classes training has."""
    rows, validation = (rows_for("bert", 60, seed=seed, classes=2) for seed in (0, 1))
    for part in (rows, validation):
        # Some are wrong, so that the best penalty is no small one.
        part.labels[::5] = 1 - part.labels[::5]
    found = solve("bert", rows, validation)
    agrees(found)
    assert found.row["regularisation"] > 1e-3


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_a_class_that_training_lacks_never_wins(name: str) -> None:
    found = solve(name, rows_for(name, 40, classes=4), rows_for(name, 20, seed=1))
    seen, _ = found.features(found.validation)
    bias = 0 if found.head.bias is None else found.head.bias.detach().double().numpy()
    scores = seen @ found.head.weight.detach().double().numpy().T + bias
    assert set(scores.argmax(1)) <= {0, 1, 2, 3}
    if name == "vit":
        agrees(found)
        assert torch.softmax(torch.from_numpy(scores), 1)[:, 4].max() < 1e-6


def test_masked_rows_teach_nothing() -> None:
    """Whatever is in them."""
    solutions = []
    for garbage in (0.0, 7.0):
        rows, validation = Rows(40, masked=(3, 20)), Rows(20, seed=1, masked=(5,))
        rows.pixels[[3, 20]] = garbage
        validation.pixels[5] = garbage
        found = solve("vit", rows, validation)
        agrees(found)
        solutions.append(found.head.weight.detach().clone())
    assert torch.equal(*solutions)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_a_support_vector_machine_is_scikit_learns(weights: str) -> None:
    """Each class against the rest, on standardised features."""
    found = solve(
        "vit",
        unbalanced(80),
        unbalanced(40, seed=1),
        strategy="linear_probe",
        probe="svm",
        class_weights=weights,
        metric_for_best_model="loss",
    )
    seen, labels = found.features(found.train)
    spread, counts, regularisation = seen.std(0), np.bincount(labels), found.row["regularisation"]
    importance = (len(labels) / (len(counts) * counts))[labels] if weights == "balanced" else np.ones(len(labels))
    standard = (seen - seen.mean(0)) / spread
    theirs = LinearSVC(
        loss="squared_hinge", dual=False, C=1 / (regularisation * len(labels)), tol=1e-9, max_iter=100_000,
        # It penalises the intercept too: by a millionth of what ours would cost.
        intercept_scaling=1e3,
    ).fit(standard, labels, sample_weight=importance)  # fmt: skip

    def objective(weight: Floats, bias: Floats) -> float:
        signs = np.where(np.arange(len(weight)) == labels[:, None], 1.0, -1.0)
        hinges = (np.maximum(0.0, 1.0 - signs * (standard @ weight.T + bias)) ** 2).sum(1)
        return float((hinges * importance).mean() + regularisation / 2 * np.square(weight).sum())

    own = found.head.weight.detach().double().numpy()
    bias = found.head.bias.detach().double().numpy() + own @ seen.mean(0)
    assert objective(own * spread, bias) == pytest.approx(objective(theirs.coef_, theirs.intercept_), abs=2e-5)
    assert own * spread == pytest.approx(theirs.coef_, abs=2e-2)
    assert loss(standard @ (own * spread).T + bias, labels) == pytest.approx(found.row["train_loss"], abs=1e-5)


def unbalanced(size: int, seed: int = 0) -> Rows:
    """Three quarters are of the first class, and half of all labels are wrong."""
    rows = Rows(size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(size, generator=generator) < 0.75
    rows.labels[common] = 0
    return rows


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_each_class_counts_alike_if_asked_for(weights: str) -> None:
    found = solve("vit", unbalanced(80), unbalanced(40, seed=1), class_weights=weights)
    agrees(found, balanced=weights == "balanced")


def test_features_that_never_change_do_no_harm() -> None:

    def flatten(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter("vit.layernorm.weight")[:5] = 0

    found = solve("vit", Rows(40), Rows(20, seed=1), edit=flatten)
    agrees(found)
    assert found.head.weight[:, :5].abs().max() < 1e-3


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
        return solve_head(Plain(), "classifier", loaders_of(accelerator, rows, validation, 8), accelerator, config)


def test_where_what_is_learned_is_wrong_the_strongest_regularisation_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation calls each class by the name of the next; two decades without a gain are enough."""
    tried: list[float] = []
    path = LinearProblem.path

    def counted(problem: LinearProblem, **more: Any) -> Iterator[Solution]:
        for solution in path(problem, **more):
            tried.append(solution.regularisation)
            yield solution

    monkeypatch.setattr(LinearProblem, "path", counted)
    validation = Rows(60, seed=1)
    validation.labels = (validation.labels + 1) % 5
    found = solve_plain(Rows(60), validation)
    assert found["regularisation"] == 10.0
    assert tried == pytest.approx(TRIED[:5])


def test_where_everything_can_be_learned_the_weakest_regularisation_wins() -> None:
    """Without a warning, although the last solutions are given up before they are exact."""
    rows = Rows(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = solve_plain(rows, rows)
    assert found["regularisation"] == pytest.approx(1e-6)
    assert found["loss"] < 1e-3


def test_augmented_views_are_more_samples() -> None:
    """Training as it is and in each view; validation as it is alone."""
    model, _, _ = tiny("vit")
    rows, validation, config = Rows(20), Rows(20, seed=1), settings()
    shifts = {None: 0, 0: 3, 1: 7}

    def shifted(batch: Any, device: Any, split: str, view: int | None) -> Any:
        inputs, labels, index = to_inputs(batch, device, split, view)
        return {"pixel_values": inputs["pixel_values"].roll(shifts[view], -1)}, labels, index

    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 4)
        told = loaders.fingerprint
        loaders = replace(
            loaders, to_inputs=shifted, views=2, fingerprint=lambda split, view: f"{told(split, view)} {shifts[view]}"
        )
        row = solve_head(model, "classifier", loaders, accelerator, config)
    several = Rows(60)
    several.labels = rows.labels.repeat(3)
    several.inputs = {"pixel_values": torch.cat([rows.pixels.roll(shift, -1) for shift in shifts.values()])}
    agrees(Solved(model, row, {}, "vit", several, validation))


def modes(model: nn.Module) -> list[tuple[type, bool]]:
    return [(type(module), module.training) for module in model.modules()]


def frozen(name: str) -> tuple[nn.Module, list[Group]]:
    """As the loop has it before it solves."""
    model, groups, _ = tiny(name)
    set_trainable(model, groups, LinearProbe().stages(groups, 1)[0].trainable)
    model.train()
    return model, groups


@pytest.mark.parametrize("name", HEADS)
def test_the_backbone_and_all_modes_are_left_alone(name: str) -> None:
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
        solve_head(model, HEADS[name], loaders, accelerator, settings())
    hook.remove()
    assert in_training
    assert not any(in_training), "dropout in front of the last layer would be stored"
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
        with pytest.raises(pytest.fail.Exception, match="no more memory"):
            solve_head(model, "classifier", loaders, accelerator, settings())
    hook.remove()
    assert model.get_submodule("classifier") is layer
    assert modes(model) == before_modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_two_heads_learn_step_by_step() -> None:
    """A distilled DeiT says the mean of two layers: no one layer gives its logits."""
    model, groups, _ = tiny("deit", architectures=["DeiTForImageClassificationWithTeacher"])
    assert last_layer(model, groups[-1]) is None
    before = state(model)
    fitted = train(model, groups, LinearProbe(), settings(num_train_epochs=3), Rows(24), Rows(10, seed=1))
    assert len(fitted.history) == 3
    assert not any("regularisation" in row for row in fitted.history)
    moved = {key for key, value in fitted.model.state_dict().items() if not torch.equal(value, before[key])}
    heads = ("cls_classifier", "distillation_classifier")
    assert moved == {f"{head}.{part}" for head in heads for part in ("weight", "bias")}


def test_the_loop_counts_and_keeps_the_solution() -> None:
    """One row of history, the head alone counted, its weights in the model that comes back."""
    model, groups, _ = tiny("vit")
    fitted = train(model, groups, LinearProbe(), settings(num_train_epochs=9), Rows(40), Rows(20, seed=1))
    direct = solve("vit", Rows(40), Rows(20, seed=1))
    assert (len(fitted.history), fitted.best_epoch, fitted.soup) == (1, 0, [0])
    assert fitted.trainable == 24 * 5 + 5
    assert torch.equal(fitted.model.get_parameter("classifier.weight"), direct.head.weight)
    assert fitted.history[0]["regularisation"] == direct.row["regularisation"]
