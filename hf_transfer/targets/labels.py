"""Several labels for each sample, or none: cells of 0 and 1, binary cross-entropy, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from hf_transfer.errors import user_error
from hf_transfer.targets import reporting, target
from hf_transfer.targets.cells import Cells, known_cells
from hf_transfer.targets.class_names import notes_on_lacking, notes_on_similar_names, shown_names
from hf_transfer.targets.label_columns import SEPARATORS
from hf_transfer.targets.label_metrics import label_intervals, label_metrics, label_rows, sample_f1
from hf_transfer.targets.label_weights import positive_weights
from hf_transfer.targets.thresholds import choose_thresholds

if TYPE_CHECKING:
    import datasets
    from scipy.sparse import csr_array
    from torch import Tensor, nn

Floats = npt.NDArray[np.float64]
DEFAULT_THRESHOLD = 0.5
ASYMMETRIC = "asymmetric"
# Negatives with a lower probability than this margin have no asymmetric loss; others by the power of their probability.
MARGIN, NEGATIVE_POWER = 0.05, 4
BOOTSTRAP = "bootstrap percentiles"
ROW_COLUMNS = ("label", "average_precision", "precision", "recall", "f1", "threshold", "samples")
ROW_TITLES = ("label", "average precision", "precision", "recall", "F1", "threshold", "samples")


def _share(name: str, title: str, hub: tuple[str, str, Mapping[str, Any]] | None = None) -> reporting.Metric:
    return reporting.Metric(name, title, hub=hub, is_share=True, interval=BOOTSTRAP)


@dataclass(frozen=True)
class LabelSets(Cells):
    """A set of labels for each sample, float32 [samples, labels]: 1, 0, or NaN where it is not known.

    Attributes:
        label_names: by label number.
        separator: joins the names of several labels in tables.
        thresholds: a label is chosen if its probability is at least this; empty: one half for each.
    """

    problem_type: ClassVar[str] = "multi_label_classification"
    metrics: ClassVar[tuple[reporting.Metric, ...]] = (
        _share("map", "mAP", ("average_precision", "Mean average precision", {"average": "macro"})),
        _share("f1_micro", "micro F1", ("f1", "Micro F1", {"average": "micro"})),
        _share("f1_macro", "macro F1", ("f1", "Macro F1", {"average": "macro"})),
        _share("f1_samples", "F1 per sample", ("f1", "F1 per sample", {"average": "samples"})),
        _share("subset_accuracy", "subset accuracy", ("accuracy", "Subset accuracy", {})),
    )
    main_metric: ClassVar[str] = "map"
    activation: ClassVar[str] = "sigmoid"
    solver: ClassVar[str | None] = "one-vs-rest logistic"
    supported_settings: ClassVar[frozenset[str]] = target.OPTIONAL_SETTINGS - {"rdrop_alpha", "regression_loss"}
    loss_setting: ClassVar[str | None] = "multi_label_loss"
    is_calibrated: ClassVar[bool] = True
    score_title: ClassVar[str] = "F1 per sample"
    score_words: ClassVar[str] = "points of F1 per sample"
    outputs: ClassVar[str] = "labels"
    divided_by: ClassVar[str] = "by label"
    tags: ClassVar[tuple[str, ...]] = ("multi-label",)
    limits: ClassVar[tuple[str, ...]] = (
        "A plain pipeline applies no thresholds: it gives the probability of every label. The thresholds are in the "
        "model's config.json.",
    )

    label_names: tuple[str, ...]
    separator: str = SEPARATORS[0]
    thresholds: tuple[float, ...] = ()

    @classmethod
    def recognises(cls, train: datasets.Dataset, columns: target.LabelColumns) -> str | None:
        """See `Target.recognises`: lists, texts joined by a separator, or columns of 0 and 1."""
        from hf_transfer.targets.label_sets import why_label_sets

        return why_label_sets(train, columns)

    @classmethod
    def read(
        cls, splits: Mapping[str, datasets.Dataset], columns: target.LabelColumns
    ) -> tuple[Self, dict[str, target.Values]]:
        """See `Target.read`."""
        from hf_transfer.targets.label_sets import read_label_sets

        names, separator, cells = read_label_sets(splits, columns)
        return cls(tuple(names), separator), dict(cells)

    @classmethod
    def missing(cls, rows: datasets.Dataset, columns: target.LabelColumns) -> npt.NDArray[np.bool_]:
        """See `Target.missing`; an empty text says that a sample has no label."""
        from hf_transfer.targets.label_sets import missing_sets

        return missing_sets(rows, columns)

    @classmethod
    def of_model(cls, config: Any) -> Self:
        """See `Target.of_model`; a model of others has no thresholds."""
        names = target.names_of_outputs(config)
        separator = getattr(config, "label_separator", None) or SEPARATORS[0]
        return cls(names, str(separator), tuple(map(float, getattr(config, "thresholds", None) or ())))

    @property
    def names(self) -> list[str]:
        """The label names."""
        return list(self.label_names)

    def check(self, values: Mapping[str, target.Values], *, splits_to_cut: int) -> None:
        """See `Target.check`: a single label, too few samples, or labels that all samples have alike."""
        counts = np.nansum(values["train"], axis=0)
        if len(self.label_names) < 2:
            raise user_error(
                expected="at least 2 labels, each of which a sample may have or not",
                found=f"only {', '.join(self.names) or 'samples without any'}",
                do="for one class of several: --problem_type single_label_classification; or name other columns",
            )
        self.refuse_few(values, splits_to_cut)
        known = (~np.isnan(values["train"])).sum(0)
        if not ((counts > 0) & (counts < known)).any():
            raise user_error(
                expected="a label that some samples have and others have not",
                found=f"labels that {'all' if counts.any() else 'no'} training samples have",
                do="add samples, or name another column",
            )

    def notes(self, values: Mapping[str, target.Values]) -> list[str]:
        """Sentences on samples without labels, cells that are not known, and labels that a split lacks."""
        counts = sum((np.nansum(cells, 0) for cells in values.values()), start=np.zeros(len(self.label_names)))
        samples = {name: int(count) for name, count in zip(self.label_names, counts, strict=True)}
        notes = notes_on_similar_names(samples, self.outputs)
        empty = {split: int((np.nansum(cells, 1) == 0).sum()) for split, cells in values.items()}
        unknown = {split: int(np.isnan(cells).sum()) for split, cells in values.items()}
        for what, counts in (("Samples without any label", empty), ("Labels not known, which count nowhere", unknown)):
            parts = [f"{count:,} in {split}" for split, count in counts.items() if count]
            notes += [f"{what}: {', '.join(parts)}."] if parts else []
        lacking = {
            split: [self.label_names[label] for label in np.flatnonzero(np.nansum(cells, 0) == 0)]
            for split, cells in values.items()
        }
        return [*notes, *notes_on_lacking(lacking, "label", "labels")]

    def describe_names(self, source: str) -> list[str]:
        """See `Target.describe_names`."""
        return [f"Labels: {shown_names(self.names)} ({source})."]

    def data_settings(self) -> dict[str, Any]:
        """See `Target.data_settings`."""
        return {"problem_type": self.problem_type, "label_separator": self.separator}

    def strata(self, values: target.Values) -> target.Strata:
        """The number of the rarest label of each sample; one more than the last for a sample without labels."""
        has_label = values == 1
        counts = np.where(has_label, has_label.sum(0), np.iinfo(np.int64).max)
        return np.asarray(np.where(has_label.any(1), counts.argmin(1), values.shape[1]), dtype=np.int64)

    def kinds(self, values: target.Values) -> csr_array:
        """The labels of each sample; a kind of their own for samples without labels."""
        from scipy.sparse import csr_array

        has_label = values == 1
        return csr_array(np.column_stack([has_label, ~has_label.any(1)]).astype(np.int64))

    def few(self, values: target.Values, limit: int, generator: np.random.Generator) -> target.Positions:
        """Positions of a few samples of each label: see `few_of_each_label`."""
        from hf_transfer.targets.stratification import few_of_each_label

        return few_of_each_label(values, limit, generator)

    def describe(self) -> str:
        """See `Target.describe`."""
        return f"{len(self.label_names)} labels"

    def saved_settings(self) -> dict[str, Any]:
        """See `Target.saved_settings`."""
        thresholds = {"thresholds": list(self.thresholds)} if self.thresholds else {}
        return {"label_separator": self.separator, **thresholds}

    def loss_weights(self, values: target.Values, balanced: bool) -> Tensor | None:
        """What a positive of each label counts beside a negative, float32 [labels]; None, if it is not asked for."""
        import torch

        return torch.from_numpy(positive_weights(values)).float() if balanced else None

    def start(self, layers: Sequence[nn.Linear], values: target.Values) -> None:
        """Start with the share of each label as its probability: else the first steps only learn that most are rare.

        Reference: Lin, Goyal, Girshick, He and Dollar, "Focal Loss for Dense Object Detection", ICCV 2017,
        https://arxiv.org/abs/1708.02002 (section 4.1).
        """
        import torch

        with torch.no_grad():
            for layer in layers:
                if layer.bias is not None:
                    layer.bias.copy_(_shares(values).logit())

    def loss(self, outputs: Tensor, targets: Tensor, counted: Tensor, options: target.LossOptions) -> target.LossSums:
        """Binary cross-entropy over the known cells, or the asymmetric loss.

        Reference: Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter and Zelnik-Manor, "Asymmetric Loss For Multi-Label
        Classification", ICCV 2021, https://arxiv.org/abs/2009.14119.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        known = known_cells(targets, counted)
        truth = targets.to(outputs.dtype).where(known, 0.0)
        truth = truth * (1 - options.smoothing) + options.smoothing / 2
        weights = None if options.weights is None else options.weights.to(outputs)
        if options.kind == ASYMMETRIC:
            losses = _asymmetric_loss(outputs, truth, weights)
        else:
            losses = binary_cross_entropy_with_logits(outputs, truth, pos_weight=weights, reduction="none")
        return target.LossSums((losses * known).sum(), self.weight(targets, counted, options))

    def calibrated(self, outputs: Tensor, targets: target.Values) -> Self:
        """The target with thresholds; see `choose_thresholds`."""
        return replace(self, thresholds=tuple(choose_thresholds(_probabilities(outputs), targets).tolist()))

    def describe_calibration(self, samples: int) -> list[str]:
        """A sentence on the thresholds."""
        low, high = min(self.thresholds), max(self.thresholds)
        return [
            f"Thresholds of labels: from {low:.2f} to {high:.2f}, chosen for F1 on {samples:,} samples that were held "
            "out. During training, F1 is that of a threshold of one half."
        ]

    def constant(self, values: target.Values) -> target.Constant:
        """For each label what most samples have; the shares of the labels in training are the probabilities."""
        outputs = _shares(values).logit()
        return target.Constant("always the majority of each label", outputs[None], replace(self, thresholds=()))

    def predicted(self, outputs: Tensor) -> target.Values:
        """1 for each label that is chosen, else 0, int64 [samples, labels]."""
        return self._chosen(_probabilities(outputs)).astype(np.int64)

    def evaluate(self, outputs: Tensor, targets: target.Values, only: str | None = None) -> target.Metrics:
        """Ranking and choice of labels, and the mean binary cross-entropy of the known cells."""
        probabilities = _probabilities(outputs)
        # In training there are no thresholds yet.
        metrics = label_metrics(outputs.double().numpy(), self._chosen(probabilities), targets, only)
        return {**metrics, "loss": self.mean_loss(outputs, targets)}

    def intervals(self, outputs: Tensor, targets: target.Values) -> dict[str, target.Interval]:
        """Bootstrap percentiles."""
        return label_intervals(outputs.double().numpy(), self._chosen(_probabilities(outputs)), targets)

    def sample_scores(self, outputs: Tensor, targets: target.Values) -> Floats:
        """F1 of the labels of each sample; 1, if none is chosen for a sample without labels."""
        return np.nan_to_num(sample_f1(self._chosen(_probabilities(outputs)), targets))

    def details(self, outputs: Tensor, targets: target.Values) -> tuple[list[reporting.Table], list[reporting.Picture]]:
        """Average precision, precision, recall, F1 and threshold of each label."""
        probabilities = _probabilities(outputs)
        rows = label_rows(self.names, outputs.double().numpy(), self._chosen(probabilities), targets, self._limits())
        return [reporting.Table("label_scores", "Labels (test)", ROW_COLUMNS, ROW_TITLES, rows)], []

    def labelled_answers(self, outputs: Tensor, columns: target.LabelColumns) -> list[dict[str, Any]]:
        """The labels that are chosen: joined, or as 1 and 0 in a column for each, as the data have them."""
        from hf_transfer.targets.label_sets import are_flags

        if not are_flags(columns):
            return [{columns.only: self.separator.join(self.truth(row))} for row in self.predicted(outputs)]
        return [dict(zip(self.label_names, row, strict=True)) for row in self.predicted(outputs).tolist()]

    def shown(self, value: Any) -> str:
        """The names of the labels."""
        return f"{self.separator} ".join(self.truth(value)) or "no label"

    def truth(self, value: Any) -> list[Any]:
        """See `Target.truth`: the names of the labels."""
        return [self.label_names[label] for label in np.flatnonzero(np.asarray(value) == 1)]

    def answers(self, outputs: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """Label names with their probabilities, most probable first."""
        best = outputs.float().sigmoid().topk(min(top, outputs.shape[-1]))
        return [
            [(self.label_names[number], share) for number, share in zip(numbers, shares, strict=True)]
            for shares, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    @property
    def answer_columns(self) -> list[str]:
        """See `Target.answer_columns`."""
        return ["labels", "probabilities"]

    def answer_cells(self, answer: Sequence[tuple[str, float]], decisions: Mapping[str, Any]) -> list[str | float]:
        """The chosen labels and their probabilities, joined by the separator."""
        shares = dict(answer)
        chosen = decisions["labels"]
        return [self.separator.join(chosen), self.separator.join(f"{shares[name]:.4f}" for name in chosen)]

    def decisions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The labels that are chosen, by their thresholds."""
        return [{"labels": self.truth(row)} for row in self.predicted(outputs)]

    def _limits(self) -> Floats:
        return np.asarray(self.thresholds or [DEFAULT_THRESHOLD] * len(self.label_names))

    def _chosen(self, probabilities: Floats) -> npt.NDArray[np.bool_]:
        chosen: npt.NDArray[np.bool_] = probabilities >= self._limits()
        return chosen


def _shares(values: target.Values) -> Tensor:
    """The share of each label among the samples of which it is known, float64 [labels]; neither 0 nor 1."""
    import torch

    known = (~np.isnan(values)).sum(0)
    return torch.from_numpy((np.nansum(values, 0) + 0.5) / (known + 1))


def _probabilities(outputs: Tensor) -> Floats:
    probabilities: Floats = outputs.double().sigmoid().numpy()
    return probabilities


def _asymmetric_loss(outputs: Tensor, truth: Tensor, weights: Tensor | None) -> Tensor:
    """Losses of cells: of positives their cross-entropy, of negatives that of shifted probabilities, focused."""
    import torch

    shifted = (outputs.sigmoid() - MARGIN).clamp(min=0)
    positives = -torch.nn.functional.logsigmoid(outputs) * (1 if weights is None else weights)
    negatives = -(shifted**NEGATIVE_POWER) * torch.log1p(-shifted.clamp(max=1 - torch.finfo(outputs.dtype).eps))
    return truth * positives + (1 - truth) * negatives
