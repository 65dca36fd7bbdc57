"""Scores of heads on frozen features, and how sure their differences are; all of it can be written as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hf_transfer.advice.missed import Missed
from hf_transfer.models.modeling_deep_probe import HEAD
from hf_transfer.models.taps import kind_and_block
from hf_transfer.targets.intervals import mean_and_error, paired_interval
from hf_transfer.targets.target import Interval


@dataclass(frozen=True)
class Difference:
    """How much better one set of answers to the same rows is than another.

    Attributes:
        mean: of the differences of scores.
        standard_error: of this mean.
        interval: 95 % interval of it, a paired bootstrap.
    """

    mean: float
    standard_error: float
    interval: Interval

    @classmethod
    def of(
        cls, first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], units: npt.NDArray[np.int64]
    ) -> "Difference":
        """The difference of the scores of the same rows; see `paired_interval`."""
        return cls(*mean_and_error(first - second, units), paired_interval(first, second, units))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The difference that `dataclasses.asdict` wrote."""
        return cls(**{**content, "interval": _pair(content["interval"])})

    @property
    def is_clear(self) -> bool:
        """Whether the 95 % interval is above 0."""
        return self.interval[0] > 0

    def exceeds(self, errors: float = 1.0) -> bool:
        """Whether the mean is larger than so many of its standard errors."""
        return self.mean > errors * self.standard_error


@dataclass(frozen=True)
class Probe:
    """A head on frozen features, judged on rows that it has not seen.

    Attributes:
        features: where the model is read, by the names of `--taps`; joined by + are several together.
        score: the mean over the rows, higher is better.
        standard_error: of the score.
        over_head: how much better it is than a head on what enters the model's own head; None: it is that one.
        missed: the classes or labels that it misses too often: see `missed_by`.
    """

    features: str
    score: float
    standard_error: float
    over_head: Difference | None
    missed: tuple[Missed, ...] = ()

    @property
    def taps(self) -> list[str]:
        """The places that are read."""
        return self.features.split(" + ")

    def depth(self, blocks: int) -> float:
        """How deep a single place is in a model of so many blocks, from 0 to 1."""
        kind, block = kind_and_block(self.features)
        return 1.0 if kind == HEAD or not blocks else block / blocks

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See `Difference.from_json`."""
        over = content["over_head"]
        difference = None if over is None else Difference.from_json(over)
        # Earlier versions did not look at single classes.
        missed = tuple(Missed(**one) for one in content.get("missed", ()))
        return cls(**{**content, "over_head": difference, "missed": missed})


@dataclass(frozen=True)
class ConstantAnswer:
    """How good an answer is that is the same for all rows, without looking at them.

    Attributes:
        name: what it answers ("always the most frequent class").
        score: of it, on the rows on which heads are judged.
        gain: how much better the best head is.
    """

    name: str
    score: float
    gain: Difference

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See `Difference.from_json`."""
        return cls(**{**content, "gain": Difference.from_json(content["gain"])})


@dataclass(frozen=True)
class JudgedRows:
    """The scores of the best head by row.

    Attributes:
        rows: their numbers in the training data.
        scores: of the answers to them by heads that have not seen them, higher is better.
        units: those of one unit belong together: see `paired_interval`.
    """

    rows: tuple[int, ...]
    scores: tuple[float, ...]
    units: tuple[int, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See `Difference.from_json`."""
        return cls(**{name: tuple(values) for name, values in content.items()})


@dataclass(frozen=True)
class LearningCurve:
    """The best head, solved on fewer rows.

    Attributes:
        rows: on how many rows the heads are solved, on average, from few to many.
        scores: of the answers to rows that they have not seen; always the same ones.
        standard_errors: of the scores.
        last_doubling: how much better the heads of all rows are than those of half of them.
    """

    rows: tuple[float, ...]
    scores: tuple[float, ...]
    standard_errors: tuple[float, ...]
    last_doubling: Difference

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See `Difference.from_json`."""
        last = Difference.from_json(content["last_doubling"])
        return cls(tuple(content["rows"]), tuple(content["scores"]), tuple(content["standard_errors"]), last)


@dataclass(frozen=True)
class FreshWeights:
    """The same probe on the same architecture with random weights.

    Attributes:
        rows: that were used.
        features: the best of the model with random weights.
        score: of a head on them.
        standard_error: of this score.
        pretrained_score: of a head on the best features of the pretrained model, for the same rows.
        gain: how much better the pretrained weights are.
    """

    rows: int
    features: str
    score: float
    standard_error: float
    pretrained_score: float
    gain: Difference

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See `Difference.from_json`."""
        return cls(**{**content, "gain": Difference.from_json(content["gain"])})


def _pair(values: Any) -> Interval:
    low, high = values
    return float(low), float(high)
