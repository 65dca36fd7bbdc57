"""Samples that are images: columns, batches, augmentation, prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from hf_transfer.data import columns, verification
from hf_transfer.data.groups import Keys
from hf_transfer.data.levels import LARGEST_PIXEL_VALUE, Levels
from hf_transfer.data.picture_tables import PictureFinder
from hf_transfer.data.pictures import SUFFIXES, BadImageError, decode, decode_picture
from hf_transfer.data.sample_columns import Selected
from hf_transfer.data.sources import Loaded, read_files
from hf_transfer.data.splits import Split, Splits
from hf_transfer.data.tables import TABLE_BUILDERS
from hf_transfer.errors import user_error
from hf_transfer.modalities.modality import (
    LocatedSample,
    Modality,
    Preprocessing,
    Regularisation,
    Saved,
    Typed,
    Wanted,
)
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
from hf_transfer.settings.run import RunConfig, VisionConfig
from hf_transfer.targets.target import Target

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator
    from torch import Tensor, nn

    from hf_transfer.data.batches import Loaders
    from hf_transfer.modalities.kept_pixels import KeptPixels
    from hf_transfer.modalities.pixels import PixelPreprocessing
    from hf_transfer.models.pretrained import AnyCheckpoint

# From an encoded picture to its pixels.
Reader = Callable[[dict[str, Any]], "Tensor"]
# Why there can be no answer, where a table names no picture.
MISSING = "missing"


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

    def for_run(self, preprocessing: PixelPreprocessing, config: VisionConfig) -> ImageModality:
        """See `Modality.for_run`: what the checks decode is kept."""
        from hf_transfer.modalities.image_batches import kept_pixels

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
        import datasets

        return any(isinstance(feature, datasets.Image) for feature in features.values())

    def select(self, loaded: datasets.DatasetDict, config: VisionConfig) -> Selected:
        """See `Modality.select`."""
        column = columns.image_column(columns.first_split(loaded), config.image.image_column_name)
        images = {name: columns.images(split, column) for name, split in loaded.items()}
        return Selected(images, {"image_column_name": column})

    def preprocessing(self, checkpoint: AnyCheckpoint, config: VisionConfig | None, saved: Saved) -> PixelPreprocessing:
        """See `Modality.preprocessing`."""
        from hf_transfer.modalities.pixels import PixelPreprocessing

        processor = checkpoint.parts[0].processor()
        return PixelPreprocessing(processor, saved.get("columns"), None if trains(config) else saved)

    def loaders(
        self, splits: Splits, preprocessing: PixelPreprocessing, config: VisionConfig, accelerator: Accelerator,
        *, frozen_prefix: bool,
    ) -> Loaders:  # fmt: skip
        """See `Modality.loaders`."""
        from hf_transfer.data import batches
        from hf_transfer.data.processors import workers_for
        from hf_transfer.modalities.image_batches import image_inputs, image_rows

        workers = workers_for(config.store.dataloader_num_workers, splits.longest())
        images = image_inputs(splits, preprocessing, config, frozen_prefix=frozen_prefix)
        order = batches.EpochSampler(len(splits.train), config.training.seed)
        return batches.loaders_of(
            image_rows(splits, preprocessing, workers, self._kept), {"train": order}, config.training, workers,
            accelerator,
            light_rows={name: batches.LabelRows(split) for name, split in splits.items()},
            target=splits.target, to_inputs=images, views=images.views, cycle=images.cycle,
        )  # fmt: skip

    def regularisation(self, config: VisionConfig, model: nn.Module, target: Target, samples: int) -> Regularisation:  # noqa: ARG002
        """Mixup and CutMix, if the settings ask for them."""
        from hf_transfer.modalities.mixing import Mixing

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


def trains(config: RunConfig | None) -> bool:
    """Whether a run with these settings trains a model; without settings a finished one predicts."""
    return config is not None and config.trains()


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
