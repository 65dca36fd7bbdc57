"""How much better whole samples are predicted than one part of each alone, an image or a text for example."""

import math
from collections.abc import Mapping

import numpy as np

from hf_transfer.targets.predictions import Predictions

Z = 1.959963984540054


def worth_of_parts(whole: Predictions, parts: Mapping[str, Predictions]) -> list[str]:
    """A sentence on the lead of whole samples over the best part alone; a warning, if the lead is not significant.

    The 95 % interval is that of the mean difference, sample by sample, on the samples that have the part.

    Args:
        whole: of the samples as they are.
        parts: by the name of a part: of the samples that have it, with the other parts hidden.
    """
    if not parts:
        return []
    best = max(parts, key=lambda name: float(parts[name].sample_scores().mean()))
    gain, half = lead(whole, parts[best])
    is_share = whole.target.metrics[0].is_share
    value, low, high = (f"{100 * one:+.1f}" if is_share else f"{one:+.3g}" for one in (gain, gain - half, gain + half))
    difference = f"{value} {whole.target.score_words} (95 % interval {low} to {high})"
    together = " and ".join(parts).capitalize()
    if gain - half > 0:
        return [f"{together} together against the {best} alone: {difference}."]
    return [
        f"Warning: {together.lower()} together are not better than the {best} alone beyond the interval: {difference}. "
        f"Perhaps the {best} alone is enough, or try another --strategy or --fusion."
    ]


def lead(whole: Predictions, part: Predictions) -> tuple[float, float]:
    """Mean difference of the samples' scores, on the samples in both, and half the width of its 95 % interval."""
    in_both = np.isin(whole.index, part.index)
    differences = whole.sample_scores()[in_both] - part.sample_scores()
    return float(differences.mean()), Z * float(differences.std(ddof=1)) / math.sqrt(len(differences))
