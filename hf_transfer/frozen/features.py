"""Features on disk, and the best linear layer on them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_transfer.checkpoints.files import can_be_written, free_bytes
from hf_transfer.frozen.recording import ComputeOf, Part, Passes, column_stores_of, fill, from_main_process
from hf_transfer.frozen.solvers import Solver, SolverOptions
from hf_transfer.frozen.standardised import Solution
from hf_transfer.frozen.store import Column
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Metrics, Target, Values

# Regularisations are half a decade apart: the search ends when weakening by two decades has not improved validation.
# Weaker ones take the longest to solve, and overfit more.
PATIENCE = 4
NEIGHBOURS = (1, 5, 20)


class Stored(Protocol):
    """Features, targets and masks of samples, chunk by chunk."""

    @property
    def samples(self) -> int:
        """How many there are."""

    @property
    def chunks(self) -> Sequence[range]:
        """The positions of the samples of each chunk."""

    def chunk(self, number: int) -> list[Tensor]:
        """The columns of a chunk, its targets, and which of its samples count."""


@dataclass(frozen=True)
class Features:
    """Feature vectors on disk, of the training samples in all their views and mostly of the validation samples.

    Attributes:
        train: stores of the samples as in evaluation, and of their copies: each augmented view, or with hidden parts.
        validation: stores of the samples as in evaluation; None: they are not needed.
        target: what is predicted.
        columns: the columns of the stores that are concatenated to a feature vector.
        names: of all columns of the stores, where they have names.
        normalised: whether each of several columns is scaled to unit length, so that none outweighs the others; one
            alone stays as it is.
        seconds: how long all of them took to compute; None: an earlier run has stored some.
    """

    train: Sequence[Stored]
    validation: Stored | None
    target: Target
    columns: tuple[int, ...] = (0,)
    names: tuple[str, ...] = ()
    normalised: bool = False
    seconds: float | None = None

    def of(self, *names: str) -> "Features":
        """The features of these columns alone, in this order."""
        return replace(self, columns=tuple(self.names.index(name) for name in names))

    def blocks(self, chosen: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of the training samples that count, and their targets as a model learns them, view by view.

        Args:
            chosen: only these of the samples that count, bool [samples]; None: all.
        """
        rows = self.counted if chosen is None else self.counted.masked_scatter(self.counted, chosen)
        for store in self.train:
            for features, targets in self._rows(store, rows):
                yield features, self.target.learned(targets)

    @cached_property
    def counted(self) -> Tensor:
        """Whether a training sample counts in each of its views [samples]."""
        return torch.stack([_counted(store) for store in self.train]).all(0)

    def predictions(self, solution: Solution) -> Predictions:
        """The predictions of a solution on validation."""
        blocks = list(self._validation_rows())
        outputs = torch.cat([_outputs(solution, features) for features, _ in blocks])
        targets = torch.cat([targets for _, targets in blocks]).numpy()
        return Predictions(self.target, outputs, targets, np.arange(len(targets)))

    def training_predictions(self, outputs: Tensor) -> Predictions:
        """Outputs for the training samples that count, as predictions [samples, outputs]."""
        return Predictions(self.target, outputs, self.targets, np.arange(len(outputs)))

    def training_outputs(self, solution: Solution, chosen: Tensor) -> Tensor:
        """The outputs of a solution for some of the training samples that count, as in evaluation.

        Args:
            solution: a linear layer.
            chosen: which samples, bool [samples].
        """
        rows = self.counted.masked_scatter(self.counted, chosen)
        return torch.cat([_outputs(solution, features) for features, _ in self._rows(self.train[0], rows)])

    @cached_property
    def targets(self) -> Values:
        """The targets of the training samples that count."""
        return torch.cat([targets for _, targets in self._rows(self.train[0], self.counted)]).numpy()

    @property
    def as_in_evaluation(self) -> "Features":
        """The same features, of each training sample only as it is in evaluation."""
        return replace(self, train=self.train[:1])

    @property
    def validation_samples(self) -> int:
        """How many validation samples there are, also those that do not count; 0 if they are not needed."""
        return 0 if self.validation is None else self.validation.samples

    @property
    def samples(self) -> int:
        """How many training samples count."""
        return int(self.counted.sum())

    def nearest_neighbours(self) -> tuple[float, int]:
        """For classes: the accuracy on validation of a vote among nearest neighbours, and the best number of them.

        The distance is that of the cosine. Reference: Cover and Hart, "Nearest neighbor pattern classification", IEEE
        Transactions on Information Theory 1967, https://doi.org/10.1109/TIT.1967.1053964.
        """
        right = torch.zeros(len(NEIGHBOURS))
        total = 0
        for queries, labels in self._validation_rows():
            nearest, votes = torch.empty(len(labels), 0), torch.empty(len(labels), 0, dtype=torch.int64)
            for features, classes in self.blocks():
                similar = normalize(queries.float()) @ normalize(features.float()).T
                nearest = torch.cat([nearest, similar], 1)
                votes = torch.cat([votes, classes.expand(len(labels), -1)], 1)
                nearest, places = nearest.topk(min(max(NEIGHBOURS), nearest.shape[1]), dim=1)
                votes = votes.gather(1, places)
            for place, count in enumerate(NEIGHBOURS):
                right[place] += (votes[:, :count].mode(1).values == labels).sum()
            total += len(labels)
        best = int(right.argmax())
        return float(right[best]) / total, NEIGHBOURS[best]

    def _validation_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.validation is not None, "features of training alone"
        return self._rows(self.validation, _counted(self.validation))

    def _rows(self, store: Stored, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and targets of some samples of a store, chunk by chunk; which ones: bool [samples]."""
        for number, positions in enumerate(store.chunks):
            *tensors, targets, _ = store.chunk(number)
            features = self._joined([tensors[column] for column in self.columns])
            some = rows[positions.start : positions.stop]
            yield (features, targets) if bool(some.all()) else (features[some], targets[some])

    def _joined(self, columns: Sequence[Tensor]) -> Tensor:
        if len(columns) == 1:
            return columns[0]
        return torch.cat([normalize(one.float()) for one in columns] if self.normalised else list(columns), 1)


def _counted(store: Stored) -> Tensor:
    """Whether a sample of a store counts [samples]."""
    return torch.cat([store.chunk(number)[-1] for number in range(len(store.chunks))])


def _outputs(solution: Solution, features: Tensor) -> Tensor:
    return torch.addmm(solution.bias, features.double(), solution.weight.T)


def best_solution(
    solver: Solver, features: Features, options: SolverOptions, *, intercept: bool, are_alone: bool = True
) -> Solution:
    """The best solution; weaker regularisations are tried until two decades bring no gain.

    A solution is judged on validation or, where the solver has computed them, by its outputs for training samples that
    were left out: there are more of these, and validation then judges a head that it has not selected. But a sample
    whose copies were not left out with it says too much for weak regularisations.

    Args:
        solver: of the head.
        features: of training and validation.
        options: what selects the regularisation, and what each class counts.
        intercept: whether the head has a bias.
        are_alone: whether no training samples belong together.
    """
    outputs, ranking, copies = len(features.target.names), options.ranking, len(features.train)
    problem = solver(features.blocks, outputs, intercept=intercept, balanced=options.balanced, copies=copies)
    rows: list[Metrics] = []
    best = -1
    for solution in problem.path(rough=True):
        held_out = solution.held_out if are_alone else None
        judged = features.predictions(solution) if held_out is None else features.training_predictions(held_out)
        row = judged.metrics(ranking.metric)
        if ranking.is_better(row, rows, best):
            best, chosen = len(rows), solution
        rows.append(row)
        if len(rows) - best > PATIENCE:
            break
    return problem.sharpened(chosen)


def store_columns(widths: Sequence[int], passes: Passes) -> list[Column]:
    """The columns of a store of features, of so many numbers each."""
    # Features are small: by default they are not rounded to the precision of the computation.
    return [Column((width,), passes.dtype or torch.float32) for width in widths]


@contextmanager
def features_of(
    compute_of: ComputeOf, widths: Sequence[int], views: int, materials: Sequence[Mapping[str, Any]], passes: Passes,
    *, of_validation: bool = True,
) -> Iterator[Features]:  # fmt: skip
    """Features of training and validation, computed unless an earlier run has stored them, with these or other columns.

    Args:
        compute_of: positions of columns -> (model inputs) -> their features, tensors [samples, width], one for each.
        widths: the number of features in each column.
        views: augmented views of the training samples, beside the samples as in evaluation.
        materials: what each column is, and with which weights it is computed.
        passes: the samples, and where features are stored; at the end features that are not to be kept are deleted.
        of_validation: whether features of validation are needed, too.
    """
    columns = store_columns(widths, passes)
    train: list[Part] = [("train", view) for view in (None, *range(views))]
    validation: Part = ("validation", None)
    parts = [*train, validation] if of_validation else train
    kept = column_stores_of(passes, parts, columns, materials)
    with _with_room(passes, sum(stores.missing_bytes for stores in kept.values())) as with_room:
        stored = kept if with_room is passes else column_stores_of(with_room, parts, columns, materials)
        was_begun = any(stores.was_begun for stores in stored.values())
        seconds = fill(stored, compute_of, with_room)
        yield Features(
            [stored[part] for part in train], stored.get(validation), passes.loaders.target,
            seconds=None if was_begun else seconds,
        )  # fmt: skip


@contextmanager
def _with_room(passes: Passes, needed: int) -> Iterator[Passes]:
    """The same, with a temporary folder of stores if features are not to be kept, or if there is no room for them."""
    wanted, kept, accelerator = passes.settings.cache_frozen, passes.folder, passes.accelerator
    if wanted == "on" or from_main_process(
        accelerator, lambda: wanted == "auto" and can_be_written(kept) and needed < free_bytes(kept)
    ):
        yield passes
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = from_main_process(accelerator, lambda: temporary)
        yield replace(passes, settings=replace(passes.settings, cache_dir=folder))
        # Other processes may still be reading.
        accelerator.wait_for_everyone()
