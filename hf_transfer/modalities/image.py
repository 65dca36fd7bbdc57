"""Samples that are images: columns, batches, augmentation, prediction."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_transfer.data import batches, columns, verification
from hf_transfer.data.batches import Batch, InputMaker, LabelledInputs, LabelRows, Loaders
from hf_transfer.data.checked import Selected
from hf_transfer.data.pictures import BadImageError, decode, decode_picture
from hf_transfer.data.rows import describe_row, encoded_image
from hf_transfer.data.samples import NOT_TO_BE_MIRRORED
from hf_transfer.data.sources import Loaded, read_files
from hf_transfer.data.splits import Split, Splits
from hf_transfer.errors import user_error
from hf_transfer.modalities.augmentation import Augmentation
from hf_transfer.modalities.mixing import Mixing
from hf_transfer.modalities.modality import LocatedSample, Modality, Regularisation, Saved, Wanted
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.models.pretrained import AnyCheckpoint
from hf_transfer.settings.run import MultimodalConfig, RunConfig, VisionConfig
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
        try:
            return self._labels[position] | {"pixel_values": self._pixels(int(self.split.rows[position]))}
        except BadImageError:
            black = torch.zeros(self.preprocessing.shape, dtype=torch.uint8)
            return self._labels[position] | {"pixel_values": black, "counted": torch.tensor(False)}

    def _pixels(self, row: int) -> Tensor:
        if row in self._decoded:
            return self._decoded[row]
        if row in self.split.unreadable:
            raise BadImageError(self.split.unreadable[row])
        pixels = self.preprocessing.resize(decode(encoded_image(self.split, row)))
        if len(self._decoded) < self._room:
            self._decoded[row] = pixels
        return pixels


class ImageInputs(InputMaker):
    """Makes model inputs of 8-bit pixels, augmented in training; of batches without pixels they are all zero.

    Args:
        preprocessing: of the run.
        augmentation: random changes to training images.
        splits: of the run.
        mask: mask images that are found to be unreadable during training; else they are an error.

    Attributes:
        views: see `Loaders.views`.
        cycle: see `Loaders.cycle`.
    """

    def __init__(
        self, preprocessing: PixelPreprocessing, augmentation: Augmentation, splits: Splits, *, mask: bool
    ) -> None:
        self.preprocessing, self.augmentation, self.splits, self.mask = preprocessing, augmentation, splits, mask
        self.views, self.cycle = augmentation.views or DEFAULT_VIEWS, augmentation.views
        if augmentation.kind == "none":
            self.views, self.cycle = 0, 1
        self._contents: dict[str, str] = {}
        self._unreadable: dict[str, dict[int, str]] = {name: dict(one.unreadable) for name, one in splits.items()}

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`."""
        labelled = super().__call__(batch, device, split, epoch)
        if "pixel_values" in batch:
            self._check_masked(batch, split)
            pixels = labelled.inputs["pixel_values"].float()
            if epoch is not None and self.augmentation.kind != "none":
                pixels = self.augmentation(pixels / 255.0, batch["index"], epoch) * 255.0
            pixels = self.preprocessing.normalise(pixels)
        else:
            pixels = torch.zeros((), device=device).expand(len(batch["index"]), *self.preprocessing.shape)
        return labelled._replace(inputs=labelled.inputs | {"pixel_values": pixels})

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
        rows, known = self.splits.of(split), self._unreadable[split]
        masked = batch["index"][~batch["counted"]].tolist()
        for row in (row for row in masked if row not in known):
            try:
                decode(encoded_image(rows, row))
            except BadImageError as error:
                if not self.mask:
                    raise user_error(
                        expected=f"images that can be read in split '{split}'",
                        found=f"{describe_row(rows, row)}: {error}",
                        do="fix or remove it, or mask such images with --on_bad_sample skip",
                    ) from error
                known[row] = str(error)
                verification.refuse_bad_share(known, rows, split)


class ImageModality(Modality[VisionConfig]):
    """Images."""

    name: ClassVar[str] = "image"
    config: ClassVar[type[RunConfig]] = VisionConfig
    samples: ClassVar[str] = "images"
    usable: ClassVar[str] = "images that can be read"
    unusable: ClassVar[str] = "that cannot be read"
    kind: ClassVar[str] = "An image"
    task: ClassVar[str] = "image-classification"

    def read(self, path: Path, config: VisionConfig) -> Loaded:
        """See `Modality.read`; tables may name images."""
        column = config.image.image_column_name
        return read_files(path, config.data, self.text_columns(config), image_column=column, tables_name_images=True)

    def bad_rows(self, split: Split, config: VisionConfig) -> dict[int, str]:
        """See `Modality.bad_rows`."""
        return verification.bad_images(split, config)

    def suits(self, features: datasets.Features) -> bool:
        """See `Modality.suits`."""
        return any(isinstance(feature, datasets.Image) for feature in features.values())

    def select(self, loaded: datasets.DatasetDict, config: VisionConfig) -> Selected:
        """See `Modality.select`."""
        column = columns.image_column(loaded["train"], config.image.image_column_name)
        images = {name: columns.images(split, column) for name, split in loaded.items()}
        return Selected(images, {"image_column_name": column})

    def preprocessing(self, checkpoint: AnyCheckpoint, config: VisionConfig | None, saved: Saved) -> PixelPreprocessing:  # noqa: ARG002
        """See `Modality.preprocessing`."""
        return PixelPreprocessing(checkpoint.parts[0].processor(), saved.get("columns"))

    def loaders(
        self, splits: Splits, preprocessing: PixelPreprocessing, config: VisionConfig, accelerator: Accelerator,
        *, frozen_prefix: bool,
    ) -> Loaders:  # fmt: skip
        """See `Modality.loaders`."""
        workers = batches.workers_for(config.store.dataloader_num_workers, len(splits.train))
        images = image_inputs(splits, preprocessing, config, frozen_prefix=frozen_prefix)
        order = batches.EpochSampler(len(splits.train), config.training.seed)
        return batches.loaders_of(
            image_rows(splits, preprocessing, workers), {"train": order}, config.training, workers, accelerator,
            light_rows={name: LabelRows(split) for name, split in splits.items()},
            target=splits.target, to_inputs=images, views=images.views, cycle=images.cycle,
        )  # fmt: skip

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

    def samples_in(self, files: Sequence[Path], wanted: Wanted, saved: Any) -> list[LocatedSample]:  # noqa: ARG002
        """Each file is a picture; the error names all that cannot be read."""
        located, problems = [], []
        for path in files:
            try:
                located.append(LocatedSample(path, None, decode(_raw(path))))
            except BadImageError as error:
                problems.append(f"{path} ({error})")
        if problems:
            raise user_error(
                expected="readable pictures", found="; ".join(problems), do="correct or leave out these paths"
            )
        return located


def _raw(path: Path) -> dict[str, Any]:
    return {"bytes": None, "path": str(path)}


def image_rows(splits: Splits, preprocessing: PixelPreprocessing, workers: int) -> dict[str, ImageRows]:
    """The images of all splits, for this many worker processes, each of which keeps pixels of its own."""
    room = DECODED_CACHE_BYTES // max(1, workers)
    return {name: ImageRows(split, preprocessing, keep_bytes=room) for name, split in splits.items()}


def image_inputs(
    splits: Splits, preprocessing: PixelPreprocessing, config: VisionConfig | MultimodalConfig, *, frozen_prefix: bool
) -> ImageInputs:
    """Model inputs with the augmentation that the settings ask for.

    Behind a frozen prefix an image has few views, whose activations can be stored.
    """
    images, keeps_class = config.image, config.data.dataset_name not in NOT_TO_BE_MIRRORED
    views = DEFAULT_VIEWS if frozen_prefix else 0
    augmentation = Augmentation(
        kind=images.augmentation,
        flip=keeps_class if images.horizontal_flip is None else images.horizontal_flip,
        seed=config.training.seed,
        views=views if images.cache_views is None else images.cache_views,
    )
    return ImageInputs(preprocessing, augmentation, splits, mask=config.data.on_bad_sample == "skip")
