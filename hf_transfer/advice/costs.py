"""How long each strategy takes with a model and data, from the time of a row through the model."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from hf_transfer import look_ahead
from hf_transfer.errors import UserError
from hf_transfer.models.groups import Group
from hf_transfer.models.taps import count_blocks
from hf_transfer.run import Run
from hf_transfer.settings.fields import choices_of
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import ADAPTERS, PROBES, TOWER_STRATEGIES
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.strategies.freezing import Stage, frozen_towers, unfreeze

# On how many rows a step is measured: it is about as much work as three forward passes, and is to cost only this share
# of a pass over all rows.
FORWARD_PASSES_OF_A_STEP, MEASURED_SHARE = 3, 0.03
FEWEST_MEASURED, MOST_MEASURED = 4, 32
FEWEST_OF_A_PASS = 200
# A backward pass takes at least as long as a forward pass.
LEAST_RATIO = 2.0
# A backward pass computes gradients of activations and of weights. Where only small parts of each layer learn, most of
# the second half is not needed.
SHARE_OF_SMALL_PARTS = 0.5
SMALL_PARTS = ("bitfit", *ADAPTERS)


@dataclass(frozen=True)
class Costs:
    """What the work of a run is made of.

    Attributes:
        forward: seconds of a row through the model.
        step: seconds of a row through the model and back, if all layers learn.
        solving: seconds of solving a head on stored features.
        train: rows of training.
        validation: rows of validation.
        epochs: of a training.
        views: augmented views of each training row on which a head is solved, beside the row itself.
        cycle: after so many epochs a training row looks as before, which is how often it is stored; 0: never.
        stores: whether outputs of frozen layers may be stored.
        repeats: whether R-Drop, which passes each row twice in a step, suits the model and what is predicted.
    """

    forward: float
    step: float
    solving: float
    train: int
    validation: int
    epochs: int
    views: int
    cycle: int
    stores: bool
    repeats: bool = False

    def of_probe(self) -> float:
        """Seconds of solving a head; the features of the rows themselves have been stored."""
        return (self.views * self.train + self.validation) * self.forward + self.solving

    def of_epochs(self, epochs: int, learning: float, share_of_backward: float = 1.0, passes: int = 1) -> float:
        """Seconds of training.

        Args:
            epochs: how many.
            learning: the share of the layers, counted from the head, that gradients go through.
            share_of_backward: how much of their backward pass is computed.
            passes: how often a step passes each row through the layers that learn, and back.
        """
        backward = (self.step - self.forward) * learning * share_of_backward
        evaluation = self.validation * self.forward
        live = epochs * (self.train * passes * (self.forward + backward) + evaluation)
        if learning == 1 or not self.stores or not self.cycle:
            return live
        stored = self.cycle * self.train * self.forward + evaluation
        above = epochs * (self.train * passes * (self.forward * learning + backward) + evaluation * learning)
        return min(live, stored * (1 - learning) + above)


def seconds_of_a_row(run: Run, forward: float | None) -> tuple[float, float]:
    """Seconds of a row through the model of a run, and of a row through it and back.

    A few rows say how much longer the second takes than the first. All layers of the model learn afterwards.

    Args:
        run: whose model and batches are ready.
        forward: the first of both, if a pass over all rows has shown it.
    """
    model, groups, rows = run.prepared.model, run.prepared.groups, len(run.splits.train)
    model.to(run.accelerator.device)
    count = int(np.clip(MEASURED_SHARE * rows / FORWARD_PASSES_OF_A_STEP, FEWEST_MEASURED, MOST_MEASURED))
    chosen = np.unique(np.linspace(0, rows - 1, count).astype(int)).tolist()
    through = look_ahead.seconds_of_rows(run, chosen) / len(chosen)
    if forward is None:
        # What the first batch builds for all does not count.
        forward = through = look_ahead.seconds_of_rows(run, chosen) / len(chosen)
    elif rows < FEWEST_OF_A_PASS:
        # A pass over few rows is mostly its beginning.
        forward = min(forward, through)
    unfreeze(model, groups)
    step = look_ahead.seconds_of_rows(run, chosen, learns=True) / len(chosen)
    return forward, forward * max(LEAST_RATIO, step / through)


def strategy_names(config: RunConfig) -> list[str]:
    """The strategies among which a run chooses."""
    return [name for name in choices_of(config.settings()["strategy"]) if name != "auto"]


def top_quarter(blocks: int) -> int:
    """How many blocks `partial` trains: a quarter, rounded up."""
    return max(1, math.ceil(blocks / 4))


def seconds_of_strategies(
    config: RunConfig,
    costs: Costs,
    model: nn.Module,
    groups: Sequence[Group],
    *,
    solves_heads: bool = True,
    deeper: bool = True,
) -> tuple[dict[str, float], dict[str, str]]:
    """How long each strategy takes, and what each of the others lacks in this model, by name.

    Args:
        config: the settings of a run.
        costs: of a row, and the number of rows.
        model: with a new head.
        groups: its groups in depth order.
        solves_heads: whether a head is solved on frozen features; otherwise it is trained.
        deeper: whether the head could be moved to other depths: the settings name no pooling.
    """
    seconds, unsuitable = {}, {}
    for name in strategy_names(config):
        if name == "deep_probe" and not solves_heads:
            unsuitable[name] = "the place that it reads is chosen by solved heads, and none can be solved"
            continue
        if name == "deep_probe" and not deeper:
            unsuitable[name] = "--pooling names what its head reads, and a deep probe chooses that itself"
            continue
        try:
            seconds[name] = _seconds(name, config, costs, model, groups, solves_heads=solves_heads)
        except UserError as error:
            unsuitable[name] = error.found or str(error)
    return seconds, unsuitable


def _seconds(
    name: str,
    config: RunConfig,
    costs: Costs,
    model: nn.Module,
    groups: Sequence[Group],
    *,
    solves_heads: bool,
) -> float:
    settings = dataclasses.replace(config.strategy, **_chosen(name, config, count_blocks(groups)))
    passes = config.training.passes_of_a_step(name, costs.train) if costs.repeats else 1
    if name in ADAPTERS:
        blocks, layers = count_blocks(groups), settings.adapter_layers
        learning = min(1.0, layers / blocks) if layers and blocks else 1.0
        return costs.of_epochs(costs.epochs, learning, SHARE_OF_SMALL_PARTS, passes)
    strategy = choose_strategy(settings)
    if config.has_simple_head:
        strategy.check(model, groups)
    # Of images with texts, a linear probe has a head of several layers, which is trained.
    if name in (PROBES if config.has_simple_head else (config.solved,)) and solves_heads:
        return costs.of_probe()
    small = SHARE_OF_SMALL_PARTS if name in SMALL_PARTS else 1.0
    return sum(
        costs.of_probe()
        if stage.solved and solves_heads
        else costs.of_epochs(stage.epochs, _learning_share(stage, groups), small, passes)
        for stage in strategy.stages(groups, costs.epochs)
    )


def _chosen(name: str, config: RunConfig, blocks: int) -> dict[str, Any]:
    """The settings of a strategy as it is tried."""
    chosen: dict[str, Any] = {"strategy": name, "trainable_layers": top_quarter(blocks), "taps": []}
    return chosen | {tower: None for tower in TOWER_STRATEGIES if tower in config.settings()}


def _learning_share(stage: Stage, groups: Sequence[Group]) -> float:
    """The share of the blocks that gradients go through."""
    blocks = count_blocks(groups)
    frozen = [group for tower in frozen_towers(groups, [stage]).values() for group in tower]
    if not blocks:
        return 0.0 if any(group.name == "backbone" for group in frozen) else 1.0
    # Layers before the blocks are part of the first one.
    below = any(group.name == "embeddings" for group in frozen)
    return 1 - count_blocks(frozen) / blocks if below else 1.0
