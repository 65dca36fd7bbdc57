"""Features on disk, and what is solved on them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from hf_transfer.config import RunConfig
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.inputs import MASKED, Loaders
from hf_transfer.training.linear_classifier import LinearProblem, Solution
from hf_transfer.training.predictions import Metrics, Predictions, is_better
from hf_transfer.training.recording import Compute, fill, store_of, stored_dtype
from hf_transfer.training.store import Column, Store, can_be_written, free_bytes

# Two decades without a gain on validation: what is weaker still takes longest, and would only overfit more.
PATIENCE = 4
NEIGHBOURS = (1, 5, 20)


@dataclass(frozen=True)
class Features:
    """Vectors of all samples, on disk: of training samples as they are and in their views, and of validation.

    Attributes:
        train: a store for the samples as they are, and one for each view.
        validation: as they are.
        columns: which of the stores' columns, side by side, are the features.
    """

    train: Sequence[Store]
    validation: Store
    columns: tuple[int, ...] = (0,)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of the training samples, without masked ones."""
        for store in self.train:
            yield from self._counted(store)

    @property
    def samples(self) -> int:
        """How many training samples there are, all views counted."""
        return sum(len(labels) for _, labels in self.blocks())

    def judged(self, solution: Solution) -> Predictions:
        """What a solution says of validation."""
        weight, bias = solution.weight, solution.bias
        held_out = list(self._counted(self.validation))
        scores = [torch.addmm(bias, features.double(), weight.T) for features, _ in held_out]
        labels = torch.cat([labels for _, labels in held_out]).numpy()
        return Predictions(torch.cat(scores), labels, labels, masked=0)

    def nearest_neighbours(self) -> tuple[float, int]:
        """Accuracy on validation of a vote among the most alike training samples, and among how many.

        Alike by the cosine. Reference: Cover and Hart, "Nearest neighbor pattern classification", IEEE Transactions on
        Information Theory 1967, https://doi.org/10.1109/TIT.1967.1053964.
        """
        right = torch.zeros(len(NEIGHBOURS))
        total = 0
        for queries, labels in self._counted(self.validation):
            likeness, votes = torch.empty(len(labels), 0), torch.empty(len(labels), 0, dtype=torch.int64)
            for features, known in self.blocks():
                found = _unit(queries) @ _unit(features).T
                likeness = torch.cat([likeness, found], 1)
                votes = torch.cat([votes, known.expand(len(labels), -1)], 1)
                likeness, places = likeness.topk(min(max(NEIGHBOURS), likeness.shape[1]), dim=1)
                votes = votes.gather(1, places)
            for number, count in enumerate(NEIGHBOURS):
                right[number] += (votes[:, :count].mode(1).values == labels).sum()
            total += len(labels)
        best = int(right.argmax())
        return float(right[best]) / total, NEIGHBOURS[best]

    def _counted(self, store: Store) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(store.chunks)):
            tensors, labels = store.chunk(number)
            chosen = [tensors[column] for column in self.columns]
            features = chosen[0] if len(chosen) == 1 else torch.cat(chosen, 1)
            counts = labels != MASKED
            yield (features, labels) if bool(counts.all()) else (features[counts], labels[counts])


def best_solution(problem: LinearProblem, features: Features, metric: str) -> tuple[Solution, Metrics]:
    """The solution with which validation goes best, until two decades of regularisation have brought no gain."""
    rows: list[Metrics] = []
    best = -1
    for solution in problem.path(rough=True):
        row = features.judged(solution).only(metric)
        if is_better(row, rows, best, metric):
            best, chosen = len(rows), solution
        rows.append(row)
        if len(rows) - best > PATIENCE:
            break
    sharp = problem.sharpened(chosen)
    return sharp, features.judged(sharp).only(metric)


@contextmanager
def features_of(
    compute: Compute, widths: Sequence[int], views: int, material: Mapping[str, Any], loaders: Loaders,
    accelerator: Accelerator, config: RunConfig,
) -> Iterator[Features]:  # fmt: skip
    """Features of training and validation, computed if no earlier run has left them.

    Args:
        compute: (model inputs) -> features, one tensor [samples, width] for each of `widths`.
        widths: how many features each of them has.
        views: augmented views of the training samples, beside the samples as they are.
        material: what is computed, and with which weights.
        loaders: batches of training and validation.
        accelerator: the processes that share the work.
        config: where features are kept; those of one run alone are gone at the end.
    """
    # They are few: no need to round them to the precision of the computation.
    dtype = torch.float32 if config.cache_dtype == "auto" else stored_dtype(config)
    columns = [Column((width,), dtype) for width in widths]
    parts: list[tuple[str, int | None]] = [("train", view) for view in (None, *range(views))]
    parts.append(("validation", None))
    kept = [store_of(loaders, config, split, view, columns, material) for split, view in parts]
    with _folder(config, accelerator, sum(store.bytes for store in kept if not store.complete)) as folder:
        stores = [store_of(loaders, config, split, view, columns, material, folder) for split, view in parts]
        for store, (split, view) in zip(stores, parts, strict=True):
            fill(store, compute, loaders, split, view, accelerator, config.per_device_eval_batch_size)
        yield Features(stores[:-1], stores[-1])


@contextmanager
def _folder(config: RunConfig, accelerator: Accelerator, needed: int) -> Iterator[Path]:
    """Where features are kept: for this run alone, if none are to be kept or none can be."""
    kept = cache_folder(config.cache_dir) / "frozen"
    usable = [config.cache_frozen == "auto" and can_be_written(kept) and needed < free_bytes(kept)]
    broadcast_object_list(usable)
    if config.cache_frozen == "on" or usable[0]:
        yield kept
        return
    with tempfile.TemporaryDirectory() as own:
        (folder,) = broadcast_object_list([own])
        yield Path(folder)
        # The others may still be reading.
        accelerator.wait_for_everyone()


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=1)
