"""Tiny classifiers of images with texts, with perturbed random weights."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.modeling_pair_probe import PairProbeModel
from hf_transfer.models.pair_taps import AllPairTaps, usual_pair_taps
from hf_transfer.models.towers import PairTowers, Tower, fuse, trace
from hf_transfer.targets.classes import Classes
from tests.tiny_models import ARCHITECTURES, CLASSES, perturb, pixels
from tests.tiny_text_models import TEXT_ARCHITECTURES, token_ids

LABELS = Classes(tuple(f"class {number}" for number in range(CLASSES))).model_settings()
# Image tower with its pooling, and text tower.
PAIRS = {"vit": ("first", "bert"), "resnet_basic": ("pooler", "bert"), "clip": ("pooler", "clip")}
CLIP_WIDTH = 12


def tiny_pair(name: str = "vit", *, seed: int = 0, **settings: Any) -> FusionModel:
    """A perturbed model in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        image, text = towers(name)
        model = fuse(image, text, image_size=side(name), labels=LABELS, head_size=16, attention_heads=2, **settings)
    perturb(model, seed + 1)
    model.train(False)
    return model


def all_taps(name: str = "vit") -> AllPairTaps:
    """A classifier on all usual taps of a perturbed model, with random weights, in evaluation mode."""
    model, inputs = tiny_pair(name), pair_inputs(name)
    choice = usual_pair_taps(PairTowers(model), trace(model, inputs), inputs)
    tapped = AllPairTaps(model, choice, inputs)
    nn.init.normal_(tapped.classifier.weight, generator=torch.Generator().manual_seed(5))
    return tapped.eval()


def tiny_pair_probe(name: str = "vit") -> PairProbeModel:
    """What is saved of it: a linear layer on some taps of both towers."""
    finished = all_taps(name).with_read_taps()
    assert isinstance(finished, PairProbeModel)
    finished.train(False)
    return finished


def side(name: str) -> int:
    """Height and width of the images."""
    return 16 if name == "clip" else ARCHITECTURES[name].side


def pair_inputs(name: str = "vit", *, seed: int = 0, rows: int = 2) -> dict[str, Tensor]:
    """A batch in which every sample has an image and a text."""
    image = pixels("vit" if name == "clip" else name, seed=seed, rows=rows)
    return {
        **image, **token_ids(seed=seed, rows=rows), "image_present": torch.ones(rows, dtype=torch.bool),
        "text_present": torch.ones(rows, dtype=torch.bool),
    }  # fmt: skip


def towers(name: str) -> tuple[Tower, Tower]:
    """Two towers with weights from torch's global generator."""
    if name == "clip":
        return _clip()
    pooling, text = PAIRS[name]
    without = {} if pooling == "pooler" else {"add_pooling_layer": False}
    image_tower = AutoModel.from_config(ARCHITECTURES[name].config(), **without)
    text_tower = AutoModel.from_config(TEXT_ARCHITECTURES[text].config(), add_pooling_layer=False)
    return Tower(image_tower, pooling), Tower(text_tower, "mean")


def _clip() -> tuple[Tower, Tower]:
    shared: dict[str, Any] = {
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": CLIP_WIDTH,
    }
    vision = CLIPVisionConfig(hidden_size=24, image_size=16, patch_size=8, **shared)
    text = CLIPTextConfig(
        hidden_size=20, vocab_size=64, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        **shared,
    )  # fmt: skip
    dual = CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=CLIP_WIDTH))
    return (
        Tower(dual.vision_model, "pooler", dual.visual_projection.weight),
        Tower(dual.text_model, "pooler", dual.text_projection.weight),
    )
