"""Batches: the order of samples, their masks, and how a batch becomes a model's arguments."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hf_transfer.data.folds import Folds, NoFoldsError, folds_of
from hf_transfer.data.groups import Units, each_row_alone
from hf_transfer.data.splits import UNLABELLED, Split, part_of
from hf_transfer.data.transfers import to_device
from hf_transfer.data.workers import end_workers, end_workers_at_exit
from hf_transfer.interruption import ignore_signals
from hf_transfer.settings.training import TrainingSettings
from hf_transfer.targets.target import Target

Batch = dict[str, Tensor]
# What each sample of a batch has beside its inputs.
LABELS = ("target", "counted", "index")


class LabelledInputs(NamedTuple):
    """A batch on the device of the model.

    Attributes:
        inputs: keyword arguments of the model.
        targets: what is to be predicted [batch, ...].
        counted: bool [batch], False for masked samples: they do not count.
        rows: row numbers [batch]; on the CPU, where reading one does not wait for a GPU.
    """

    inputs: Batch
    targets: Tensor
    counted: Tensor
    rows: Tensor


class InputMaker(ABC):
    """Makes model inputs of batches, on the device, augmented in training; a modality has its own.

    A sample that cannot be decoded raises `UserError`, or is masked.
    """

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:  # noqa: ARG002
        """Model inputs of a batch: here the batch as it is, moved to the device.

        Args:
            batch: on the CPU.
            device: of the model.
            split: train, validation or test.
            epoch: augment the samples as in this epoch; None: as in evaluation.
        """
        moved = {name: to_device(_for_device(part, device), device) for name, part in batch.items() if name != "index"}
        targets, counted = moved.pop("target"), moved.pop("counted")
        return LabelledInputs(moved, targets, counted, batch["index"])

    @abstractmethod
    def fingerprint(self, split: str, epoch: int | None) -> str:
        """A hash of everything that the inputs and targets of a split depend on, except for versions of packages.

        Stores and checkpoints record the versions beside it: a run may resume with other versions if that is allowed.
        """

    def part_fingerprint(self, split: str, epoch: int | None, part: str) -> str:  # noqa: ARG002
        """The same for what one part of the samples, such as their images, becomes; here the samples are one part."""
        return self.fingerprint(split, epoch)


@dataclass(frozen=True)
class Loaders:
    """Batches of all splits, divided among the processes, and how a batch becomes a model's arguments.

    Attributes:
        target: what is predicted.
        train: the data loader of the training split, shuffled by (seed, epoch); `train.set_epoch` chooses the epoch.
        validation: the data loader of the validation split, in a fixed order.
        test: the data loader of the test split, in a fixed order. Of a split that does not exist, the loader is None.
        to_inputs: makes model inputs of batches.
        views: augmented views that a solved head sees of a training sample, beside the sample as it is.
        cycle: after this many epochs a training sample looks as before; 0: never.
        notes: what happened to the samples on the way, in sentences.
        without_first_layers: makes the same loaders without the work that only the first layers need: inputs have the
            right shape, but pixels are all zero. None: there is no such work.
        resumed: data loaders of the rest of an epoch, as long as they are in use.
        unlabelled: the data loader of samples without labels, in a fixed order; None: there are none.
        units_of: which rows of training belong together; None: each is alone.
        fold_seed: of folds.
        tokens_at_once: tokens, with padding, that go through the model at once in evaluation; a batch that has more
            goes in parts (see `in_parts`). None: each batch goes as a whole.
    """

    target: Target
    train: Any
    validation: Any
    test: Any
    to_inputs: InputMaker
    views: int = 0
    cycle: int = 1
    notes: tuple[str, ...] = ()
    without_first_layers: "Callable[[], Loaders] | None" = None
    resumed: "WeakSet[Any]" = field(default_factory=WeakSet)
    unlabelled: Any = None
    units_of: Callable[[Split], Units] | None = None
    fold_seed: int = 0
    tokens_at_once: int | None = None

    def of(self, split: str) -> Any:
        """The data loader of a split."""
        return self._by_split()[split]

    def _by_split(self) -> dict[str, Any]:
        return {"train": self.train, "validation": self.validation, "test": self.test, UNLABELLED: self.unlabelled}

    def fingerprint(self, split: str, epoch: int | None, part: str = "") -> str:
        """See `InputMaker.fingerprint`, and `InputMaker.part_fingerprint` where a part is named."""
        if part:
            return self.to_inputs.part_fingerprint(split, epoch, part)
        return self.to_inputs.fingerprint(split, epoch)

    def folds(self, counted: npt.NDArray[np.bool_], count: int) -> Folds | None:
        """Folds of the training samples that count, which keep together what belongs together.

        Args:
            counted: which samples count [samples].
            count: of the folds; there are fewer if there are fewer units.

        Returns:
            The folds of the samples that count; None: all of them belong together, or no two have the same class.
        """
        whole: Split = self.train.dataset.split
        split = part_of(whole, np.flatnonzero(counted))
        units = each_row_alone(split.rows) if self.units_of is None else self.units_of(split)
        try:
            return folds_of(split, units, self.target, self.fold_seed, count=count)
        except NoFoldsError:
            return None

    def parts_of(self, inputs: Batch) -> int:
        """In how many parts a batch goes through the model in evaluation."""
        return parts_within(inputs, self.tokens_at_once)

    def close(self) -> None:
        """End the worker processes; a loader that is used again starts new ones."""
        loaders = [loader for loader in self._by_split().values() if loader is not None]
        for prepared in (*loaders, *self.resumed):
            loader = getattr(prepared, "base_dataloader", prepared)
            # torch keeps persistent workers in this attribute.
            end_workers(loader._iterator)
            loader._iterator = None

    def some_samples(
        self, split: str, positions: Iterable[int], epoch: int | None, device: torch.device
    ) -> LabelledInputs:
        """Samples of a split by their positions, as an epoch sees them."""
        source = self.of(split)
        batch = source.collate_fn([source.dataset[position] for position in positions])
        return self.to_inputs(batch, device, split, epoch)


def parts_within(inputs: Batch, tokens_at_once: int | None) -> int:
    """In how many parts a batch goes through a model.

    Args:
        inputs: model inputs [samples, ...].
        tokens_at_once: tokens, with padding, that a part has on average at most, unless it is one sample; None: any.
    """
    tokens = inputs.get("input_ids")
    if tokens is None or tokens_at_once is None:
        return 1
    return min(len(tokens), -(-tokens.numel() // tokens_at_once))


def in_parts(compute: Callable[[Batch], Sequence[Tensor]], inputs: Batch, parts: int) -> Sequence[Tensor]:
    """What a function computes of a batch, from parts of it, one after the other: activations of one part need memory.

    Args:
        compute: model inputs to tensors [samples, ...], each row of which depends on its own sample alone.
        inputs: model inputs [samples, ...].
        parts: how many; they differ by one sample at most.
    """
    if parts == 1:
        return compute(inputs)
    divided = zip(*(tensor.tensor_split(parts) for tensor in inputs.values()), strict=True)
    computed = [compute(dict(zip(inputs, part, strict=True))) for part in divided]
    return [torch.cat(columns) for columns in zip(*computed, strict=True)]


def _for_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Apple's GPUs have no double precision."""
    return tensor.float() if device.type == "mps" and tensor.dtype == torch.float64 else tensor


class LabelRows(Dataset[dict[str, Tensor]]):
    """One split without its samples: target, mask and row number of each, none of which is read from disk."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self._targets, self._counted = torch.as_tensor(split.targets), torch.as_tensor(split.counted)
        self._rows = torch.as_tensor(split.rows)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Tensor]]:
        """The samples of a batch at once: from a store they come so fast that one by one would be slow."""
        chosen = torch.as_tensor(positions)
        columns = (self._targets[chosen], self._counted[chosen], self._rows[chosen])
        return [dict(zip(LABELS, row, strict=True)) for row in zip(*columns, strict=True)]


class EpochSampler(Sampler[int]):
    """Positions in an order that is a pure function of (seed, epoch)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; Accelerate calls it too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist())


def loader_of(
    rows: Dataset[Any], batch_size: int, order: Iterable[int] | None, workers: int, accelerator: Accelerator,
    collate: Callable[[Any], Batch] | None = None,
) -> Any:  # fmt: skip
    """A data loader whose batches are divided among the processes."""
    end_workers_at_exit()
    batches: DataLoader[Batch] = DataLoader(
        rows,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=collate,
        worker_init_fn=ignore_signals,
        # A generator of its own: else each pass would draw from torch's, and the model's dropout depend on it.
        generator=torch.Generator(),
    )
    # `to_inputs` moves the batches, after it has read their masks on the CPU.
    return accelerator.prepare_data_loader(batches, device_placement=False)


def loaders_of(
    rows: Mapping[str, Dataset[Any]], orders: Mapping[str, Iterable[int]], training: TrainingSettings, workers: int,
    accelerator: Accelerator, collate: Callable[[Any], Batch] | None = None,
    light_rows: Mapping[str, Dataset[Any]] | None = None, **attributes: Any,
) -> Loaders:  # fmt: skip
    """Loaders of all splits that exist.

    Args:
        rows: the samples of each split.
        orders: the order of each split; a split without one is read from its first row to its last.
        training: batch sizes.
        workers: how many processes read the samples of a split.
        accelerator: the processes that share the batches.
        collate: makes a batch of samples; None: as torch does.
        light_rows: the samples without what only the first layers need; see `Loaders.without_first_layers`.
        **attributes: the other attributes of `Loaders`.
    """
    sizes = dict.fromkeys(rows, training.evaluation_batch_size(accelerator.device.type))
    if "train" in sizes:
        sizes["train"] = training.train_batch_size(len(rows["train"]))  # type: ignore[arg-type]
    light: Callable[[], Loaders] | None = None
    if light_rows is not None:
        light = partial(loaders_of, light_rows, orders, training, 0, accelerator, collate, **attributes)
    # With copies of the orders: the epoch that is set for one loader must not change the order of another.
    loaders: dict[str, Any] = dict.fromkeys(("train", "validation", "test"))
    loaders |= {
        split: loader_of(rows[split], size, copy(orders.get(split)), workers, accelerator, collate)
        for split, size in sizes.items()
    }
    tokens_at_once = training.tokens_at_once(accelerator.device.type)
    return Loaders(**loaders, **attributes, without_first_layers=light, tokens_at_once=tokens_at_once)
