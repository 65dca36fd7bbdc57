"""From splits to batches: the order of samples, their masks, and for images a checkpoint's own processor."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hf_transfer.config import ImageSettings, RunConfig, VisionConfig, mistake
from hf_transfer.data.augmentation import Augmentation
from hf_transfer.data.images import BadImageError, decode
from hf_transfer.data.samples import NOT_TO_BE_MIRRORED
from hf_transfer.data.sources import Splits
from hf_transfer.data.splits import Split
from hf_transfer.data.verification import image_fingerprint, refuse_bad_share
from hf_transfer.interruption import ignore_signals

MASKED = -100
DECODED_CACHE_BYTES = 1 << 30
ROWS_THAT_DESERVE_WORKERS = 2_000
DEFAULT_VIEWS = 4
Batch = dict[str, Tensor]


class ImageProcessor(Protocol):
    """What we use of a transformers image processor."""

    def __call__(self, images: Any, **kwargs: Any) -> Mapping[str, Any]:
        """`pixel_values` of one or several images."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write `preprocessor_config.json`."""


class PixelPipeline:
    """A checkpoint's image processor, in two steps: sizes on single images, values on whole batches.

    Resizing and cropping give 8-bit pixels, which are small to keep and to move to a GPU. What the processor does
    after that is one scale and one shift for each channel; both are read off a black and a white image, so they
    are right whatever flags the processor has.
    """

    def __init__(self, processor: ImageProcessor) -> None:
        self.processor = processor
        self._sizes_only: dict[str, Any] = {"do_rescale": False, "do_normalize": False}
        if hasattr(processor, "include_top"):
            # EfficientNet's divides by the standard deviation once more, whatever the other two flags say.
            self._sizes_only["include_top"] = False
        try:
            black, white = (self._whole(Image.new("RGB", (64, 64), colour)) for colour in ("black", "white"))
            wide, high = (self._whole(Image.new("RGB", size)) for size in ((96, 48), (48, 96)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise mistake(
                expected="an image processor that turns an image into pixel_values",
                found=f"{type(processor).__name__}, which failed on a plain image ({type(error).__name__}: {error})",
                do="choose another --model_name_or_path",
            ) from error
        if not black.shape == wide.shape == high.shape:
            raise mistake(
                expected="an image processor that brings every image to one size",
                found=f"sizes {tuple(wide.shape[1:])} and {tuple(high.shape[1:])} for a wide and a high image",
                do="use a checkpoint whose preprocessor_config.json crops or sets both height and width",
            )
        self.shape = tuple(black.shape)
        self.shift = black.mean((1, 2))[:, None, None]
        self.scale = (white.mean((1, 2))[:, None, None] - self.shift) / 255.0

    def resize(self, image: Image.Image) -> Tensor:
        """8-bit pixels [3, height, width] of the size that the model takes."""
        pixels = self.processor(image, **self._sizes_only, return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.uint8))

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the model takes, from pixels with values from 0 to 255, [batch, 3, height, width]."""
        return pixels * self.scale.to(pixels.device) + self.shift.to(pixels.device)

    def inputs(self, images: Sequence[Image.Image]) -> Batch:
        """Model inputs for pictures that belong to no split."""
        return {"pixel_values": self.normalise(torch.stack([self.resize(image) for image in images]).float())}

    def example(self) -> Batch:
        """Model inputs of two noisy pictures, to trace a model with."""
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": self.normalise(torch.rand(2, *self.shape, generator=generator) * 255.0)}

    def fingerprint(self) -> str:
        """A hash that changes with whatever the processor does to a picture: it is read off one of noise."""
        noise = np.random.default_rng(0).integers(0, 256, (97, 61, 3), dtype=np.uint8)
        given = self.resize(Image.fromarray(noise))
        values = (given.numpy(), self.shift.numpy(), self.scale.numpy())
        return hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest()

    def _whole(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(self.processor(image, return_tensors="np")["pixel_values"][0])).float()


class ImageRows(Dataset[dict[str, Tensor]]):
    """One split as a torch data set: resized pixels, label and row number of each sample.

    A bad image is masked in place: it keeps its position, its pixels are black, its label is `MASKED`. Pixels are
    kept once they are decoded, up to `keep_bytes`, because decoding costs more than a small model's step.
    """

    def __init__(self, split: Split, pipeline: PixelPipeline, *, keep_bytes: int) -> None:
        self.split = split
        self.pipeline = pipeline
        self._kept: dict[int, Tensor] = {}
        self._room = keep_bytes // int(np.prod(pipeline.shape))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        row = int(self.split.rows[position])
        label = int(self.split.labels[position])
        pixels = self._kept.get(row)
        if pixels is None:
            try:
                pixels = self._pixels(row)
            except BadImageError:
                pixels, label = torch.zeros(self.pipeline.shape, dtype=torch.uint8), MASKED
            else:
                if len(self._kept) < self._room:
                    self._kept[row] = pixels
        return {"pixel_values": pixels, "labels": torch.tensor(label), "index": torch.tensor(row)}

    def _pixels(self, row: int) -> Tensor:
        if row in self.split.bad:
            raise BadImageError(self.split.bad[row])
        return self.pipeline.resize(decode(self.split.raw(row)))


class LabelRows(Dataset[dict[str, Tensor]]):
    """One split without its images: label and row number of each sample, none of which is read."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self._labels = np.where(np.isin(split.rows, list(split.bad)), MASKED, split.labels)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Tensor]]:
        """The samples of a batch at once: from a store they come so fast that one by one would be felt."""
        labels, index = (torch.as_tensor(values[positions]) for values in (self._labels, self.split.rows))
        return [{"labels": label, "index": row} for label, row in zip(labels, index, strict=True)]


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


@dataclass(frozen=True)
class Loaders:
    """Batches of all splits, shared out among the processes, and how a batch becomes a model's keyword arguments.

    Attributes:
        train: the data loader of the training split, shuffled by (seed, epoch); `train.set_epoch` chooses the epoch.
        validation: the data loader of the validation split, in order.
        test: the data loader of the test split, in order.
        to_inputs: (batch, device, split name, epoch or None in evaluation) -> (model inputs, labels, row numbers).
            Raises `UserError` for a sample that turned out to be bad.
        fingerprint: (split name, epoch or None in evaluation) -> a hash of all that model inputs and labels depend on.
        views: augmented views that a solved head sees of a training sample, beside the sample as it is.
        cycle: after so many epochs a training sample looks as before; 0: never.
        notes: what became of the samples on the way, in sentences.
        blank: makes the same loaders without the work that only the first layers need: inputs have the right shape, but
            pixels are all zero. None: the samples are in memory anyway.
    """

    train: Any
    validation: Any
    test: Any
    to_inputs: Callable[[Batch, torch.device, str, int | None], tuple[Batch, Tensor, Tensor]]
    fingerprint: Callable[[str, int | None], str]
    views: int = 0
    cycle: int = 1
    notes: tuple[str, ...] = ()
    blank: "Callable[[], Loaders] | None" = None

    def of(self, split_name: str) -> Any:
        """The data loader of a split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split_name]


def some_samples(
    loaders: Loaders, split: str, positions: Iterable[int], epoch: int | None, device: torch.device
) -> tuple[Batch, Tensor]:
    """Samples of a split by their positions, as an epoch sees them: model inputs and labels."""
    source = loaders.of(split)
    batch = source.collate_fn([source.dataset[position] for position in positions])
    inputs, labels, _ = loaders.to_inputs(batch, device, split, epoch)
    return inputs, labels


class ImageBatches:
    """Turns batches of 8-bit pixels into model inputs on the device, augmented in training."""

    def __init__(self, pipeline: PixelPipeline, augmentation: Augmentation, splits: Splits, skip: bool) -> None:
        self.pipeline = pipeline
        self.augmentation = augmentation
        self.splits = splits
        self.skip = skip
        self._contents: dict[str, str] = {}
        self._late: dict[str, dict[int, str]] = {name: dict(split.bad) for name, split in splits.items()}

    def __call__(
        self, batch: Batch, device: torch.device, split_name: str, epoch: int | None
    ) -> tuple[Batch, Tensor, Tensor]:
        """See `Loaders.to_inputs`."""
        self._check_masked(batch, split_name)
        pixels = batch["pixel_values"].to(device, non_blocking=True).float()
        if epoch is not None and self.augmentation.kind != "none":
            pixels = self.augmentation(pixels / 255.0, batch["index"], epoch) * 255.0
        labels = batch["labels"].to(device, non_blocking=True)
        return {"pixel_values": self.pipeline.normalise(pixels)}, labels, batch["index"].to(device, non_blocking=True)

    def fingerprint(self, split_name: str, epoch: int | None) -> str:
        """See `Loaders.fingerprint`."""
        split = dict(self.splits.items())[split_name]
        # Once: every image has to be looked at.
        if split_name not in self._contents:
            self._contents[split_name] = image_fingerprint(split)
        content = self._contents[split_name]
        key = hashlib.sha256(np.stack([split.rows, split.labels]).tobytes())
        key.update(f"{content} {sorted(split.bad)} {self.skip} {self.pipeline.fingerprint()}".encode())
        if self.augmentation.kind != "none" and epoch is not None:
            key.update(f"{self.augmentation} {self.augmentation.view(split.rows, epoch)[:1]}".encode())
        return key.hexdigest()

    def blank(self, batch: Batch, device: torch.device, *_: object) -> tuple[Batch, Tensor, Tensor]:
        """See `Loaders.to_inputs`; the pixels are all zero, and take no room."""
        pixels = torch.zeros((), device=device).expand(len(batch["index"]), *self.pipeline.shape)
        return {"pixel_values": pixels}, batch["labels"].to(device), batch["index"].to(device)

    def _check_masked(self, batch: Batch, name: str) -> None:
        """Verification looks at all images of a small data set, but only at some of a large one."""
        masked = batch["labels"] == MASKED
        if not masked.any():
            return
        split = dict(self.splits.items())[name]
        for row in batch["index"][masked].tolist():
            if row in self._late[name]:
                continue
            try:
                decode(split.raw(row))
            except BadImageError as error:
                if not self.skip:
                    raise mistake(
                        expected=f"images that can be read in split '{name}'",
                        found=f"{split.describe(row)}: {error}",
                        do="mend or remove it, or mask such images with --on_bad_sample skip",
                    ) from error
                self._late[name][row] = str(error)
                refuse_bad_share(self._late[name], split, name)


def loader_of(
    rows: Dataset[Any], batch_size: int, order: Sampler[int] | None, workers: int, accelerator: Accelerator,
    collate: Callable[[Any], Batch] | None = None,
) -> Any:  # fmt: skip
    """A data loader whose batches the processes share out."""
    batches: DataLoader[Batch] = DataLoader(
        rows,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate,
        worker_init_fn=ignore_signals,
        # Its own, because the model's dropout draws from torch's, whatever the number of workers and of passes.
        generator=torch.Generator(),
    )
    # `to_inputs` moves the batches, after it has looked at their masks on the CPU.
    return accelerator.prepare_data_loader(batches, device_placement=False)


def image_loaders(
    splits: Splits, pipeline: PixelPipeline, config: VisionConfig, accelerator: Accelerator, *, frozen_prefix: bool
) -> Loaders:
    """Loaders for all three splits.

    Args:
        splits: checked splits.
        pipeline: the checkpoint's own image processor.
        accelerator: the processes that share the batches.
        config: batch sizes, augmentation, workers.
        frozen_prefix: whether the first layers never learn; then a sample has few views, which can be stored.
    """
    augmentation = choose_augmentation(config, frozen_prefix=frozen_prefix)
    sampler = EpochSampler(len(splits.train), config.seed)
    workers = workers_for(config, len(splits.train))
    views, cycle = views_and_cycle(augmentation)
    batches = ImageBatches(pipeline, augmentation, splits, skip=config.on_bad_sample == "skip")

    def rows(split: Split) -> Dataset[dict[str, Tensor]]:
        return ImageRows(split, pipeline, keep_bytes=DECODED_CACHE_BYTES // max(1, workers))

    def loaders(
        rows: Callable[[Split], Dataset[dict[str, Tensor]]], to_inputs: Any, workers: int,
        blank: Callable[[], Loaders] | None,
    ) -> Loaders:  # fmt: skip
        def loader(split: Split, batch_size: int, order: Sampler[int] | None) -> Any:
            return loader_of(rows(split), batch_size, order, workers, accelerator)

        return Loaders(
            train=loader(splits.train, config.per_device_train_batch_size, sampler),
            validation=loader(splits.validation, config.per_device_eval_batch_size, None),
            test=loader(splits.test, config.per_device_eval_batch_size, None),
            to_inputs=to_inputs,
            fingerprint=batches.fingerprint,
            views=views,
            cycle=cycle,
            blank=blank,
        )

    # No function refers to itself, so that workers end with the last use of their loader, and not some time later.
    return loaders(rows, batches, workers, lambda: loaders(LabelRows, batches.blank, 0, None))


def choose_augmentation(config: ImageSettings, *, frozen_prefix: bool) -> Augmentation:
    """What happens to training images; behind a frozen prefix they have few views, which can be stored."""
    keeps_class = config.dataset_name not in NOT_TO_BE_MIRRORED
    views = DEFAULT_VIEWS if frozen_prefix else 0
    return Augmentation(
        kind=config.augmentation,
        flip=keeps_class if config.horizontal_flip is None else config.horizontal_flip,
        seed=config.seed,
        views=views if config.cache_views is None else config.cache_views,
    )


def views_and_cycle(augmentation: Augmentation) -> tuple[int, int]:
    """See `Loaders.views` and `Loaders.cycle`."""
    return (0, 1) if augmentation.kind == "none" else (augmentation.views or DEFAULT_VIEWS, augmentation.views)


def workers_for(config: RunConfig, rows: int) -> int:
    """How many processes decode so many images."""
    if config.dataloader_num_workers is not None:
        return config.dataloader_num_workers
    return min(4, os.cpu_count() or 1) if rows >= ROWS_THAT_DESERVE_WORKERS else 0
