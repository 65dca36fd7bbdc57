"""Samples that are images: columns, batches, augmentation, prediction."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_transfer.data import columns, verification
from hf_transfer.data.batches import (
    Batch,
    EpochSampler,
    InputMaker,
    LabelledInputs,
    LabelRows,
    Loaders,
    labels_on,
    loaders_of,
    workers_for,
)
from hf_transfer.data.checked import Selected
from hf_transfer.data.pictures import BadImageError, decode, decode_picture
from hf_transfer.data.rows import describe_row, encoded_image
from hf_transfer.data.samples import NOT_TO_BE_MIRRORED
from hf_transfer.data.splits import Split, Splits
from hf_transfer.errors import user_error
from hf_transfer.modalities.augmentation import Augmentation
from hf_transfer.modalities.mixing import Mixing
from hf_transfer.modalities.modality import LocatedSample, Modality, Regularisation, saved_description
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.models.pretrained import AnyCheckpoint, Checkpoint
from hf_transfer.settings.data import DataSettings, ImageSettings
from hf_transfer.settings.run import RunConfig, VisionConfig
from hf_transfer.targets.target import Target

DECODED_CACHE_BYTES = 1 << 30
DEFAULT_VIEWS = 4


class ImageRows(Dataset[dict[str, Tensor]]):
    """One split as a torch data set: resized pixels, target, mask and row number of each sample.

    An unreadable image is masked: it keeps its position and its target, and its pixels are black. Decoded pixels are
    kept in memory, up to `keep_bytes`, because decoding can take longer than the step of a small model.
    """

    def __init__(self, split: Split, preprocessing: PixelPreprocessing, *, keep_bytes: int) -> None:
        self.split = split
        self.preprocessing = preprocessing
        self._labels = LabelRows(split)
        self._decoded: dict[int, Tensor] = {}
        self._room = keep_bytes // int(np.prod(preprocessing.shape))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        row, sample = int(self.split.rows[position]), self._labels[position]
        pixels = self._decoded.get(row)
        if pixels is None:
            try:
                pixels = self._pixels(row)
            except BadImageError:
                pixels = torch.zeros(self.preprocessing.shape, dtype=torch.uint8)
                sample["counted"] = torch.tensor(False)
            else:
                if len(self._decoded) < self._room:
                    self._decoded[row] = pixels
        return {"pixel_values": pixels, **sample}

    def _pixels(self, row: int) -> Tensor:
        if row in self.split.unreadable:
            raise BadImageError(self.split.unreadable[row])
        return self.preprocessing.resize(decode(encoded_image(self.split, row)))


class ImageInputs(InputMaker):
    """Makes model inputs of 8-bit pixels, augmented in training.

    Args:
        preprocessing: of the run.
        augmentation: random changes to training images.
        splits: of the run.
        mask: mask images that are found to be unreadable during training; else they are an error.
    """

    def __init__(
        self, preprocessing: PixelPreprocessing, augmentation: Augmentation, splits: Splits, *, mask: bool
    ) -> None:
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.splits = splits
        self.mask = mask
        self._contents: dict[str, str] = {}
        self._unreadable: dict[str, dict[int, str]] = {name: dict(one.unreadable) for name, one in splits.items()}

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`."""
        self._check_masked(batch, split)
        pixels = batch["pixel_values"].to(device, non_blocking=True).float()
        if epoch is not None and self.augmentation.kind != "none":
            pixels = self.augmentation(pixels / 255.0, batch["index"], epoch) * 255.0
        return LabelledInputs({"pixel_values": self.preprocessing.normalise(pixels)}, *labels_on(batch, device))

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        rows = self.splits.of(split)
        # Only once: it reads the status of every image file.
        if split not in self._contents:
            self._contents[split] = verification.image_fingerprint(rows)
        parts = [rows.fingerprint(), self._contents[split], str(self.mask), self.preprocessing.fingerprint()]
        if self.augmentation.kind != "none" and epoch is not None:
            parts += [self.augmentation.fingerprint(), str(self.augmentation.view(rows.rows, epoch)[:1])]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _check_masked(self, batch: Batch, split: str) -> None:
        """Report masked samples that verification has not found: of a large data set it decodes only some images."""
        if bool(batch["counted"].all()):
            return
        rows = self.splits.of(split)
        for row in batch["index"][~batch["counted"]].tolist():
            if row in self._unreadable[split]:
                continue
            try:
                decode(encoded_image(rows, row))
            except BadImageError as error:
                if not self.mask:
                    raise user_error(
                        expected=f"images that can be read in split '{split}'",
                        found=f"{describe_row(rows, row)}: {error}",
                        do="fix or remove it, or mask such images with --on_bad_sample skip",
                    ) from error
                self._unreadable[split][row] = str(error)
                verification.refuse_bad_share(self._unreadable[split], rows, split)


class BlankInputs(InputMaker):
    """As another maker, but with pixels that are all zero: for models whose first layers are skipped."""

    def __init__(self, images: ImageInputs) -> None:
        self.images = images

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:  # noqa: ARG002
        """See `InputMaker`."""
        pixels = torch.zeros((), device=device).expand(len(batch["index"]), *self.images.preprocessing.shape)
        return LabelledInputs({"pixel_values": pixels}, *labels_on(batch, device))

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        return self.images.fingerprint(split, epoch)


class ImageModality(Modality[VisionConfig]):
    """Images."""

    name: ClassVar[str] = "image"
    config: ClassVar[type[RunConfig]] = VisionConfig
    samples: ClassVar[str] = "images"
    kind: ClassVar[str] = "An image"
    task: ClassVar[str] = "image-classification"

    def suits(self, features: datasets.Features) -> bool:
        """See `Modality.suits`."""
        return any(isinstance(feature, datasets.Image) for feature in features.values())

    def select(self, loaded: datasets.DatasetDict, config: VisionConfig) -> Selected:
        """See `Modality.select`."""
        column = columns.image_column(loaded["train"], config.image.image_column_name)
        images = {name: columns.images(split, column) for name, split in loaded.items()}
        return Selected(images, {"image_column_name": column})

    def unreadable(self, split: Split, name: str, config: VisionConfig) -> dict[int, str]:
        """See `Modality.unreadable`."""
        return verification.unreadable_images(split, name, config.data, config.store.cache_dir)

    def copies(self, splits: Mapping[str, Split]) -> dict[str, int]:
        """See `Modality.copies`."""
        return verification.copies_of_images(splits)

    def preprocessing(self, checkpoint: AnyCheckpoint, config: VisionConfig) -> PixelPreprocessing:  # noqa: ARG002
        """See `Modality.preprocessing`."""
        (part,) = checkpoint.parts
        return PixelPreprocessing(part.processor())

    def saved_preprocessing(
        self, checkpoint: Checkpoint, config: VisionConfig | None = None  # noqa: ARG002
    ) -> PixelPreprocessing:  # fmt: skip
        """See `Modality.saved_preprocessing`."""
        return PixelPreprocessing(checkpoint.processor(), saved_description(checkpoint).get("columns", {}))

    def loaders(
        self, splits: Splits, preprocessing: PixelPreprocessing, config: VisionConfig, accelerator: Accelerator,
        *, frozen_prefix: bool,
    ) -> Loaders:  # fmt: skip
        """See `Modality.loaders`."""
        training = config.training
        augmentation = choose_augmentation(config.image, config.data, seed=training.seed, frozen_prefix=frozen_prefix)
        workers = workers_for(config.store.dataloader_num_workers, len(splits.train))
        room = DECODED_CACHE_BYTES // max(1, workers)
        inputs = ImageInputs(preprocessing, augmentation, splits, mask=config.data.on_bad_sample == "skip")
        views, cycle = views_and_cycle(augmentation)

        def loaders(
            rows: Mapping[str, Dataset[dict[str, Tensor]]], to_inputs: InputMaker, workers: int,
            without_first_layers: Callable[[], Loaders] | None = None,
        ) -> Loaders:  # fmt: skip
            return loaders_of(
                rows, {"train": EpochSampler(len(splits.train), training.seed)}, training, workers, accelerator,
                target=splits.target, to_inputs=to_inputs, views=views, cycle=cycle,
                without_first_layers=without_first_layers,
            )  # fmt: skip

        labels = {name: LabelRows(split) for name, split in splits.items()}
        pictures = {name: ImageRows(split, preprocessing, keep_bytes=room) for name, split in splits.items()}
        return loaders(pictures, inputs, workers, lambda: loaders(labels, BlankInputs(inputs), 0))

    def regularisation(self, config: VisionConfig, model: nn.Module, target: Target) -> Regularisation:  # noqa: ARG002
        """Mixup and CutMix, if the settings ask for them."""
        training = config.training
        if training.mixup_alpha == training.cutmix_alpha == 0:
            return Regularisation()
        return Regularisation(mixer=Mixing(training.mixup_alpha, training.cutmix_alpha, training.seed, target))

    def sample_of(self, value: Any) -> Image.Image:
        """An RGB picture, from a path or a picture."""
        try:
            return decode_picture(value) if isinstance(value, Image.Image) else decode(_raw(Path(value)))
        except (BadImageError, TypeError) as error:
            raise user_error(
                expected="a readable picture, or its path",
                found=f"{value!r:.200} ({error})",
                do="correct or leave out this sample",
            ) from error

    def samples_in(
        self, files: Sequence[Path], columns: Mapping[str, str | None], saved: Any  # noqa: ARG002
    ) -> list[LocatedSample]:  # fmt: skip
        """Each file is a picture."""
        return [LocatedSample(path, None, picture) for path, picture in zip(files, pictures_in(files), strict=True)]


def pictures_in(paths: Sequence[Path]) -> list[Image.Image]:
    """The pictures in files.

    Raises:
        UserError: some of them cannot be read; the message names all of these.
    """
    pictures, problems = [], []
    for path in paths:
        try:
            pictures.append(decode(_raw(path)))
        except BadImageError as error:
            problems.append(f"{path} ({error})")
    if problems:
        raise user_error(expected="readable pictures", found="; ".join(problems), do="correct or leave out these paths")
    return pictures


def _raw(path: Path) -> dict[str, Any]:
    return {"bytes": None, "path": str(path)}


def choose_augmentation(images: ImageSettings, data: DataSettings, *, seed: int, frozen_prefix: bool) -> Augmentation:
    """The augmentation of a run; behind a frozen prefix an image has few views, whose activations can be stored."""
    keeps_class = data.dataset_name not in NOT_TO_BE_MIRRORED
    views = DEFAULT_VIEWS if frozen_prefix else 0
    return Augmentation(
        kind=images.augmentation,
        flip=keeps_class if images.horizontal_flip is None else images.horizontal_flip,
        seed=seed,
        views=views if images.cache_views is None else images.cache_views,
    )


def views_and_cycle(augmentation: Augmentation) -> tuple[int, int]:
    """See `Loaders.views` and `Loaders.cycle`."""
    return (0, 1) if augmentation.kind == "none" else (augmentation.views or DEFAULT_VIEWS, augmentation.views)
