"""A model of several towers, each of them cut at a place of its own."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from hf_transfer.models.cutting import Crossing, Cut, Stand
from hf_transfer.models.groups import Group, Inputs


class JointCut:
    """Cuts of several towers that hold together: what crosses all of them gives the logits of a live run.

    Args:
        model: a classifier.
        towers: for each tower that is cut its groups in depth order, how many of them lie in front of the cut, and
            the names of its inputs.
        inputs: a small batch to try it with.

    Attributes:
        module: names of the modules whose outputs cross the cuts.
        crossing: the tensors of those outputs that what lies behind needs.

    Raises:
        CannotCutError: a tower cannot be cut there.
    """

    def __init__(
        self, model: nn.Module, towers: Sequence[tuple[Sequence[Group], int, Sequence[str]]], inputs: Inputs
    ) -> None:
        self._cuts = [Cut(model, groups, count, inputs, own) for groups, count, own in towers]
        self.module = " and ".join(cut.module for cut in self._cuts)
        self.crossing: tuple[Crossing, ...] = tuple(leaf for cut in self._cuts for leaf in cut.crossing)

    def record(self, model: nn.Module, inputs: Inputs) -> list[Tensor]:
        """What crosses the cuts for a batch, a tensor for each of `crossing`; each tower is run once."""
        found: list[Tensor] = []
        with ExitStack() as stack:
            for cut in self._cuts:
                own = cut.record(model, inputs)
                # The towers that run later find this one done.
                stack.enter_context(cut.skipped(model)).put(own, inputs)
                found += own
        return found

    @contextmanager
    def skipped(self, model: nn.Module, device: torch.device | None = None) -> Iterator["JointStand"]:
        """See `Cut.skipped`: the groups in front of all cuts are out of the model."""
        with ExitStack() as stack:
            stands = [stack.enter_context(cut.skipped(model, device)) for cut in self._cuts]
            yield JointStand(stands, [len(cut.crossing) for cut in self._cuts])

    def blank(self, inputs: Inputs) -> dict[str, Tensor]:
        """See `Cut.blank`; what only towers that are not cut look at stays."""
        blank = dict(inputs)
        for cut in self._cuts:
            blank = cut.blank(blank)
        return blank


class JointStand:
    """What the stubs of several towers give: the activations of the batch at hand.

    Args:
        stands: those of the towers.
        counts: how many tensors each of them takes.
    """

    def __init__(self, stands: Sequence[Stand], counts: Sequence[int]) -> None:
        self._stands, self._counts = stands, counts
        self.originals = {name: module for stand in stands for name, module in stand.originals.items()}

    def put(self, tensors: Sequence[Tensor], inputs: Inputs) -> None:
        """Have the activations of a batch ready for the model's next run on its inputs."""
        start = 0
        for stand, count in zip(self._stands, self._counts, strict=True):
            stand.put(tensors[start : start + count], inputs)
            start += count
