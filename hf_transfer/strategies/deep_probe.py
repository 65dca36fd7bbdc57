"""The strategies that solve a head on a frozen backbone, or on two, which is read at several depths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from hf_transfer.errors import user_error
from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.groups import Group, Inputs
from hf_transfer.models.modeling_deep_probe import FIRST, HEAD
from hf_transfer.models.modeling_pair import INPUTS
from hf_transfer.models.pair_taps import AllPairTaps, usual_pair_taps, with_named_taps
from hf_transfer.models.pooling import check_first_token
from hf_transfer.models.taps import (
    HEAD_INPUT,
    AllBackboneTaps,
    AllTaps,
    TapChoice,
    count_depths,
    kind_and_block,
    taps_of,
    tower_of,
    usual_taps,
    without_head,
)
from hf_transfer.models.towers import PairTowers, groups_of
from hf_transfer.strategies.freezing import LinearProbe


@dataclass(frozen=True)
class DeepProbe(LinearProbe):
    """A linear layer on the outputs of the frozen backbone at several depths.

    Reference: Evci, Dumoulin, Larochelle and Mozer, "Head2Toe: Utilizing Intermediate Representations for Better
    Transfer Learning", ICML 2022, https://arxiv.org/abs/2201.03529. They choose among single features by group lasso;
    here whole depths are chosen by the predictions of their probes for samples that these have not seen.

    Attributes:
        taps: names of the places that are read; none: they are chosen.
    """

    taps: tuple[str, ...] = ()

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """See `Strategy.check`.

        Raises:
            UserError: the model ends in several layers, has too few blocks, or no first token that sees the whole text.
        """
        heads = groups[-1].modules
        if len(heads) != 1 or not isinstance(model.get_submodule(heads[0]), nn.Linear):
            raise user_error(
                expected="for --strategy deep_probe a model that ends in one Linear layer",
                found=f"{type(model).__name__}, which ends in {', '.join(heads)}",
                do="use --strategy linear_probe",
            )
        if named := [name for name in self.taps if tower_of(name)]:
            raise user_error(
                expected="for --taps places of a model of one tower",
                found=named[0],
                do=f"leave out {tower_of(named[0])}_",
            )
        blocks = count_depths(model, groups)
        chosen = [kind_and_block(name) for name in self.taps]
        if not blocks or max((block for _, block in chosen), default=0) > blocks:
            raise user_error(
                expected=f"for --taps blocks from 1 to {blocks}, those of this model"
                if blocks
                else "for --strategy deep_probe a model with repeated blocks",
                found=" ".join(self.taps) if blocks else "none",
                do="name other blocks, or leave --taps out" if blocks else "use --strategy linear_probe",
            )
        if isinstance(model, PreTrainedModel) and any(kind == FIRST for kind, _ in chosen):
            check_first_token(type(model).__name__, model.config, "--taps first_N", "use mean_N")

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Inputs, seed: int  # noqa: ARG002
    ) -> tuple[nn.Module, list[Group]]:  # fmt: skip
        """A classifier on all taps of the backbone; its layer, in place of the head, is the only thing that learns."""
        assert isinstance(model, PreTrainedModel)
        (head,) = groups[-1].modules
        with without_head(model, head):
            choice = self._choice(model, groups, inputs)
        tapped = AllBackboneTaps(model, head, choice, inputs)
        return tapped, _groups_of(tapped, groups)

    def _choice(self, backbone: PreTrainedModel, groups: Sequence[Group], inputs: Inputs) -> TapChoice:
        """All usual taps and those that are named, so that a run with other names needs no further pass."""
        if self.taps and {*self.taps} == {HEAD}:
            return TapChoice((HEAD_INPUT,), ((0,),))
        usual = usual_taps(backbone, groups, inputs)
        if not self.taps:
            return usual
        named = taps_of(backbone, groups, inputs, [kind_and_block(name) for name in self.taps])
        taps = (*usual.taps, *(tap for tap in named if tap not in usual.taps))
        return TapChoice(taps, (tuple(sorted(taps.index(tap) for tap in named)),))


@dataclass(frozen=True)
class PairProbe(LinearProbe):
    """The same for images with texts: one linear layer on the outputs of both frozen towers at several depths.

    Attributes:
        taps: names of the places that are read, of both towers; none: they are chosen.
    """

    taps: tuple[str, ...] = ()

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """See `Strategy.check`.

        Raises:
            UserError: of a tower nothing is named, or a block that it does not have.
        """
        assert isinstance(model, FusionModel)
        lacking = [tower for tower in INPUTS if tower not in map(tower_of, self.taps)]
        if self.taps and (lacking or "" in map(tower_of, self.taps)):
            raise user_error(
                expected="for --taps of images with texts image_head, image_mean_N, text_head, text_mean_N or "
                "text_first_N, at least one of each tower",
                found=" ".join(self.taps),
                do="name places of both towers, or leave --taps out",
            )
        for tower in INPUTS:
            blocks = count_depths(model.get_submodule(f"{tower}_tower"), groups_of(tower, groups))
            chosen = [kind_and_block(name) for name in self.taps if tower_of(name) == tower]
            if max((block for _, block in chosen), default=0) > blocks:
                raise user_error(
                    expected=f"for --taps blocks from 1 to {blocks}, those of the {tower} tower",
                    found=" ".join(self.taps),
                    do="name other blocks, or leave --taps out",
                )
            if any(kind == FIRST for kind, _ in chosen):
                config = getattr(model.config, f"{tower}_config")
                check_first_token(f"the {tower} tower", config, f"--taps {tower}_first_N", f"use {tower}_mean_N")

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Inputs, seed: int  # noqa: ARG002
    ) -> tuple[nn.Module, list[Group]]:  # fmt: skip
        """A classifier on all taps of both towers; its layer, in place of the head, is the only thing that learns."""
        assert isinstance(model, FusionModel)
        towers = PairTowers(model)
        choice = usual_pair_taps(towers, groups, inputs)
        if self.taps:
            choice = with_named_taps(choice, self.taps, towers, groups, inputs)
        tapped = AllPairTaps(model, choice, inputs)
        return tapped, _groups_of(tapped, groups)


def _groups_of(model: AllTaps, groups: Sequence[Group]) -> list[Group]:
    """The groups of a classifier on taps; `groups` are those of the classifier that it was made of."""
    parameters = tuple(f"classifier.{name}" for name, _ in model.classifier.named_parameters())
    return [*map(_inside, groups[:-1]), Group("head", ("classifier",), parameters)]


def _inside(group: Group) -> Group:
    """A group of the backbone, as a part of the classifier on its taps."""
    name = f"backbone.{group.name}" if group.is_block else group.name
    modules, parameters = (tuple(f"backbone.{one}" for one in names) for names in (group.modules, group.parameters))
    return replace(group, name=name, modules=modules, parameters=parameters)
