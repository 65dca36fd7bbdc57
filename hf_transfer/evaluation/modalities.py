"""What images and texts are worth together and each alone, on the same samples."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from hf_transfer.data.inputs import Loaders
from hf_transfer.data.pair_batches import alone
from hf_transfer.training.predictions import Predictions, predict_split

BOTH, ALONE = "both", "{}_only"
Z = 1.959963984540054


def predict_alone(model: nn.Module, loaders: Loaders, accelerator: Accelerator) -> dict[str, Predictions]:
    """What a model says of the test split with one modality hidden: whoever has only the other shall know.

    Args:
        model: of images with texts.
        loaders: of pairs.
        accelerator: devices and processes.

    Returns:
        By the modality that is left, of the samples that have it.
    """
    return {name: predict_split(model, alone(loaders, name), "test", accelerator) for name in ("image", "text")}


def by_modality(test: Predictions, single: Mapping[str, Predictions] | None) -> dict[str, Any]:
    """Metrics of the test split as pairs and with one modality hidden; nothing, where samples are no pairs.

    Args:
        test: of all samples as they are.
        single: by modality, of the samples that have it, when the model is shown nothing else.
    """
    if single is None:
        return {}
    said = {BOTH: test, **{ALONE.format(name): found for name, found in single.items()}}
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


def worth_of_fusion(test: Predictions, single: Mapping[str, Predictions]) -> list[str]:
    """A sentence on how far both together lead the better modality; a warning, where they do not for sure.

    Compared on the samples that have the modality, pair by pair: 95 % interval of the mean difference.

    Args:
        test: of all samples as they are.
        single: see `by_modality`.
    """
    if not single:
        return []
    best = max(single, key=lambda name: float(_right(single[name]).mean()))
    gain, half = lead(test, single[best])
    words = (
        f"{100 * gain:+.1f} points of accuracy (95 % interval {100 * (gain - half):+.1f} to {100 * (gain + half):+.1f})"
    )
    if gain - half > 0:
        return [f"Image and text together against the {best} alone: {words}."]
    return [
        f"Warning: image and text together are not better than the {best} alone beyond the interval: {words}. "
        f"Perhaps recipes/{'vision' if best == 'image' else 'text'}.py is enough, or try another --fusion."
    ]


def lead(both: Predictions, one: Predictions) -> tuple[float, float]:
    """Mean difference of being right, on the samples that both know, and half its 95 % interval."""
    same = np.isin(both.index, one.index)
    differences = _right(both)[same] - _right(one)
    return float(differences.mean()), Z * float(differences.std(ddof=1)) / math.sqrt(len(differences))


def _right(said: Predictions) -> "np.ndarray[Any, np.dtype[np.float64]]":
    found: np.ndarray[Any, np.dtype[np.float64]] = (said.logits.argmax(-1).numpy() == said.labels).astype(float)
    return found
