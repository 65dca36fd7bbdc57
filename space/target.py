"""What a model predicts: one class, several labels, or numbers; and how its outputs are shown and returned."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from scale import DIGITS, Scale, scale_over, shown

# How many classes or labels have a bar: the most probable ones; of labels also those that are chosen or true.
TOP = 5
MOST_BARS = 20
# A label is chosen from this probability on, unless the model says otherwise.
THRESHOLD = 0.5
# Of a table: several values in a cell are one below the other, or joined in a file.
Cell = str | float | tuple[str | float, ...]
Truth = tuple[Any, ...]


@dataclass(frozen=True)
class Target(ABC):
    """What is predicted of a sample, without the sample itself.

    Attributes:
        kind: the name of the template with its pieces of the page.
        action: on buttons.
        done: what has happened to a sample that has its prediction.
        both_signs: whether what lowers an output matters as much as what raises it.
        names: of the outputs, by their number.
    """

    kind: ClassVar[str]
    action: ClassVar[str] = "Predict"
    done: ClassVar[str] = "predicted"
    both_signs: ClassVar[bool] = False

    names: tuple[str, ...]

    @abstractmethod
    def scores(self, logits: Tensor) -> list[list[float]]:
        """What the outputs [samples, outputs] mean: a probability for each output, or its value."""

    @abstractmethod
    def explained(self, scores: Sequence[float]) -> int:
        """The number of the output that an explanation is about."""

    @property
    @abstractmethod
    def returns(self) -> str:
        """What the API returns, as a part of a sentence."""

    @abstractmethod
    def as_json(self, scores: Sequence[float]) -> dict[str, Any]:
        """The prediction for programs."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The columns of the table of many predictions."""

    @abstractmethod
    def cells(self, scores: Sequence[float]) -> list[Cell]:
        """The prediction in these columns."""

    def written(self, cell: Cell) -> str | float:
        """A cell as a CSV file has it; probabilities are rounded to four decimals."""
        return round(cell, 4) if isinstance(cell, float) else str(cell)


@dataclass(frozen=True)
class Classes(Target):
    """One of several classes."""

    kind: ClassVar[str] = "classes"
    action: ClassVar[str] = "Classify"
    done: ClassVar[str] = "classified"

    def scores(self, logits: Tensor) -> list[list[float]]:
        """Probabilities, which sum to 1."""
        probabilities: list[list[float]] = logits.float().softmax(-1).tolist()
        return probabilities

    def explained(self, scores: Sequence[float]) -> int:
        """The most probable class."""
        return _ranking(scores)[0]

    def best(self, scores: Sequence[float]) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities."""
        return [(self.names[number], scores[number]) for number in _ranking(scores)[:TOP]]

    @property
    def returns(self) -> str:
        """See `Target.returns`."""
        return "its label, the probability of every label"

    def as_json(self, scores: Sequence[float]) -> dict[str, Any]:
        """The most probable class as `label`, and the probabilities of all."""
        return {"label": self.names[self.explained(scores)], "scores": dict(zip(self.names, scores, strict=True))}

    @property
    def columns(self) -> list[str]:
        """See `Target.columns`."""
        return ["label", "probability"]

    def cells(self, scores: Sequence[float]) -> list[Cell]:
        """The most probable class, and its probability."""
        return [self.names[self.explained(scores)], max(scores)]


class Bar(NamedTuple):
    """A label, its probability, from where on it is chosen, and whether it is."""

    name: str
    share: float
    threshold: float
    is_chosen: bool


@dataclass(frozen=True)
class Labels(Target):
    """Any number of labels; each that reaches its threshold is chosen.

    Attributes:
        thresholds: probabilities, one for each label.
        separator: between names.
    """

    kind: ClassVar[str] = "labels"

    thresholds: tuple[float, ...]
    separator: str = "; "

    def scores(self, logits: Tensor) -> list[list[float]]:
        """The probability of each label, whatever the others are."""
        probabilities: list[list[float]] = logits.float().sigmoid().tolist()
        return probabilities

    def chosen(self, scores: Sequence[float]) -> list[int]:
        """The numbers of the labels that reach their thresholds, most probable first."""
        return [number for number in _ranking(scores) if scores[number] >= self.thresholds[number]]

    def explained(self, scores: Sequence[float]) -> int:
        """The most probable label of those that are chosen, or of all if none is."""
        return (self.chosen(scores) or _ranking(scores))[0]

    def chosen_names(self, scores: Sequence[float]) -> list[str]:
        """The names of the labels that reach their thresholds, most probable first."""
        return [self.names[number] for number in self.chosen(scores)]

    def bars(self, scores: Sequence[float], truth: Truth = ()) -> list[Bar]:
        """The most probable labels, and further ones that are chosen or true, most probable first."""
        ranking, chosen = _ranking(scores), set(self.chosen(scores))
        true = {number for number, name in enumerate(self.names) if name in truth}
        kept = {*ranking[:TOP], *chosen, *true}
        bars = [
            Bar(self.names[number], scores[number], self.thresholds[number], number in chosen)
            for number in ranking
            if number in kept
        ]
        return bars[:MOST_BARS]

    def judged(self, scores: Sequence[float], truth: Truth) -> dict[str, list[str]]:
        """Labels that are chosen and true (`right`), only true (`missing`), and only chosen (`wrong`)."""
        chosen = self.chosen_names(scores)
        return {
            "right": [name for name in chosen if name in truth],
            "missing": [name for name in truth if name not in chosen],
            "wrong": [name for name in chosen if name not in truth],
        }

    @property
    def returns(self) -> str:
        """See `Target.returns`."""
        return "its labels, the probability of every label, the threshold from which on a label is chosen"

    def as_json(self, scores: Sequence[float]) -> dict[str, Any]:
        """The chosen labels, most probable first, and the probabilities and thresholds of all."""
        return {
            "labels": self.chosen_names(scores),
            "scores": dict(zip(self.names, scores, strict=True)),
            "thresholds": dict(zip(self.names, self.thresholds, strict=True)),
        }

    @property
    def columns(self) -> list[str]:
        """See `Target.columns`."""
        return ["labels", "probabilities"]

    def cells(self, scores: Sequence[float]) -> list[Cell]:
        """The chosen labels, most probable first, and their probabilities."""
        chosen = self.chosen(scores)
        return [tuple(self.names[number] for number in chosen), tuple(scores[number] for number in chosen)]

    def written(self, cell: Cell) -> str | float:
        """Names and probabilities joined by the separator."""
        if isinstance(cell, tuple):
            return self.separator.join(str(super(Labels, self).written(one)) for one in cell)
        return super().written(cell)


@dataclass(frozen=True)
class Interval:
    """How far predictions were off for samples on which the model was not trained.

    Attributes:
        coverage: the share of the samples that were off by at most the half width.
        half_widths: one for each output, in its unit.
        samples: how many these were.
    """

    coverage: float
    half_widths: tuple[float, ...]
    samples: int

    @property
    def share_in_words(self) -> str:
        """The coverage, such as "9 of 10"."""
        share = Fraction(self.coverage).limit_denominator(100)
        return f"{share.numerator} of {share.denominator}"


@dataclass(frozen=True)
class Result:
    """An output as the page shows it.

    Attributes:
        name: of the output.
        value: what is predicted.
        half_width: of its interval; None: it has none.
        truth: the true value; None: unknown.
        scale: the line on which all this is drawn; None: nothing says how long it should be.
    """

    name: str
    value: float
    half_width: float | None
    truth: float | None
    scale: Scale | None

    @property
    def ends(self) -> tuple[float, ...]:
        """Of the interval; empty without one."""
        return () if self.half_width is None else (self.value - self.half_width, self.value + self.half_width)

    @property
    def is_inside(self) -> bool | None:
        """Whether the interval has the true value; None if one of them is missing."""
        if self.half_width is None or self.truth is None:
            return None
        return abs(self.value - self.truth) <= self.half_width

    def words(self, number: float) -> str:
        """A number as precise as the interval, or with four digits of the predicted value."""
        return shown(number, self.half_width / 3 if self.half_width else abs(self.value) / 100)


@dataclass(frozen=True)
class Numbers(Target):
    """Numbers in the units of the data.

    Attributes:
        interval: how far predictions were off; None: unknown.
    """

    kind: ClassVar[str] = "numbers"
    both_signs: ClassVar[bool] = True

    interval: Interval | None = None

    def scores(self, logits: Tensor) -> list[list[float]]:
        """The outputs as they are."""
        values: list[list[float]] = logits.float().tolist()
        return values

    def explained(self, scores: Sequence[float]) -> int:  # noqa: ARG002
        """The first output."""
        return 0

    def results(self, scores: Sequence[float], truth: Truth = (), known: Sequence[Truth] = ()) -> list[Result]:
        """Each output as the page shows it.

        Args:
            scores: the predicted values.
            truth: the true values; empty: unknown. A value that is missing is None.
            known: true values of other samples, which the line has to hold.
        """
        return [self._result(number, value, truth, known) for number, value in enumerate(scores)]

    def _result(self, number: int, value: float, truth: Truth, known: Sequence[Truth]) -> Result:
        half_width = self.interval.half_widths[number] if self.interval else None
        ends = [] if half_width is None else [value - half_width, value + half_width]
        others = [one for one in (_known(values, number) for values in (truth, *known)) if one is not None]
        scale = scale_over([value, *ends, *others])
        return Result(self.names[number], value, half_width, _known(truth, number), scale)

    @property
    def returns(self) -> str:
        """See `Target.returns`."""
        return "its values, their intervals" if self.interval else "its values"

    def as_json(self, scores: Sequence[float]) -> dict[str, Any]:
        """The values and, if the model has them, their intervals."""
        content: dict[str, Any] = {"values": dict(zip(self.names, scores, strict=True))}
        if self.interval:
            widths = zip(self.names, scores, self.interval.half_widths, strict=True)
            content["intervals"] = {name: [value - half, value + half] for name, value, half in widths}
        return content

    @property
    def columns(self) -> list[str]:
        """The outputs, each with the ends of its interval."""
        if self.interval is None:
            return list(self.names)
        if len(self.names) == 1:
            return [self.names[0], "low", "high"]
        return [column for name in self.names for column in (name, f"{name} low", f"{name} high")]

    def cells(self, scores: Sequence[float]) -> list[Cell]:
        """The values, each with the ends of its interval."""
        if self.interval is None:
            return list(scores)
        widths = zip(scores, self.interval.half_widths, strict=True)
        return [number for value, half in widths for number in (value, value - half, value + half)]

    def written(self, cell: Cell) -> str | float:
        """A number with the digits of single precision."""
        return float(f"{cell:.{DIGITS}g}") if isinstance(cell, float) else str(cell)


def target_of(config: Any) -> Target:
    """What a model predicts, by its configuration: the function of its outputs is that of a transformers pipeline.

    A pipeline takes the outputs of a regression as they are, a sigmoid for several labels and for a single one, else a
    softmax. Thresholds, separator and interval are what hf_transfer adds to a configuration.

    Raises:
        ValueError: thresholds or an interval that do not suit the outputs; likewise TypeError and KeyError.
    """
    names = tuple(str(name) for _, name in sorted(config.id2label.items()))
    if config.problem_type == "regression":
        return Numbers(names, _interval(getattr(config, "prediction_interval", None), len(names)))
    if config.problem_type == "multi_label_classification" or len(names) == 1:
        thresholds = getattr(config, "thresholds", None) or [THRESHOLD] * len(names)
        separator = str(getattr(config, "label_separator", None) or ";")
        return Labels(names, _one_for_each("thresholds", thresholds, len(names)), f"{separator.strip()} ")
    return Classes(names)


def _interval(content: Any, outputs: int) -> Interval | None:
    if content is None:
        return None
    widths = _one_for_each("half_widths", content["half_widths"], outputs)
    interval = Interval(float(content["coverage"]), widths, int(content["samples"]))
    if not 0 < interval.coverage < 1 or min(widths) < 0:
        raise ValueError(f"expected a coverage between 0 and 1 and no negative half width, found {content}")
    # Too few samples for the coverage: no finite interval has it.
    return interval if all(map(math.isfinite, widths)) else None


def _one_for_each(name: str, values: Sequence[Any], outputs: int) -> tuple[float, ...]:
    if len(values) != outputs:
        raise ValueError(f"expected {outputs} {name}, one for each output, found {len(values)}")
    return tuple(float(value) for value in values)


def _known(truth: Truth, number: int) -> float | None:
    """The true value of an output; None if it is not known."""
    value = truth[number] if number < len(truth) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _ranking(scores: Sequence[float]) -> list[int]:
    """The numbers of the outputs, largest score first."""
    return sorted(range(len(scores)), key=lambda number: -scores[number])
