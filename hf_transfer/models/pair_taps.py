"""Two towers that are read at several depths, and a classifier on all of these taps, of which some are chosen."""

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

from transformers import PreTrainedModel

from hf_transfer.errors import UserError
from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.groups import Group, Inputs
from hf_transfer.models.modeling_pair import INPUTS
from hf_transfer.models.modeling_pair_probe import PRESENT, PairProbeConfig, PairProbeModel
from hf_transfer.models.pooling import without_task
from hf_transfer.models.taps import (
    HEAD_INPUT,
    AllTaps,
    Tap,
    TapChoice,
    count_depths,
    kind_and_block,
    taps_of,
    tower_of,
    usual_taps,
)
from hf_transfer.models.towers import PairTowers, groups_of

# As a share of the blocks.
LATE = 0.75
ONLY_HEAD = TapChoice((HEAD_INPUT,), ((0,),))


class AllPairTaps(AllTaps):
    """See `AllTaps`, for a classifier of images with texts.

    Args:
        model: the classifier, whose head is left out.
        choice: the taps of both towers.
        inputs: a small batch.
    """

    def __init__(self, model: FusionModel, choice: TapChoice, inputs: Inputs) -> None:
        super().__init__(PairTowers(model), model.classifier, choice, inputs)

    def _reading(self, **settings: Any) -> PreTrainedModel:
        config, towers = self.config, self.backbone
        assert isinstance(towers, PairTowers)
        made = PairProbeConfig(
            config.image_config, config.text_config, image_pooling=config.image_pooling,
            text_pooling=config.text_pooling, **settings,
        )  # fmt: skip
        model = PairProbeModel(made, towers.image_tower, towers.text_tower)
        # What is predicted stands in the outer configuration alone.
        for name in INPUTS:
            setattr(model.config, f"{name}_config", without_task(deepcopy(getattr(config, f"{name}_config"))))
        return model


def usual_pair_taps(towers: PairTowers, groups: Sequence[Group], inputs: Inputs) -> TapChoice:
    """The taps of both towers that are tried where none are named.

    These are the pooled vectors of both towers; that of one tower with a late place of the other (see `_late`), or with
    what is read together of the other; and what is read together of both. All combinations would be many, and each is
    solved. A tower that does not return its hidden states is read at its pooled vector alone.

    Args:
        towers: of a classifier.
        groups: its groups in depth order.
        inputs: a small batch.
    """
    taps: list[Tap] = []
    by_tower: list[list[tuple[int, ...]]] = []
    for tower in INPUTS:
        choice = ONLY_HEAD
        with suppress(UserError):
            alone, of_tower = towers.alone(tower), groups_of(tower, groups)
            choice = _late(usual_taps(alone, of_tower, _inputs_of(tower, inputs)), count_depths(alone, of_tower))
        by_tower.append([tuple(len(taps) + place for place in places) for places in choice.combinations])
        taps += [tap._replace(tower=tower) for tap in choice.taps]
    present = tuple(range(len(taps), len(taps) + len(INPUTS)))
    taps += [Tap(PRESENT, tower=tower) for tower in INPUTS]
    (head, *of_image), (text_head, *of_text) = by_tower
    pairs = [(head, text_head), *((one, text_head) for one in of_image), *((head, one) for one in of_text)]
    if of_image and of_text:
        pairs.append((of_image[-1], of_text[-1]))
    return TapChoice(tuple(taps), tuple((*image, *text, *present) for image, text in pairs))


def with_named_taps(
    usual: TapChoice, names: Sequence[str], towers: PairTowers, groups: Sequence[Group], inputs: Inputs
) -> TapChoice:
    """The usual taps and those that are named, which are the only ones that are read.

    Args:
        usual: see `usual_pair_taps`.
        names: as `--taps` has them, some of each tower.
        towers: of a classifier.
        groups: its groups in depth order.
        inputs: a small batch.

    Raises:
        UserError: see `taps_of`.
    """
    read = [tap for tap in usual.taps if tap.kind == PRESENT]
    for tower in INPUTS:
        wanted = [kind_and_block(name) for name in names if tower_of(name) == tower]
        of_tower = taps_of(towers.alone(tower), groups_of(tower, groups), _inputs_of(tower, inputs), wanted)
        read += [tap._replace(tower=tower) for tap in of_tower]
    taps = (*usual.taps, *(tap for tap in read if tap not in usual.taps))
    return TapChoice(taps, (tuple(sorted(taps.index(tap) for tap in read)),))


def _late(choice: TapChoice, blocks: int) -> TapChoice:
    """Without places that are read alone before three quarters of the blocks: few tasks are best served there."""
    combinations = [
        places
        for places in choice.combinations
        if len(places) > 1 or not choice.taps[places[0]].block or choice.taps[places[0]].block >= LATE * blocks
    ]
    read = sorted({place for places in combinations for place in places})
    return TapChoice(
        tuple(choice.taps[place] for place in read),
        tuple(tuple(read.index(place) for place in places) for places in combinations),
    )


def _inputs_of(tower: str, inputs: Inputs) -> Inputs:
    return {name: inputs[name] for name in INPUTS[tower] if name in inputs}
