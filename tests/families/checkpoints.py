"""A pretrained checkpoint of each family of backbones, at reduced size and with random weights.

Those of timm are only written where timm is installed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.export.finished_models import model_of
from tests.models.families import FAMILIES as PUBLISHED
from tests.tiny_models import ALL
from tests.tiny_text_models import tiny_tokenizer

# Tokenizers of the others do not say to which of two texts a token belongs.
WITH_TOKEN_TYPES = ("bert", "deberta", "albert", "electra")


@dataclass(frozen=True)
class Family:
    """An architecture that a recipe can start from.

    Attributes:
        title: what it is called.
        recipe: vision or text.
        save: writes a checkpoint into a folder.
        is_timm: whether timm is needed.
    """

    title: str
    recipe: str
    save: Callable[[Path], object]
    is_timm: bool = False


def _save_image_model(name: str, folder: Path) -> None:
    model_of(name).save_pretrained(folder)
    side = ALL[name].side if name in ALL else 32
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)


def _save_text_model(name: str, folder: Path) -> None:
    model_of(name).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    if name not in WITH_TOKEN_TYPES:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)


def _image(title: str, name: str) -> Family:
    return Family(title, "vision", partial(_save_image_model, name))


def _text(title: str, name: str) -> Family:
    return Family(title, "text", partial(_save_text_model, name))


def _published(title: str, name: str) -> Family:
    """Of which a checkpoint is no classifier, as its authors publish it."""
    return Family(title, PUBLISHED[name].recipe, PUBLISHED[name].checkpoint)


def _timm(title: str, architecture: str, *, side: int = 64, is_deep: bool = False, **arguments: Any) -> Family:
    def save(folder: Path) -> None:
        from tests.with_timm.tiny_timm import save_timm

        save_timm(folder, architecture, arguments=arguments, is_deep=is_deep, input_size=(3, side, side))

    return Family(f"{title} (timm)", "vision", save, is_timm=True)


FAMILIES: tuple[Family, ...] = (
    _image("ViT", "vit"),
    _image("DeiT", "deit"),
    _image("BEiT", "beit"),
    _image("DINOv2", "dinov2"),
    _image("Swin", "swin"),
    _image("Swin V2", "swinv2"),
    _image("ConvNeXt", "convnext"),
    _image("ConvNeXt V2", "convnextv2"),
    _image("ResNet", "resnet_bottleneck"),
    _image("EfficientNet", "efficientnet"),
    _image("MobileNetV2", "mobilenet_v2"),
    _image("RegNet", "regnet"),
    _image("PoolFormer", "poolformer"),
    _image("SegFormer", "segformer"),
    _published("ViT-MAE", "vit_mae"),
    _published("DINOv3 ViT", "dinov3_vit"),
    _published("DINOv3 ConvNeXt", "dinov3_convnext"),
    _published("I-JEPA", "ijepa"),
    _published("Hiera", "hiera"),
    _published("CLIP, both towers", "clip"),
    _published("CLIP, vision tower", "clip_vision"),
    _published("SigLIP, both towers", "siglip"),
    _published("SigLIP, vision tower", "siglip_vision"),
    _published("AIMv2, vision tower", "aimv2_vision"),
    _published("Pixio", "pixio"),
    _timm("VGG", "vgg11", mlp_ratio=1 / 64),
    _timm("VGG19", "vgg19", is_deep=True, mlp_ratio=1 / 64),
    _timm("Inception v3", "inception_v3", side=80),
    _timm("Inception v4", "inception_v4", side=80, is_deep=True),
    _timm("ResNet", "test_resnet"),
    _timm("MobileNetV3", "mobilenetv3_small_050"),
    _timm("DenseNet", "densenet121", growth_rate=8, block_config=(2, 4, 6, 4)),
    _timm("RegNet", "regnetx_002"),
    _timm("EfficientNet", "test_efficientnet"),
    _timm("ConvNeXt", "test_convnext"),
    _timm("ViT", "test_vit", img_size=64),
    _text("BERT", "bert"),
    _text("RoBERTa", "roberta"),
    _text("DistilBERT", "distilbert"),
    _text("DeBERTa V2 and V3", "deberta"),
    _text("ALBERT", "albert"),
    _text("ELECTRA", "electra"),
    _text("MPNet", "mpnet"),
    _text("ModernBERT", "modernbert"),
    _text("GPT-2", "gpt2"),
    _published("T5", "t5"),
    _published("mT5", "mt5"),
    _published("UMT5", "umt5"),
    _published("CLIP, text tower", "clip_text"),
    _published("Splinter", "splinter"),
)
