"""Folders with tiny finished models of every kind, as a run saves them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.modalities.modality import save_preprocessing
from hf_transfer.modalities.pair_batches import PairPreprocessing
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.groups import trace_groups
from hf_transfer.models.modeling_deep_probe import (
    DeepProbeConfig,
    DeepProbeForImageClassification,
    DeepProbeForSequenceClassification,
)
from hf_transfer.models.modeling_pooled import PooledConfig, PooledForSequenceClassification
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.strategies.adapter_files import save_adapter
from hf_transfer.strategies.adapters import LowRankAdaptation
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.table import write_settings
from hf_transfer.targets.target import Target
from tests.models.families import FAMILIES
from tests.tapped_models import OUR_TEXTS, pictures, tapped
from tests.tiny_models import ALL, CLASSES, perturb, set_running_statistics
from tests.tiny_text_models import (
    END,
    PAD,
    START,
    TEXT_ARCHITECTURES,
    VOCABULARY,
    model_and_inputs,
    tiny_tokenizer,
)

NAMES = tuple(f"kind {number}" for number in range(CLASSES))
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": PAD, "embedding_size": 24,
}  # fmt: skip
_IDS = {"bos_token_id": START, "cls_token_id": START, "eos_token_id": END, "sep_token_id": END}
# Settings of architectures beside those that other tests share, by transformers' own names.
MORE_TEXTS: dict[str, dict[str, Any]] = {"albert": _ENCODER, "electra": _ENCODER, "modernbert": _ENCODER | _IDS}
MORE_IMAGES: dict[str, dict[str, Any]] = {
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
    "convnextv2": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "patch_size": 2},
    "swinv2": {
        "image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4,
    },
}  # fmt: skip
# Not MobileNetV2: with random weights, fifty layers with BatchNorm enlarge the rounding of torch itself a thousandfold.
# See Yang et al., "A mean field theory of batch normalization", ICLR 2019, https://arxiv.org/abs/1902.08129.
IMAGES = (*(name for name in ALL if name != "mobilenet_v2"), "efficientnet", *MORE_IMAGES)
TEXTS = (*TEXT_ARCHITECTURES, "mpnet", *MORE_TEXTS)
CLASS_TARGET: Target = Classes(NAMES)
TARGETS: dict[str, Target] = {
    "classes": CLASS_TARGET,
    "labels": LabelSets(NAMES, thresholds=(0.2, 0.8, 0.5, 0.4, 0.6)),
    "numbers": Numbers(NAMES, in_units=True, half_widths=(0.5, 1.0, 1.5, 2.0, 2.5), calibration_samples=50),
}


def model_of(name: str) -> PreTrainedModel:
    """A tiny perturbed classifier by its architecture."""
    more = MORE_IMAGES | MORE_TEXTS
    if name not in more:
        return tapped(name).model if name in ("efficientnet", "mpnet") else model_and_inputs(name)[0]
    kind: Any = AutoModelForSequenceClassification if name in MORE_TEXTS else AutoModelForImageClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = kind.from_config(AutoConfig.for_model(name, num_labels=CLASSES, **more[name]))
    perturb(model, 1)
    if name in MORE_IMAGES:
        set_running_statistics(model, pictures(32))
    model.train(False)
    return model


def image_preprocessing(side: int, columns: dict[str, Any] | None = None, **settings: Any) -> PixelPreprocessing:
    """Of models of this height and width."""
    processor: Any = ViTImageProcessorPil(**({"size": {"height": side, "width": side}} | settings))
    return PixelPreprocessing(processor, columns)


def save_finished(
    folder: Path, model: PreTrainedModel, preprocessing: Any, target: Target = CLASS_TARGET, modality: str = "image"
) -> Path:
    """Save a model with what it predicts, and with its preprocessing, as a run does."""
    write_settings(model.config, target)
    model.save_pretrained(folder)
    save_preprocessing(preprocessing, modality, preprocessing.columns, target.problem_type, folder)
    return folder


def save_image_model(folder: Path, name: str = "vit", target: Target = CLASS_TARGET) -> Path:
    """A finished model of images."""
    side = ALL[name].side if name in ALL else 32
    return save_finished(folder, model_of(name), image_preprocessing(side), target)


def save_text_model(
    folder: Path, name: str = "bert", target: Target = CLASS_TARGET, columns: dict[str, str] | None = None
) -> Path:
    """A finished model of texts, or of pairs of texts if there are two columns."""
    tokens = TokenPreprocessing(
        tiny_tokenizer(), model_limit=40, max_seq_length=12, columns=columns or {"text_column_name": "text"},
        takes_mask=True,
    )  # fmt: skip
    return save_finished(folder, model_of(name), tokens, target, "text")


def save_pair_model(folder: Path, model: PreTrainedModel) -> Path:
    """A finished model of images with texts."""
    columns = {"image_column_name": "image", "text_column_name": "text"}
    preprocessing = PairPreprocessing(
        image_preprocessing(16), TokenPreprocessing(tiny_tokenizer(), model_limit=32), columns
    )
    return save_finished(folder, model, preprocessing, CLASS_TARGET, "pair")


def save_pooled_model(folder: Path) -> Path:
    """A finished model of texts whose head reads the mean of all tokens, scaled to one length."""
    config = PooledConfig(text_config=TEXT_ARCHITECTURES["bert"].config(), num_labels=CLASSES, normalized=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PooledForSequenceClassification(config)
    perturb(model, 1)
    model.train(False)
    return save_finished(folder, model, TokenPreprocessing(tiny_tokenizer(), model_limit=40), modality="text")


def save_encoder(folder: Path, name: str) -> Path:
    """A finished model with a head of ours on an encoder of a family."""
    family = FAMILIES[name]
    base = family.checkpoint(folder.with_name(f"{folder.name}-base"))
    checkpoint = Checkpoint(str(base), task=family.task, pooling="own")
    model = checkpoint.classifier(CLASS_TARGET, seed=0, fresh_weights=False)
    perturb(model, 1)
    model.train(False)
    is_text = family.recipe == "text"
    preprocessing: Any = (
        TokenPreprocessing(tiny_tokenizer(), model_limit=40) if is_text else image_preprocessing(family.side)
    )
    return save_finished(folder, model, preprocessing, modality="text" if is_text else "image")


def save_deep_probe(folder: Path, name: str) -> Path:
    """A finished model that reads two hidden states and what enters the head."""
    is_text = name in TEXT_ARCHITECTURES
    architecture = (TEXT_ARCHITECTURES if is_text else ALL)[name]
    config = DeepProbeConfig(
        backbone_config=architecture.config(), head_layer=architecture.head,
        taps=[["mean", 1], ["first", 2], ["head", 0]], widths=[24, 24, 24], num_labels=CLASSES,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (DeepProbeForSequenceClassification if is_text else DeepProbeForImageClassification)(config)
    perturb(model, 1)
    model.train(False)
    preprocessing: Any = TokenPreprocessing(tiny_tokenizer(), model_limit=40) if is_text else image_preprocessing(16)
    return save_finished(folder, model, preprocessing, modality="text" if is_text else "image")


def save_probe_of_encoder(folder: Path, name: str) -> Path:
    """A finished model that reads an encoder with a head of ours at several depths."""
    model, is_text = tapped(name).all_taps().with_read_taps(), name in OUR_TEXTS
    preprocessing: Any = TokenPreprocessing(tiny_tokenizer(), model_limit=40) if is_text else image_preprocessing(16)
    return save_finished(folder, model, preprocessing, modality="text" if is_text else "image")


def save_adapted(folder: Path) -> Path:
    """A finished model of texts with an adapter that is not merged, beside its base."""
    base = save_text_model(folder.with_name(f"{folder.name}-base"))
    model, inputs = model_and_inputs("bert")
    write_settings(model.config, CLASS_TARGET)
    adapted, _ = LowRankAdaptation().prepare(model, trace_groups(model, inputs), inputs, 0)
    # New adapters change nothing.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    save_adapter(adapted, folder, base_model_name=str(base))
    tokens = TokenPreprocessing(tiny_tokenizer(), model_limit=40)
    save_preprocessing(tokens, "text", {"text_column_name": "text"}, CLASS_TARGET.problem_type, folder)
    return folder


# Kinds of models beside plain ones.
KINDS: dict[str, Callable[[Path], Path]] = {
    "pooled": save_pooled_model,
    "encoder of images": lambda folder: save_encoder(folder, "dinov3_vit"),
    "encoder of images by convolutions": lambda folder: save_encoder(folder, "dinov3_convnext"),
    "encoder of texts": lambda folder: save_encoder(folder, "t5"),
    "deep_probe of texts": lambda folder: save_deep_probe(folder, "bert"),
    "deep_probe of images": lambda folder: save_deep_probe(folder, "vit"),
    "deep_probe of an encoder of texts": lambda folder: save_probe_of_encoder(folder, "t5"),
    "deep_probe of an encoder of images": lambda folder: save_probe_of_encoder(folder, "dinov3_vit"),
    "adapter": save_adapted,
}


def picture(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (61, 45)) -> Path:
    """A picture of noise in a file; the name says in which format."""
    generator = np.random.default_rng(3)
    if mode == "I;16":
        values: Any = generator.integers(0, 60_000, size[::-1]).astype(np.uint16)
    else:
        values = generator.integers(0, 256, (*size[::-1], len(mode) if mode != "L" else 1), dtype=np.uint8)
    Image.fromarray(values.squeeze()).save(path)
    return path
