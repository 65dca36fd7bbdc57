"""How far the answers of an exported model are from those of the model itself, and how long both take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hf_transfer.errors import user_error
from hf_transfer.export.onnx_file import reason_of

if TYPE_CHECKING:
    from hf_transfer.data.batches import Batch
    from hf_transfer.modalities.modality import Preprocessing

TOLERANCE = 1e-5
RULE = "the largest difference of two logits, divided by the largest logit where that is above 1"
# Rows and words of the random batches: none has the sizes of the batch that was exported.
COMPARED = ((1, 1), (3, 20), (5, 60))
# Rows of the batches that are timed, each with how many rounds are made of it; and the words of a text.
TIMED = ((1, 11), (64, 3))
TIMED_WORDS = 30
DO = "predict with hf-transfer predict: this export cannot be used, and was not written"
Model = Callable[..., Any]


class Difference(NamedTuple):
    """A batch that was compared.

    Attributes:
        shapes: of its inputs, by name.
        difference: see `RULE`.
    """

    shapes: dict[str, list[int]]
    difference: float


def relative_difference(expected: Tensor, outputs: Tensor) -> float:
    """See `RULE`; NaN if one of them has NaN."""
    largest = max(1.0, float(expected.abs().max()))
    return float((outputs - expected).abs().max()) / largest


@torch.no_grad()
def differences(model: Model, exported: Model, preprocessing: Preprocessing) -> list[Difference]:
    """Compare two forms of a model on random samples, in batches and lengths that it was not exported with.

    Args:
        model: as torch runs it.
        exported: the other form.
        preprocessing: of the model.

    Raises:
        UserError: the largest difference is above `TOLERANCE`.
    """
    compared = []
    for seed, (rows, words) in enumerate(COMPARED, start=1):
        batch = preprocessing.drawn(rows, words, seed)
        shapes = {name: list(values.shape) for name, values in batch.items()}
        try:
            outputs = exported(**batch).logits
        except Exception as error:
            # What is wrong with the file shows only when it runs, and as any kind of error.
            raise user_error(
                expected="a file in ONNX format that runs with batches of other sizes",
                found=f"for inputs of shapes {shapes}: {reason_of(error)}",
                do=DO,
            ) from error
        compared.append(Difference(shapes, relative_difference(model(**batch).logits, outputs)))
    largest = max(compared, key=lambda one: (one.difference != one.difference, one.difference))
    if not largest.difference <= TOLERANCE:
        raise user_error(
            expected=f"the same logits from ONNX as from torch, up to {TOLERANCE:g} ({RULE})",
            found=f"{largest.difference:.2g} for inputs of shapes {largest.shapes}",
            do=DO,
        )
    return compared


def seconds_of(models: Mapping[str, Model], preprocessing: Preprocessing) -> dict[str, dict[str, float]]:
    """The median seconds that each form of a model takes, by the number of samples; rounds of all forms alternate.

    Args:
        models: by their names.
        preprocessing: of the model; what it does itself is not timed.
    """
    return {
        str(rows): _medians(models, preprocessing.drawn(rows, TIMED_WORDS, seed=0), rounds) for rows, rounds in TIMED
    }


@torch.no_grad()
def _medians(models: Mapping[str, Model], batch: Batch, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in models}
    # The first round warms up.
    for _ in range(1 + rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model(**batch)
            times[name].append(time.perf_counter() - start)
    return {name: median(taken[1:]) for name, taken in times.items()}


def shown_seconds(seconds: Mapping[str, Mapping[str, float]]) -> Sequence[str]:
    """A line for each number of samples."""
    return [
        f"seconds for {rows:>2} {'sample ' if rows == '1' else 'samples'}  "
        + "  ".join(f"{name} {taken:.4f}" for name, taken in row.items())
        for rows, row in seconds.items()
    ]
