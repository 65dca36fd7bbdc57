"""Batches of images: resized pixels of rows, and model inputs with augmentation."""

import hashlib

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_transfer.data import verification
from hf_transfer.data.batches import Batch, InputMaker, LabelledInputs, LabelRows
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.identities import image_fingerprint
from hf_transfer.data.levels import LARGEST_PIXEL_VALUE
from hf_transfer.data.pictures import BadImageError
from hf_transfer.data.pixel_store import NO_PLACE
from hf_transfer.data.rows import describe_row, encoded_image
from hf_transfer.data.samples import NOT_TO_BE_MIRRORED
from hf_transfer.data.splits import Split, Splits
from hf_transfer.errors import user_error
from hf_transfer.modalities.augmentation import Augmentation
from hf_transfer.modalities.kept_pixels import KeptPixels
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.settings.run import MultimodalConfig, VisionConfig

DECODED_CACHE_BYTES = 1 << 30
GIGABYTE = 10**9
DEFAULT_VIEWS = 4
# With more training samples for each output, augmented views do not make a solved head better: see docs/benchmarks.md.
FEW_SAMPLES = 8


class ImageRows(Dataset[dict[str, Tensor]]):
    """One split as a torch data set: resized pixels, target, mask and row number of each sample.

    An unreadable image is masked: it keeps its position and its target, and its pixels are black. Decoded pixels that
    are not kept on disk are kept in memory, up to `keep_bytes`, because decoding can take longer than the
    step of a small model.

    Args:
        split: checked images.
        preprocessing: of the run.
        keep_bytes: for decoded pixels.
        white: see `pictures.decode`.
        kept: pixels on disk; None: there are none.
    """

    def __init__(
        self, split: Split, preprocessing: PixelPreprocessing, *, keep_bytes: int, white: float | None = None,
        kept: KeptPixels | None = None,
    ) -> None:  # fmt: skip
        self.split, self.preprocessing, self._white, self._kept = split, preprocessing, white, kept
        self._places = None if kept is None else kept.places(split, white)
        self._labels = LabelRows(split)
        self._decoded: dict[int, Tensor] = {}
        self._room = keep_bytes // preprocessing.black().nbytes

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        try:
            return self._labels[position] | {"pixel_values": self._pixels(position)}
        except BadImageError:
            return self._labels[position] | {"pixel_values": self.preprocessing.black(), "counted": torch.tensor(False)}

    def _pixels(self, position: int) -> Tensor:
        row = int(self.split.rows[position])
        if row in self._decoded:
            return self._decoded[row]
        if row in self.split.unreadable:
            raise BadImageError(self.split.unreadable[row])
        place = NO_PLACE if self._places is None else int(self._places[position])
        if self._kept is not None and place != NO_PLACE:
            pixels = self._kept.pixels(self.split, row, place, self._white)
            if self._kept.store.is_filled(place):
                return pixels
        else:
            pixels = self.preprocessing.read(encoded_image(self.split, row), self._white)
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
        solved_views: augmented views that a solved head sees of a training image.

    Attributes:
        views: see `Loaders.views`.
        cycle: see `Loaders.cycle`.
    """

    def __init__(
        self, preprocessing: PixelPreprocessing, augmentation: Augmentation, splits: Splits, *, mask: bool,
        solved_views: int = DEFAULT_VIEWS,
    ) -> None:  # fmt: skip
        self.preprocessing, self.augmentation, self.splits, self.mask = preprocessing, augmentation, splits, mask
        self._white = splits.columns.get(LARGEST_PIXEL_VALUE)
        self.views, self.cycle = solved_views, augmentation.views
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
        parts = [self.files_fingerprint(split), self.preprocessing.fingerprint()]
        parts += [] if self._white is None else [str(self._white)]
        if self.augmentation.kind != "none" and epoch is not None:
            view = self.augmentation.view(self.splits.of(split).rows, epoch)
            parts += [self.augmentation.fingerprint(), str(view[:1])]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def files_fingerprint(self, split: str) -> str:
        """What says which images a split has, and which can be read, whatever a model makes of them."""
        rows = self.splits.of(split)
        # Only once: it reads the status of every image file.
        if split not in self._contents:
            self._contents[split] = image_fingerprint(rows)
        return f"{rows.fingerprint()} {self._contents[split]} {self.mask}"

    def _check_masked(self, batch: Batch, split: str) -> None:
        """Report masked samples that verification has not found: of a large data set it decodes only some images."""
        rows, known = self.splits.of(split), self._unreadable[split]
        masked = batch["index"][~batch["counted"]].tolist()
        for row in (row for row in masked if row not in known):
            try:
                self.preprocessing.read(encoded_image(rows, row), self._white)
            except BadImageError as error:
                if not self.mask:
                    raise user_error(
                        expected=f"images that can be read in split '{split}'",
                        found=f"{describe_row(rows, row)}: {error}",
                        do="fix or remove it, or mask such images with --on_bad_sample skip",
                    ) from error
                known[row] = str(error)
                verification.refuse_bad_share(known, rows, split)


def kept_pixels(preprocessing: PixelPreprocessing, config: VisionConfig | MultimodalConfig) -> KeptPixels:
    """The pixels of a run with these settings."""
    limit = int(config.image.cache_pixels_gb * GIGABYTE)
    return KeptPixels(preprocessing, cache_folder(config.store.cache_dir), limit)


def image_rows(
    splits: Splits, preprocessing: PixelPreprocessing, workers: int, kept: KeptPixels | None = None
) -> dict[str, ImageRows]:
    """The images of all splits, for this many worker processes, each of which keeps pixels of its own in memory."""
    room = DECODED_CACHE_BYTES // max(1, workers)
    white = splits.columns.get(LARGEST_PIXEL_VALUE)
    return {
        name: ImageRows(split, preprocessing, keep_bytes=room, white=white, kept=kept) for name, split in splits.items()
    }


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
    return ImageInputs(
        preprocessing, augmentation, splits, mask=config.data.on_bad_sample == "skip",
        solved_views=images.cache_views or _views_worth_solving(splits),
    )  # fmt: skip


def _views_worth_solving(splits: Splits) -> int:
    """How many augmented views make a solved head better: each costs a pass over the training images."""
    outputs = max(2, len(splits.target.names))
    return DEFAULT_VIEWS if splits.train is not None and len(splits.train) <= FEW_SAMPLES * outputs else 0
