"""What several labels and several numbers share: for each sample a row of cells, some of which may not be known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_transfer.errors import user_error
from hf_transfer.targets import target

if TYPE_CHECKING:
    from torch import Tensor


class Cells(target.Target):
    """A row of cells for each sample, float [samples, outputs]; NaN where one is not known."""

    def refuse_few(self, values: Mapping[str, target.Values], splits_to_cut: int) -> None:
        """Refuse too few samples for the splits that are cut off training; see `Target.check`."""
        samples, needed = len(values["train"]), 2 * (1 + splits_to_cut)
        if samples < needed:
            raise user_error(expected=f"at least {needed} training samples", found=f"{samples}", do="add samples")

    def mixed(self, targets: Tensor, counted: Tensor) -> Tensor:
        """The cells as they are, which can be mixed; zeros for a sample that does not count."""
        return targets.where(counted[:, None], 0.0)

    def weight(self, targets: Tensor, counted: Tensor, options: target.LossOptions) -> Tensor:  # noqa: ARG002
        """The number of known cells; it does not depend on the options."""
        return known_cells(targets, counted).sum()

    def mean_loss(self, outputs: Tensor, targets: target.Values) -> float:
        """The mean loss of the known cells of samples that all count; 0, if there is none."""
        import torch

        everyone = torch.ones(len(targets), dtype=torch.bool)
        total, weight = self.loss(outputs.double(), torch.from_numpy(targets), everyone, target.LossOptions())
        return (total / weight.clamp(min=1)).item()


def known_cells(targets: Tensor, counted: Tensor) -> Tensor:
    """The cells of the samples that count, except for those that are not known, bool [samples, outputs].

    Args:
        targets: cells [samples, outputs]; NaN for those that are not known.
        counted: bool [samples].
    """
    return counted[:, None] & ~targets.isnan()
