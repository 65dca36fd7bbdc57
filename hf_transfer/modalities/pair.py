"""Samples that are an image with a text, either of which may be missing."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from hf_transfer.data import columns, verification
from hf_transfer.data.batches import Batch, InputMaker, LabelledInputs, Loaders, loaders_of, workers_for
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.levels import Levels
from hf_transfer.data.picture_tables import METADATA, PictureFinder
from hf_transfer.data.rows import is_given
from hf_transfer.data.sample_columns import Selected
from hf_transfer.data.sources import Loaded
from hf_transfer.data.splits import Split, Splits, part_of
from hf_transfer.data.tables import TABLE_BUILDERS
from hf_transfer.errors import user_error
from hf_transfer.modalities.image import (
    MISSING,
    ImageInputs,
    ImageModality,
    ImageRows,
    image_inputs,
    image_rows,
    picture_in,
    white_of,
)
from hf_transfer.modalities.modality import LocatedSample, Modality, Preprocessing, Regularisation, Saved, Typed, Wanted
from hf_transfer.modalities.pair_tables import read_pairs, select_pairs
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.modalities.sample_tables import (
    SampleTable,
    chosen_columns,
    expanded,
    is_table,
    refuse_missing,
    table_at,
)
from hf_transfer.modalities.text import TextModality, tokens_of
from hf_transfer.modalities.text_batches import TextRows, collate_texts, describe_truncation, orders_of
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.pretrained import AnyCheckpoint, Checkpoint
from hf_transfer.models.pretrained_pair import PairCheckpoint
from hf_transfer.settings.run import MultimodalConfig, RunConfig
from hf_transfer.targets.target import Target

PRESENT = ("image_present", "text_present")
# The recipe for samples none of which has this part.
OTHER_RECIPE = {"image": "text", "text": "vision"}
# Why there can be no answer.
NEITHER = "neither an image nor a text"
Pair = tuple[Image.Image | None, str | None]


class PairPreprocessing(Preprocessing):
    """The image processor and the tokenizer of a pair.

    Args:
        pixels: of the image tower.
        tokens: of the text tower.
        columns: see `Preprocessing.columns`.
    """

    def __init__(
        self, pixels: PixelPreprocessing, tokens: TokenPreprocessing, columns: Mapping[str, str] | None = None
    ) -> None:
        self.pixels, self.tokens, self.columns = pixels, tokens, columns or {}

    def inputs(self, samples: Sequence[Pair]) -> Batch:
        """Model inputs of pairs that belong to no split; None, or a text of white space, stands for a missing part.

        Raises:
            UserError: a pair has neither.
        """
        images = [image for image, _ in samples]
        texts = [text if text is not None and text.strip() else None for _, text in samples]
        for position, (image, text) in enumerate(zip(images, texts, strict=True), start=1):
            if image is None and text is None:
                raise user_error(
                    expected="an image, a text, or both", found=f"neither, in pair {position}", do="give at least one"
                )
        present = torch.tensor([image is not None for image in images])
        black = Image.new("RGB", (64, 64))
        pixels = self.pixels.inputs([image or black for image in images])["pixel_values"]
        inputs = self.tokens.inputs([(text or "",) for text in texts])
        inputs["pixel_values"] = pixels.where(present[:, None, None, None], 0.0)
        return inputs | {"image_present": present, "text_present": torch.tensor([text is not None for text in texts])}

    def example(self) -> Batch:
        """Model inputs of two whole pairs, of noisy pictures and short texts, to trace a model with."""
        present = torch.ones(2, dtype=torch.bool)
        return self.pixels.example() | self.tokens.example() | dict.fromkeys(PRESENT, present)

    def adapt_to(self, model: nn.Module) -> list[str]:
        """See `TokenPreprocessing.adapt_to`; the model answers texts alone."""
        return self.tokens.adapt_to(model)

    def save(self, folder: Path) -> None:
        """Write the files of both."""
        self.pixels.save(folder)
        self.tokens.save(folder)

    def description(self) -> dict[str, Any]:
        """See `PixelPreprocessing.description` and `TokenPreprocessing.description`."""
        return self.pixels.description() | self.tokens.description()


class PairRows(Dataset[dict[str, Any]]):
    """One split as a torch data set: pixels, tokens, what is present, target, mask and row number of each sample.

    A missing image has black pixels, a missing text is empty. An unreadable sample is masked, and reaches the model as
    one with a text and no image: for a sample without both, the output might be NaN.

    Args:
        texts: the tokens of the split.
        images: its images; None: leave the pixels out.
    """

    def __init__(self, texts: TextRows, images: ImageRows | None) -> None:
        self.texts, self.images = texts, images
        self.split, self.lengths = texts.split, texts.lengths
        self._with_image, self._with_text = is_given(texts.split, "image"), is_given(texts.split, "text")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.texts[position]
        with_image, with_text = bool(self._with_image[position]), bool(self._with_text[position])
        if self.images is not None and with_image:
            sample |= self.images[position]
        elif self.images is not None:
            sample["pixel_values"] = self.images.preprocessing.black()
        present = (sample["counted"] & with_image, ~sample["counted"] | with_text)
        return sample | dict(zip(PRESENT, present, strict=True))


class PairInputs(InputMaker):
    """Makes model inputs of pairs; the pixels and their augmentation are the same as for images alone.

    Args:
        images: makes the pixels.
        texts: the tokens of each split.
    """

    def __init__(self, images: ImageInputs, texts: Mapping[str, TextRows]) -> None:
        self.images, self.texts = images, texts

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`; for a missing image the model gets zeros."""
        labelled = self.images(batch, device, split, epoch)
        if "pixel_values" not in batch:
            return labelled
        present = labelled.inputs["image_present"][:, None, None, None]
        pixels = labelled.inputs["pixel_values"].where(present, 0.0)
        return labelled._replace(inputs=labelled.inputs | {"pixel_values": pixels})

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        # That of the images covers the whole table, and so also which texts are missing.
        parts = f"{self.images.fingerprint(split, epoch)} {self.texts[split].fingerprint()}"
        return hashlib.sha256(parts.encode()).hexdigest()


class PartInputs(InputMaker):
    """As another maker, but with one part of each pair alone; samples without this part do not count.

    Args:
        pairs: makes the inputs of whole pairs.
        part: image or text.
    """

    def __init__(self, pairs: InputMaker, part: str) -> None:
        self.pairs, self.part = pairs, part

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`."""
        labelled = self.pairs(batch, device, split, epoch)
        (other,) = [name for name in PRESENT if name != f"{self.part}_present"]
        present = labelled.inputs[f"{self.part}_present"]
        # A sample that lacks this part keeps the other one: the output for a sample without both might be NaN.
        hidden = {other: labelled.inputs[other] & ~present}
        return labelled._replace(inputs=labelled.inputs | hidden, counted=labelled.counted & present)

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        return f"{self.pairs.fingerprint(split, epoch)}, {self.part} alone"


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

    def read(self, path: Path, config: MultimodalConfig) -> Loaded:
        """See `Modality.read`."""
        return read_pairs(path, config, self.text_columns(config))

    def bad_rows(self, split: Split, config: MultimodalConfig) -> dict[int, str]:
        """See `Modality.bad_rows`."""
        return verification.bad_pairs(split, config)

    def levels(self, split: Split, config: MultimodalConfig) -> Mapping[int, Levels]:
        """See `SampleColumns.levels`."""
        return verification.look_at_images(part_of(split, np.flatnonzero(is_given(split, "image"))), config).levels

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
        if config.output.evaluate_only:
            return Checkpoint(str(config.model.model_name_or_path), config.model.model_revision, self.task)
        return PairCheckpoint(
            config.model, fusion=config.fusion.fusion, modality_dropout=config.fusion.modality_dropout
        )

    def preprocessing(
        self, checkpoint: AnyCheckpoint, config: MultimodalConfig | None, saved: Saved
    ) -> PairPreprocessing:
        """See `Modality.preprocessing`; a finished model has both processors in its one folder."""
        pixels = PixelPreprocessing(checkpoint.parts[0].processor())
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
        pixels, tokens = preprocessing.pixels, preprocessing.tokens
        workers = workers_for(config.store.dataloader_num_workers, splits.longest())
        images = image_inputs(splits, pixels, config, frozen_prefix=frozen_prefix)
        pictures = image_rows(splits, pixels, workers)
        cache = cache_folder(config.store.cache_dir)
        texts = {name: TextRows(split, tokens, cache) for name, split in splits.items()}
        return loaders_of(
            {name: PairRows(texts[name], pictures[name]) for name in texts},
            orders_of(texts, config.text, config.training), config.training, workers, accelerator,
            partial(collate_texts, tokens), light_rows={name: PairRows(texts[name], None) for name in texts},
            target=splits.target, to_inputs=PairInputs(images, texts), views=images.views, cycle=images.cycle,
            notes=(*tokens.notes, *describe_truncation(texts, tokens.max_length)),
        )  # fmt: skip

    def parts(self, loaders: Loaders) -> dict[str, Loaders]:
        """Loaders of the images alone, and of the texts alone."""
        return {part: part_alone(loaders, part) for part in ("image", "text")}

    def regularisation(self, config: MultimodalConfig, model: nn.Module, target: Target) -> Regularisation:  # noqa: ARG002
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
        return _located([_table_of_pairs(path, wanted, saved) for path in tables], white_of(saved))

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
            fault = "" if image or (words and words.strip()) else NEITHER
            located.append(LocatedSample(samples.image, None, (image, words), fault, text=text if several else None))
        return located


def _table_of_pairs(path: Path, wanted: Wanted, saved: PairPreprocessing) -> tuple[SampleTable, str | None, str | None]:
    """A table, and its columns of images and of texts."""
    table = table_at(path, wanted, saved.columns)
    existing = table.data.column_names
    usual = {
        "text_column_name": columns.by_name(existing, columns.TEXT),
        "image_column_name": columns.by_name(existing, columns.IMAGE),
    }
    chosen = chosen_columns(existing, usual, wanted, saved.columns)
    refuse_missing(
        path, chosen.values(), existing, expected="of texts, or one of paths of images",
        do="name them in --text_column_name and --image_column_name",
    )  # fmt: skip
    if text := chosen.get("text_column_name"):
        columns.refuse_other_values(table.data, text)
    return table, chosen.get("image_column_name"), text


def _located(
    tables: Sequence[tuple[SampleTable, str | None, str | None]], white: float | None
) -> Iterator[LocatedSample]:
    for table, image, text in tables:
        path_of = partial(PictureFinder(table.path.parent, anywhere=True).path, table=table.path)
        for row, line, values in table.rows([name for name in (image, text) if name]):
            words, value = (values[name] if name else None for name in (text, image))
            words = words if words and words.strip() else None
            picture, fault = picture_in(value, path_of, white)
            if picture is None and fault == MISSING:
                fault = "" if words else NEITHER
            yield LocatedSample(table.path, row, (picture, words), fault, line)


def part_alone(loaders: Loaders, part: str) -> Loaders:
    """The same batches with only one part of each pair, `image` or `text`."""
    return replace(loaders, to_inputs=PartInputs(loaders.to_inputs, part), without_first_layers=None)
