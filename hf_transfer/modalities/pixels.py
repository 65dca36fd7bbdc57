"""From pictures to model inputs: a checkpoint's own image processor, in two steps."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_transfer.data import levels, resizing
from hf_transfer.data.batches import Batch
from hf_transfer.data.pictures import DECODED_SIDE, DECODING, decode
from hf_transfer.data.resizing import Resizing, resizings_of
from hf_transfer.data.transfers import to_device
from hf_transfer.errors import user_error
from hf_transfer.modalities.modality import Preprocessing
from hf_transfer.models.pretrained import ImageProcessor

# Largest difference from the processor's own values, relative to their largest where that is above 1.
TOLERANCE = 1e-5
# A JPEG keeps at least so many pixels for each one that the processor resizes to; see docs/benchmarks.md.
DECODED_FOR_EACH = 2


class PixelPreprocessing(Preprocessing):
    """A checkpoint's image processor in two steps: sizes of single images, then values of whole batches.

    Resizing and cropping give 8-bit pixels, which are small to keep and to move to a GPU. What most processors do after
    that is one scale and one shift for each channel. Both are read off a black and a white image, and so are right
    whatever flags the processor has. Whether that is all is checked on pictures of noise: of other processors, such as
    those that pad with a value of their own, the pixels are numbers with fractions, made from the processor's outputs.

    Where Pillow alone gives the same bytes for these pictures, it resizes without the processor's way through arrays,
    and large JPEG pictures are decoded at a fraction of their size: then it is known how many pixels are wanted.

    Args:
        processor: of the checkpoint.
        columns: see `Preprocessing.columns`.
        saved: of a finished model: what `description` returned; empty, if nothing was saved with it. None: a model is
            trained with this preprocessing.

    Attributes:
        shape: of the pixels of an image, [3, height, width].
        in_two_steps: whether pixels have 8 bits; else they are float32.
        least_side: see `pictures.decode`.

    Raises:
        UserError: the processor fails on a plain image, or gives images of different sizes.
    """

    def __init__(
        self, processor: ImageProcessor, columns: Mapping[str, Any] | None = None,
        saved: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.processor, self.columns = processor, columns or {}
        self._resizing: Resizing | None = None
        self._sizes_only: dict[str, Any] = {"do_rescale": False, "do_normalize": False}
        if hasattr(processor, "include_top"):
            # With this, EfficientNet's processor divides by the standard deviation despite the other two flags.
            self._sizes_only["include_top"] = False
        try:
            black, white = (self._whole(Image.new("RGB", (64, 64), colour)) for colour in ("black", "white"))
            wide, high = (self._whole(Image.new("RGB", size)) for size in ((96, 48), (48, 96)))
            if black.ndim != 3:
                raise ValueError(f"pixel_values of shape {tuple(black.shape)} for one image")
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
        self.shift, self.scale = _shift_and_scale(black, white)
        noise = self._noise()
        self.in_two_steps = all(map(self._agrees, noise))
        if self.in_two_steps:
            self._resizing = next((one for one in resizings_of(processor) if self._is_resizing(one, noise)), None)
        side = self._resizing.side if self._resizing else None
        self.least_side = None if side is None else DECODED_FOR_EACH * side
        if saved is not None:
            # As in its training: by earlier versions and other programs, which save no such number, on all pixels.
            self.least_side = saved.get(DECODED_SIDE)

    def read(self, raw: dict[str, Any], white: float | None = None) -> Tensor:
        """Decode and resize a picture; see `pictures.decode` and `resize`."""
        return self.resize(decode(raw, white, self.least_side))

    def resize(self, image: Image.Image) -> Tensor:
        """Pixels [3, height, width] with values from 0 to 255, of the size that the model takes."""
        if self.in_two_steps:
            return self._resized(image)
        return (self._whole(image) - self.shift) / self.scale

    def normalise(self, pixels: Tensor) -> Tensor:
        """Model inputs from pixels with values from 0 to 255 [batch, 3, height, width]."""
        return pixels * to_device(self.scale, pixels.device) + to_device(self.shift, pixels.device)

    def black(self) -> Tensor:
        """Pixels of a black picture of the model's size, to stand for one that is missing."""
        return torch.zeros(self.shape, dtype=torch.uint8 if self.in_two_steps else torch.float32)

    def inputs(self, samples: Sequence[Image.Image | Tensor]) -> Batch:
        """Model inputs of RGB pictures that belong to no split, or of what `resize` has made of them."""
        pixels = [one if isinstance(one, Tensor) else self.resize(one) for one in samples]
        return {"pixel_values": self.normalise(torch.stack(pixels).float())}

    def example(self) -> Batch:
        """Model inputs of two noisy pictures, to trace a model with."""
        return self.drawn(2, 0, 0)

    def drawn(self, rows: int, words: int, seed: int) -> Batch:  # noqa: ARG002
        """See `Preprocessing.drawn`: noise."""
        generator = torch.Generator().manual_seed(seed)
        return {"pixel_values": self.normalise(torch.rand(rows, *self.shape, generator=generator) * 255.0)}

    def portable(self, folder: Path) -> dict[str, Any]:
        """See `Preprocessing.portable`: two files of this package that need only NumPy and Pillow."""
        if self._resizing is None:
            raise user_error(
                expected="an image processor that resizes, crops and scales, and nothing else",
                found=type(self.processor).__name__,
                do="predict with hf-transfer predict, or train from a checkpoint with another image processor",
            )
        for module in (levels, resizing):
            path = Path(str(module.__file__))
            shutil.copyfile(path, folder / path.name)
        return {
            "pixels": {
                **self._resizing._asdict(),
                DECODED_SIDE: self.least_side,
                levels.LARGEST_PIXEL_VALUE: self.columns.get(levels.LARGEST_PIXEL_VALUE),
                "scale": self.scale.flatten().tolist(),
                "shift": self.shift.flatten().tolist(),
            }
        }

    def fingerprint(self) -> str:
        """A hash that changes with whatever happens to a picture: it is read off pictures of noise."""
        digest = hashlib.sha256(self.way().encode())
        for tensor in (self.shift, self.scale):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def way(self) -> str:
        """The same for what happens until a picture is resized: models may share it."""
        digest = hashlib.sha256(f"{DECODING} {self.least_side}".encode())
        for pixels in map(self.resize, self._noise()):
            digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json`."""
        self.processor.save_pretrained(folder)

    def description(self) -> dict[str, Any]:
        """How pictures are decoded, and their size [height, width]."""
        side = {} if self.least_side is None else {DECODED_SIDE: self.least_side}
        return {"decoding": DECODING, **side, "size": list(self.shape[1:])}

    def _noise(self) -> list[Image.Image]:
        """Pictures of noise of several sizes: a processor may crop or shrink only large ones, or enlarge small ones."""
        generator, (height, width) = np.random.default_rng(0), self.shape[1:]
        sizes = [(97, 61), (61, 97), (9, 7), (height, width), (2 * height + 1, 3 * width + 1)]
        return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]

    def _agrees(self, picture: Image.Image) -> bool:
        """Whether the two steps give what the processor gives."""
        expected = self._whole(picture)
        try:
            pixels = self._resized(picture)
        except (KeyError, IndexError, TypeError, ValueError):
            return False
        if pixels.shape != expected.shape:
            return False
        difference = (self.normalise(pixels.float()) - expected).abs().max()
        return bool(difference <= TOLERANCE * max(1.0, float(expected.abs().max())))

    def _is_resizing(self, resizing: Resizing, pictures: Sequence[Image.Image]) -> bool:
        """Whether the processor does this and nothing else with the size of pictures, to the byte."""
        return all(torch.equal(torch.from_numpy(resizing(one)), self._resized(one)) for one in pictures)

    def _resized(self, image: Image.Image) -> Tensor:
        if self._resizing is not None:
            return torch.from_numpy(self._resizing(image))
        pixels = self.processor(image, **self._sizes_only, return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.uint8))

    def _whole(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(self.processor(image, return_tensors="np")["pixel_values"][0])).float()


def _shift_and_scale(black: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to and multiplied with the values from 0 to 255 of each channel [3, 1, 1], from model inputs.

    They are read where black and white differ most, since a processor may surround a picture with something else.
    """
    black, white = black.flatten(1), white.flatten(1)
    place = (white - black).abs().argmax(1, keepdim=True)
    shift = black.gather(1, place)[..., None]
    scale = (white.gather(1, place)[..., None] - shift) / 255.0
    # A processor that brings each picture to the same mean makes the same of both.
    return shift, scale.where(scale != 0, 1 / 255.0)
