"""From pictures to model inputs: a checkpoint's own image processor, in two steps."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_transfer.data.batches import Batch
from hf_transfer.errors import user_error
from hf_transfer.modalities.modality import Preprocessing
from hf_transfer.models.pretrained import ImageProcessor

# Change this with the code that decodes: it is saved with models, and it is a part of the fingerprint of pixels.
DECODING = "first frame, EXIF orientation applied, 8 bits per channel, RGB"


class PixelPreprocessing(Preprocessing):
    """A checkpoint's image processor in two steps: sizes of single images, then values of whole batches.

    Resizing and cropping give 8-bit pixels, which are small to keep and to move to a GPU. What the processor does
    after that is one scale and one shift for each channel. Both are read off a black and a white image, and so are
    right whatever flags the processor has.

    Args:
        processor: of the checkpoint.
        columns: see `Preprocessing.columns`.

    Attributes:
        shape: of the pixels of an image, [3, height, width].

    Raises:
        UserError: the processor fails on a plain image, or gives images of different sizes.
    """

    def __init__(self, processor: ImageProcessor, columns: Mapping[str, str] | None = None) -> None:
        self.processor, self.columns = processor, columns or {}
        self._sizes_only: dict[str, Any] = {"do_rescale": False, "do_normalize": False}
        if hasattr(processor, "include_top"):
            # With this, EfficientNet's processor divides by the standard deviation despite the other two flags.
            self._sizes_only["include_top"] = False
        try:
            black, white = (self._whole(Image.new("RGB", (64, 64), colour)) for colour in ("black", "white"))
            wide, high = (self._whole(Image.new("RGB", size)) for size in ((96, 48), (48, 96)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise user_error(
                expected="an image processor that turns an image into pixel_values",
                found=f"{type(processor).__name__}, which failed on a plain image ({type(error).__name__}: {error})",
                do="choose another --model_name_or_path",
            ) from error
        if not black.shape == wide.shape == high.shape:
            raise user_error(
                expected="an image processor that resizes every image to one size",
                found=f"sizes {tuple(wide.shape[1:])} and {tuple(high.shape[1:])} for a wide and a high image",
                do="use a checkpoint whose preprocessor_config.json crops or sets both height and width",
            )
        self.shape = tuple(black.shape)
        self.shift = black.mean((1, 2))[:, None, None]
        self.scale = (white.mean((1, 2))[:, None, None] - self.shift) / 255.0

    def resize(self, image: Image.Image) -> Tensor:
        """8-bit pixels [3, height, width] of the size that the model takes."""
        pixels = self.processor(image, **self._sizes_only, return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.uint8))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Model inputs from pixels with values from 0 to 255 [batch, 3, height, width]."""
        return pixels * self.scale.to(pixels.device) + self.shift.to(pixels.device)

    def inputs(self, samples: Sequence[Image.Image]) -> Batch:
        """Model inputs of RGB pictures that belong to no split."""
        return {"pixel_values": self.normalise(torch.stack([self.resize(image) for image in samples]).float())}

    def example(self) -> Batch:
        """Model inputs of two noisy pictures, to trace a model with."""
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": self.normalise(torch.rand(2, *self.shape, generator=generator) * 255.0)}

    def fingerprint(self) -> str:
        """A hash that changes with whatever happens to a picture: it is read off pictures of noise.

        They are of several sizes, since a processor may crop or shrink only what is large, or enlarge what is small.
        """
        generator, (height, width) = np.random.default_rng(0), self.shape[1:]
        sizes = [(97, 61), (61, 97), (9, 7), (height, width), (2 * height + 1, 3 * width + 1)]
        noise = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        pixels = [self.resize(Image.fromarray(picture)) for picture in noise]
        digest = hashlib.sha256(DECODING.encode())
        for tensor in (*pixels, self.shift, self.scale):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json`."""
        self.processor.save_pretrained(folder)

    def description(self) -> dict[str, Any]:
        """How pictures are decoded, and their size [height, width]."""
        return {"decoding": DECODING, "size": list(self.shape[1:])}

    def _whole(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(self.processor(image, return_tensors="np")["pixel_values"][0])).float()
