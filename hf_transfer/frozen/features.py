"""Features on disk, and the best linear layer on them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_transfer.checkpoints.files import can_be_written, free_bytes
from hf_transfer.frozen.linear_classifier import Solution
from hf_transfer.frozen.recording import Compute, Part, Passes, fill, from_main_process, stores_of
from hf_transfer.frozen.solvers import Solver, SolverOptions
from hf_transfer.frozen.store import Column, Store
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Metrics, Target

# Regularisations are half a decade apart: the search ends when weakening by two decades has not improved validation.
# Weaker ones take the longest to solve, and overfit more.
PATIENCE = 4
NEIGHBOURS = (1, 5, 20)


@dataclass(frozen=True)
class Features:
    """Feature vectors on disk, of the training samples in all their views and of the validation samples.

    Attributes:
        train: a store of the samples as in evaluation, and one for each augmented view.
        validation: a store of the samples as in evaluation.
        target: what is predicted.
        columns: the columns of the stores that are concatenated to a feature vector.
    """

    train: Sequence[Store]
    validation: Store
    target: Target
    columns: tuple[int, ...] = (0,)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and targets of the training samples, without masked ones."""
        for store in self.train:
            yield from self._counted(store)

    def predictions(self, solution: Solution) -> Predictions:
        """The predictions of a solution on validation."""
        weight, bias = solution.weight, solution.bias
        blocks = list(self._counted(self.validation))
        outputs = [torch.addmm(bias, features.double(), weight.T) for features, _ in blocks]
        targets = torch.cat([targets for _, targets in blocks]).numpy()
        return Predictions(self.target, torch.cat(outputs), targets, np.arange(len(targets)))

    def nearest_neighbours(self) -> tuple[float, int]:
        """For classes: the accuracy on validation of a vote among nearest neighbours, and the best number of them.

        The distance is that of the cosine. Reference: Cover and Hart, "Nearest neighbor pattern classification", IEEE
        Transactions on Information Theory 1967, https://doi.org/10.1109/TIT.1967.1053964.
        """
        right = torch.zeros(len(NEIGHBOURS))
        total = 0
        for queries, labels in self._counted(self.validation):
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

    def _counted(self, store: Store) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and targets of a store, chunk by chunk, without masked samples."""
        for number in range(len(store.chunks)):
            *tensors, targets, counted = store.chunk(number)
            chosen = [tensors[column] for column in self.columns]
            features = chosen[0] if len(chosen) == 1 else torch.cat(chosen, 1)
            yield (features, targets) if bool(counted.all()) else (features[counted], targets[counted])


def best_solution(solver: Solver, features: Features, options: SolverOptions, *, intercept: bool) -> Solution:
    """The solution that is best on validation; weaker regularisations are tried until two decades bring no gain.

    Args:
        solver: of the head.
        features: of training and validation.
        options: what selects the regularisation, and what each class counts.
        intercept: whether the head has a bias.
    """
    outputs, ranking = len(features.target.names), options.ranking
    problem = solver(features.blocks, outputs, intercept=intercept, balanced=options.balanced)
    rows: list[Metrics] = []
    best = -1
    for solution in problem.path(rough=True):
        row = features.predictions(solution).metrics(ranking.metric)
        if ranking.is_better(row, rows, best):
            best, chosen = len(rows), solution
        rows.append(row)
        if len(rows) - best > PATIENCE:
            break
    return problem.sharpened(chosen)


@contextmanager
def features_of(
    compute: Compute, widths: Sequence[int], views: int, material: Mapping[str, Any], passes: Passes
) -> Iterator[Features]:
    """Features of training and validation, computed unless an earlier run has stored them.

    Args:
        compute: (model inputs) -> features, one tensor [samples, width] for each of `widths`.
        widths: the number of features in each tensor.
        views: augmented views of the training samples, beside the samples as in evaluation.
        material: what is computed, and with which weights.
        passes: the samples, and where features are stored; at the end features that are not to be kept are deleted.
    """
    # Features are small: by default they are not rounded to the precision of the computation.
    dtype = torch.float32 if passes.settings.cache_dtype == "auto" else passes.dtype
    columns = [Column((width,), dtype) for width in widths]
    parts: list[Part] = [*(("train", view) for view in (None, *range(views))), ("validation", None)]
    kept = stores_of(passes, parts, columns, material).values()
    with _with_room(passes, sum(store.bytes for store in kept if not store.complete)) as stored:
        stores = stores_of(stored, parts, columns, material)
        fill(stores, compute, stored)
        *train, validation = stores.values()
        yield Features(train, validation, passes.loaders.target)


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
