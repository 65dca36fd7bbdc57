"""Features of a frozen backbone at several depths, from one pass over the samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_transfer.frozen.features import Features, features_of
from hf_transfer.frozen.hidden_parts import with_hidden_parts
from hf_transfer.frozen.recording import SAMPLE_PART, Passes, identity
from hf_transfer.models.modeling_pair import INPUTS
from hf_transfer.models.taps import Tap, vectors_of
from hf_transfer.models.towers import PairTowers
from hf_transfer.models.tracing import evaluating


@contextmanager
def tap_features(
    backbone: nn.Module, taps: Sequence[Tap], widths: Sequence[int], views: int, passes: Passes,
    *, of_validation: bool = True,
) -> Iterator[Features]:  # fmt: skip
    """Features of training and validation, one named column for each tap.

    Each tap that an earlier run has stored is read from there, whichever others that run had. Of two towers, one whose
    taps are all stored is not run, whichever other tower it had beside it.

    Every process has to call this.

    Args:
        backbone: a classifier whose last layer was replaced by `nn.Identity`: see `without_head`. Of two towers,
            training also has copies of its samples with hidden parts: see `with_hidden_parts`.
        taps: where it is read.
        widths: how many features each tap has.
        views: augmented views of the training samples, beside the samples as in evaluation.
        passes: the samples, and where features are stored.
        of_validation: whether features of validation are needed, too.

    Raises:
        UserError: features cannot be stored.
    """
    accelerator = passes.accelerator
    with evaluating(backbone), torch.no_grad():
        backbone.to(accelerator.device)
        materials = materials_of(backbone, taps, accelerator)
        with features_of(
            lambda columns: partial(vectors_of, backbone, [taps[place] for place in columns]), widths, views, materials,
            passes, of_validation=of_validation,
        ) as features:  # fmt: skip
            named = replace(features, names=tuple(tap.name for tap in taps), columns=tuple(range(len(taps))))
            yield with_hidden_parts(named, taps) if isinstance(backbone, PairTowers) else named


def materials_of(backbone: nn.Module, taps: Sequence[Tap], accelerator: Accelerator) -> list[dict[str, Any]]:
    """What the features of each tap depend on beside samples and versions; the keys of their stores are made of it.

    Of two towers, those of one depend neither on the other nor on its part of the samples.

    Args:
        backbone: see `tap_features`.
        taps: where it is read.
        accelerator: device and precision.
    """
    if not isinstance(backbone, PairTowers):
        weights = identity(backbone, (), accelerator)
        return [{"taps": [tap.saved], **weights} for tap in taps]
    towers = {name: backbone.alone(name) for name in INPUTS}
    of_tower = {
        name: {SAMPLE_PART: name, "pooling": one.pooling, **identity(one.tower, (), accelerator)}
        for name, one in towers.items()
    }
    return [{"taps": [tap.saved], **of_tower[tap.tower]} for tap in taps]
