"""Strategies that choose among the model's own parameters, and how freezing is done.

A strategy is a pure answer to "what learns, and when?". Everything else is derived from it: the parameter groups
of the optimizer, the counts in the report, and how much of the model is frozen.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_transfer.config import mistake
from hf_transfer.models.groups import Group
from hf_transfer.models.towers import groups_of, towers_of


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which one set of parameters learns.

    Attributes:
        trainable: names of the parameters that learn.
        epochs: length of the stage.
        solved: the head alone learns, which is a convex problem: solve it, instead of so many epochs, where the model
            ends in one Linear layer.
    """

    trainable: frozenset[str]
    epochs: int
    solved: bool = False


class Strategy(Protocol):
    """What learns, and when."""

    @property
    def fresh_weights(self) -> bool:
        """Whether the backbone starts from fresh weights."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate if the user names none."""

    @property
    def head_learning_rate(self) -> float | None:
        """That of the head alone, if the user names none; None: as all else."""

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """Refuse a model that cannot be trained so; it may be an outline without weights.

        Raises:
            UserError: it has too few blocks, or no layer that adapters can attach to.
        """

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Mapping[str, Tensor], seed: int
    ) -> tuple[nn.Module, list[Group]]:
        """The model that is trained, and its groups: adapters are put in here.

        Args:
            model: a classifier with a new head.
            groups: its groups in depth order.
            inputs: a small batch to trace what comes out with.
            seed: seed of whatever is added.
        """

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """The stages of a training of `epochs` epochs, for groups in depth order."""


class _OwnParameters(ABC):
    """A strategy that adds nothing to the model."""

    head_learning_rate: ClassVar[float | None] = None

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:  # noqa: ARG002
        """See `Strategy.check`: a pure answer shows what is wrong."""
        self.stages(groups, 1)

    @abstractmethod
    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """See `Strategy.stages`."""

    def prepare(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        inputs: Mapping[str, Tensor],  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> tuple[nn.Module, list[Group]]:
        """The model as it is."""
        return model, list(groups)


@dataclass(frozen=True)
class LinearProbe(_OwnParameters):
    """Only the head learns, on what the frozen backbone makes of the input.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.
    """

    fresh_weights: bool = False
    learning_rate: float = 3e-3

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: the head, solved."""
        return [Stage(_parameters(groups[-1:]), epochs, solved=True)]


@dataclass(frozen=True)
class PartialFineTuning(_OwnParameters):
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
        lowest, *_ = top_blocks(
            groups, self.layers, setting="trainable_layers", fewer="lower it, or use --strategy full",
            without="use --strategy linear_probe or full",
        )  # fmt: skip
        return [Stage(_parameters(groups[groups.index(lowest) :]), epochs)]


@dataclass(frozen=True)
class GradualUnfreezing(_OwnParameters):
    """The head learns first; then, from the top, one more block in each epoch; in the end all of it.

    Where there are fewer epochs than blocks, several are opened at a time. The paper also lets lower blocks learn at
    a lower rate, each at 1/2.6 of the one above: `--layer_lr_decay 0.385`.

    Reference: Howard and Ruder, "Universal language model fine-tuning for text classification", ACL 2018,
    https://arxiv.org/abs/1801.06146.
    """

    fresh_weights: bool = False
    learning_rate: float = 3e-4

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """A stage for each opening: of one epoch, the last of what remains."""
        # What follows the blocks, a norm or a pooler, goes with the head.
        top = next((number for number, group in enumerate(groups) if group.name in ("final", "head")), len(groups) - 1)
        openings = top + 1
        count = min(openings, epochs)
        stages = []
        for number in range(1, count + 1):
            opened = math.ceil(openings * number / count)
            length = 1 if number < count else epochs - count + 1
            stages.append(Stage(_parameters(groups[openings - opened :]), length))
        return stages


@dataclass(frozen=True)
class LinearProbeThenFineTuning(_OwnParameters):
    """The head is solved on the frozen backbone; from there all of it learns.

    A random head would first distort the features that it then has to use.

    Reference: Kumar, Raghunathan, Jones, Ma and Liang, "Fine-tuning can distort pretrained features and underperform
    out-of-distribution", ICLR 2022, https://arxiv.org/abs/2202.10054.
    """

    fresh_weights: bool = False
    learning_rate: float = 1e-4

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """Two stages: the head, then all parameters."""
        head = Stage(_parameters(groups[-1:]), math.ceil(epochs / 4), solved=True)
        return [head, Stage(_parameters(groups), epochs)]


@dataclass(frozen=True)
class BiasTuning(_OwnParameters):
    """BitFit: only the biases and the head learn.

    Reference: Ben Zaken, Goldberg and Ravfogel, "BitFit: simple parameter-efficient fine-tuning for transformer-based
    masked language-models", ACL 2022, https://arxiv.org/abs/2106.10199.
    """

    fresh_weights: bool = False
    learning_rate: float = 1e-3

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: whatever is named a bias, in a BatchNorm too, whose statistics then stay, and the head.

        Raises:
            UserError: the backbone has no biases.
        """
        biases = frozenset(name for name in _parameters(groups) if name.endswith("bias"))
        head = _parameters(groups[-1:])
        if biases <= head:
            raise mistake(
                expected="for --strategy bitfit a backbone with biases",
                found="none below the head",
                do="use --strategy lora, or linear_probe",
            )
        return [Stage(biases | head, epochs)]


@dataclass(frozen=True)
class FullFineTuning(_OwnParameters):
    """Everything learns, from the pretrained weights.

    Attributes:
        fresh_weights: the backbone starts from fresh weights.
        learning_rate: peak rate.
        larger_head: the new head is drawn as Glorot and Bengio do, a few times larger than transformers draws it. A
            small text model whose pooler says little of its texts is late to learn behind a head of small weights.

    Reference: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS
    2010, https://proceedings.mlr.press/v9/glorot10a.html.
    """

    fresh_weights: bool = False
    learning_rate: float = 1e-4
    larger_head: bool = False

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Mapping[str, Tensor], seed: int  # noqa: ARG002
    ) -> tuple[nn.Module, list[Group]]:  # fmt: skip
        """The model, its last layer drawn anew with `seed` if that is to be larger."""
        if self.larger_head:
            last = model.get_submodule(groups[-1].modules[-1])
            assert isinstance(last, nn.Linear)
            nn.init.xavier_normal_(last.weight, generator=torch.Generator().manual_seed(seed))
        return model, list(groups)

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: all parameters."""
        return [Stage(_parameters(groups), epochs)]


@dataclass(frozen=True)
class FromScratch(FullFineTuning):
    """Everything learns, from fresh weights of the same architecture: the baseline that transfer must beat."""

    fresh_weights: bool = True
    learning_rate: float = 1e-3


def top_blocks(groups: Sequence[Group], count: int, *, setting: str, fewer: str, without: str) -> list[Group]:
    """The last `count` of the model's blocks, in depth order.

    Raises:
        UserError: the model has fewer, or none; `fewer` and `without` say what to do then, `setting` what to change.
    """
    blocks = [group for group in groups if group.is_block]
    if count > len(blocks):
        raise mistake(
            expected=f"--{setting} from 1 to {len(blocks)}, the blocks of this model"
            if blocks
            else "a model with repeated blocks",
            found=str(count) if blocks else "none",
            do=fewer if blocks else without,
        )
    return blocks[len(blocks) - count :]


def learning_parameters(stages: Sequence[Stage]) -> frozenset[str]:
    """Names of the parameters that learn in any stage."""
    return frozenset[str]().union(*(stage.trainable for stage in stages))


def frozen_prefix(groups: Sequence[Group], stages: Sequence[Stage]) -> int:
    """How many groups, counted from the input, learn in no stage; of one tower, where there are several."""
    learns = learning_parameters(stages)
    for count, group in enumerate(groups):
        if learns.intersection(group.parameters):
            return count
    return len(groups)


def frozen_towers(groups: Sequence[Group], stages: Sequence[Stage]) -> dict[str, list[Group]]:
    """For each tower the groups, counted from the input, that learn in no stage; see `towers_of`."""
    towers = {tower: groups_of(tower, groups) for tower in towers_of(groups)}
    return {tower: own[: frozen_prefix(own, stages)] for tower, own in towers.items()}


class _Frozen:
    """Mixed into the class of a frozen module: `train()` leaves it in evaluation mode.

    A subclass, because an override on the instance is lost in a deep copy.
    """

    def train(self, mode: bool = True) -> nn.Module:  # noqa: ARG002
        return super().train(False)  # type: ignore[misc,no-any-return]


def set_trainable(model: nn.Module, groups: Sequence[Group], names: Set[str]) -> None:
    """Let exactly `names` learn. A group in which nothing learns is in evaluation mode from now on.

    `requires_grad=False` alone would let BatchNorm statistics drift and dropout go on. In a group in which something
    learns, a BatchNorm whose own scale and shift do not both learn keeps its statistics, too.

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
            _thaw(module) if learns and not _keeps_statistics(module) else _freeze(module)


def _modules(model: nn.Module, group: Group) -> Iterator[nn.Module]:
    for name in group.modules:
        yield from model.get_submodule(name).modules()


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and any(not p.requires_grad for p in module.parameters(recurse=False))


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
