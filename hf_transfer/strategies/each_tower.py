"""A strategy for each tower of a classifier of images with texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from hf_transfer.models.groups import Group, Inputs
from hf_transfer.models.pretrained import seeded
from hf_transfer.models.towers import groups_of, renew_tower, trace
from hf_transfer.strategies.freezing import Stage, Strategy, learning_parameters, updated_statistics


@dataclass(frozen=True)
class EachTower:
    """Each tower has its own strategy; the head, which has all new layers, always learns.

    The head has several layers, so a strategy that would solve it trains it here. If the stages of one tower end before
    those of the other, it stays in its last stage.

    Attributes:
        towers: image and text, each with its strategy.
        head_learning_rate: peak rate of the head, if the settings give none.
    """

    towers: Mapping[str, Strategy]
    head_learning_rate: float | None = 1e-3

    @property
    def fresh_weights(self) -> bool:
        """Whether both towers start from fresh weights."""
        return all(strategy.fresh_weights for strategy in self.towers.values())

    @property
    def learning_rate(self) -> float:
        """The lower of both rates: too low a rate harms a tower less than too high a rate."""
        return min(strategy.learning_rate for strategy in self.towers.values())

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """See `Strategy.check`."""
        for tower, strategy in self.towers.items():
            strategy.check(model, groups_of(tower, groups))

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Inputs, seed: int
    ) -> tuple[nn.Module, list[Group]]:
        """See `Strategy.prepare`; if only one tower starts from fresh weights, it gets them here."""
        for tower, strategy in self.towers.items():
            if strategy.fresh_weights and not self.fresh_weights:
                with seeded(seed):
                    renew_tower(model, tower)
            model, _ = strategy.prepare(model, groups_of(tower, groups), inputs, seed)
        return model, trace(model, inputs)

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """The stages of both towers together: a new stage begins whenever a new one begins in either tower."""
        by_tower = [
            _by_epoch(strategy.stages(groups_of(tower, groups), epochs)) for tower, strategy in self.towers.items()
        ]
        # A tower whose stages have ended stays in its last one.
        together = [
            [stages[min(epoch, len(stages) - 1)] for stages in by_tower] for epoch in range(max(map(len, by_tower)))
        ]
        learns = [(learning_parameters(both), updated_statistics(both)) for both in together]
        # If the parameters do not change, the stage before goes on.
        return [
            Stage(trainable, len(list(run)), updates_statistics=updates)
            for (trainable, updates), run in groupby(learns)
        ]


def _by_epoch(stages: Sequence[Stage]) -> list[Stage]:
    """The stage of each epoch."""
    return [stage for stage in stages for _ in range(stage.epochs)]
