"""From pairs to batches: pixels and tokens side by side, and which of the two a pair has."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hf_transfer.config import mistake
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.data.inputs import (
    DECODED_CACHE_BYTES,
    MASKED,
    Batch,
    ImageBatches,
    ImageRows,
    Loaders,
    PixelPipeline,
    choose_augmentation,
    loader_of,
    views_and_cycle,
    workers_for,
)
from hf_transfer.data.sources import Splits
from hf_transfer.data.tokens import (
    LongestFirst,
    TextRows,
    TokenPipeline,
    collate_texts,
    describe_truncation,
    training_order,
)

PRESENT = ("image_present", "text_present")


class PairRows(Dataset[dict[str, Any]]):
    """One split as a torch data set: resized pixels, tokens, what is present, label and row number of each sample.

    Where there is no image the pixels are black, where there is no text it is empty. A bad sample is masked in place:
    its label is `MASKED`, and it counts as one that has a text and no image, so that no sample is without both.

    Args:
        texts: the tokens of the split.
        images: its images; None leaves the pixels out.
    """

    def __init__(self, texts: TextRows, images: ImageRows | None) -> None:
        self.texts = texts
        self.images = images
        self.split = texts.split
        self.lengths = texts.lengths
        self._with_image, self._with_text = texts.split.given("image"), texts.split.given("text")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.texts[position]
        with_image, with_text = bool(self._with_image[position]), bool(self._with_text[position])
        if self.images is not None and with_image:
            image = self.images[position]
            sample |= {"pixel_values": image["pixel_values"], "label": int(image["labels"])}
        elif self.images is not None:
            sample["pixel_values"] = torch.zeros(self.images.pipeline.shape, dtype=torch.uint8)
        good = sample["label"] != MASKED
        return sample | dict(zip(PRESENT, (with_image and good, with_text or not good), strict=True))


class PairBatches:
    """Turns batches of pairs into model inputs on the device; pixels and their augmentation are those of images alone.

    Args:
        images: what is done to the pixels.
        texts: the tokens of each split.
    """

    def __init__(self, images: ImageBatches, texts: Mapping[str, TextRows]) -> None:
        self.images = images
        self.texts = texts

    def __call__(
        self, batch: Batch, device: torch.device, split_name: str, epoch: int | None
    ) -> tuple[Batch, Tensor, Tensor]:
        """See `Loaders.to_inputs`; where there is no image, what the model takes is zero."""
        inputs, labels, index = self.images(batch, device, split_name, epoch)
        others = _others(batch, device)
        seen = others["image_present"][:, None, None, None]
        pixels = inputs["pixel_values"].where(seen, 0.0)
        return {"pixel_values": pixels} | others, labels, index

    def blank(self, batch: Batch, device: torch.device, *_: object) -> tuple[Batch, Tensor, Tensor]:
        """See `Loaders.to_inputs`; all pixels are zero."""
        inputs, labels, index = self.images.blank(batch, device)
        return inputs | _others(batch, device), labels, index

    def fingerprint(self, split_name: str, epoch: int | None) -> str:
        """See `Loaders.fingerprint`."""
        # That of the images is of the whole table, and so of what is missing.
        parts = f"{self.images.fingerprint(split_name, epoch)} {self.texts[split_name].fingerprint()}"
        return hashlib.sha256(parts.encode()).hexdigest()


def pair_loaders(
    splits: Splits, pixel_pipeline: PixelPipeline, token_pipeline: TokenPipeline, config: MultimodalConfig,
    accelerator: Accelerator, *, frozen_prefix: bool,
) -> Loaders:  # fmt: skip
    """Loaders for all three splits, with a sentence on the texts that had to be cut.

    Model inputs are `pixel_values` [batch, 3, height, width], `input_ids`, `attention_mask` and what else the tokenizer
    makes [batch, tokens], and `image_present` and `text_present`, bool [batch], of which each sample has at least one.

    Args:
        splits: checked splits of pairs.
        pixel_pipeline: the image model's own processor.
        token_pipeline: the text model's own tokenizer.
        config: batch sizes, order, augmentation, workers.
        accelerator: the processes that share the batches.
        frozen_prefix: whether the first layers never learn; then an image has few views, which can be stored.
    """
    augmentation = choose_augmentation(config, frozen_prefix=frozen_prefix)
    views, cycle = views_and_cycle(augmentation)
    workers = workers_for(config, len(splits.train))
    room = DECODED_CACHE_BYTES // max(1, workers)
    texts = {name: TextRows(split, token_pipeline) for name, split in splits.items()}
    whole = {
        name: PairRows(texts[name], ImageRows(split, pixel_pipeline, keep_bytes=room)) for name, split in splits.items()
    }
    images = ImageBatches(pixel_pipeline, augmentation, splits, skip=config.on_bad_sample == "skip")
    batches = PairBatches(images, texts)

    def loaders(
        rows: Mapping[str, PairRows], to_inputs: Callable[..., Any], workers: int, blank: Callable[[], Loaders] | None
    ) -> Loaders:
        def loader(name: str, batch_size: int, order: Sampler[int]) -> Any:
            return loader_of(rows[name], batch_size, order, workers, accelerator, partial(_collate, token_pipeline))

        evaluated = config.per_device_eval_batch_size
        return Loaders(
            train=loader("train", config.per_device_train_batch_size, training_order(texts["train"].lengths, config)),
            validation=loader("validation", evaluated, LongestFirst(texts["validation"].lengths)),
            test=loader("test", evaluated, LongestFirst(texts["test"].lengths)),
            to_inputs=to_inputs,
            fingerprint=batches.fingerprint,
            views=views,
            cycle=cycle,
            notes=(*token_pipeline.notes, *describe_truncation(texts, token_pipeline.max_length)),
            blank=blank,
        )

    # No function refers to itself, so that workers end with the last use of their loader, and not some time later.
    without_pixels = {name: PairRows(rows, None) for name, rows in texts.items()}
    return loaders(whole, batches, workers, lambda: loaders(without_pixels, batches.blank, 0, None))


def alone(loaders: Loaders, modality: str) -> Loaders:
    """The same batches with one modality, `image` or `text`, and nothing else; samples that lack it are masked.

    Args:
        loaders: of pairs.
        modality: what is left.
    """
    (other,) = [name for name in PRESENT if name != f"{modality}_present"]

    def to_inputs(batch: Batch, device: torch.device, split: str, epoch: int | None) -> tuple[Batch, Tensor, Tensor]:
        inputs, labels, index = loaders.to_inputs(batch, device, split, epoch)
        there = inputs[f"{modality}_present"]
        # What has neither would be no sample.
        hidden = {other: inputs[other] & ~there}
        return inputs | hidden, labels.where(there, MASKED), index

    blank = loaders.blank
    return replace(
        loaders,
        to_inputs=to_inputs,
        fingerprint=lambda split, epoch: f"{loaders.fingerprint(split, epoch)}, {modality} alone",
        blank=None if blank is None else lambda: alone(blank(), modality),
    )


def pair_inputs(
    pixel_pipeline: PixelPipeline, token_pipeline: TokenPipeline, pairs: Sequence[tuple[Image.Image | None, str | None]]
) -> Batch:
    """Model inputs for pairs that belong to no split; None, or a text of white space, stands for what is missing.

    Raises:
        UserError: a pair has neither.
    """
    images = [image for image, _ in pairs]
    texts = [text if text is not None and text.strip() else None for _, text in pairs]
    for position, (image, text) in enumerate(zip(images, texts, strict=True), start=1):
        if image is None and text is None:
            raise mistake(
                expected="an image, a text, or both", found=f"neither, in pair {position}", do="give at least one"
            )
    present = torch.tensor([image is not None for image in images])
    black = Image.new("RGB", (64, 64))
    pixels = pixel_pipeline.inputs([image or black for image in images])["pixel_values"]
    inputs = token_pipeline.inputs([(text or "",) for text in texts])
    inputs["pixel_values"] = pixels.where(present[:, None, None, None], 0.0)
    return inputs | {"image_present": present, "text_present": torch.tensor([text is not None for text in texts])}


def pair_example(pixel_pipeline: PixelPipeline, token_pipeline: TokenPipeline) -> Batch:
    """Model inputs of two whole pairs, of noisy pictures and short texts, to trace a model with."""
    present = torch.ones(2, dtype=torch.bool)
    return pixel_pipeline.example() | token_pipeline.example() | dict.fromkeys(PRESENT, present)


def _collate(pipeline: TokenPipeline, samples: Sequence[Mapping[str, Any]]) -> Batch:
    """A batch; no closure, since workers that are started afresh must be sent it."""
    batch = collate_texts(pipeline, samples)
    if "pixel_values" in samples[0]:
        batch["pixel_values"] = torch.stack([sample["pixel_values"] for sample in samples])
    return batch | {name: torch.tensor([sample[name] for sample in samples]) for name in PRESENT}


def _others(batch: Batch, device: torch.device) -> Batch:
    """All of a batch that goes to the model as it is."""
    apart = ("pixel_values", "labels", "index")
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items() if name not in apart}
