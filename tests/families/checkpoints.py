"""A pretrained checkpoint of each family of backbones, at reduced size and with random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.export.finished_models import model_of
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
    """

    title: str
    recipe: str
    save: Callable[[Path], object]


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
    _text("BERT", "bert"),
    _text("RoBERTa", "roberta"),
    _text("DistilBERT", "distilbert"),
    _text("DeBERTa V2 and V3", "deberta"),
    _text("ALBERT", "albert"),
    _text("ELECTRA", "electra"),
    _text("MPNet", "mpnet"),
    _text("ModernBERT", "modernbert"),
    _text("GPT-2", "gpt2"),
)
