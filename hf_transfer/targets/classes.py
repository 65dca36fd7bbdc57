"""One class for each sample: labels, cross-entropy, accuracy and macro F1, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from hf_transfer.targets import reporting, target
from hf_transfer.targets.class_names import notes_on_lacking, notes_on_similar_names, shown_names
from hf_transfer.targets.intervals import bootstrap_interval, wilson_interval
from hf_transfer.targets.label_columns import CLEAR_SEPARATORS

if TYPE_CHECKING:
    import datasets
    from torch import Tensor

CONFUSIONS_NAMED = 5
OF_OTHER_TARGETS = {"multi_label_loss", "regression_loss", "label_separator"}
# The class number that torch ignores; it is used in this file alone.
IGNORED = -100
# Of a class that training lacks, so that its share has a logarithm.
SMALLEST_COUNT = 1e-6
CLASS_COLUMNS = ("label", "precision", "recall", "f1", "samples")
CONFUSED = ("true", "predicted", "samples")


@dataclass(frozen=True)
class Classes(target.Target):
    """One class number for each sample, int64.

    Attributes:
        label_names: class names; their positions are the class numbers.
    """

    problem_type: ClassVar[str] = "single_label_classification"
    metrics: ClassVar[tuple[reporting.Metric, ...]] = (
        reporting.Metric("accuracy", "accuracy", hub=("accuracy", "Accuracy", {}), is_share=True, interval="Wilson's"),
        reporting.Metric(
            "f1_macro", "macro F1", hub=("f1", "Macro F1", {"average": "macro"}), interval="bootstrap percentiles"
        ),
    )
    main_metric: ClassVar[str] = "accuracy"
    activation: ClassVar[str] = "softmax"
    solver: ClassVar[str | None] = "multinomial logistic"
    supported_settings: ClassVar[frozenset[str]] = target.OPTIONAL_SETTINGS - OF_OTHER_TARGETS
    score_title: ClassVar[str] = "accuracy"
    score_words: ClassVar[str] = "points of accuracy"
    outputs: ClassVar[str] = "classes"
    divided_by: ClassVar[str] = "by class"
    picture_files: ClassVar[tuple[str, ...]] = ("confusion.png",)
    limits: ClassVar[tuple[str, ...]] = ("It names one of its classes for every sample, even if none is right.",)

    label_names: tuple[str, ...]

    @classmethod
    def read(
        cls, splits: Mapping[str, datasets.Dataset], columns: target.LabelColumns
    ) -> tuple[Self, dict[str, target.Values]]:
        """See `Target.read`."""
        from hf_transfer.targets.class_labels import read_labels

        names, numbers = read_labels(splits, columns)
        return cls(tuple(names)), dict(numbers)

    @classmethod
    def of_model(cls, config: Any) -> Self:
        """See `Target.of_model`."""
        return cls(target.names_of_outputs(config))

    @property
    def names(self) -> list[str]:
        """The class names."""
        return list(self.label_names)

    def check(self, values: Mapping[str, target.Values], *, splits_to_cut: int) -> None:
        """See `Target.check`: one class only, or a class with too few samples."""
        from hf_transfer.targets.class_labels import check_classes

        check_classes(self.names, values, splits_to_cut=splits_to_cut)

    def notes(self, values: Mapping[str, target.Values]) -> list[str]:
        """Sentences on similar names, on classes that a split lacks, and on names that look like several labels."""
        classes = len(self.label_names)
        counts = {split: np.bincount(numbers, minlength=classes) for split, numbers in values.items()}
        samples = dict(zip(self.label_names, sum(counts.values(), start=np.zeros(classes, np.int64)), strict=True))
        notes = notes_on_similar_names(samples, self.outputs)
        lacking = {
            split: [self.label_names[number] for number in np.flatnonzero(of_split == 0)]
            for split, of_split in counts.items()
        }
        notes += notes_on_lacking(lacking, "class", "classes")
        joined = [name for name in self.label_names if any(sign in name for sign in CLEAR_SEPARATORS)]
        advice = "If samples have several labels: --problem_type multi_label_classification."
        return [*notes, *([f"{joined[0]!r} is one class. {advice}"] if joined else [])]

    def describe_names(self, source: str) -> list[str]:
        """See `Target.describe_names`."""
        return [f"Classes: {shown_names(self.names)} ({source})."]

    def strata(self, values: target.Values) -> target.Strata:
        """The class numbers."""
        return np.asarray(values, dtype=np.int64)

    def describe(self) -> str:
        """See `Target.describe`."""
        return f"{len(self.label_names)} classes"

    def loss_weights(self, values: target.Values, balanced: bool) -> Tensor | None:
        """Weights with which every class counts the same, float32 [classes]; None, if they are not asked for."""
        return balanced_class_weights(values, len(self.label_names)) if balanced else None

    def mixed(self, targets: Tensor, counted: Tensor) -> Tensor:
        """Shares of the classes, float32 [batch, classes]; zeros for a sample that does not count."""
        from torch.nn.functional import one_hot

        return one_hot(targets.where(counted, 0), len(self.label_names)).float() * counted[:, None]

    def weight(self, targets: Tensor, counted: Tensor, options: target.LossOptions) -> Tensor:
        """The number of samples, or the sum of the weights of their classes; it does not depend on the smoothing."""
        weights = None if options.weights is None else options.weights.to(targets.device)
        if targets.is_floating_point():
            return targets.sum() if weights is None else (targets * weights).sum()
        if weights is None:
            return counted.sum()
        # Not targets[counted]: its size is unknown until the GPU has finished, so the CPU would wait.
        return (weights[targets.where(counted, 0)] * counted).sum()

    def loss(self, outputs: Tensor, targets: Tensor, counted: Tensor, options: target.LossOptions) -> target.LossSums:
        """Cross-entropy, smoothed and weighted by class.

        Reference: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for Computer
        Vision", CVPR 2016, https://arxiv.org/abs/1512.00567 (label smoothing).
        """
        from torch.nn.functional import cross_entropy

        weights = None if options.weights is None else options.weights.to(outputs)
        if targets.is_floating_point():
            total = _loss_of_shares(outputs, targets.to(outputs), weights, options.smoothing)
        else:
            numbers = targets.where(counted, IGNORED)
            total = cross_entropy(
                outputs, numbers, weights, ignore_index=IGNORED, reduction="sum", label_smoothing=options.smoothing
            )
        return target.LossSums(total, self.weight(targets, counted, options))

    def disagreement(self, outputs: Tensor, counted: Tensor) -> Tensor:
        """The mean of KL(first, second) and KL(second, first), in nats.

        Reference: Wu, Li, Wang, Meng, Qin, Chen, Zhang and Liu, "R-Drop: Regularized Dropout for Neural Networks",
        NeurIPS 2021, https://arxiv.org/abs/2106.14448.
        """
        from torch.nn.functional import kl_div

        first, second = outputs.log_softmax(-1).chunk(2)
        divergence = partial(kl_div, log_target=True, reduction="none")
        both = divergence(first, second) + divergence(second, first)
        once = counted.chunk(2)[0]
        return (both.sum(-1) * once).sum() / 2

    def constant(self, values: target.Values) -> target.Constant:
        """The most frequent class, with the shares of the classes in training as probabilities."""
        import torch

        counts = np.bincount(values, minlength=len(self.label_names)) + SMALLEST_COUNT
        shares = torch.from_numpy(counts / counts.sum()).log()
        return target.Constant("always the most frequent class", shares[None], self)

    def predicted(self, outputs: Tensor) -> target.Values:
        """The class numbers."""
        numbers: npt.NDArray[np.int64] = outputs.argmax(-1).numpy()
        return numbers

    def evaluate(self, outputs: Tensor, targets: target.Values, only: str | None = None) -> target.Metrics:
        """Accuracy, macro F1 (the plain mean over the classes that occur), and mean cross-entropy."""
        import torch
        from torch.nn.functional import cross_entropy

        predicted = self.predicted(outputs)
        metrics = {"accuracy": float((predicted == targets).mean())}
        if only is None or only == "f1_macro":
            metrics["f1_macro"] = macro_f1(targets, predicted, len(self.label_names))
        return {**metrics, "loss": cross_entropy(outputs, torch.from_numpy(targets)).item()}

    def intervals(self, outputs: Tensor, targets: target.Values) -> dict[str, target.Interval]:
        """Wilson's for accuracy, bootstrap percentiles for macro F1."""
        predicted, classes = self.predicted(outputs), len(self.label_names)
        return {
            "accuracy": wilson_interval(int((predicted == targets).sum()), len(targets)),
            "f1_macro": bootstrap_interval(
                len(targets), lambda rows: macro_f1(targets[rows], predicted[rows], classes)
            ),
        }

    def sample_scores(self, outputs: Tensor, targets: target.Values) -> npt.NDArray[np.float64]:
        """1 for a right answer, 0 for a wrong one."""
        scores: npt.NDArray[np.float64] = (self.predicted(outputs) == targets).astype(float)
        return scores

    def details(self, outputs: Tensor, targets: target.Values) -> tuple[list[reporting.Table], list[reporting.Picture]]:
        """Precision, recall and F1 of each class, and which classes are confused."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        predicted, names = self.predicted(outputs), self.names
        matrix: npt.NDArray[np.int64] = confusion_matrix(targets, predicted, labels=range(len(names)))
        columns = precision_recall_fscore_support(targets, predicted, labels=range(len(names)), zero_division=0.0)
        rows = [
            dict(zip(CLASS_COLUMNS, (name, float(p), float(r), float(f), int(n)), strict=True))
            for name, p, r, f, n in zip(names, *columns, strict=True)
        ]
        titles = ("class", "precision", "recall", "F1", "samples")
        confused = most_confused(matrix, names)
        tables = [reporting.Table("classes", "Classes (test)", CLASS_COLUMNS, titles, rows)]
        if confused:
            tables.append(reporting.Table("confusions", "Most confused (test)", CONFUSED, CONFUSED, confused))
        return tables, [
            reporting.Picture("confusion", "confusion.png", "Confusion matrix of the test split", (matrix, names))
        ]

    def labelled_answers(self, outputs: Tensor, columns: target.LabelColumns) -> list[dict[str, Any]]:
        """The most probable class, in a column named as that of the labels, and its probability in one beside it."""
        answers = [answer for (answer,) in self.answers(outputs, 1)]
        if columns.only == "probability":
            return [{columns.only: name} for name, _ in answers]
        return [{columns.only: name, "probability": share} for name, share in answers]

    def shown(self, value: Any) -> str:
        """The class name."""
        return self.label_names[int(value)]

    def answers(self, outputs: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """Class names with their probabilities, most probable first."""
        best = outputs.softmax(-1).topk(min(top, outputs.shape[-1]))
        return [
            [(self.label_names[number], share) for number, share in zip(numbers, shares, strict=True)]
            for shares, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def _loss_of_shares(outputs: Tensor, shares: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    # A masked row has nothing to spread: it stays all zeros.
    spread = shares.sum(-1, keepdim=True) / shares.shape[-1]
    smooth = (1 - smoothing) * shares + smoothing * spread
    smooth = smooth if weights is None else smooth * weights
    return -(smooth * outputs.log_softmax(-1)).sum()


def macro_f1(true: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int) -> float:
    """The plain mean of F1 over the classes that occur in the true or the predicted class numbers [samples]."""
    hits = np.bincount(true[true == predicted], minlength=classes)
    both = np.bincount(true, minlength=classes) + np.bincount(predicted, minlength=classes)
    # A class that a bootstrap sample does not contain has no score in it.
    return float((2 * hits[both > 0] / both[both > 0]).mean())


def most_confused(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of classes that are confused most often.

    Args:
        matrix: samples by true and predicted class [classes, classes].
        names: of the classes.
    """
    wrong = matrix - np.diag(matrix.diagonal())
    most = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS_NAMED]
    return [
        dict(zip(CONFUSED, (names[true], names[predicted], int(wrong[true, predicted])), strict=True))
        for true, predicted in zip(*np.unravel_index(most, wrong.shape), strict=True)
        if wrong[true, predicted]
    ]


def balanced_class_weights(labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Weights with which every class counts as much as any other, float32 [classes].

    A class with `count` of the `samples` weighs samples / (present classes * count), as scikit-learn's "balanced"
    does, so the mean over the samples is 1. A class that training lacks weighs 1: no sample has it, and what label
    smoothing spreads to it counts as for an average class.

    Reference: King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001,
    https://doi.org/10.1093/oxfordjournals.pan.a004868.

    Args:
        labels: class numbers [samples] of the training samples that count.
        classes: how many classes the model tells apart.
    """
    import torch
    from sklearn.utils import compute_class_weight

    weights, present = np.ones(classes), np.unique(labels)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return torch.from_numpy(weights).float()
