"""Saved classifiers of texts, and of images with texts, that treat padding in different ways."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.models.pooling import pooled_classifier
from hf_transfer.models.towers import Tower, fuse
from tests.tiny_models import perturb
from tests.tiny_pairs import LABELS, side, tiny_pair
from tests.tiny_text_models import CLASSES, END, PAD, START, TEXT_ARCHITECTURES, VOCABULARY, tiny_text_model
from tests.tiny_text_models import tiny_tokenizer as tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": PAD, "num_labels": CLASSES,
}  # fmt: skip
# Beside those of `TEXT_ARCHITECTURES`: a decoder behind an encoder, one that must be padded on the left, three whose
# layers mix neighbouring tokens, and one that knows no mask.
FURTHER: dict[str, dict[str, Any]] = {
    "t5": {
        "d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY,
        "eos_token_id": END, "decoder_start_token_id": PAD, "num_labels": CLASSES,
    },
    "xlnet": {"vocab_size": VOCABULARY, "d_model": 24, "n_layer": 2, "n_head": 2, "d_inner": 32, "num_labels": CLASSES},
    "bloom": {
        "vocab_size": VOCABULARY, "hidden_size": 24, "n_layer": 2, "n_head": 2, "pad_token_id": PAD,
        "num_labels": CLASSES,
    },
    "convbert": SIZES | {"embedding_size": 24},
    "mobilebert": SIZES | {"embedding_size": 24, "intra_bottleneck_size": 24, "true_hidden_size": 24},
    "nystromformer": SIZES | {"segment_means_seq_len": 32, "num_landmarks": 32},
    "fnet": SIZES,
}  # fmt: skip
# Those whose texts are all padded to one length.
OF_ONE_LENGTH = ("convbert", "mobilebert", "nystromformer", "fnet")


def save_texts(folder: Path, name: str, pooling: str = "own", **tokens: Any) -> Path:
    """A classifier of texts with its tokenizer.

    Args:
        folder: that it is saved in.
        name: of `TEXT_ARCHITECTURES` or `FURTHER`.
        pooling: own, cls or mean.
        tokens: settings of the tokenizer.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in TEXT_ARCHITECTURES:
            model: Any = tiny_text_model(name)
        else:
            model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, **FURTHER[name]))
            perturb(model, 1)
        if pooling != "own":
            model.save_pretrained(folder / "backbone")
            labels = {"num_labels": CLASSES, "id2label": model.config.id2label, "label2id": model.config.label2id}
            model, _ = pooled_classifier(str(folder / "backbone"), pooling=pooling, labels=labels)  # type: ignore[arg-type]
            perturb(model, 2)
    model.save_pretrained(folder)
    names = ["input_ids"] if name == "fnet" else ["input_ids", "attention_mask"]
    tokenizer(**({"model_input_names": names} | tokens)).save_pretrained(folder)
    return folder


def save_images_with_texts(folder: Path, name: str, **settings: Any) -> Path:
    """A classifier of images with texts, with its processor and tokenizer.

    Args:
        folder: that it is saved in.
        name: of `tests.tiny_pairs.PAIRS`, or siglip, whose tokenizer makes no mask.
        settings: of the classifier.
    """
    is_siglip = name == "siglip"
    model = _siglip_pair(**settings) if is_siglip else tiny_pair(name, **settings)
    model.save_pretrained(folder)
    size = 16 if is_siglip else side(name)
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    names = ["input_ids"] if is_siglip else ["input_ids", "attention_mask"]
    tokenizer(model_input_names=names).save_pretrained(folder)
    return folder


def tiny_siglip() -> SiglipModel:
    """The dual encoder, with weights from torch's global generator."""
    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    special: dict[str, Any] = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    text = SiglipTextConfig(vocab_size=VOCABULARY, max_position_embeddings=32, projection_size=24, **special, **sizes)
    vision = SiglipVisionConfig(image_size=16, patch_size=8, **sizes)
    return SiglipModel(SiglipConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))


def _siglip_pair(**settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dual = tiny_siglip()
        towers = Tower(dual.vision_model, "pooler"), Tower(dual.text_model, "pooler")
        model = fuse(*towers, image_size=16, labels=LABELS, head_size=16, attention_heads=2, **settings)
    perturb(model, 1)
    model.train(False)
    return model
