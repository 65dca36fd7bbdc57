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
from hf_transfer.frozen.recording import Passes, identity
from hf_transfer.models.groups import evaluating
from hf_transfer.models.taps import Tap, vectors_of


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
        material = material_of(backbone, taps, accelerator)
        vectors = partial(vectors_of, backbone, taps)
        with features_of(vectors, widths, views, material, passes, of_validation=of_validation) as features:
            yield replace(features, names=tuple(tap.name for tap in taps), columns=tuple(range(len(taps))))


def material_of(backbone: nn.Module, taps: Sequence[Tap], accelerator: Accelerator) -> dict[str, Any]:
    """What features depend on beside samples and versions; the keys of their stores are made of it.

    Args:
        backbone: see `tap_features`.
        taps: where it is read.
        accelerator: device and precision.
    """
    return {"taps": [tap.saved for tap in taps], **identity(backbone, (), accelerator)}
