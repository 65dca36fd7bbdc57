"""A small model of images with texts, either of which may be missing, and its Space."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.space.spaces import write_space
from tests.tiny_pairs import side, tiny_pair, tiny_pair_probe
from tests.tiny_text_models import tiny_tokenizer

TEXTS = ("word7 word8, word9", "", "word11 word12")


def save_pair(folder: Path, name: str = "vit", **settings: Any) -> Path:
    """The model with its modelling file, its processor and its tokenizer."""
    _save(tiny_pair(name, **settings), folder, name)
    return folder


def save_pair_probe(folder: Path, name: str = "vit") -> Path:
    """The same, for a model whose one linear layer reads both towers at several depths."""
    _save(tiny_pair_probe(name), folder, name)
    return folder


def _save(model: PreTrainedModel, folder: Path, name: str) -> None:
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side(name), "width": side(name)}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def a_picture(number: int) -> Image.Image:
    """A ring, in other colours for each number."""
    rows, columns = np.mgrid[:120, :160] / 120 - 0.5
    distance = np.hypot(rows, columns - 0.17 - 0.1 * number)
    ring = np.exp(-(((distance - 0.25) / 0.07) ** 2))[..., None]
    ground, ink = np.array([40 + 60 * number, 90, 200 - 50 * number]), np.array([250, 220 - 40 * number, 120])
    return Image.fromarray((ground * (1 - ring) + ink * ring).clip(0, 255).astype(np.uint8))


def pair_space(folder: Path) -> Path:
    """A Space with three examples: both, an image alone, a text alone."""
    save_pair(folder / "model")
    (folder / "examples").mkdir()
    examples: list[dict[str, object]] = []
    for number, text in enumerate(TEXTS):
        examples.append({"label": f"class {number}", "texts": [text]})
        if number < 2:
            a_picture(number).save(folder / f"examples/{number}.png")
            examples[-1]["picture"] = f"examples/{number}.png"
    return write_space(folder, title="Cups and their texts", trust_remote_code=True, examples=examples)
