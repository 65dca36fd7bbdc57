"""Divide samples with several labels in two parts that have about the same share of every label."""

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.target import Positions


def cut_by_label(cells: npt.NDArray[np.float32], fraction: float, generator: np.random.Generator) -> Positions:
    """Positions of the samples that are split off: about this share of each label, and of those without labels.

    Labels are divided in the order of their rarity. Each of their samples goes to the part that lacks the label most
    and, if both lack it alike, to the part that lacks samples most. A label with one sample stays in the first part.

    Reference: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011,
    https://doi.org/10.1007/978-3-642-23808-6_10 (iterative stratification).

    Args:
        cells: 1 for a label that a sample has; others count as none [samples, labels].
        fraction: the share of the samples that is split off, at most one half.
        generator: draws the order of samples that are alike.
    """
    has_label = cells == 1
    shares = np.array([1 - fraction, fraction])
    wanted_of_label, wanted = shares[:, None] * has_label.sum(0), shares * len(cells)
    # -1: not divided yet.
    part = np.full(len(cells), -1)
    order = generator.permutation(len(cells))
    while True:
        counts = has_label[part < 0].sum(0)
        if not counts.any():
            break
        label = int(np.argmin(np.where(counts > 0, counts, len(cells) + 1)))
        for sample in order[has_label[order, label] & (part[order] < 0)]:
            lacking = wanted_of_label[:, label]
            tied = bool(np.isclose(lacking[0], lacking[1]))
            chosen = int((wanted if tied else lacking).argmax())
            part[sample] = chosen
            wanted_of_label[chosen, has_label[sample]] -= 1
            wanted[chosen] -= 1
    for sample in order[part[order] < 0]:
        chosen = int(wanted.argmax())
        part[sample] = chosen
        wanted[chosen] -= 1
    return np.flatnonzero(part == 1)


def few_of_each_label(cells: npt.NDArray[np.float32], limit: int, generator: np.random.Generator) -> Positions:
    """Positions of samples, drawn until each label has `limit` of them or no more; as many without labels.

    A label that often comes with rarer ones can have more than `limit`.

    Args:
        cells: see `cut_by_label`.
        limit: samples of each label.
        generator: draws the order.
    """
    has_label = np.column_stack([cells == 1, (cells != 1).all(1)])
    counts = np.zeros(has_label.shape[1], dtype=np.int64)
    kept = []
    for sample in generator.permutation(len(cells)).tolist():
        if (counts[has_label[sample]] < limit).any():
            counts += has_label[sample]
            kept.append(sample)
    return np.sort(np.asarray(kept, dtype=np.int64))
