"""Stored features of images with texts as if one of both were missing: a solved head learns from these copies, too."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from hf_transfer.frozen.features import Features, Stored
from hf_transfer.models.modeling_pair_probe import PRESENT
from hf_transfer.models.taps import Tap


class HiddenPart:
    """A store in which one part of each complete sample is missing; nothing is written, and nothing computed.

    A sample that has only one part stays as it is.

    Args:
        store: of columns, one for each tap.
        taps: of both towers, among them those that say which part is present.
        hidden: the tower whose part is missing.
    """

    def __init__(self, store: Stored, taps: Sequence[Tap], hidden: str) -> None:
        self._store, self.samples, self.chunks = store, store.samples, store.chunks
        self._present = [place for place, tap in enumerate(taps) if tap.kind == PRESENT]
        self._hidden = [place for place, tap in enumerate(taps) if tap.tower == hidden]

    def chunk(self, number: int) -> list[Tensor]:
        """See `Store.chunk`."""
        columns = self._store.chunk(number)
        image, text = (columns[place] for place in self._present)
        complete = (image != 0) & (text != 0)
        for place in self._hidden:
            columns[place] = columns[place].masked_fill(complete, 0.0)
        return columns


def with_hidden_parts(features: Features, taps: Sequence[Tap]) -> Features:
    """The same features of training and two copies of them, one without the images and one without the texts.

    A head that never saw a missing part would know little of either part alone. The copies count as further views of
    the samples: a sample and its copies are in the same fold.

    Reference: Neverova, Wolf, Taylor and Nebout, "ModDrop: adaptive multi-modal gesture recognition", IEEE Transactions
    on Pattern Analysis and Machine Intelligence 2016, https://arxiv.org/abs/1501.00102 (parts that are hidden in
    training; here, of each sample, both in turn).

    Args:
        features: of both towers.
        taps: one for each column.
    """
    # Only images are augmented: the texts alone are the same in all views.
    without_text = [HiddenPart(store, taps, "text") for store in features.train]
    return replace(features, train=[*features.train, *without_text, HiddenPart(features.train[0], taps, "image")])
