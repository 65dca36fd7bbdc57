"""Families of pretrained models, each with a tiny random checkpoint as its authors would publish one.

A checkpoint holds a model that is no classifier of our task. Its weights are perturbed, since fresh ones hide errors.
To add a family, add a line to `IMAGES` or `TEXTS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.tiny_models import Inputs, perturb
from tests.tiny_text_models import END, PAD, START, VOCABULARY, tiny_tokenizer, token_ids

# From the outputs of an encoder and the mask of its tokens to what a head reads [batch, width].
Reads = Callable[[Any, Tensor | None], Tensor]


def first(output: Any, _mask: Tensor | None) -> Tensor:
    hidden: Tensor = output.last_hidden_state
    return hidden[:, 0]


def pooler(output: Any, _mask: Tensor | None) -> Tensor:
    vectors: Tensor = output.pooler_output
    return vectors.flatten(1)


def mean(output: Any, mask: Tensor | None) -> Tensor:
    hidden: Tensor = output.last_hidden_state
    if mask is None:
        return hidden.mean(1)
    return torch.stack([one[kept].mean(0) for one, kept in zip(hidden, mask.bool(), strict=True)])


def last(output: Any, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return torch.stack([one[kept][-1] for one, kept in zip(output.last_hidden_state, mask.bool(), strict=True)])


def mean_of_patches(output: Any, _mask: Tensor | None) -> Tensor:
    hidden: Tensor = output.last_hidden_state
    return hidden[:, 1:].mean(1)


def first_and_mean(output: Any, _mask: Tensor | None) -> Tensor:
    return torch.cat([output.last_hidden_state[:, 0], output.last_hidden_state[:, 1:].mean(1)], 1)


@dataclass(frozen=True)
class Family:
    """A family of pretrained models.

    Attributes:
        source: name of the class of transformers that is published.
        encoder: name of the class of transformers whose hidden states the head reads.
        reads: what it reads of them.
        result: name of the class of the finished model.
        settings: of a tiny configuration.
        model_type: of the configuration.
        side: height and width of its pictures; 0: it reads texts.
        options: how transformers' own class is called for features that are not random.
    """

    source: str
    encoder: str
    reads: Reads
    result: str
    settings: dict[str, Any]
    model_type: str
    side: int = 16
    options: Callable[[Inputs], Inputs] = field(default=lambda _: {})

    @property
    def recipe(self) -> str:
        """The recipe for such a model."""
        return "vision" if self.side else "text"

    @property
    def task(self) -> str:
        """The task of its classifier."""
        return "image-classification" if self.side else "text-classification"

    def checkpoint(self, folder: Path) -> Path:
        """A folder with the published model, and its image processor or tokenizer."""
        config = AutoConfig.for_model(self.model_type, **self.settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: PreTrainedModel = getattr(transformers, self.source)(config)
        perturb(model, 1)
        model.save_pretrained(folder)
        if self.side:
            ViTImageProcessorPil(size={"height": self.side, "width": self.side}).save_pretrained(folder)
        else:
            tiny_tokenizer().save_pretrained(folder)
        return folder

    def inputs(self, rows: int = 3) -> Inputs:
        """A random batch."""
        if not self.side:
            return token_ids(rows=rows)
        generator = torch.Generator().manual_seed(2)
        return {"pixel_values": torch.randn(rows, 3, self.side, self.side, generator=generator)}

    def features(self, folder: Path, inputs: Inputs) -> Tensor:
        """What the head reads, by transformers' own class for the encoder [batch, width]."""
        encoder = getattr(transformers, self.encoder).from_pretrained(folder).eval()
        with torch.no_grad():
            return self.reads(encoder(**inputs, **self.options(inputs)), inputs.get("attention_mask"))


def _in_order(inputs: Inputs) -> Inputs:
    """Noise by which ViTMAEModel leaves the patches in their order."""
    return {"noise": torch.arange(4.0).expand(len(inputs["pixel_values"]), 4)}


_VIT: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_MAE = _VIT | {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}  # fmt: skip
_HIERA: dict[str, Any] = {
    "embed_dim": 8, "image_size": [32, 32], "depths": [1, 1, 1, 1], "patch_stride": [2, 2], "num_heads": [1, 1, 1, 1],
    "mask_unit_size": [2, 2], "query_stride": [2, 2], "num_query_pool": 2,
}  # fmt: skip
_ENCODER: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 40, "vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": START,
    "eos_token_id": END,
}  # fmt: skip
_TWO_TOWERS: dict[str, Any] = {"vision_config": _VIT, "text_config": _ENCODER}
_T5: dict[str, Any] = {
    "d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 3, "num_heads": 2, "vocab_size": VOCABULARY,
    "pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD,
}  # fmt: skip
_CLASS, _TEXT_CLASS = "ForImageClassification", "ForSequenceClassification"
_OURS, _OUR_TEXTS = "PooledForImageClassification", "PooledForSequenceClassification"

IMAGES = {
    "vit": Family("ViTModel", "ViTModel", first, f"ViT{_CLASS}", _VIT, "vit"),
    "vit_mae": Family(
        "ViTMAEForPreTraining", "ViTMAEModel", first, f"ViT{_CLASS}", _MAE | {"mask_ratio": 0.0}, "vit_mae",
        options=_in_order,
    ),
    "deit": Family("DeiTModel", "DeiTModel", first, f"DeiT{_CLASS}", _VIT, "deit"),
    "beit": Family("BeitModel", "BeitModel", pooler, f"Beit{_CLASS}", _VIT, "beit"),
    "dinov2": Family("Dinov2Model", "Dinov2Model", first_and_mean, f"Dinov2{_CLASS}", _VIT, "dinov2"),
    "dinov3_vit": Family("DINOv3ViTModel", "DINOv3ViTModel", pooler, _OURS, _VIT, "dinov3_vit"),
    "dinov3_convnext": Family(
        "DINOv3ConvNextModel", "DINOv3ConvNextModel", pooler, _OURS,
        {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "image_size": 32}, "dinov3_convnext", 32,
    ),
    "ijepa": Family("IJepaModel", "IJepaModel", mean, f"IJepa{_CLASS}", _VIT, "ijepa"),
    "hiera": Family("HieraModel", "HieraModel", pooler, f"Hiera{_CLASS}", _HIERA, "hiera", 32),
    "clip": Family("CLIPModel", "CLIPVisionModel", mean_of_patches, f"CLIP{_CLASS}", _TWO_TOWERS, "clip"),
    "clip_vision": Family("CLIPVisionModel", "CLIPVisionModel", pooler, _OURS, _VIT, "clip_vision_model"),
    "siglip": Family("SiglipModel", "SiglipVisionModel", mean, f"Siglip{_CLASS}", _TWO_TOWERS, "siglip"),
    "siglip_vision": Family("SiglipVisionModel", "SiglipVisionModel", pooler, _OURS, _VIT, "siglip_vision_model"),
    "aimv2_vision": Family("Aimv2VisionModel", "Aimv2VisionModel", pooler, _OURS, _VIT, "aimv2_vision_model"),
    "pixio": Family("PixioModel", "PixioModel", pooler, _OURS, _VIT, "pixio"),
}  # fmt: skip
TEXTS = {
    "bert": Family("BertModel", "BertModel", pooler, f"Bert{_TEXT_CLASS}", _ENCODER, "bert", 0),
    "t5": Family("T5ForConditionalGeneration", "T5EncoderModel", mean, _OUR_TEXTS, _T5, "t5", 0),
    "mt5": Family("MT5ForConditionalGeneration", "MT5EncoderModel", mean, _OUR_TEXTS, _T5, "mt5", 0),
    "umt5": Family("UMT5EncoderModel", "UMT5EncoderModel", mean, _OUR_TEXTS, _T5, "umt5", 0),
    "clip_text": Family("CLIPTextModel", "CLIPTextModel", last, _OUR_TEXTS, _ENCODER, "clip_text_model", 0),
    "splinter": Family("SplinterModel", "SplinterModel", mean, _OUR_TEXTS, _ENCODER, "splinter", 0),
}
FAMILIES = IMAGES | TEXTS
