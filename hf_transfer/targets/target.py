"""What a target is: one object that holds everything that depends on what is predicted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.label_columns import LabelColumns as LabelColumns
from hf_transfer.targets.missing_labels import missing_labels
from hf_transfer.targets.reporting import Metric, Picture, Table

if TYPE_CHECKING:
    import datasets
    from scipy.sparse import csr_array
    from torch import Tensor, nn

# One row for each sample: class numbers [samples], or cells [samples, outputs], of which those not known are NaN.
Values = npt.NDArray[Any]
Metrics = dict[str, float]
Interval = tuple[float, float]
Positions = npt.NDArray[np.int64]
Strata = npt.NDArray[np.int64]
# Settings that have an effect only with targets that support them.
OPTIONAL_SETTINGS = frozenset({
    "label_smoothing_factor", "class_weights", "mixup_alpha", "cutmix_alpha", "rdrop_alpha", "multi_label_loss",
    "regression_loss", "label_separator", "max_train_samples_per_class",
})  # fmt: skip


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
        kind: which of the losses of the target; "": its first.
    """

    smoothing: float = 0.0
    weights: Tensor | None = None
    kind: str = ""


class Constant(NamedTuple):
    """An answer that is the same for every sample, which a model must beat.

    Attributes:
        name: what it answers, for tables ("always the most frequent class").
        outputs: of a model that answers so [1, outputs].
        target: judges it.
    """

    name: str
    outputs: Tensor
    target: Target


class Target(ABC):
    """What is predicted of the samples of one data set; a new one is a file and a line in `table.TARGETS`.

    Attributes:
        problem_type: its name in settings and results; transformers' own name, where it has one.
        metrics: what its reports show, beside the loss.
        main_metric: the metric that selects the epoch to keep.
        solver: the name of the solver of a head on frozen features; None: such a head is trained.
        supported_settings: which of `OPTIONAL_SETTINGS` have an effect on it: `loss` and `loss_weights` take the first
            two, Mixup and CutMix need `mixed`, and R-Drop needs `disagreement`. A run rejects the others.
        loss_setting: the setting that chooses among several losses; None: there is one.
        is_calibrated: whether it learns from predictions for samples on which the model was not trained: `calibrated`.
        score_title: what the mean of `sample_scores` is called; of errors, that without the minus.
        scores_are_errors: whether `sample_scores` are errors with a minus; `shown_score` takes it away.
        score_words: what `sample_scores` are, for sentences on differences ("points of accuracy").
        limits: sentences for the model's card on what its answers cannot express.
        activation: what makes scores of the outputs: softmax or sigmoid; empty: they are the answers.
        answered_as: what `answers` are, as a key of JSON.
        outputs: what the outputs of its models stand for, in the plural ("classes").
        divided_by: how samples are divided among splits ("by class").
        tags: for the model's card.
        picture_files: the names of the pictures that `details` may return.
    """

    problem_type: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    main_metric: ClassVar[str]
    solver: ClassVar[str | None] = None
    supported_settings: ClassVar[frozenset[str]] = frozenset()
    loss_setting: ClassVar[str | None] = None
    is_calibrated: ClassVar[bool] = False
    score_title: ClassVar[str] = "score"
    scores_are_errors: ClassVar[bool] = False
    score_words: ClassVar[str] = "points"
    limits: ClassVar[tuple[str, ...]] = ()
    activation: ClassVar[str] = ""
    answered_as: ClassVar[str] = "scores"
    outputs: ClassVar[str] = "outputs"
    divided_by: ClassVar[str] = "at random"
    tags: ClassVar[tuple[str, ...]] = ()
    picture_files: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def recognises(cls, train: datasets.Dataset, columns: LabelColumns) -> str | None:  # noqa: ARG003
        """Why columns are such a target if the settings name none ("lists"); None: they are not."""
        return None

    @classmethod
    @abstractmethod
    def read(cls, splits: Mapping[str, datasets.Dataset], columns: LabelColumns) -> tuple[Self, dict[str, Values]]:
        """The target of some columns, and the values of every split.

        Outputs are matched by name: each split may have names of its own, in an order of its own.

        Raises:
            UserError: missing values, values that are no such target, or names that training lacks; with a finished
                model, names that the model lacks.
        """

    @classmethod
    def missing(cls, rows: datasets.Dataset, columns: LabelColumns) -> npt.NDArray[np.bool_]:
        """Whether each row has no value, and can be dropped [rows]."""
        return missing_labels(rows, columns)

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

    def notes(self, values: Mapping[str, Values]) -> list[str]:  # noqa: ARG002
        """Sentences on the values of the finished splits: what is missing, and what a split lacks."""
        return []

    def describe_names(self, source: str) -> list[str]:  # noqa: ARG002
        """A sentence on the names of the outputs.

        Args:
            source: where they are from ("values of column 'label'").
        """
        return []

    def data_settings(self) -> dict[str, Any]:
        """The settings with which data of the same kind are read, beside those that name columns."""
        return {}

    def fitted(self, values: Values) -> Self:  # noqa: ARG002
        """The target with what it takes from the training samples that count, such as their mean."""
        return self

    @abstractmethod
    def strata(self, values: Values) -> Strata:
        """A number for each sample: samples of one number are alike, and divided among splits in proportion."""

    def kinds(self, values: Values) -> csr_array:
        """Of which kinds each sample is, of those that every split has in proportion: 0 or 1 [samples, kinds].

        By default its stratum.
        """
        return one_kind_each(self.strata(values))

    def cut(self, values: Values, fraction: float, generator: np.random.Generator) -> Positions:
        """Positions of the samples that are split off: about this share of each stratum, and of each at least one.

        Unlike with `sklearn.model_selection.train_test_split`, every stratum has a sample on both sides.
        """
        chosen = []
        for members in members_of(self.strata(values)):
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            chosen.append(generator.permutation(members)[:count])
        return np.sort(np.concatenate(chosen))

    def few(self, values: Values, limit: int, generator: np.random.Generator) -> Positions:
        """Positions of at most `limit` samples of each stratum, drawn at random."""
        drawn = [generator.permutation(members)[:limit] for members in members_of(self.strata(values))]
        return np.sort(np.concatenate(drawn))

    @abstractmethod
    def describe(self) -> str:
        """What is predicted, in two words ("10 classes"), for the sentence that counts the samples."""

    def model_settings(self) -> dict[str, Any]:
        """What the configuration of a model stores about the target, by transformers' own names."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
            # Otherwise a checkpoint of another task would keep its own, and pipelines show other scores.
            "problem_type": self.problem_type,
        }

    def saved_settings(self) -> dict[str, Any]:
        """What the configuration of a finished model stores beside them; its names are in `table.SAVED_SETTINGS`."""
        return {}

    def for_head(self, *, has_bias: bool) -> Self:  # noqa: ARG002
        """The target for a model whose last layer has a bias or not."""
        return self

    def loss_weights(self, values: Values, balanced: bool) -> Tensor | None:  # noqa: ARG002
        """What a sample of each output counts in the loss, float [outputs]; None: all the same.

        Args:
            values: of the training samples that count.
            balanced: let each output count the same.
        """
        return None

    def learned(self, targets: Tensor) -> Tensor:
        """Targets as the outputs of a model in training approximate them: for numbers, standardised."""
        return targets

    def start(self, layers: Sequence[nn.Linear], values: Values) -> None:  # noqa: B027
        """Change the new layers that compute the outputs, so that training starts where it can learn at once.

        Args:
            layers: their outputs are added up or averaged.
            values: of the training samples that count.
        """

    def finish(self, layers: Sequence[nn.Linear]) -> None:  # noqa: B027
        """Change the trained layers that compute the outputs, so that these are as users want them.

        Args:
            layers: their outputs are added up or averaged.
        """

    def calibrated(self, outputs: Tensor, targets: Values) -> Self:  # noqa: ARG002
        """The target with what it takes from predictions for samples on which the model was not trained.

        Args:
            outputs: float32 [samples, outputs].
            targets: [samples, ...].
        """
        return self

    def mixed(self, targets: Tensor, counted: Tensor) -> Tensor:
        """Targets as shares, which can be mixed, float [batch, outputs]; zeros for samples that do not count.

        Only for a target that supports Mixup or CutMix.
        """
        raise NotImplementedError

    @abstractmethod
    def weight(self, targets: Tensor, counted: Tensor, options: LossOptions) -> Tensor:
        """The sum of the weights of the samples in the loss of a batch, a scalar; it is known before their outputs.

        Args:
            targets: see `loss`.
            counted: see `loss`.
            options: see `loss`.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, counted: Tensor, options: LossOptions) -> LossSums:
        """The loss of a batch; its weight is that of `weight`.

        Args:
            outputs: float32 [batch, outputs].
            targets: values of the samples [batch, ...], or what `mixed` made of them.
            counted: bool [batch], False for masked samples.
            options: smoothing and weights.
        """

    def disagreement(self, outputs: Tensor, counted: Tensor) -> Tensor:
        """How far apart the outputs of two passes over the same samples are: a scalar, the sum over the samples.

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

    def describe_calibration(self, samples: int) -> list[str]:  # noqa: ARG002
        """Sentences on what `calibrated` took from so many samples."""
        return []

    @abstractmethod
    def constant(self, values: Values) -> Constant:
        """An answer that is the same for all samples.

        Args:
            values: of the training samples that count, from which it is taken.
        """

    @abstractmethod
    def predicted(self, outputs: Tensor) -> Values:
        """What the model answers, in the form of the true values [samples, ...]."""

    @abstractmethod
    def answers(self, outputs: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """What the model says of each sample, as names with numbers, most important first.

        Args:
            outputs: float32 [samples, outputs].
            top: how many of them to return for a sample, at most.
        """

    def labelled_answers(self, outputs: Tensor, columns: LabelColumns) -> list[dict[str, Any]]:  # noqa: ARG002
        """What the model says of each sample, as columns of a table.

        Args:
            outputs: float32 [samples, outputs].
            columns: of the labels in the training data.
        """
        return [dict(answer) for answer in self.answers(outputs, len(self.names))]

    @property
    def answer_columns(self) -> list[str]:
        """The columns of an answer in a table."""
        return ["label", "probability"]

    def answer_cells(self, answer: Sequence[tuple[str, float]], decisions: Mapping[str, Any]) -> list[str | float]:  # noqa: ARG002
        """An answer in these columns.

        Args:
            answer: of `answers`, with all outputs.
            decisions: of `decisions`.
        """
        return list(answer[0])

    def decisions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """What follows from the answers, for each sample as JSON: the labels that are chosen, for example."""
        return [{} for _ in outputs]

    def shown(self, value: Any) -> str:
        """The true value of a sample, for people."""
        return str(value)

    def truth(self, value: Any) -> list[Any] | None:  # noqa: ARG002
        """The true value of a sample as a list of names or numbers; None: `shown` says it all."""
        return None


def names_of_outputs(config: Any) -> tuple[str, ...]:
    """The names of a model's outputs, in their order; none if its configuration has none."""
    return tuple(str(name) for _, name in sorted((config.id2label or {}).items()))


def one_kind_each(strata: Strata) -> csr_array:
    """Of which kinds samples are that have one each: 0 or 1 [samples, kinds]."""
    from scipy.sparse import csr_array

    kinds, numbers = np.unique(strata, return_inverse=True)
    entries = (np.ones(len(strata), dtype=np.int64), (np.arange(len(strata)), numbers))
    return csr_array(entries, shape=(len(strata), len(kinds)))


def members_of(strata: Strata) -> list[Positions]:
    """The positions of the samples of each stratum."""
    return [np.flatnonzero(strata == number) for number in np.unique(strata)]
