"""Samples that are images: columns, batches, augmentation, prediction."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_transfer.data import batches, columns, verification
from hf_transfer.data.batches import Batch, InputMaker, LabelledInputs, LabelRows, Loaders
from hf_transfer.data.groups import Keys
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.identities import image_fingerprint
from hf_transfer.data.levels import LARGEST_PIXEL_VALUE, Levels
from hf_transfer.data.picture_tables import PictureFinder
from hf_transfer.data.pictures import SUFFIXES, BadImageError, decode, decode_picture
from hf_transfer.data.pixel_store import NO_PLACE
from hf_transfer.data.rows import describe_row, encoded_image
from hf_transfer.data.sample_columns import Selected
from hf_transfer.data.samples import NOT_TO_BE_MIRRORED
from hf_transfer.data.sources import Loaded, read_files
from hf_transfer.data.splits import Split, Splits
from hf_transfer.data.tables import TABLE_BUILDERS
from hf_transfer.errors import user_error
from hf_transfer.modalities.augmentation import Augmentation
from hf_transfer.modalities.kept_pixels import KeptPixels
from hf_transfer.modalities.mixing import Mixing
from hf_transfer.modalities.modality import (
    LocatedSample,
    Modality,
    Preprocessing,
    Regularisation,
    Saved,
    Typed,
    Wanted,
)
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.modalities.sample_tables import (
    STANDARD_INPUT,
    SampleTable,
    chosen_columns,
    columns_of,
    expanded,
    input_lines,
    is_table,
    refuse_missing,
    table_at,
)
from hf_transfer.models.pretrained import AnyCheckpoint
from hf_transfer.settings.run import MultimodalConfig, RunConfig, VisionConfig
from hf_transfer.targets.target import Target

DECODED_CACHE_BYTES = 1 << 30
GIGABYTE = 10**9
DEFAULT_VIEWS = 4
# From an encoded picture to its pixels.
Reader = Callable[[dict[str, Any]], Tensor]
# Why there can be no answer, where a table names no picture.
MISSING = "missing"


class ImageRows(Dataset[dict[str, Tensor]]):
    """One split as a torch data set: resized pixels, target, mask and row number of each sample.

    An unreadable image is masked: it keeps its position and its target, and its pixels are black. Decoded pixels for
    which there is no place on disk are kept in memory, up to `keep_bytes`, because decoding can take longer than the
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
            return self._kept.pixels(self.split, row, place, self._white)
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

    Attributes:
        views: see `Loaders.views`.
        cycle: see `Loaders.cycle`.
    """

    def __init__(
        self, preprocessing: PixelPreprocessing, augmentation: Augmentation, splits: Splits, *, mask: bool
    ) -> None:
        self.preprocessing, self.augmentation, self.splits, self.mask = preprocessing, augmentation, splits, mask
        self._white = splits.columns.get(LARGEST_PIXEL_VALUE)
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
            self._contents[split] = image_fingerprint(rows)
        parts = [rows.fingerprint(), self._contents[split], str(self.mask), self.preprocessing.fingerprint()]
        parts += [] if self._white is None else [str(self._white)]
        if self.augmentation.kind != "none" and epoch is not None:
            parts += [self.augmentation.fingerprint(), str(self.augmentation.view(rows.rows, epoch)[:1])]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

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


class ImageModality(Modality[VisionConfig]):
    """Images."""

    name: ClassVar[str] = "image"
    config: ClassVar[type[RunConfig]] = VisionConfig
    samples: ClassVar[str] = "images"
    usable: ClassVar[str] = "images that can be read"
    unusable: ClassVar[str] = "that cannot be read"
    kind: ClassVar[str] = "An image"
    task: ClassVar[str] = "image-classification"
    _kept: KeptPixels | None = None

    def read(self, path: Path, config: VisionConfig) -> Loaded:
        """See `Modality.read`; tables may name images."""
        column = config.image.image_column_name
        return read_files(path, config.data, self.text_columns(config), image_column=column, tables_name_images=True)

    def for_run(self, preprocessing: PixelPreprocessing, config: VisionConfig) -> "ImageModality":
        """See `Modality.for_run`: what the checks decode is kept."""
        modality = ImageModality()
        modality._kept = kept_pixels(preprocessing, config)
        return modality

    def bad_rows(self, split: Split, config: VisionConfig) -> dict[int, str]:
        """See `Modality.bad_rows`."""
        return verification.bad_images(split, config, self._kept)

    def levels(self, split: Split, config: VisionConfig) -> Mapping[int, Levels]:
        """See `SampleColumns.levels`."""
        return verification.look_at_images(split, config, self._kept).levels

    def copies(self, splits: Mapping[str, Split]) -> dict[str, int]:
        """See `SampleColumns.copies`."""
        return verification.copies(splits, self._kept)

    def keys(self, split: Split, config: VisionConfig) -> list[Keys]:
        """See `SampleColumns.keys`."""
        return [verification.content_keys(split, config, self._kept)]

    def measured(self, train: Split, config: VisionConfig) -> dict[str, Any]:
        """The setting `largest_pixel_value`, if there are pictures of more than 8 bits."""
        return verification.measured_white(train, config)

    def notes_on_samples(self, splits: Mapping[str, Split], columns: Mapping[str, Any]) -> list[str]:
        """Notes on pictures of more than 8 bits."""
        return verification.notes_on_levels(splits, columns.get(LARGEST_PIXEL_VALUE))

    def suits(self, features: datasets.Features) -> bool:
        """See `Modality.suits`."""
        return any(isinstance(feature, datasets.Image) for feature in features.values())

    def select(self, loaded: datasets.DatasetDict, config: VisionConfig) -> Selected:
        """See `Modality.select`."""
        column = columns.image_column(columns.first_split(loaded), config.image.image_column_name)
        images = {name: columns.images(split, column) for name, split in loaded.items()}
        return Selected(images, {"image_column_name": column})

    def preprocessing(self, checkpoint: AnyCheckpoint, config: VisionConfig | None, saved: Saved) -> PixelPreprocessing:  # noqa: ARG002
        """See `Modality.preprocessing`."""
        return PixelPreprocessing(checkpoint.parts[0].processor(), saved.get("columns"), saved)

    def loaders(
        self, splits: Splits, preprocessing: PixelPreprocessing, config: VisionConfig, accelerator: Accelerator,
        *, frozen_prefix: bool,
    ) -> Loaders:  # fmt: skip
        """See `Modality.loaders`."""
        workers = batches.workers_for(config.store.dataloader_num_workers, splits.longest())
        images = image_inputs(splits, preprocessing, config, frozen_prefix=frozen_prefix)
        order = batches.EpochSampler(len(splits.train), config.training.seed)
        rows = image_rows(splits, preprocessing, workers, self._kept)
        return batches.loaders_of(
            rows, {"train": order}, config.training, workers, accelerator,
            light_rows={name: LabelRows(split) for name, split in splits.items()},
            target=splits.target, to_inputs=images, views=images.views, cycle=images.cycle,
        )  # fmt: skip

    def regularisation(self, config: VisionConfig, model: nn.Module, target: Target) -> Regularisation:  # noqa: ARG002
        """Mixup and CutMix, if the settings ask for them."""
        training = config.training
        if training.mixup_alpha == training.cutmix_alpha == 0:
            return Regularisation()
        return Regularisation(mixer=Mixing(training.mixup_alpha, training.cutmix_alpha, training.seed, target))

    def sample_of(self, value: Any, saved: Any = None) -> Image.Image:
        """An RGB picture, from a path or a picture."""
        white, side = white_of(saved), None if saved is None else saved.least_side
        try:
            if isinstance(value, Image.Image):
                return decode_picture(value, white)
            return decode(_raw(Path(value)), white, side)
        except (BadImageError, TypeError) as error:
            raise user_error(
                expected="a readable picture, or its path",
                found=f"{value!r:.200} ({error})",
                do="correct or leave out this sample",
            ) from error

    def samples_in(self, files: Sequence[Path], wanted: Wanted, saved: PixelPreprocessing) -> Iterator[LocatedSample]:
        """Each file is a picture, or a table that holds or names some; a folder may have either."""
        paths = expanded(files, [SUFFIXES, TABLE_BUILDERS], expected="pictures, or tables of them")
        tables = {path: _table_of_pictures(path, wanted, saved.columns) for path in paths if is_table(path)}
        return _located(paths, tables, reader_of(saved, saved))

    def typed(self, samples: Typed, saved: PixelPreprocessing) -> list[LocatedSample]:
        """See `Modality.typed`: one picture."""
        if samples.image is None or samples.texts or samples.text_pairs:
            return super().typed(samples, saved)
        return list(self.samples_in([samples.image], {}, saved))


def _table_of_pictures(path: Path, wanted: Wanted, saved: Saved) -> tuple[SampleTable, str]:
    """A table, and its column of pictures."""
    table = table_at(path, wanted, saved)
    existing, setting = table.data.column_names, "image_column_name"
    if chosen := chosen_columns(existing, {setting: ()}, wanted, saved):
        refuse_missing(path, chosen.values(), existing, expected="of pictures", do=f"name it in --{setting}")
        return table, chosen[setting]
    with columns_of(path):
        return table, columns.image_column(table.data, None)


def _located(
    paths: Sequence[Path], tables: Mapping[Path, tuple[SampleTable, str]], read: Reader
) -> Iterator[LocatedSample]:
    for path in paths:
        if path in tables:
            table, column = tables[path]
            path_of = partial(PictureFinder(path.parent, anywhere=True).path, table=path)
            for row, line, values in table.rows([column]):
                yield LocatedSample(path, row, *picture_in(values[column], path_of, read), line)
        elif path == STANDARD_INPUT:
            for row, name in input_lines():
                yield LocatedSample(path, row, *picture_in(name, Path, read))
        else:
            yield LocatedSample(path, None, *_read(_raw(path), read))


def picture_in(value: Any, path_of: Callable[[str], Path], read: Reader) -> tuple[Tensor | None, str]:
    """The pixels of a picture that a table holds or names, and what is wrong with it.

    Args:
        value: a path, or `{"bytes": ..., "path": ...}`.
        path_of: the file that a name in the table means.
        read: see `reader_of`.
    """
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return _read(value, read)
    name = value.get("path") if isinstance(value, Mapping) else value
    if name is None or not str(name).strip():
        return None, MISSING
    pixels, fault = _read(_raw(path_of(str(name))), read)
    return pixels, fault and f"{name}: {fault}"


def reader_of(saved: Preprocessing, pixels: PixelPreprocessing) -> Reader:
    """Reads encoded pictures as in the training of a model, and resizes each at once: many would fill the memory.

    Args:
        saved: the preprocessing of the model.
        pixels: that of its pictures.
    """
    return partial(pixels.read, white=white_of(saved))


def _read(raw: Mapping[str, Any], read: Reader) -> tuple[Tensor | None, str]:
    try:
        return read(dict(raw)), ""
    except BadImageError as error:
        return None, str(error)


def _raw(path: Path) -> dict[str, Any]:
    return {"bytes": None, "path": str(path)}


def white_of(saved: Any) -> float | None:
    """What was white in the pictures of more than 8 bits that a model was trained on; None: there were none."""
    return None if saved is None else saved.columns.get(LARGEST_PIXEL_VALUE)


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
    return ImageInputs(preprocessing, augmentation, splits, mask=config.data.on_bad_sample == "skip")
