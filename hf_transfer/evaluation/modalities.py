"""What images and texts are worth together and each alone, on the same samples."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_transfer.training.predictions import Predictions

BOTH, ALONE = "both", "{}_only"
Z = 1.959963984540054


def by_modality(test: Predictions, alone: Mapping[str, Predictions] | None) -> dict[str, Any]:
    """Metrics of the test split as pairs and with one modality hidden; nothing, where samples are no pairs.

    Args:
        test: of all samples as they are.
        alone: by modality, of the samples that have it, when the model is shown nothing else.
    """
    if alone is None:
        return {}
    said = {BOTH: test, **{ALONE.format(name): found for name, found in alone.items()}}
    return {"test": {name: {**found.metrics(), "samples": len(found.labels)} for name, found in said.items()}}


def headline(metrics: Mapping[str, Any]) -> Mapping[str, float]:
    """The figures to show first: of both together, where a model takes images and texts."""
    found: Mapping[str, float] = metrics.get(BOTH, metrics)
    return found


def scores_by_name(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """The metrics of each split and, where samples are pairs, of each modality alone, in the order of a table."""
    found: dict[str, Mapping[str, float]] = {}
    for split, scores in metrics.items():
        found[split] = headline(scores)
        if BOTH in scores:
            found |= {f"{split} {name}": value for name, value in scores.items() if name != BOTH}
    return found


def worth_of_fusion(test: Predictions, alone: Mapping[str, Predictions]) -> list[str]:
    """A sentence on how far both together lead the better modality; a warning, where they do not for sure.

    Compared on the samples that have the modality, pair by pair: 95 % interval of the mean difference.

    Args:
        test: of all samples as they are.
        alone: see `by_modality`.
    """
    if not alone:
        return []
    best = max(alone, key=lambda name: float(_right(alone[name]).mean()))
    gain, half = lead(test, alone[best])
    words = f"{gain:+.1%} accuracy (95 % interval {gain - half:+.1%} to {gain + half:+.1%})"
    if gain - half > 0:
        return [f"Image and text together against the {best} alone: {words}."]
    return [
        f"Warning: image and text together are not better than the {best} alone beyond the interval: {words}. "
        f"Perhaps recipes/{'vision' if best == 'image' else 'text'}.py is enough, or try another --fusion."
    ]


def lead(both: Predictions, alone: Predictions) -> tuple[float, float]:
    """Mean difference of being right, on the samples that both know, and half its 95 % interval."""
    same = np.isin(both.index, alone.index)
    differences = _right(both)[same] - _right(alone)
    return float(differences.mean()), Z * float(differences.std(ddof=1)) / math.sqrt(len(differences))


def _right(said: Predictions) -> "np.ndarray[Any, np.dtype[np.float64]]":
    found: np.ndarray[Any, np.dtype[np.float64]] = (said.logits.argmax(-1).numpy() == said.labels).astype(float)
    return found
