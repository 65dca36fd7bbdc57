"""Features of a frozen backbone at several depths, from one pass over the samples."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer.frozen.features import Features, features_of
from hf_transfer.frozen.recording import Passes, identity, stores_of
from hf_transfer.models.groups import evaluating
from hf_transfer.models.taps import HEAD_INPUT, Tap, vectors_of


@contextmanager
def tap_features(
    backbone: nn.Module, taps: Sequence[Tap], widths: Sequence[int], views: int, passes: Passes,
    *, of_validation: bool = True,
) -> Iterator[Features]:  # fmt: skip
    """Features of training and validation, one named column for each tap, unless an earlier run has stored them.

    Every process has to call this.

    Args:
        backbone: a classifier whose last layer was replaced by `nn.Identity`: see `without_head`.
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
        material = {"taps": [tap.saved for tap in taps], **identity(backbone, (), accelerator)}
        vectors = partial(vectors_of, backbone, taps)
        with features_of(vectors, widths, views, material, passes, of_validation=of_validation) as features:
            if views == 0 and not of_validation and len(taps) > 1 and HEAD_INPUT in taps:
                _keep_head_alone(features, taps.index(HEAD_INPUT), material, passes)
            yield replace(features, names=tuple(tap.name for tap in taps), columns=tuple(range(len(taps))))


def _keep_head_alone(features: Features, place: int, material: Mapping[str, Any], passes: Passes) -> None:
    """Store the input of the head once more, where a later run looks that reads nothing else (`linear_probe`)."""
    (stored,) = features.train
    if stored.folder.parent != passes.folder or not passes.accelerator.is_local_main_process:
        # They are in a temporary folder, or another process of this machine does it.
        return
    columns = [list(stored.columns.values())[place]]
    material = {**material, "taps": [HEAD_INPUT.saved]}
    (alone,) = stores_of(passes, [("train", None)], columns, material).values()
    for number, positions in enumerate(alone.chunks):
        if not alone.check(number):
            *vectors, targets, counted = stored.read(np.asarray(positions))
            alone.write(number, [vectors[place], targets, counted])
