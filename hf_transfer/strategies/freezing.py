"""Strategies that freeze by depth, and how freezing is done.

A strategy is a pure answer to "what learns, and when?". Everything else is derived from it: the parameter groups
of the optimizer, the counts in the report, and how much of the model is frozen.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from hf_transfer.config import RunConfig, mistake
from hf_transfer.models.groups import Group


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which one set of parameters learns.

    Attributes:
        trainable: names of the parameters that learn.
        epochs: length of the stage.
    """

    trainable: frozenset[str]
    epochs: int


class Strategy(Protocol):
    """What learns, and when."""

    @property
    def fresh_weights(self) -> bool:
        """Whether the backbone starts from fresh weights."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate if the user names none."""

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """The stages of a training of `epochs` epochs, for groups in depth order."""


@dataclass(frozen=True)
class LinearProbe:
    """Only the head learns, on what the frozen backbone makes of the input.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.
    """

    fresh_weights: bool = False
    learning_rate: float = 3e-3

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: the head."""
        return [Stage(_parameters(groups[-1:]), epochs)]


@dataclass(frozen=True)
class PartialFineTuning:
    """The top blocks learn, with the final norm and the head; what lies below stays as it was pretrained.

    Reference: Yosinski, Clune, Bengio and Lipson, "How transferable are features in deep neural networks?",
    NeurIPS 2014, https://arxiv.org/abs/1411.1792.

    Attributes:
        layers: how many blocks learn, counted from the head.
    """

    layers: int
    fresh_weights: bool = False
    learning_rate: float = 3e-4

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: the top `layers` blocks and what follows them.

        Raises:
            UserError: the model has fewer blocks.
        """
        ends = ("embeddings", "backbone", "final", "head")
        blocks = [position for position, group in enumerate(groups) if group.name not in ends]
        if self.layers > len(blocks):
            raise mistake(
                expected=f"--trainable_layers from 1 to {len(blocks)}, the blocks of this model"
                if blocks
                else "a model with repeated blocks",
                found=str(self.layers) if blocks else "none",
                do="lower it, or use --strategy full" if blocks else "use --strategy linear_probe or full",
            )
        return [Stage(_parameters(groups[blocks[-self.layers] :]), epochs)]


@dataclass(frozen=True)
class FullFineTuning:
    """Everything learns, from the pretrained weights."""

    fresh_weights: bool = False
    learning_rate: float = 1e-4

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: all parameters."""
        return [Stage(_parameters(groups), epochs)]


@dataclass(frozen=True)
class FromScratch(FullFineTuning):
    """Everything learns, from fresh weights of the same architecture: the baseline that transfer must beat."""

    fresh_weights: bool = True
    learning_rate: float = 1e-3


def choose_strategy(config: RunConfig) -> Strategy:
    """The strategy that the settings name."""
    match config.strategy:
        case "linear_probe":
            return LinearProbe()
        case "partial":
            return PartialFineTuning(layers=config.trainable_layers)
        case "full":
            return FullFineTuning()
        case "scratch":
            return FromScratch()


def frozen_prefix(groups: Sequence[Group], stages: Sequence[Stage]) -> int:
    """How many groups, counted from the input, learn in no stage."""
    learns = frozenset[str]().union(*(stage.trainable for stage in stages))
    for count, group in enumerate(groups):
        if learns.intersection(group.parameters):
            return count
    return len(groups)


class _Frozen:
    """Mixed into the class of a frozen module: `train()` leaves it in evaluation mode.

    A subclass, because an override on the instance is lost in a deep copy.
    """

    def train(self, mode: bool = True) -> nn.Module:  # noqa: ARG002
        return super().train(False)  # type: ignore[misc,no-any-return]


def set_trainable(model: nn.Module, groups: Sequence[Group], names: Set[str]) -> None:
    """Let exactly `names` learn. A group in which nothing learns is in evaluation mode from now on.

    `requires_grad=False` alone would let BatchNorm statistics drift and dropout go on.

    Raises:
        ValueError: the model has no parameter of such a name.
    """
    parameters = dict(model.named_parameters())
    if unknown := names - parameters.keys():
        raise ValueError(f"No parameters {sorted(unknown)[:3]}; there are, for example, {sorted(parameters)[:3]}.")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    learns = False
    for group in groups:
        # A group without parameters (pooling, dropout) goes with the one in front of it.
        if group.parameters:
            learns = not names.isdisjoint(group.parameters)
        for module in _modules(model, group):
            _thaw(module) if learns else _freeze(module)


def _modules(model: nn.Module, group: Group) -> Iterator[nn.Module]:
    for name in group.modules:
        yield from model.get_submodule(name).modules()


def _freeze(module: nn.Module) -> None:
    if not isinstance(module, _Frozen):
        kind = type(module)
        module.__class__ = type(kind.__name__, (_Frozen, kind), {"__module__": kind.__module__})
    module.eval()


def _thaw(module: nn.Module) -> None:
    if isinstance(module, _Frozen):
        module.__class__ = type(module).__bases__[1]


def _parameters(groups: Sequence[Group]) -> frozenset[str]:
    return frozenset(name for group in groups for name in group.parameters)
