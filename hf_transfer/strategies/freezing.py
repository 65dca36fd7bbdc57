"""Strategies that choose among the model's own parameters, and how freezing is done.

A strategy only says what learns, and when. Everything else is derived from it: the parameter groups of the optimizer,
the counts in the report, and how much of the model is frozen.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_transfer.errors import user_error
from hf_transfer.models.groups import Group, Inputs
from hf_transfer.models.inference_tensors import replace_inference_tensors
from hf_transfer.models.towers import groups_of, towers_of


@dataclass(frozen=True)
class Stage:
    """A part of training in which one set of parameters learns.

    Attributes:
        trainable: names of the parameters that learn.
        epochs: length of the stage.
        solved: only the head learns, which is a convex problem: a solver replaces the epochs if the model ends in one
            Linear layer.
        updates_statistics: names of parameters: a BatchNorm layer all of whose parameters are among them normalises
            with the statistics of the batch, and updates its running ones; others normalise with these, which stay.
    """

    trainable: frozenset[str]
    epochs: int
    solved: bool = False
    updates_statistics: frozenset[str] = frozenset()


class Strategy(Protocol):
    """What learns, and when. Unless a strategy says otherwise, it adds nothing to the model."""

    @property
    def fresh_weights(self) -> bool:
        """Whether the backbone starts from fresh weights."""
        return False

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, if the settings give none."""

    @property
    def head_learning_rate(self) -> float | None:
        """Peak learning rate of the head, if the settings give none; None: the same as that of other layers."""
        return None

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:  # noqa: ARG002
        """Refuse a model that the strategy does not suit; the model may be an outline without weights.

        Raises:
            UserError: it has too few blocks, or no layer that can have adapters.
        """
        self.stages(groups, 1)

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Inputs, seed: int  # noqa: ARG002
    ) -> tuple[nn.Module, list[Group]]:  # fmt: skip
        """Add adapters or fresh weights; returns the model that is trained, and its groups.

        Args:
            model: a classifier with a new head.
            groups: its groups in depth order.
            inputs: a small batch to trace the result with.
            seed: seed of the weights that are added.
        """
        return model, list(groups)

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """The stages of a training of `epochs` epochs, for groups in depth order."""


@dataclass(frozen=True)
class LinearProbe(Strategy):
    """Only the head learns, on the outputs of the frozen backbone.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.
    """

    learning_rate: float = 3e-3

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: the head, solved."""
        return [Stage(_parameters(groups[-1:]), epochs, solved=True)]


@dataclass(frozen=True, kw_only=True)
class _FineTuning(Strategy):
    """Pretrained layers learn.

    Attributes:
        updates_statistics: BatchNorm layers follow the statistics of the training batches. Otherwise they keep those
            that were pretrained, and only their scale and shift learn: normalised by a small batch, the inputs of each
            layer differ from those that it was pretrained with, and in a short training the running statistics, with
            which the model is evaluated, do not follow the weights.
    """

    updates_statistics: bool = False

    def _stage(self, learns: frozenset[str], epochs: int) -> Stage:
        return Stage(learns, epochs, updates_statistics=learns if self.updates_statistics else frozenset())


@dataclass(frozen=True)
class PartialFineTuning(_FineTuning):
    """The top blocks, the final norm and the head learn; the layers below stay as they were pretrained.

    Reference: Yosinski, Clune, Bengio and Lipson, "How transferable are features in deep neural networks?",
    NeurIPS 2014, https://arxiv.org/abs/1411.1792.

    Attributes:
        layers: how many blocks learn, counted from the head.
    """

    layers: int
    learning_rate: float = 3e-4

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: the top `layers` blocks and the layers after them.

        Raises:
            UserError: the model has fewer blocks.
        """
        lowest, *_ = top_blocks(
            groups, self.layers, setting="trainable_layers", fewer="lower it, or use --strategy full",
            without="use --strategy linear_probe or full",
        )  # fmt: skip
        learns = _parameters(groups[groups.index(lowest) :])
        return [self._stage(learns, epochs)]


@dataclass(frozen=True)
class GradualUnfreezing(_FineTuning):
    """The head learns first; then, from the top, one more block in each epoch; at the end the whole model.

    With fewer epochs than blocks, several blocks are unfrozen at a time. The paper also gives lower blocks a lower
    learning rate, each 1/2.6 of that of the block above: `--layer_lr_decay 0.385`.

    Reference: Howard and Ruder, "Universal language model fine-tuning for text classification", ACL 2018,
    https://arxiv.org/abs/1801.06146.
    """

    learning_rate: float = 3e-4

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """A stage for each unfreezing, of one epoch; the last stage has the remaining epochs."""
        # The layers after the blocks, a norm or a pooler, are unfrozen with the head.
        steps = 1 + next(number for number, group in enumerate(groups) if group.name in ("final", "head"))
        count = min(steps, epochs)
        stages = []
        for number in range(1, count + 1):
            unfrozen = math.ceil(steps * number / count)
            length = 1 if number < count else epochs - count + 1
            learns = _parameters(groups[steps - unfrozen :])
            stages.append(self._stage(learns, length))
        return stages


@dataclass(frozen=True)
class LinearProbeThenFineTuning(_FineTuning):
    """The head is solved on the frozen backbone; after that the whole model learns.

    A random head would at first distort the pretrained features.

    Reference: Kumar, Raghunathan, Jones, Ma and Liang, "Fine-tuning can distort pretrained features and underperform
    out-of-distribution", ICLR 2022, https://arxiv.org/abs/2202.10054.
    """

    learning_rate: float = 1e-4

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """Two stages: the head, then all parameters."""
        head = Stage(_parameters(groups[-1:]), math.ceil(epochs / 4), solved=True)
        return [head, self._stage(_parameters(groups), epochs)]


@dataclass(frozen=True)
class BiasTuning(Strategy):
    """BitFit: only the biases and the head learn.

    Reference: Ben Zaken, Goldberg and Ravfogel, "BitFit: simple parameter-efficient fine-tuning for transformer-based
    masked language-models", ACL 2022, https://arxiv.org/abs/2106.10199.
    """

    learning_rate: float = 1e-3

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: the head, and all biases, also those of BatchNorm layers, whose statistics then do not change.

        Raises:
            UserError: the backbone has no biases.
        """
        biases = frozenset(name for name in _parameters(groups) if name.endswith("bias"))
        head = _parameters(groups[-1:])
        if biases <= head:
            raise user_error(
                expected="for --strategy bitfit a backbone with biases",
                found="none below the head",
                do="use --strategy lora, or linear_probe",
            )
        return [Stage(biases | head, epochs)]


@dataclass(frozen=True)
class FullFineTuning(_FineTuning):
    """The whole model learns, from the pretrained weights.

    Attributes:
        learning_rate: peak rate.
        larger_head: the new head is drawn as Glorot and Bengio do, with weights a few times larger than those of
            transformers. Behind a head of small weights, small text models with a weak pooler learn late.

    Reference: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS
    2010, https://proceedings.mlr.press/v9/glorot10a.html.
    """

    learning_rate: float = 1e-4
    larger_head: bool = False

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Inputs, seed: int  # noqa: ARG002
    ) -> tuple[nn.Module, list[Group]]:  # fmt: skip
        """The model; its last layer is drawn again with `seed` if `larger_head` is set."""
        if self.larger_head:
            last = model.get_submodule(groups[-1].modules[-1])
            assert isinstance(last, nn.Linear)
            nn.init.xavier_normal_(last.weight, generator=torch.Generator().manual_seed(seed))
        return model, list(groups)

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: all parameters."""
        return [self._stage(_parameters(groups), epochs)]


@dataclass(frozen=True)
class FromScratch(FullFineTuning):
    """The whole model learns, from fresh weights of the same architecture: the baseline without transfer.

    It is trained like `FullFineTuning`, so that their difference is that of the weights that they start from.
    """

    fresh_weights = True
    learning_rate: float = 1e-3
    # Fresh weights have no statistics to keep.
    updates_statistics: bool = True


def top_blocks(groups: Sequence[Group], count: int, *, setting: str, fewer: str, without: str) -> list[Group]:
    """The last `count` of the model's blocks, in depth order.

    Raises:
        UserError: the model has fewer blocks, or none. `setting` is the setting of `count`; `fewer` and `without` are
            the advice in these two cases.
    """
    blocks = [group for group in groups if group.is_block]
    if count > len(blocks):
        raise user_error(
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


def updated_statistics(stages: Sequence[Stage]) -> frozenset[str]:
    """Names of the parameters whose BatchNorm layers update their statistics in any stage; see `Stage`."""
    return frozenset[str]().union(*(stage.updates_statistics for stage in stages))


def frozen_towers(groups: Sequence[Group], stages: Sequence[Stage]) -> dict[str, list[Group]]:
    """For each tower the groups, counted from the input, that learn in no stage; see `towers_of`."""
    learns = learning_parameters(stages)
    return {
        tower: list(takewhile(lambda group: learns.isdisjoint(group.parameters), groups_of(tower, groups)))
        for tower in towers_of(groups)
    }


class _Frozen:
    """Mixed into the class of a frozen module: `train()` keeps it in evaluation mode.

    An override of `train` on the instance would be lost in a deep copy.
    """

    def train(self, mode: bool = True) -> nn.Module:  # noqa: ARG002
        return super().train(False)  # type: ignore[misc,no-any-return]


def set_trainable(
    model: nn.Module, groups: Sequence[Group], names: Set[str], *, updates_statistics: Set[str] = frozenset()
) -> None:
    """Let exactly the parameters `names` learn; a group in which nothing learns stays in evaluation mode.

    `requires_grad=False` alone would not stop dropout and the update of BatchNorm statistics.

    Args:
        model: not wrapped.
        groups: its groups in depth order.
        names: of the parameters.
        updates_statistics: see `Stage`.

    Raises:
        ValueError: the model has no parameter of such a name.
    """
    parameters = dict(model.named_parameters())
    if unknown := names - parameters.keys():
        raise ValueError(f"No parameters {sorted(unknown)[:3]}; there are, for example, {sorted(parameters)[:3]}.")
    replace_inference_tensors(model)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    learns = False
    for group in groups:
        # A group without parameters (pooling, dropout) has the mode of the group before it.
        if group.parameters:
            learns = not names.isdisjoint(group.parameters)
        # A BatchNorm without parameters does as the layers of its group.
        of_group = not updates_statistics.isdisjoint(group.parameters)
        for outermost in group.modules:
            for name, module in model.get_submodule(outermost).named_modules(prefix=outermost):
                follows = not isinstance(module, _BatchNorm) or (
                    of_group
                    and all(f"{name}.{one}" in updates_statistics for one, _ in module.named_parameters(recurse=False))
                )
                _unfreeze(module) if learns and follows else _freeze(module)


def unfreeze(model: nn.Module, groups: Sequence[Group]) -> None:
    """Let all parameters learn, and give every module its own class again, so that the model can be pickled."""
    names = frozenset(name for name, _ in model.named_parameters())
    set_trainable(model, groups, names, updates_statistics=names)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has layers that keep statistics of batches."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _freeze(module: nn.Module) -> None:
    if not isinstance(module, _Frozen):
        kind = type(module)
        module.__class__ = type(kind.__name__, (_Frozen, kind), {"__module__": kind.__module__})
    module.eval()


def _unfreeze(module: nn.Module) -> None:
    if isinstance(module, _Frozen):
        module.__class__ = type(module).__bases__[1]


def _parameters(groups: Sequence[Group]) -> frozenset[str]:
    return frozenset(name for group in groups for name in group.parameters)
