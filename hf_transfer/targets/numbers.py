"""One or several numbers for each sample: squared error of standardised values, ridge regression, residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from hf_transfer.errors import user_error
from hf_transfer.targets import reporting, target
from hf_transfer.targets.cells import Cells, known_cells
from hf_transfer.targets.number_metrics import (
    interval_coverage,
    interval_half_widths,
    number_intervals,
    number_metrics,
    number_rows,
)

if TYPE_CHECKING:
    import datasets
    import torch
    from scipy.sparse import csr_array
    from torch import Tensor, nn

Floats = npt.NDArray[np.float64]
COVERAGE = 0.9
MOST_BINS, SAMPLES_OF_A_BIN = 10, 5
# For splits. An edge is a multiple of a power of two that is at most the spread of most values by so many steps.
MOST_RANGES, STEPS_OF_AN_EDGE = 4, 8
BOOTSTRAP = "bootstrap percentiles"
ROW_COLUMNS = ("output", "rmse", "mae", "r2", "pearson", "spearman", "samples")
ROW_TITLES = ("number", "RMSE", "MAE", "R2", "Pearson", "Spearman", "samples")


def _metric(
    name: str, title: str, hub: tuple[str, str, Mapping[str, Any]], *, lower_is_better: bool = False
) -> reporting.Metric:
    return reporting.Metric(name, title, lower_is_better, hub, interval=BOOTSTRAP)


@dataclass(frozen=True)
class Numbers(Cells):
    """One or several numbers for each sample, float64 [samples, outputs] in the user's units; NaN: not known.

    A model in training gives standardised numbers. Mean and scale are folded into its last layer when it is saved.

    Attributes:
        output_names: of the numbers.
        mean: of the training samples, by output.
        scale: their standard deviation, by output.
        in_units: whether the outputs of the model are in the user's units: the model is finished.
        half_widths: of the intervals of predictions, by output; empty: there are none.
        calibration_samples: from how many samples the intervals are.
    """

    problem_type: ClassVar[str] = "regression"
    metrics: ClassVar[tuple[reporting.Metric, ...]] = (
        _metric("rmse", "RMSE", ("mse", "Root mean squared error", {"squared": False}), lower_is_better=True),
        _metric("mae", "MAE", ("mae", "Mean absolute error", {}), lower_is_better=True),
        _metric("r2", "R2", ("r_squared", "R squared", {})),
        _metric("pearson", "Pearson", ("pearsonr", "Pearson correlation", {})),
        _metric("spearman", "Spearman", ("spearmanr", "Spearman correlation", {})),
    )
    main_metric: ClassVar[str] = "rmse"
    solver: ClassVar[str | None] = "ridge"
    supported_settings: ClassVar[frozenset[str]] = frozenset({"regression_loss", "mixup_alpha"})
    loss_setting: ClassVar[str | None] = "regression_loss"
    is_calibrated: ClassVar[bool] = True
    score_title: ClassVar[str] = "absolute error"
    scores_are_errors: ClassVar[bool] = True
    score_words: ClassVar[str] = "less absolute error"
    answered_as: ClassVar[str] = "values"
    outputs: ClassVar[str] = "numbers"
    divided_by: ClassVar[str] = "by range of values"
    tags: ClassVar[tuple[str, ...]] = ("regression",)
    picture_files: ClassVar[tuple[str, ...]] = ("residuals.png",)
    limits: ClassVar[tuple[str, ...]] = (
        f"Intervals of predictions cover about {COVERAGE:.0%} of samples like those of validation, on average, and not "
        "each kind of sample alike.",
    )

    output_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    in_units: bool = False
    half_widths: tuple[float, ...] = ()
    calibration_samples: int = 0

    @classmethod
    def recognises(cls, train: datasets.Dataset, columns: target.LabelColumns) -> str | None:
        """See `Target.recognises`: numbers with fractions, or several columns of numbers."""
        from hf_transfer.targets.number_columns import why_numbers

        return why_numbers(train, columns)

    @classmethod
    def read(
        cls, splits: Mapping[str, datasets.Dataset], columns: target.LabelColumns
    ) -> tuple[Self, dict[str, target.Values]]:
        """See `Target.read`."""
        from hf_transfer.targets.number_columns import read_numbers

        return cls(columns.outputs or columns.names), dict(read_numbers(splits, columns))

    @classmethod
    def of_model(cls, config: Any) -> Self:
        """See `Target.of_model`; a model of others has neither scale nor intervals."""
        names = target.names_of_outputs(config)
        scales = getattr(config, "label_scale", None) or {}
        interval = getattr(config, "prediction_interval", None) or {}
        return cls(
            names, tuple(scales.get("mean", ())), tuple(scales.get("scale", ())), in_units=True,
            half_widths=tuple(interval.get("half_widths", ())), calibration_samples=interval.get("samples", 0),
        )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """The names of the numbers."""
        return list(self.output_names)

    def check(self, values: Mapping[str, target.Values], *, splits_to_cut: int) -> None:
        """See `Target.check`: a constant, or too few samples."""
        self.refuse_few(values, splits_to_cut)
        self._refuse_constants(values["train"], "name another column, or add samples with other values")

    def _refuse_constants(self, train: target.Values, do: str) -> None:
        for name, column in zip(self.output_names, train.T, strict=True):
            different = np.unique(column[~np.isnan(column)])
            if len(different) < 2:
                raise user_error(
                    expected=f"different numbers in column '{name}', to tell samples apart",
                    found=f"{different[0]:g} in each training row" if len(different) else "no number in training",
                    do=do,
                )

    def notes(self, values: Mapping[str, target.Values]) -> list[str]:
        """Sentences on the range of the numbers, on those not known, and on ranges that a split lacks."""
        notes = []
        for place, name in enumerate(self.output_names):
            known = {split: numbers[~np.isnan(numbers[:, place]), place] for split, numbers in values.items()}
            where, train = next(((split, one) for split, one in known.items() if len(one)), ("", np.empty(0)))
            if not len(train):
                continue
            where = "training" if where == "train" else where
            notes.append(f"{name}: from {train.min():g} to {train.max():g} in {where}, mean {train.mean():.4g}.")
            unknown = [f"{len(values[split]) - len(one):,} in {split}" for split, one in known.items()
                       if len(one) < len(values[split])]  # fmt: skip
            notes += [f"{name} not known, which counts nowhere: {', '.join(unknown)}."] if unknown else []
            for split in (split for split in ("validation", "test") if split in known and "train" in known):
                notes += _ranges_lacking(name, train, known[split], split)
        return notes

    def data_settings(self) -> dict[str, Any]:
        """See `Target.data_settings`."""
        return {"problem_type": self.problem_type}

    def fitted(self, values: target.Values) -> Self:
        """The target with the mean and the standard deviation of the known training values.

        Raises:
            UserError: in a column these are not two different numbers, once splits were split off training.
        """
        self._refuse_constants(values, "add rows that have it, leave the column out, or name splits of your own")
        return replace(self, mean=tuple(np.nanmean(values, 0).tolist()), scale=tuple(np.nanstd(values, 0).tolist()))

    def for_head(self, *, has_bias: bool) -> Self:
        """Without a bias, into which the mean could be folded, values are scaled and not centred."""
        if has_bias:
            return self
        scale = np.sqrt(np.square(self.mean) + np.square(self.scale))
        return replace(self, mean=(0.0,) * len(self.output_names), scale=tuple(scale.tolist()))

    def strata(self, values: target.Values) -> target.Strata:
        """The quantile bin of each sample, by its number or by the mean of its standardised numbers."""
        score = _standard_score(values)
        bins = int(np.clip(len(values) // SAMPLES_OF_A_BIN, 1, MOST_BINS))
        edges = np.unique(np.quantile(score, np.arange(1, bins) / bins))
        return np.asarray(np.searchsorted(edges, score, side="right"), dtype=np.int64)

    def kinds(self, values: target.Values) -> csr_array:
        """The range of each sample, a quarter of the values: few, with round edges, as edges move with each sample."""
        score = values[:, 0] if values.shape[1] == 1 else _standard_score(values)
        bins = int(np.clip(len(values) // SAMPLES_OF_A_BIN, 1, MOST_RANGES))
        edges = np.quantile(score, np.arange(1, bins) / bins)
        spread = np.subtract(*np.quantile(score, [0.9, 0.1]))
        if spread > 0:
            step = 2.0 ** np.floor(np.log2(spread / STEPS_OF_AN_EDGE))
            edges = np.round(edges / step) * step
        return target.one_kind_each(np.searchsorted(np.unique(edges), score, side="right"))

    def describe(self) -> str:
        """See `Target.describe`."""
        count = len(self.output_names)
        return f"{'a number' if count == 1 else f'{count} numbers'} ({', '.join(self.output_names)})"

    def saved_settings(self) -> dict[str, Any]:
        """See `Target.saved_settings`."""
        scale = {"mean": list(self.mean), "scale": list(self.scale)}
        widths = list(self.half_widths)
        interval = {"coverage": COVERAGE, "half_widths": widths, "samples": self.calibration_samples}
        return ({"label_scale": scale} if self.scale else {}) | ({"prediction_interval": interval} if widths else {})

    def learned(self, targets: Tensor) -> Tensor:
        """Standardised numbers, float64."""
        return (targets.to(_precise(targets)) - self._mean(targets)) / self._scale(targets)

    def loss(self, outputs: Tensor, targets: Tensor, counted: Tensor, options: target.LossOptions) -> target.LossSums:
        """Squared error of the standardised numbers that are known, or Huber's loss, quadratic up to one deviation.

        Reference: Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 1964,
        https://doi.org/10.1214/aoms/1177703732.
        """
        from torch.nn.functional import huber_loss, mse_loss

        known = known_cells(targets, counted)
        truth = self.learned(targets).to(outputs.dtype).where(known, 0.0)
        values = self.learned(outputs).to(outputs.dtype) if self.in_units else outputs
        pointwise = huber_loss if options.kind == "huber" else mse_loss
        losses = pointwise(values, truth, reduction="none")
        return target.LossSums((losses * known).sum(), self.weight(targets, counted, options))

    def finish(self, layers: Sequence[nn.Linear]) -> None:
        """Fold mean and scale into the layers: from then on they give numbers in the user's units."""
        import torch

        with torch.no_grad():
            for layer in layers:
                scale, mean = self._scale(layer.weight), self._mean(layer.weight)
                layer.weight.copy_(layer.weight * scale[:, None])
                if layer.bias is not None:
                    layer.bias.copy_(layer.bias * scale + mean)

    def calibrated(self, outputs: Tensor, targets: target.Values) -> Self:
        """The target with intervals of predictions; see `interval_half_widths`."""
        half_widths = interval_half_widths(self.predicted(outputs), targets, COVERAGE)
        return replace(self, half_widths=tuple(half_widths or ()), calibration_samples=len(targets))

    def describe_calibration(self, samples: int) -> list[str]:
        """A sentence on the intervals."""
        if not self.half_widths:
            return [f"No intervals of predictions: {samples} held-out samples are too few."]
        widths = ", ".join(f"{name} +/- {width:.4g}" for name, width in zip(self.names, self.half_widths, strict=True))
        return [f"Intervals of predictions ({COVERAGE:.0%}), from {samples:,} samples that were held out: {widths}."]

    def constant(self, values: target.Values) -> target.Constant:
        """The mean of the training samples."""
        import torch

        mean = torch.from_numpy(np.nanmean(values, 0))
        return target.Constant("always the mean", mean[None], replace(self, in_units=True))

    def predicted(self, outputs: Tensor) -> target.Values:
        """Numbers in the user's units, float64 [samples, outputs]."""
        values = outputs.double()
        numbers: Floats = (values if self.in_units else values * self._scale(values) + self._mean(values)).numpy()
        return numbers

    def evaluate(self, outputs: Tensor, targets: target.Values, only: str | None = None) -> target.Metrics:
        """Errors and correlations in the user's units, and the mean squared error of standardised numbers."""
        metrics = number_metrics(self.predicted(outputs), targets, only)
        return {**metrics, "loss": self.mean_loss(outputs, targets)}

    def intervals(self, outputs: Tensor, targets: target.Values) -> dict[str, target.Interval]:
        """Bootstrap percentiles."""
        return number_intervals(self.predicted(outputs), targets)

    def sample_scores(self, outputs: Tensor, targets: target.Values) -> Floats:
        """The absolute error of each sample, negative: higher is better."""
        scores: Floats = -np.nanmean(np.abs(self.predicted(outputs) - targets), axis=1)
        return scores

    def details(self, outputs: Tensor, targets: target.Values) -> tuple[list[reporting.Table], list[reporting.Picture]]:
        """The metrics of each number, how many intervals cover the true number, and the residuals."""
        predicted = self.predicted(outputs)
        tables = []
        if len(self.output_names) > 1:
            rows = number_rows(self.names, predicted, targets)
            tables.append(reporting.Table("numbers", "Numbers (test)", ROW_COLUMNS, ROW_TITLES, rows))
        if self.half_widths:
            tables.append(self._coverage(predicted, targets))
        title = "Residuals of the test split against predictions"
        return tables, [reporting.Picture("residuals", "residuals.png", title, (predicted, targets, self.names))]

    def _coverage(self, predicted: Floats, targets: Floats) -> reporting.Table:
        widths, columns = self.half_widths, ("output", "half_width", "aim", "covered")
        rows = [
            {
                "output": name, "half_width": widths[place], "aim": COVERAGE,
                "covered": interval_coverage(predicted[:, [place]], targets[:, [place]], [widths[place]]),
            }
            for place, name in enumerate(self.output_names)
        ]  # fmt: skip
        title = f"Intervals of predictions, from {self.calibration_samples:,} held-out samples (test)"
        return reporting.Table(
            "prediction_intervals", title, columns, ("number", "+/-", "aim", "covered in test"), rows
        )

    def shown(self, value: Any) -> str:
        """The numbers."""
        return ", ".join(f"{number:.4g}" for number in value)

    def truth(self, value: Any) -> list[Any]:
        """See `Target.truth`: the numbers; None, where one is not known."""
        return [None if np.isnan(number) else float(number) for number in value]

    def answers(self, outputs: Tensor, top: int) -> list[list[tuple[str, float]]]:  # noqa: ARG002
        """The names of the numbers with their values, all of them."""
        return [list(zip(self.output_names, row, strict=True)) for row in self.predicted(outputs).tolist()]

    @property
    def answer_columns(self) -> list[str]:
        """Each number, and the ends of its interval if it has one."""
        ends = ("", " low", " high") if self.half_widths else ("",)
        return [f"{name}{end}" for name in self.output_names for end in ends]

    def answer_cells(self, answer: Sequence[tuple[str, float]], decisions: Mapping[str, Any]) -> list[str | float]:
        """See `Target.answer_cells`."""
        values, intervals = dict(answer), decisions.get("intervals", {})
        return [number for name in self.output_names for number in (values[name], *intervals.get(name, ()))]

    def decisions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The intervals of the numbers, if there are any."""
        if not self.half_widths:
            return super().decisions(outputs)
        return [
            {"intervals": {name: [value - width, value + width] for name, value, width in zip(
                self.output_names, row, self.half_widths, strict=True)}}
            for row in self.predicted(outputs).tolist()
        ]  # fmt: skip

    def _mean(self, like: Tensor) -> Tensor:
        return _constant(self.mean or (0.0,) * len(self.output_names), _precise(like), like.device)

    def _scale(self, like: Tensor) -> Tensor:
        return _constant(self.scale or (1.0,) * len(self.output_names), _precise(like), like.device)


def _standard_score(values: target.Values) -> Floats:
    """The mean of the standardised numbers of each sample that are known [samples]."""
    standard = (values - np.nanmean(values, 0)) / np.maximum(np.nanstd(values, 0), np.finfo(np.float64).tiny)
    score: Floats = np.nanmean(standard, 1)
    return score


@lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device; only the first time the host waits until they are there. They must not be changed."""
    import torch

    # Autograd refuses tensors from inference mode.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _precise(like: Tensor) -> torch.dtype:
    """Double precision, which Apple's GPUs do not have."""
    import torch

    return torch.float32 if like.device.type == "mps" else torch.float64


def _ranges_lacking(name: str, train: Floats, values: Floats, split: str) -> list[str]:
    """Sentences on values outside the range of training, and on quarters of training of which a split has none."""
    outside = int(((values < train.min()) | (values > train.max())).sum())
    notes = [f"{name}: {outside:,} in {split} are outside of the range of training."] if outside else []
    edges = np.quantile(train, [0, 0.25, 0.5, 0.75, 1])
    for low, high in pairwise(edges.tolist()):
        if low < high and not ((values >= low) & (values <= high)).any():
            notes.append(f"{name}: in {split} no value is between {low:g} and {high:g}, as a quarter of training is.")
    return notes
