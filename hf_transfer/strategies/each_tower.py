"""A strategy for each tower of a classifier of images and texts, and what is made of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hf_transfer.models.groups import Group
from hf_transfer.models.pretrained import seeded
from hf_transfer.models.towers import groups_of, renew_tower, trace
from hf_transfer.strategies.freezing import Stage, Strategy


@dataclass(frozen=True)
class EachTower:
    """Each tower learns as its own strategy has it; the head, which is all that is new, learns always.

    A strategy that would solve its head trains it here: it has more layers than one. A tower whose stages are over
    stays in its last one until the other's are over, too.

    Attributes:
        towers: image and text, each with its strategy.
        head_learning_rate: peak rate of the head if the user names none.
    """

    towers: Mapping[str, Strategy]
    head_learning_rate: float | None = 1e-3

    @property
    def fresh_weights(self) -> bool:
        """Whether no weights are read at all."""
        return all(strategy.fresh_weights for strategy in self.towers.values())

    @property
    def learning_rate(self) -> float:
        """That of the tower that learns more slowly: what suits it harms the other less than the other way round."""
        return min(strategy.learning_rate for strategy in self.towers.values())

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """See `Strategy.check`."""
        for tower, strategy in self.towers.items():
            strategy.check(model, groups_of(tower, groups))

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Mapping[str, Tensor], seed: int
    ) -> tuple[nn.Module, list[Group]]:
        """See `Strategy.prepare`; a tower that starts anew, beside one that does not, gets its fresh weights here."""
        for tower, strategy in self.towers.items():
            if strategy.fresh_weights and not self.fresh_weights:
                with seeded(seed):
                    renew_tower(model, tower)
            model, _ = strategy.prepare(model, groups_of(tower, groups), inputs, seed)
        return model, trace(model, inputs)

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """The stages of both towers at once: a new one begins wherever one of them begins a new one."""
        plans = [strategy.stages(groups_of(tower, groups), epochs) for tower, strategy in self.towers.items()]
        found: list[Stage] = []
        start = 0
        for end in sorted({end for plan in plans for end in _ends(plan)}):
            learns = frozenset[str]().union(*(_at(plan, start).trainable for plan in plans))
            # A stage that changes nothing is none.
            begun = found.pop().epochs if found and found[-1].trainable == learns else 0
            found.append(Stage(learns, begun + end - start))
            start = end
        return found


def _ends(stages: Sequence[Stage]) -> list[int]:
    """The epochs behind which stages end."""
    return [sum(stage.epochs for stage in stages[: number + 1]) for number in range(len(stages))]


def _at(stages: Sequence[Stage], epoch: int) -> Stage:
    """The stage of an epoch; the last one, behind the end."""
    return next((stage for stage, end in zip(stages, _ends(stages), strict=True) if epoch < end), stages[-1])
