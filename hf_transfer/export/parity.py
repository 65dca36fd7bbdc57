"""How far the answers of an exported model are from those of the model itself, and how long both take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_transfer.errors import user_error
from hf_transfer.export.onnx_file import reason_of

if TYPE_CHECKING:
    from hf_transfer.data.batches import Batch
    from hf_transfer.modalities.modality import Preprocessing

TOLERANCE = 1e-5
RULE = "the largest difference of two logits, divided by the largest logit where that is above 1"
# Where torch itself rounds by more: how many times its error to float64 that of the other form may be, and how large
# its own may be. Beyond that nothing could be told from a wrong export.
TIMES_ROUNDING, LARGEST_ROUNDING = 2.0, 5e-3
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


class Rounding(NamedTuple):
    """Errors of two forms of a model in float32, which are their differences to torch in float64; see `RULE`.

    Attributes:
        torch: of the model.
        onnx: of its other form.
    """

    torch: float
    onnx: float

    @property
    def explains(self) -> bool:
        """Whether the other form is as near to the model without rounding as the model itself; NaN is not."""
        allowed = TOLERANCE + TIMES_ROUNDING * self.torch
        return self.torch <= LARGEST_ROUNDING and self.onnx <= allowed


class Parity(NamedTuple):
    """What was compared.

    Attributes:
        compared: each batch.
        rounding: measured where the largest difference is above `TOLERANCE`, else None.
    """

    compared: list[Difference]
    rounding: Rounding | None = None


def relative_difference(expected: Tensor, outputs: Tensor) -> float:
    """See `RULE`; NaN if one of them has NaN."""
    largest = max(1.0, float(expected.abs().max()))
    return float((outputs - expected).abs().max()) / largest


@torch.no_grad()
def differences(model: nn.Module, exported: Model, preprocessing: Preprocessing) -> Parity:
    """Compare two forms of a model on random samples, in batches and lengths that it was not exported with.

    Args:
        model: as torch runs it, in float32.
        exported: the other form.
        preprocessing: of the model.

    Raises:
        UserError: the largest difference is above `TOLERANCE`, and rounding does not explain it.
    """
    compared = []
    for batch in _batches(preprocessing):
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
    if largest.difference <= TOLERANCE:
        return Parity(compared)
    rounding = rounding_of(model, exported, preprocessing)
    if rounding is None or not rounding.explains:
        errors = "" if rounding is None else f"; to float64 torch {rounding.torch:.2g}, ONNX {rounding.onnx:.2g}"
        raise user_error(
            expected=f"the same logits from ONNX as from torch, up to {TOLERANCE:g} ({RULE})",
            found=f"{largest.difference:.2g} for inputs of shapes {largest.shapes}{errors}",
            do=DO,
        )
    return Parity(compared, rounding)


@torch.no_grad()
def rounding_of(model: nn.Module, exported: Model, preprocessing: Preprocessing) -> Rounding | None:
    """The largest errors of two forms of a model, see `differences`; None: torch does not run it in float64.

    Reference: Higham, "Accuracy and Stability of Numerical Algorithms", SIAM, 2nd edition 2002, section 1.5, on errors
    to a computation in higher precision, https://doi.org/10.1137/1.9780898718027.
    """
    exact, errors = deepcopy(model).double(), []
    for batch in _batches(preprocessing):
        doubled = {name: values.double() if values.is_floating_point() else values for name, values in batch.items()}
        try:
            expected = exact(**doubled).logits
        except (RuntimeError, TypeError, ValueError):
            return None
        errors.append([relative_difference(expected, form(**batch).logits) for form in (model, exported)])
    # This maximum is NaN if one of them is.
    of_torch, of_other = torch.tensor(errors, dtype=torch.float64).amax(0).tolist()
    return Rounding(of_torch, of_other)


def _batches(preprocessing: Preprocessing) -> Iterator[Batch]:
    """Random samples, which are the same each time."""
    for seed, (rows, words) in enumerate(COMPARED, start=1):
        yield preprocessing.drawn(rows, words, seed)


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
