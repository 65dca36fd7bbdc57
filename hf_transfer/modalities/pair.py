"""Samples that are an image with a text, either of which may be missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_transfer.data import columns, verification
from hf_transfer.data.groups import Keys
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.levels import Levels
from hf_transfer.data.picture_tables import METADATA
from hf_transfer.data.rows import is_given
from hf_transfer.data.sample_columns import Selected
from hf_transfer.data.sources import Loaded
from hf_transfer.data.splits import Split, Splits, part_of
from hf_transfer.data.tables import TABLE_BUILDERS
from hf_transfer.data.text_checks import refuse_half_pairs
from hf_transfer.errors import user_error
from hf_transfer.modalities.image import ImageModality, reader_of, trains
from hf_transfer.modalities.modality import LocatedSample, Modality, Regularisation, Saved, Typed, Wanted
from hf_transfer.modalities.pair_tables import NEITHER, pairs_in, read_pairs, select_pairs, table_of_pairs
from hf_transfer.modalities.sample_tables import expanded, is_table
from hf_transfer.modalities.text import TextModality, tokens_of
from hf_transfer.settings.run import MultimodalConfig, RunConfig
from hf_transfer.targets.target import Target

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator
    from torch import nn

    from hf_transfer.data.batches import Loaders
    from hf_transfer.modalities.kept_pixels import KeptPixels
    from hf_transfer.modalities.pair_batches import Pair, PairPreprocessing
    from hf_transfer.models.pretrained import AnyCheckpoint

# The recipe for samples none of which has this part.
OTHER_RECIPE = {"image": "text", "text": "vision"}


class PairModality(Modality[MultimodalConfig]):
    """Images with texts."""

    name: ClassVar[str] = "pair"
    config: ClassVar[type[RunConfig]] = MultimodalConfig
    samples: ClassVar[str] = "pairs"
    usable: ClassVar[str] = "rows with an image that can be read, a text, or both"
    unusable: ClassVar[str] = "others"
    kind: ClassVar[str] = "An image and text"
    task: ClassVar[str] = "image-text-classification"
    has_pipeline: ClassVar[bool] = False
    _kept: KeptPixels | None = None

    def read(self, path: Path, config: MultimodalConfig) -> Loaded:
        """See `Modality.read`."""
        return read_pairs(path, config, self.text_columns(config))

    def for_run(self, preprocessing: PairPreprocessing, config: MultimodalConfig) -> PairModality:
        """See `Modality.for_run`: what the checks decode is kept."""
        from hf_transfer.modalities.image_batches import kept_pixels

        modality = PairModality()
        modality._kept = kept_pixels(preprocessing.pixels, config)
        return modality

    def bad_rows(self, split: Split, config: MultimodalConfig) -> dict[int, str]:
        """See `Modality.bad_rows`."""
        return verification.bad_pairs(split, config, self._kept)

    def copies(self, splits: Mapping[str, Split]) -> dict[str, int]:
        """See `SampleColumns.copies`."""
        return verification.copies(splits, self._kept)

    def keys(self, split: Split, config: MultimodalConfig) -> list[Keys]:
        """See `SampleColumns.keys`."""
        return [verification.content_keys(split, config, self._kept)]

    def levels(self, split: Split, config: MultimodalConfig) -> Mapping[int, Levels]:
        """See `SampleColumns.levels`."""
        images = part_of(split, np.flatnonzero(is_given(split, "image")))
        return verification.look_at_images(images, config, self._kept).levels

    def measured(self, train: Split, config: MultimodalConfig) -> dict[str, Any]:
        """See `ImageModality.measured`."""
        return verification.measured_white(train, config)

    def suits(self, features: datasets.Features) -> bool:
        """See `Modality.suits`: images beside texts that are not labels."""
        return ImageModality().suits(features) and TextModality().suits(features)

    def select(self, loaded: datasets.DatasetDict, config: MultimodalConfig) -> Selected:
        """See `Modality.select`."""
        train = columns.first_split(loaded)
        image, text = columns.together(
            lambda: columns.image_column(train, config.image.image_column_name),
            lambda: columns.text_column(train, config.text.text_column_name, config.data),
        )
        if image == config.text.text_column_name:
            raise user_error(
                expected="two columns for --image_column_name and --text_column_name",
                found=f"'{image}' for both",
                do="name the other column",
            )
        name = config.data.dataset_name
        pairs = {split: select_pairs(rows, image, text, name) for split, rows in loaded.items()}
        return Selected(pairs, {"image_column_name": image, "text_column_name": text})

    def notes_on_samples(self, splits: Mapping[str, Split], columns: Mapping[str, Any]) -> list[str]:
        """Notes on pairs that lack one of the two, and on pictures of more than 8 bits.

        Raises:
            UserError: training has no image, or no text, at all.
        """
        notes = ImageModality().notes_on_samples(splits, columns)
        for column, other_recipe in OTHER_RECIPE.items():
            lacking = {split: int((~is_given(part, column)).sum()) for split, part in splits.items()}
            if "train" in splits and lacking["train"] == len(splits["train"]):
                raise user_error(
                    expected=f"training rows with a value in column '{columns[f'{column}_column_name']}'",
                    found=f"no value in any of {lacking['train']} rows",
                    do=f"name the right column in --{column}_column_name, or use recipes/{other_recipe}.py",
                )
            counts = [f"{count:,} of {len(splits[split]):,} in {split}" for split, count in lacking.items() if count]
            if counts:
                notes.append(f"Pairs without {'an image' if column == 'image' else 'a text'}: {', '.join(counts)}.")
        return notes

    def checkpoint(self, config: MultimodalConfig) -> AnyCheckpoint:
        """Both towers; with `--evaluate_only`, a finished model."""
        from hf_transfer.models.pretrained import Checkpoint
        from hf_transfer.models.pretrained_pair import PairCheckpoint

        if config.output.evaluate_only:
            return Checkpoint(str(config.model.model_name_or_path), config.model.model_revision, self.task)
        return PairCheckpoint(
            config.model, fusion=config.fusion.fusion, modality_dropout=config.fusion.modality_dropout
        )

    def preprocessing(
        self, checkpoint: AnyCheckpoint, config: MultimodalConfig | None, saved: Saved
    ) -> PairPreprocessing:
        """See `Modality.preprocessing`; a finished model has both processors in its one folder."""
        from hf_transfer.modalities.pair_batches import PairPreprocessing
        from hf_transfer.modalities.pixels import PixelPreprocessing

        pixels = PixelPreprocessing(checkpoint.parts[0].processor(), saved=None if trains(config) else saved)
        return PairPreprocessing(pixels, tokens_of(checkpoint.parts[-1], config, saved), saved.get("columns"))

    def loaders(
        self, splits: Splits, preprocessing: PairPreprocessing, config: MultimodalConfig, accelerator: Accelerator,
        *, frozen_prefix: bool,
    ) -> Loaders:  # fmt: skip
        """See `Modality.loaders`; notes report truncated texts.

        Model inputs are `pixel_values` [batch, 3, height, width], `input_ids`, `attention_mask` and what else the
        tokenizer makes [batch, tokens], and `image_present` and `text_present`, bool [batch], of which each sample has
        at least one.
        """
        from hf_transfer.data.batches import loaders_of
        from hf_transfer.data.processors import workers_for
        from hf_transfer.modalities.image_batches import image_inputs, image_rows
        from hf_transfer.modalities.pair_batches import PairInputs, PairRows
        from hf_transfer.modalities.text_batches import TextRows, collate_texts, describe_truncation, orders_of

        pixels, tokens = preprocessing.pixels, preprocessing.tokens
        workers = workers_for(config.store.dataloader_num_workers, splits.longest())
        images = image_inputs(splits, pixels, config, frozen_prefix=frozen_prefix)
        pictures = image_rows(splits, pixels, workers, self._kept)
        cache = cache_folder(config.store.cache_dir)
        texts = {name: TextRows(split, tokens, cache) for name, split in splits.items()}
        return loaders_of(
            {name: PairRows(texts[name], pictures[name]) for name in texts},
            orders_of(texts, config.text, config.training), config.training, workers, accelerator,
            partial(collate_texts, tokens), light_rows={name: PairRows(texts[name], None) for name in texts},
            target=splits.target, to_inputs=PairInputs(images, texts), views=images.views, cycle=images.cycle,
            notes=(*tokens.notes, *describe_truncation(texts, tokens)),
        )  # fmt: skip

    def parts(self, loaders: Loaders) -> dict[str, Loaders]:
        """Loaders of the images alone, and of the texts alone."""
        from hf_transfer.modalities.pair_batches import part_alone

        return {part: part_alone(loaders, part) for part in ("image", "text")}

    def regularisation(
        self,
        config: MultimodalConfig,
        model: nn.Module,  # noqa: ARG002
        target: Target,  # noqa: ARG002
        samples: int,  # noqa: ARG002
    ) -> Regularisation:
        """The heads that see the image or the text alone."""
        return Regularisation(auxiliary_weight=config.fusion.auxiliary_weight)

    def sample_of(self, value: Any, saved: Any = None) -> Pair:
        """A picture or its path, and a text, in a tuple or as `image` and `text`; either may be None."""
        if isinstance(value, Mapping):
            value = (value.get("image"), value.get("text"))
        if not isinstance(value, tuple | list) or len(value) != 2 or not isinstance(value[1], str | None):
            raise user_error(
                expected="an image and a text in a tuple, either of which may be None",
                found=f"{value!r:.200}",
                do="correct this sample",
            )
        image, text = value
        refuse_half_pairs([text or ""])
        return None if image is None else ImageModality().sample_of(image, saved), text

    def samples_in(self, files: Sequence[Path], wanted: Wanted, saved: PairPreprocessing) -> Iterator[LocatedSample]:
        """Each row of a table is a pair; paths of images are relative to the table."""
        paths = expanded(files, [TABLE_BUILDERS], expected="tables of images with texts")
        # As in training: beside a metadata file, other tables of a folder are not read.
        named = [path for path in paths if path.stem == METADATA]
        tables = [path for path in paths if path in files or path in named or not named]
        for path in tables:
            if not is_table(path):
                raise user_error(
                    expected=f"tables ({', '.join(TABLE_BUILDERS)}) of images with texts",
                    found=str(path),
                    do="name a table, or give one sample in --image and --text",
                )
        read = reader_of(saved, saved.pixels)
        return pairs_in([table_of_pairs(path, wanted, saved.columns) for path in tables], read)

    def typed(self, samples: Typed, saved: PairPreprocessing) -> list[LocatedSample]:
        """See `Modality.typed`: an image, a text or both; or several texts."""
        if samples.text_pairs or (samples.image is not None and len(samples.texts) > 1):
            raise user_error(
                expected="--image, --text, or one of both, for a model of images with texts",
                found=samples.given() + (f" with {len(samples.texts)} texts" if len(samples.texts) > 1 else ""),
                do="name many samples in a table",
            )
        several = len(samples.texts) > 1
        texts: list[str | None] = [*samples.texts] or [None]
        located = []
        for text in texts:
            image, words = self.sample_of((samples.image, text), saved)
            fault = "" if image is not None or (words and words.strip()) else NEITHER
            located.append(LocatedSample(samples.image, None, (image, words), fault, text=text if several else None))
        return located
