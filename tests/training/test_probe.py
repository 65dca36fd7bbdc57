"""The solved head against scikit-learn on features that the test computes itself."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from hf_transfer.data.inputs import MASKED
from hf_transfer.models.groups import Group
from hf_transfer.strategies.freezing import LinearProbe, set_trainable
from hf_transfer.training import probe
from hf_transfer.training.loop import start_accelerator
from hf_transfer.training.predictions import Metrics, predict_split
from hf_transfer.training.probe import last_layer, solve_head
from tests.tiny_models import state
from tests.training.toy_task import Rows, loaders_of, rows_for, settings, tiny, to_inputs, train

Floats = npt.NDArray[np.float64]
HEADS = {
    "vit": "classifier",
    "resnet_basic": "classifier.1",
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "gpt2": "score",
}
# What the library tries, written out: half decades.
TRIED = [10.0**exponent for exponent in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -3.5, -4, -4.5, -5, -5.5, -6)]


@dataclass
class Solved:
    """A solved head, and what it was solved on."""

    model: nn.Module
    row: Metrics
    live: Metrics
    name: str
    train: Rows
    validation: Rows

    @property
    def head(self) -> nn.Linear:
        layer = self.model.get_submodule(HEADS[self.name])
        assert isinstance(layer, nn.Linear)
        return layer

    def features(self, rows: Rows) -> tuple[Floats, npt.NDArray[np.int64]]:
        return features(self.model, self.name, rows)


def features(model: nn.Module, name: str, rows: Rows) -> tuple[Floats, npt.NDArray[np.int64]]:
    """What enters the last layer of a live model, and the labels, without masked rows."""
    caught: list[Tensor] = []
    hook = model.get_submodule(HEADS[name]).register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    with torch.no_grad():
        model.eval()(**rows.inputs)
    hook.remove()
    (found,) = caught
    if found.ndim == 3:
        # A decoder says it with the last token that is no padding.
        found = found[torch.arange(len(found)), rows.inputs["attention_mask"].sum(1) - 1]
    counted = rows.labels != MASKED
    return found[counted].double().numpy(), rows.labels[counted].numpy()


def solve(name: str, rows: Rows, validation: Rows, *, edit: Any = None, **more: Any) -> Solved:
    model, groups, _ = tiny(name)
    if edit is not None:
        edit(model)
    config = settings(**more)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 4)
        layer = last_layer(model, groups[-1])
        assert layer == HEADS[name]
        row = solve_head(model, layer, loaders, accelerator, config)
        live = predict_split(model, loaders, "validation", accelerator).metrics()
    return Solved(model, row, live, name, rows, validation)


def loss(scores: Floats, labels: npt.NDArray[np.int64], weights: Floats | None = None) -> float:
    own = -torch.log_softmax(torch.from_numpy(scores), 1).numpy()[np.arange(len(labels)), labels]
    return float(np.average(own, weights=weights))


def reference(
    seen: Floats,
    labels: npt.NDArray[np.int64],
    regularisation: float,
    *,
    intercept: bool = True,
    balanced: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """Scikit-learn's solution by another algorithm and from a cold start; weight, centre and spread of the features."""
    centre = seen.mean(0) if intercept else np.zeros(seen.shape[1])
    spread = np.where(seen.std(0) < 1e-6, 1.0, seen.std(0))
    # Of two classes scikit-learn takes the difference, whose square is twice the sum of the squares of both.
    scale = 2.0 if len(np.unique(labels)) == 2 else 1.0
    model = LogisticRegression(
        C=scale / (regularisation * len(labels)), solver="newton-cg", tol=1e-8, max_iter=2000,
        fit_intercept=intercept, class_weight="balanced" if balanced else None,
    ).fit((seen - centre) / spread, labels)  # fmt: skip
    weight, bias = np.asarray(model.coef_), np.broadcast_to(model.intercept_, len(model.coef_))
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight / spread, bias - weight / spread @ centre, spread


def agrees(found: Solved, *, balanced: bool = False) -> None:
    """Loss, objective and predictions of the head are those of scikit-learn."""
    intercept = found.head.bias is not None
    seen, labels = found.features(found.train)
    present = np.unique(labels)
    weight, bias, spread = reference(seen, labels, found.row["regularisation"], intercept=intercept, balanced=balanced)
    own = found.head.weight.detach().double().numpy()
    own_bias = found.head.bias.detach().double().numpy() if intercept else np.zeros(len(own))
    whole, numbers = np.zeros_like(own), np.searchsorted(present, labels)
    whole[present] = weight
    scores, expected = seen @ own.T + own_bias, seen @ weight.T + bias
    counts = np.bincount(numbers)
    each = (len(labels) / (len(counts) * counts))[numbers] if balanced else None

    def objective(given: Floats, matrix: Floats, which: npt.NDArray[np.int64]) -> float:
        penalty = found.row["regularisation"] / 2 * np.square(matrix * spread).sum()
        return loss(given, which, each) + float(penalty)

    assert loss(scores, labels) == pytest.approx(found.row["train_loss"], abs=1e-5)
    assert found.row["train_loss"] == pytest.approx(loss(expected, numbers), abs=1e-3)
    assert objective(scores, own, labels) == pytest.approx(objective(expected, weight, numbers), abs=2e-5)
    assert found.row["samples_per_second"] * found.row["seconds"] == pytest.approx(len(labels))


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_scikit_learns(name: str) -> None:
    """Mutation: hf_transfer/training/probe.py: "- weight[present] @ centre" -> "" """
    found = solve(name, rows_for(name, 40), rows_for(name, 20, seed=1))
    agrees(found)
    assert (found.head.bias is None) is (name == "gpt2")


@pytest.mark.parametrize("name", HEADS)
def test_the_regularisation_is_the_best_on_validation(name: str) -> None:
    """By the loss, which tells solutions apart more finely than accuracy.

    Mutation: hf_transfer/training/probe.py: "_best(path, held_out, config" -> "_best(path, passes[0], config"
    """
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
    """Mutation: hf_transfer/training/probe.py: "layer.bias.copy_(bias)" -> "layer.bias.zero_()" """
    found = solve(name, rows_for(name, 40), rows_for(name, 20, seed=1))
    assert {key: found.row[key] for key in found.live} == pytest.approx(found.live, abs=1e-4)


def test_a_head_without_a_bias_gets_no_intercept() -> None:
    """Mutation: hf_transfer/training/probe.py: "fit_intercept=intercept" -> "fit_intercept=True" """
    found = solve(
        "vit", Rows(40), Rows(20, seed=1), edit=lambda model: setattr(model, "classifier", nn.Linear(24, 5, bias=False))
    )
    agrees(found)


def test_two_classes_are_solved_as_two_rows() -> None:
    """Mutation: hf_transfer/training/probe.py: "np.concatenate([-coefficients, coefficients]) / 2" -> "np.concatenate([-coefficients, coefficients])" """  # noqa: E501
    found = solve(
        "vit", Rows(40, classes=2), Rows(20, seed=1, classes=2),
        edit=lambda model: setattr(model, "classifier", nn.Linear(24, 2)),
    )  # fmt: skip
    agrees(found)
    assert found.row["regularisation"] in TRIED


def test_two_of_five_classes_are_solved_alike() -> None:
    """The penalty does not depend on how many classes training has.

    Mutation: hf_transfer/training/probe.py: "2.0 if pair else 1.0" -> "1.0"
    """
    rows, validation = (rows_for("bert", 60, seed=seed, classes=2) for seed in (0, 1))
    for part in (rows, validation):
        # Some are wrong, so that the best penalty is no small one.
        part.labels[::5] = 1 - part.labels[::5]
    found = solve("bert", rows, validation)
    agrees(found)
    assert found.row["regularisation"] > 1e-3


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_a_class_that_training_lacks_never_wins(name: str) -> None:
    """Mutation: hf_transfer/training/probe.py: "NEVER = -30.0" -> "NEVER = 30.0" """
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


def unbalanced(size: int, seed: int = 0) -> Rows:
    """Three quarters are of the first class, and half of all labels are wrong."""
    rows = Rows(size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(size, generator=generator) < 0.75
    rows.labels[common] = 0
    return rows


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_each_class_counts_alike_if_asked_for(weights: str) -> None:
    """Mutation: hf_transfer/training/probe.py: "class_weight=weighting" -> "class_weight=None" """
    found = solve("vit", unbalanced(80), unbalanced(40, seed=1), class_weights=weights)
    agrees(found, balanced=weights == "balanced")


def test_features_that_never_change_do_no_harm() -> None:
    """Mutation: hf_transfer/training/probe.py: "    spread[spread <= " -> "    spread[spread < 0 * " """

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
    """Validation calls each class by the name of the next; two decades without a gain are enough.

    Mutation: hf_transfer/training/probe.py: "PATIENCE = 4" -> "PATIENCE = 5"
    """
    tried: list[float] = []
    path = probe.regularisation_path

    def counted(*arguments: Any) -> Iterator[Any]:
        for solution in path(*arguments):
            tried.append(solution[-1])
            yield solution

    monkeypatch.setattr(probe, "regularisation_path", counted)
    validation = Rows(60, seed=1)
    validation.labels = (validation.labels + 1) % 5
    found = solve_plain(Rows(60), validation)
    assert found["regularisation"] == 10.0
    assert tried == pytest.approx(TRIED[:5])


def test_where_everything_can_be_learned_the_weakest_regularisation_wins() -> None:
    """Without a warning, although the last solutions are given up before they are exact.

    Mutation: hf_transfer/training/probe.py: "min(LARGEST_GRADIENT, SHARE_OF_REGULARISATION * regularisation)" -> "LARGEST_GRADIENT"
    """  # noqa: E501
    rows = Rows(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = solve_plain(rows, rows)
    assert found["regularisation"] == pytest.approx(1e-6)
    assert found["loss"] < 1e-3


def test_augmented_views_are_more_samples() -> None:
    """Training as it is and in each view; validation as it is alone.

    Mutation: hf_transfer/training/probe.py: "(None, *range(loaders.views))" -> "(None, *range(1, loaders.views))"
    """
    model, _, _ = tiny("vit")
    rows, validation, config = Rows(20), Rows(20, seed=1), settings()
    shifts = {None: 0, 0: 3, 1: 7}

    def shifted(batch: Any, device: Any, split: str, view: int | None) -> Any:
        inputs, labels, index = to_inputs(batch, device, split, view)
        return {"pixel_values": inputs["pixel_values"].roll(shifts[view], -1)}, labels, index

    with start_accelerator(config) as accelerator:
        loaders = replace(loaders_of(accelerator, rows, validation, 4), to_inputs=shifted, views=2)
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
    """Mutation: hf_transfer/training/probe.py: "with evaluating(model):" -> "if True:" """
    model, _ = frozen(name)
    before, before_modes, layer = state(model), modes(model), model.get_submodule(HEADS[name])
    with start_accelerator(settings()) as accelerator:
        loaders = loaders_of(accelerator, rows_for(name, 12), rows_for(name, 10, seed=1), 4)
        solve_head(model, HEADS[name], loaders, accelerator, settings())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    head = {f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"}
    assert changed == head & before.keys()
    assert modes(model) == before_modes
    assert model.get_submodule(HEADS[name]) is layer
    assert {key for key, value in model.named_parameters() if value.requires_grad} == changed


def test_a_pass_that_fails_leaves_the_model_as_it_was() -> None:
    """Mutation: hf_transfer/training/probe.py: "    finally:" -> "    except ValueError:" """
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
    """A distilled DeiT says the mean of two layers: no one layer gives its logits.

    Mutation: hf_transfer/training/probe.py: "if len(head.modules) == len(names) == 1 else None" -> ""
    """
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
