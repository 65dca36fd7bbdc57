"""Properties of every strategy on a transformer, a residual network and a text model, trained by the loop itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_transfer.frozen import probe
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.strategies.freezing import Stage
from hf_transfer.training import loop
from hf_transfer.training.predictions import predict_split
from hf_transfer.training.progress import Fit
from tests.tiny_models import ALL, Architecture, state
from tests.tiny_text_models import TEXT_ARCHITECTURES
from tests.training.toy_task import rows_for, settings, text_settings, tiny, train

# Parts of the names of peft's parameters.
ADAPTERS = {"lora": "lora_", "dora": "lora_", "ia3": "ia3_", "lokr": "lokr_", "adapter": "hada_"}
SOLVED = {"linear_probe", "lp_ft"}
STRATEGIES = ["linear_probe", "partial", "gradual", "lp_ft", "full", "scratch", "bitfit", *ADAPTERS]
MODELS = ["vit", "resnet_basic", "bert"]
EPOCHS = {"gradual": 6}
PREFIX = "base_model.model."
DROPOUT: dict[str, dict[str, Any]] = {
    "vit": {"hidden_dropout_prob": 0.3},
    "resnet_basic": {},
    "bert": {"hidden_dropout_prob": 0.3},
}
cases = pytest.mark.parametrize(("name", "strategy"), [(name, strategy) for name in MODELS for strategy in STRATEGIES])


@dataclass
class Run:
    """A training of a toy task, with records of each epoch.

    Attributes:
        stages: the stages of the strategy.
        fitted: the result of the loop.
        states: all weights and statistics before the training and after each epoch.
        dropping: for each epoch, the dropout modules that ran in training, and whether they dropped anything.
    """

    stages: list[Stage]
    fitted: Fit
    states: list[dict[str, Tensor]]
    dropping: list[dict[str, bool]]

    def epochs(self) -> Iterator[tuple[Stage, dict[str, Tensor], dict[str, Tensor], dict[str, bool]]]:
        """For each epoch: stage, states before and after, and dropout."""
        # A solved stage takes one epoch, whatever its length.
        stages = [stage for stage in self.stages for _ in range(1 if stage.solved else stage.epochs)]
        yield from zip(stages, self.states, self.states[1:], self.dropping, strict=False)


@contextmanager
def watched(model: nn.Module, states: list[dict[str, Tensor]], dropping: list[dict[str, bool]]) -> Iterator[None]:
    """Record the weights at the end of each epoch, and dropout in it."""
    handles = []

    def recording(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            states.append(state(model))
            dropping.append({})
            return result

        return call

    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:

            def record(_: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                if torch.is_grad_enabled():
                    dropping[-1][name] = not torch.equal(args[0], output)

            handles.append(module.register_forward_hook(record))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "predict_split", recording(predict_split))
        patch.setattr(probe, "solve_head", recording(probe.solve_head))
        yield
    for handle in handles:
        handle.remove()


@cache
def run(name: str, strategy: str, statistics: str = "pretrained") -> Run:
    """One training for all tests of this model and strategy."""
    make = text_settings if name in TEXT_ARCHITECTURES else settings
    config = make(
        strategy=strategy, trainable_layers=2 if strategy == "partial" else 1, warmup_steps=0, learning_rate=5e-3,
        num_train_epochs=EPOCHS.get(strategy, 2), batch_norm_statistics=statistics,
    )  # fmt: skip
    model, groups, inputs = tiny(name, **DROPOUT[name])
    chosen = choose_strategy(config.strategy)
    chosen.check(model, groups)
    prepared, groups = chosen.prepare(model, groups, inputs, config.training.seed)
    states, dropping = [state(prepared)], [dict[str, bool]()]
    with watched(prepared, states, dropping):
        fitted = train(prepared, groups, chosen, config, rows_for(name, 24), rows_for(name, 10, seed=1))
    return Run(chosen.stages(groups, config.training.num_train_epochs), fitted, states, dropping)


def parts_of(name: str) -> Architecture:
    return (TEXT_ARCHITECTURES | ALL)[name]


def inside(parameter: str, modules: tuple[str, ...]) -> bool:
    plain = parameter.removeprefix(PREFIX)
    return any(plain.startswith(f"{module}.") for module in modules)


def expected_to_learn(name: str, strategy: str, names: list[str]) -> list[set[str]]:
    """For each epoch, by the names in the source code and in peft, not by our groups."""
    parts = parts_of(name)
    head, top = (parts.head,), (*parts.final, parts.head)
    everything = (*parts.embeddings, *parts.blocks, *top)
    if strategy in ADAPTERS:
        parts_of_names = (ADAPTERS[strategy], "modules_to_save")
        return [{name for name in names if any(part in name for part in parts_of_names)}] * 2
    if strategy == "bitfit":
        return [{name for name in names if name.endswith(".bias") or inside(name, head)}] * 2
    # One more block in each epoch, and the embeddings last.
    unfrozen: list[tuple[str, ...]] = [parts.blocks[place:] + top for place in (3, 2, 1, 0)] + [everything]
    schedules: dict[str, list[tuple[str, ...]]] = {
        "linear_probe": [head],
        "partial": [parts.blocks[1:] + top] * 2,
        "gradual": [*unfrozen, everything],
        "lp_ft": [head, everything, everything],
        "full": [everything] * 2,
        "scratch": [everything] * 2,
    }
    return [{parameter for parameter in names if inside(parameter, modules)} for modules in schedules[strategy]]


@cases
def test_exactly_the_named_parameters_change_in_every_epoch(name: str, strategy: str) -> None:
    """Frozen parameters stay equal, bit for bit."""
    training = run(name, strategy)
    names = [key for key, _ in training.fitted.model.named_parameters()]
    expected = expected_to_learn(name, strategy, names)
    epochs = list(training.epochs())
    assert len(epochs) == len(expected) == len(training.fitted.history)
    for (stage, before, after, _), learns in zip(epochs, expected, strict=True):
        assert stage.trainable == learns
        assert {key for key in names if not torch.equal(after[key], before[key])} == learns


@pytest.mark.parametrize("statistics", ["pretrained", "updated"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_running_statistics_change_only_if_asked_for_and_both_parameters_of_a_batch_norm_learn(
    strategy: str, statistics: str
) -> None:
    """From scratch there are none to keep."""
    training, follows = run("resnet_basic", strategy, statistics), statistics == "updated" or strategy == "scratch"
    count = 0
    for stage, before, after, _ in training.epochs():
        for key in before:
            if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
                norm = key.rpartition(".")[0]
                learns = follows and {f"{norm}.weight", f"{norm}.bias"} <= stage.trainable
                assert torch.equal(before[key], after[key]) is not learns, key
                count += 1
    assert count > 0


@cases
def test_all_other_buffers_stay(name: str, strategy: str) -> None:
    """Tables of positions and masks, for example."""
    training = run(name, strategy)
    parameters = {key for key, _ in training.fitted.model.named_parameters()}
    for _, before, after, _ in training.epochs():
        for key in before.keys() - parameters:
            if ".running_" not in key and not key.endswith("num_batches_tracked"):
                assert torch.equal(before[key], after[key]), key


@pytest.mark.parametrize(("name", "strategy"), [(name, s) for name in ("vit", "bert") for s in STRATEGIES])
def test_dropout_is_on_only_in_groups_in_which_something_learns(name: str, strategy: str) -> None:
    training, parts = run(name, strategy), parts_of(name)
    slices = [parts.embeddings, *((block,) for block in parts.blocks), parts.final, (parts.head,)]
    watched_epochs = 0
    for stage, _, _, dropping in training.epochs():
        if stage.solved:
            assert dropping == {}
            continue
        for module, drops in dropping.items():
            (group,) = [part for part in slices if inside(f"{module}.", part)]
            assert drops is any(inside(key, group) for key in stage.trainable), (module, stage)
        watched_epochs += bool(dropping)
    assert watched_epochs == sum(stage.epochs for stage in training.stages if not stage.solved)


@cases
def test_the_head_learns_in_every_stage(name: str, strategy: str) -> None:
    training = run(name, strategy)
    head = parts_of(name).head
    for stage, before, after, _ in training.epochs():
        weights = [key for key in stage.trainable if inside(key, (head,)) and key.endswith((".weight", ".bias"))]
        assert len(weights) == 2
        assert not any(torch.equal(before[key], after[key]) for key in weights)


@cases
def test_trainable_parameters_are_counted(name: str, strategy: str) -> None:
    """The largest number in a stage."""
    fitted = run(name, strategy).fitted
    sizes = {key: value.numel() for key, value in fitted.model.named_parameters()}
    learning = expected_to_learn(name, strategy, list(sizes))
    assert fitted.trainable == max(sum(sizes[key] for key in names) for names in learning)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strategy", sorted(SOLVED))
def test_a_solved_head_takes_one_epoch(name: str, strategy: str) -> None:
    """The epochs that the user asked for are those of the next stage."""
    training = run(name, strategy)
    solved = ["regularisation" in row for row in training.fitted.history]
    assert solved == ([True] if strategy == "linear_probe" else [True, False, False])


@cases
def test_the_returned_model_is_that_of_the_best_epoch(name: str, strategy: str) -> None:
    training = run(name, strategy)
    best = training.states[training.fitted.best_epoch + 1]
    assert training.fitted.soup == [training.fitted.best_epoch]
    assert all(torch.equal(value, best[key]) for key, value in training.fitted.model.state_dict().items())
