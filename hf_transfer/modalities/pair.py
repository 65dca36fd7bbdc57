"""Samples that are an image with a text, either of which may be missing."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from hf_transfer.data import columns, verification
from hf_transfer.data.batches import LABELS, Batch, InputMaker, LabelledInputs, Loaders, loaders_of, workers_for
from hf_transfer.data.checked import Selected
from hf_transfer.data.rows import is_given
from hf_transfer.data.splits import Split, Splits
from hf_transfer.errors import user_error
from hf_transfer.modalities.image import (
    DECODED_CACHE_BYTES,
    BlankInputs,
    ImageInputs,
    ImageModality,
    ImageRows,
    choose_augmentation,
    views_and_cycle,
)
from hf_transfer.modalities.modality import LocatedSample, Modality, Preprocessing, Regularisation, saved_description
from hf_transfer.modalities.pair_tables import missing_parts, read_pairs, select_pairs
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.modalities.sample_tables import pairs_in
from hf_transfer.modalities.text import tokens_of
from hf_transfer.modalities.text_batches import TextRows, collate_texts, describe_truncation, orders_of
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.pretrained import AnyCheckpoint, Checkpoint
from hf_transfer.models.pretrained_pair import PairCheckpoint
from hf_transfer.settings.run import MultimodalConfig, RunConfig
from hf_transfer.targets.target import Target

PRESENT = ("image_present", "text_present")
Pair = tuple[Image.Image | None, str | None]


class PairPreprocessing(Preprocessing):
    """The image processor and the tokenizer of a pair.

    Args:
        pixels: of the image tower.
        tokens: of the text tower.
        columns: see `Preprocessing.columns`.
    """

    def __init__(
        self, pixels: PixelPreprocessing, tokens: TokenPreprocessing,
        columns: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
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
        self.texts = texts
        self.images = images
        self.split = texts.split
        self.lengths = texts.lengths
        self._with_image, self._with_text = is_given(texts.split, "image"), is_given(texts.split, "text")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.texts[position]
        with_image, with_text = bool(self._with_image[position]), bool(self._with_text[position])
        if self.images is not None and with_image:
            image = self.images[position]
            sample |= {"pixel_values": image["pixel_values"], "counted": image["counted"]}
        elif self.images is not None:
            sample["pixel_values"] = torch.zeros(self.images.preprocessing.shape, dtype=torch.uint8)
        counted = bool(sample["counted"])
        return sample | dict(zip(PRESENT, (with_image and counted, with_text or not counted), strict=True))


class PairInputs(InputMaker):
    """Makes model inputs of pairs; the pixels and their augmentation are the same as for images alone.

    Args:
        images: makes the pixels, which are all zero if the first layers of the model are skipped.
        texts: the tokens of each split.
    """

    def __init__(self, images: ImageInputs | BlankInputs, texts: Mapping[str, TextRows]) -> None:
        self.images = images
        self.texts = texts

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`; for a missing image the model gets zeros."""
        labelled = self.images(batch, device, split, epoch)
        done = ("pixel_values", *LABELS)
        others = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items() if name not in done}
        pixels = labelled.inputs["pixel_values"]
        if isinstance(self.images, ImageInputs):
            pixels = pixels.where(others["image_present"][:, None, None, None], 0.0)
        return labelled._replace(inputs={"pixel_values": pixels} | others)

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
    kind: ClassVar[str] = "An image and text"
    task: ClassVar[str] = "image-text-classification"
    has_pipeline: ClassVar[bool] = False

    def text_columns(self, config: MultimodalConfig) -> list[str]:
        """See `Modality.text_columns`."""
        return [name for name in (config.data.label_column_name, config.text.text_column_name) if name]

    def read(self, path: Path, config: MultimodalConfig) -> datasets.DatasetDict:
        """See `Modality.read`."""
        return read_pairs(path, config.data, config.image.image_column_name, self.text_columns(config))

    def notes_on_files(self, name: str, loaded: datasets.DatasetDict) -> list[str]:  # noqa: ARG002
        """No notes: images that no row names are refused."""
        return []

    def suits(self, features: datasets.Features) -> bool:
        """See `Modality.suits`: images beside texts that are not labels."""
        images = any(isinstance(feature, datasets.Image) for feature in features.values())
        texts = (name for name, kind in features.items() if columns.is_text(kind))
        return images and any(name not in columns.LABEL_NAMES for name in texts)

    def select(self, loaded: datasets.DatasetDict, config: MultimodalConfig) -> Selected:
        """See `Modality.select`."""
        train = loaded["train"]
        image = columns.image_column(train, config.image.image_column_name)
        if image == config.text.text_column_name:
            raise user_error(
                expected="two columns for --image_column_name and --text_column_name",
                found=f"'{image}' for both",
                do="name the other column",
            )
        text = columns.text_column(train, config.text.text_column_name, config.data.label_column_name)
        label = columns.label_column(train, config.data.label_column_name)
        notes = columns.unused_texts(train, (image, text, label))
        name = config.data.dataset_name
        pairs = {split: select_pairs(rows, image, text, name) for split, rows in loaded.items()}
        return Selected(pairs, {"image_column_name": image, "text_column_name": text}, notes)

    def unreadable(self, split: Split, name: str, config: MultimodalConfig) -> dict[int, str]:
        """See `Modality.unreadable`."""
        return verification.unreadable_pairs(split, name, config.data, config.store.cache_dir)

    def notes_on_samples(self, splits: Mapping[str, Split], columns: Mapping[str, str]) -> list[str]:
        """Notes on pairs that lack one of the two; training must have some of each."""
        return missing_parts(splits, columns)

    def copies(self, splits: Mapping[str, Split]) -> dict[str, int]:
        """See `Modality.copies`."""
        return verification.copies_of_images(splits)

    def checkpoint(self, config: MultimodalConfig) -> AnyCheckpoint:
        """Both towers; with `--evaluate_only`, a finished model."""
        if config.output.evaluate_only:
            return Checkpoint(str(config.model.model_name_or_path), config.model.model_revision, self.task)
        return PairCheckpoint(
            config.model, fusion=config.fusion.fusion, modality_dropout=config.fusion.modality_dropout
        )

    def preprocessing(self, checkpoint: AnyCheckpoint, config: MultimodalConfig) -> PairPreprocessing:
        """See `Modality.preprocessing`."""
        image, text = checkpoint.parts[0], checkpoint.parts[-1]
        return PairPreprocessing(PixelPreprocessing(image.processor()), tokens_of(text, config.text.max_seq_length))

    def saved_preprocessing(self, checkpoint: Checkpoint, config: MultimodalConfig | None = None) -> PairPreprocessing:
        """See `Modality.saved_preprocessing`."""
        saved = saved_description(checkpoint)
        tokens = tokens_of(checkpoint, (config.text.max_seq_length if config else None) or saved.get("max_length"))
        return PairPreprocessing(PixelPreprocessing(checkpoint.processor()), tokens, saved.get("columns", {}))

    def loaders(
        self, splits: Splits, preprocessing: PairPreprocessing, config: MultimodalConfig, accelerator: Accelerator,
        *, frozen_prefix: bool,
    ) -> Loaders:  # fmt: skip
        """See `Modality.loaders`; notes report truncated texts.

        Model inputs are `pixel_values` [batch, 3, height, width], `input_ids`, `attention_mask` and what else the
        tokenizer makes [batch, tokens], and `image_present` and `text_present`, bool [batch], of which each sample has
        at least one.
        """
        pixels, tokens, training = preprocessing.pixels, preprocessing.tokens, config.training
        augmentation = choose_augmentation(config.image, config.data, seed=training.seed, frozen_prefix=frozen_prefix)
        workers = workers_for(config.store.dataloader_num_workers, len(splits.train))
        room = DECODED_CACHE_BYTES // max(1, workers)
        texts = {name: TextRows(split, tokens) for name, split in splits.items()}
        images = ImageInputs(pixels, augmentation, splits, mask=config.data.on_bad_sample == "skip")
        views, cycle = views_and_cycle(augmentation)

        def loaders(
            rows: Mapping[str, PairRows], to_inputs: PairInputs, workers: int,
            without_first_layers: Callable[[], Loaders] | None = None,
        ) -> Loaders:  # fmt: skip
            return loaders_of(
                rows, orders_of(texts, config.text, training), training, workers, accelerator,
                partial(_collate, tokens), target=splits.target, to_inputs=to_inputs, views=views, cycle=cycle,
                notes=(*tokens.notes, *describe_truncation(texts, tokens.max_length)),
                without_first_layers=without_first_layers,
            )  # fmt: skip

        whole = {
            name: PairRows(texts[name], ImageRows(split, pixels, keep_bytes=room)) for name, split in splits.items()
        }
        without_pixels = {name: PairRows(rows, None) for name, rows in texts.items()}
        blank = PairInputs(BlankInputs(images), texts)
        return loaders(whole, PairInputs(images, texts), workers, lambda: loaders(without_pixels, blank, 0))

    def parts(self, loaders: Loaders) -> dict[str, Loaders]:
        """Loaders of the images alone, and of the texts alone."""
        return {part: part_alone(loaders, part) for part in ("image", "text")}

    def regularisation(self, config: MultimodalConfig, model: nn.Module, target: Target) -> Regularisation:  # noqa: ARG002
        """The heads that see the image or the text alone."""
        return Regularisation(auxiliary_weight=config.fusion.auxiliary_weight)

    def sample_of(self, value: Any) -> Pair:
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
        return None if image is None else ImageModality().sample_of(image), text

    def samples_in(
        self, files: Sequence[Path], columns: Mapping[str, str | None], saved: PairPreprocessing
    ) -> list[LocatedSample]:
        """Each row of a table is a pair; paths of images are relative to the table."""
        located = [pair for path in files for pair in pairs_in(path, columns, saved.columns)]
        return [
            LocatedSample(path, row, (None if image is None else ImageModality().sample_of(image), text))
            for path, row, (image, text) in located
        ]


def part_alone(loaders: Loaders, part: str) -> Loaders:
    """The same batches with only one part of each pair, `image` or `text`."""
    blank = loaders.without_first_layers
    return replace(
        loaders,
        to_inputs=PartInputs(loaders.to_inputs, part),
        without_first_layers=None if blank is None else lambda: part_alone(blank(), part),
    )


def _collate(preprocessing: TokenPreprocessing, samples: Sequence[Mapping[str, Any]]) -> Batch:
    """A batch of samples; a function of the module, since spawned workers cannot be sent a closure."""
    batch = collate_texts(preprocessing, samples)
    if "pixel_values" in samples[0]:
        batch["pixel_values"] = torch.stack([sample["pixel_values"] for sample in samples])
    return batch | {name: torch.tensor([sample[name] for sample in samples]) for name in PRESENT}
