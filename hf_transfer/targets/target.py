"""What a target is: one object that holds everything that depends on what is predicted."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import datasets
import numpy as np
import numpy.typing as npt
from torch import Tensor

# One row for each sample: class numbers [samples], say, or numbers [samples, outputs].
Values = npt.NDArray[Any]
Metrics = dict[str, float]
Interval = tuple[float, float]
Strata = npt.NDArray[np.int64]
# Settings of training that have an effect only with targets that support them.
OPTIONAL_SETTINGS = frozenset({"label_smoothing_factor", "class_weights", "mixup_alpha", "cutmix_alpha", "rdrop_alpha"})


class Metric(NamedTuple):
    """A metric that reports show.

    Attributes:
        name: in `results.json`.
        title: in tables.
        lower_is_better: whether a smaller value is the better one.
        hub: type, name and arguments by which the Hub knows it; None: it is not in a model's card.
        is_share: whether it is shown in percent.
        interval: how its 95 % interval is computed, for the model's card.
    """

    name: str
    title: str
    lower_is_better: bool = False
    hub: tuple[str, str, Mapping[str, Any]] | None = None
    is_share: bool = False
    interval: str = ""

    def shown(self, value: float) -> str:
        """A value as a sentence has it."""
        return f"{value:.2%}" if self.is_share else f"{value:.4f}"


class LossSums(NamedTuple):
    """The loss of a batch before it is divided: the sum over its samples, and the sum of their weights; scalars."""

    total: Tensor
    weight: Tensor


@dataclass(frozen=True)
class LossOptions:
    """What changes the loss of a sample.

    Attributes:
        smoothing: share of a target that is spread over all outputs, from 0 to 1.
        weights: float [outputs], what a sample of each counts; None: all the same.
    """

    smoothing: float = 0.0
    weights: Tensor | None = None


@dataclass(frozen=True)
class Table:
    """A table of a report, in Markdown and in `results.json`.

    Attributes:
        key: its name in `results.json`.
        title: its heading.
        columns: keys of the columns.
        titles: headings of the columns.
        rows: a mapping for each row.
    """

    key: str
    title: str
    columns: Sequence[str]
    titles: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Picture:
    """A picture of a report, drawn by `evaluation`.

    Attributes:
        kind: how it is drawn: `confusion`.
        file: its name in the folder of the run.
        title: what it shows.
        data: what is drawn.
    """

    kind: str
    file: str
    title: str
    data: Any


class Target(ABC):
    """What is predicted of the samples of one data set.

    A new target is a subclass in a file of its own and a line in `table.TARGETS`.

    Attributes:
        problem_type: its name in settings and results; transformers' own name, where it has one.
        metrics: what its reports show, beside the loss.
        main_metric: the metric that selects the epoch to keep.
        solver: the name of the solver of a head on frozen features; None: such a head is trained.
        supported_settings: which of `OPTIONAL_SETTINGS` have an effect on it: `loss` and `loss_weights` take the first
            two, Mixup and CutMix need `mixed`, and R-Drop needs `disagreement`. A run rejects the others.
        score_words: what `sample_scores` are, for sentences on differences ("points of accuracy").
        limits: sentences for the model's card on what its answers cannot express.
    """

    problem_type: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    main_metric: ClassVar[str]
    solver: ClassVar[str | None] = None
    supported_settings: ClassVar[frozenset[str]] = frozenset()
    score_words: ClassVar[str] = "points"
    limits: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def recognises(cls, feature: object) -> bool:  # noqa: ARG003
        """Whether a column of this type, as `datasets` has it, is such a target if the settings name none."""
        return False

    @classmethod
    @abstractmethod
    def read(cls, splits: Mapping[str, datasets.Dataset], column: str) -> tuple[Self, dict[str, Values]]:
        """The target of a column, and the values of every split.

        Raises:
            UserError: missing values, or values that are no such target.
        """

    @classmethod
    @abstractmethod
    def of_model(cls, config: Any) -> Self:
        """The target of a finished model, from its transformers configuration."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """What each output of the model stands for."""

    @abstractmethod
    def check(self, values: Mapping[str, Values], *, splits_to_cut: int) -> None:
        """Refuse values that no model can be trained or evaluated on.

        Args:
            values: of every split that the data set has.
            splits_to_cut: how many splits must still be cut off the training split.

        Raises:
            UserError: there are too few samples of a kind, or of another kind than training has.
        """

    @abstractmethod
    def strata(self, values: Values) -> Strata:
        """A number for each sample: samples of one number are divided among splits in proportion."""

    @abstractmethod
    def describe(self) -> str:
        """What is predicted, in two words ("10 classes"), for the sentence that counts the samples."""

    @abstractmethod
    def model_settings(self) -> dict[str, Any]:
        """What the configuration of a model stores about the target."""

    def check_finished(self, finished: "Target", name: str) -> None:  # noqa: B027
        """Refuse to evaluate a finished model on this target.

        Args:
            finished: what the model predicts.
            name: of the model.

        Raises:
            UserError: it predicts something else.
        """

    def loss_weights(self, values: Values, balanced: bool) -> Tensor | None:  # noqa: ARG002
        """What a sample of each output counts in the loss, float [outputs]; None: all the same.

        Args:
            values: of the training samples that count.
            balanced: let each output count the same.
        """
        return None

    def mixed(self, targets: Tensor, counted: Tensor) -> Tensor:
        """Targets as shares, which can be mixed, float [batch, outputs]; zeros for samples that do not count.

        Only for a target that supports Mixup or CutMix.
        """
        raise NotImplementedError

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, counted: Tensor, options: LossOptions) -> LossSums:
        """The loss of a batch.

        Args:
            outputs: float32 [batch, outputs].
            targets: values of the samples [batch, ...], or what `mixed` made of them.
            counted: bool [batch], False for masked samples.
            options: smoothing and weights.
        """

    def disagreement(self, outputs: Tensor, counted: Tensor) -> Tensor:
        """How far apart the outputs of two passes over the same samples are: a scalar, the mean over the samples.

        Only for a target that supports R-Drop.

        Args:
            outputs: float32 [2 * samples, outputs], both passes one after the other.
            counted: bool [2 * samples].
        """
        raise NotImplementedError

    @abstractmethod
    def evaluate(self, outputs: Tensor, targets: Values, only: str | None = None) -> Metrics:
        """All metrics and the mean loss of the samples.

        Args:
            outputs: float32 [samples, outputs].
            targets: [samples, ...].
            only: compute this metric and the loss alone, where that is quicker.
        """

    @abstractmethod
    def intervals(self, outputs: Tensor, targets: Values) -> dict[str, Interval]:
        """95 % intervals by metric."""

    @abstractmethod
    def sample_scores(self, outputs: Tensor, targets: Values) -> npt.NDArray[np.float64]:
        """How good the answer to each sample is, higher is better [samples]."""

    def details(self, outputs: Tensor, targets: Values) -> tuple[list[Table], list[Picture]]:  # noqa: ARG002
        """Tables and pictures of the test split, in the order of the report."""
        return [], []

    @abstractmethod
    def answers(self, outputs: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """What the model says of each sample, as names with numbers, most important first.

        Args:
            outputs: float32 [samples, outputs].
            top: how many of them to return for a sample, at most.
        """

    def shown(self, value: Any) -> str:
        """The true value of a sample, for people."""
        return str(value)
