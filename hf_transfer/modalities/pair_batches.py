"""Batches of images with texts, and the preprocessing of both."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from hf_transfer.data.batches import Batch, InputMaker, LabelledInputs, Loaders
from hf_transfer.data.levels import LARGEST_PIXEL_VALUE
from hf_transfer.data.rows import is_given
from hf_transfer.errors import user_error
from hf_transfer.modalities.image_batches import ImageInputs, ImageRows
from hf_transfer.modalities.modality import Preprocessing
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.modalities.text_batches import TextRows
from hf_transfer.modalities.tokens import TokenPreprocessing

PRESENT = ("image_present", "text_present")
Pair = tuple[Image.Image | torch.Tensor | None, str | None]


class PairPreprocessing(Preprocessing):
    """The image processor and the tokenizer of a pair.

    Args:
        pixels: of the image tower.
        tokens: of the text tower.
        columns: see `Preprocessing.columns`.

    Attributes:
        least_side: see `PixelPreprocessing.least_side`.
    """

    def __init__(
        self, pixels: PixelPreprocessing, tokens: TokenPreprocessing, columns: Mapping[str, str] | None = None
    ) -> None:
        self.pixels, self.tokens, self.columns = pixels, tokens, columns or {}
        self.least_side = pixels.least_side

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
        pixels = self.pixels.inputs([black if image is None else image for image in images])["pixel_values"]
        inputs = self.tokens.inputs([(text or "",) for text in texts])
        inputs["pixel_values"] = pixels.where(present[:, None, None, None], 0.0)
        return inputs | {"image_present": present, "text_present": torch.tensor([text is not None for text in texts])}

    def example(self) -> Batch:
        """Model inputs of two whole pairs, of noisy pictures and short texts, to trace a model with."""
        present = torch.ones(2, dtype=torch.bool)
        return self.pixels.example() | self.tokens.example() | dict.fromkeys(PRESENT, present)

    def drawn(self, rows: int, words: int, seed: int) -> Batch:
        """See `Preprocessing.drawn`: of three pairs, one is whole, one has no text, and one has no image."""
        place = torch.arange(rows) % 3
        inputs = self.pixels.drawn(rows, words, seed) | self.tokens.drawn(rows, words, seed)
        inputs["pixel_values"][place == 2] = 0.0
        return inputs | dict(zip(PRESENT, (place != 2, place != 1), strict=True))

    def portable(self, folder: Path) -> dict[str, Any]:
        """See `Preprocessing.portable`."""
        parts = self.pixels.portable(folder) | self.tokens.portable(folder)
        # Of a pair, the columns are not those of its pictures alone.
        parts["pixels"][LARGEST_PIXEL_VALUE] = self.columns.get(LARGEST_PIXEL_VALUE)
        return parts

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
        self.split, self.lengths, self.lost = texts.split, texts.lengths, texts.lost
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

    def part_fingerprint(self, split: str, epoch: int | None, part: str) -> str:
        """See `InputMaker.part_fingerprint`: images do not depend on the tokenizer, nor texts on pixels."""
        if part == "image":
            return self.images.fingerprint(split, epoch)
        # Which samples count depends on their images.
        parts = f"{self.images.files_fingerprint(split)} {self.texts[split].fingerprint()}"
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


def part_alone(loaders: Loaders, part: str) -> Loaders:
    """The same batches with only one part of each pair, `image` or `text`."""
    return replace(loaders, to_inputs=PartInputs(loaders.to_inputs, part), without_first_layers=None)
