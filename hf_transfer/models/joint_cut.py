"""A model of two towers, each cut at its own place."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from hf_transfer.models.cutting import Cut
from hf_transfer.models.groups import Group, Inputs
from hf_transfer.models.stubs import Crossing, with_stored


class JointCut:
    """Cuts of several towers: the stored activations of all of them give the logits of a live run.

    Args:
        model: a classifier.
        towers: for each tower that is cut, its groups in depth order, how many of them lie before the cut, and the
            names of its inputs.
        inputs: a small batch for the tests of the cuts.
        longest: tokens of the longest text; see `Cut`.

    Attributes:
        module: names of the modules whose outputs cross the cuts.
        crossing: the tensors of those outputs that the groups after the cuts need, tower by tower.

    Raises:
        CannotCutError: a tower cannot be cut there.
    """

    def __init__(
        self, model: nn.Module, towers: Sequence[tuple[Sequence[Group], int, Sequence[str]]], inputs: Inputs, *,
        longest: int = 0,
    ) -> None:  # fmt: skip
        self._cuts = [Cut(model, groups, count, inputs, names, longest=longest) for groups, count, names in towers]
        self.module = " and ".join(cut.module for cut in self._cuts)
        self.crossing: tuple[Crossing, ...] = tuple(crossing for cut in self._cuts for crossing in cut.crossing)

    def record(self, model: nn.Module, inputs: Inputs) -> list[Tensor]:
        """See `Cut.record`: a tensor for each of `crossing`; each tower is run once."""
        recorded: list[Tensor] = []
        with ExitStack() as stack:
            for cut in self._cuts:
                tensors = cut.record(model, with_stored(inputs, recorded))
                # Later towers do not run this one again: their inputs have its activations.
                stack.enter_context(cut.skipped(model, first=len(recorded)))
                recorded += tensors
        return recorded

    @contextmanager
    def skipped(self, model: nn.Module, device: torch.device | None = None) -> Iterator[dict[str, nn.Module]]:
        """See `Cut.skipped`: the groups before all cuts are skipped."""
        modules: dict[str, nn.Module] = {}
        first = 0
        with ExitStack() as stack:
            for cut in self._cuts:
                modules |= stack.enter_context(cut.skipped(model, device, first=first))
                first += len(cut.crossing)
            yield modules

    def blank(self, inputs: Inputs) -> dict[str, Tensor]:
        """See `Cut.blank`; the inputs of a tower that is not cut stay as they are."""
        blank = dict(inputs)
        for cut in self._cuts:
            blank = cut.blank(blank)
        return blank
