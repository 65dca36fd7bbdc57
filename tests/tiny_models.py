"""Image classifiers of a dozen architectures, tiny and with perturbed random weights.

Fresh weights hide errors: a bias table may be zero, and the statistics of a BatchNorm have their initial values. So
every parameter and every running statistic gets noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    MobileNetV2Config,
    PoolFormerConfig,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SegformerConfig,
    SwinConfig,
    ViTConfig,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.models.inference_tensors import replace_inference_tensors

CLASSES = 5
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A small configuration of an architecture, and the names of its parts in its source code.

    Attributes:
        config: a function that makes the configuration; takes further settings.
        side: height and width of its images.
        embeddings: names of the modules that run before the blocks.
        blocks: module names of its blocks, in depth order.
        final: names of the modules that run between the last block and the head.
        head: module name of its last Linear.
        unused: names of the parameters that the logits do not depend on.
    """

    config: Callable[..., PretrainedConfig]
    side: int
    embeddings: tuple[str, ...]
    blocks: tuple[str, ...]
    final: tuple[str, ...]
    head: str = "classifier"
    unused: tuple[str, ...] = ()

    @property
    def group_names(self) -> list[str]:
        """The expected names of the groups, from the input to the head."""
        return [*["embeddings"][: len(self.embeddings)], *self.blocks, *["final"][: len(self.final)], "head"]


def _of(config: type[PretrainedConfig], **settings: Any) -> Callable[..., PretrainedConfig]:
    return lambda **more: config(**(settings | more))


def _numbered(pattern: str, count: int) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in range(count))


_TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
_RESNET = {"embedding_size": 8, "depths": [1, 2, 1]}
_RESNET_PARTS: dict[str, Any] = {
    "side": 32,
    "embeddings": ("resnet.embedder",),
    "blocks": _numbered("resnet.encoder.stages.{}", 3),
    "final": ("resnet.pooler", "classifier.0"),
    "head": "classifier.1",
}

# Six architectures, of which ResNet has two kinds of layers.
ARCHITECTURES = {
    "vit": Architecture(
        _of(ViTConfig, **_TRANSFORMER), 16, ("vit.embeddings",), _numbered("vit.layers.{}", 3), ("vit.layernorm",)
    ),
    "dinov2": Architecture(
        _of(Dinov2Config, **_TRANSFORMER),
        16,
        ("dinov2.embeddings",),
        _numbered("dinov2.encoder.layer.{}", 3),
        ("dinov2.layernorm",),
        unused=("dinov2.embeddings.mask_token",),
    ),
    "swin": Architecture(
        _of(SwinConfig, image_size=16, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=4),
        16,
        ("swin.embeddings",),
        _numbered("swin.encoder.layers.{}", 2),
        ("swin.layernorm", "swin.pooler"),
    ),
    "convnext": Architecture(
        _of(ConvNextConfig, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], patch_size=2),
        32,
        ("convnext.embeddings",),
        _numbered("convnext.encoder.stages.{}", 4),
        ("convnext.layernorm",),
    ),
    "resnet_basic": Architecture(
        _of(ResNetConfig, hidden_sizes=[8, 12, 16], layer_type="basic", **_RESNET), **_RESNET_PARTS
    ),
    "resnet_bottleneck": Architecture(
        _of(ResNetConfig, hidden_sizes=[16, 24, 32], layer_type="bottleneck", **_RESNET), **_RESNET_PARTS
    ),
    "mobilenet_v2": Architecture(
        _of(
            MobileNetV2Config, depth_multiplier=0.1, depth_divisible_by=4, min_depth=4, finegrained_output=False,
            classifier_dropout_prob=0.0,
        ),
        32,
        ("mobilenet_v2.conv_stem",),
        _numbered("mobilenet_v2.layer.{}", 16),
        ("mobilenet_v2.conv_1x1", "mobilenet_v2.pooler", "dropout"),
    ),
}  # fmt: skip
# Unusual ones: two class tokens, one table of position biases for all blocks, lists within lists, no embeddings.
OTHERS = {
    "deit": Architecture(
        _of(DeiTConfig, architectures=["DeiTForImageClassification"], **_TRANSFORMER),
        16,
        ("deit.embeddings",),
        _numbered("deit.layers.{}", 3),
        ("deit.layernorm",),
    ),
    "beit": Architecture(
        _of(BeitConfig, use_shared_relative_position_bias=True, **_TRANSFORMER),
        16,
        ("beit.embeddings", "beit.shared_position_bias"),
        _numbered("beit.layers.{}", 3),
        ("beit.layernorm", "beit.pooler"),
    ),
    "poolformer": Architecture(
        _of(PoolFormerConfig, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
        32,
        ("poolformer.encoder.patch_embeddings.0",),
        _numbered("poolformer.encoder.block.{}.0", 4),
        ("norm",),
    ),
    "segformer": Architecture(
        _of(
            SegformerConfig, hidden_sizes=[8, 8, 12, 12], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=12,
        ),
        32,
        (),
        _numbered("segformer.stages.{}", 4),
        (),
    ),
}  # fmt: skip
ALL = ARCHITECTURES | OTHERS


def tiny_model(name: str, *, seed: int = 0, num_labels: int = CLASSES, **settings: Any) -> PreTrainedModel:
    """A perturbed classifier in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ALL[name].config(num_labels=num_labels, **settings)
        model: PreTrainedModel = AutoModelForImageClassification.from_config(config)
        set_running_statistics(model, pixels(name, seed=seed, rows=8))
    perturb(model, seed + 1)
    model.eval()
    # Another test may have predicted under `torch.inference_mode`.
    replace_inference_tensors(model)
    return model


def set_running_statistics(model: nn.Module, inputs: Inputs) -> None:
    """Set the statistics of BatchNorm to those of a batch: otherwise no pixel changes a logit of a deep network."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        logits(model.train(), inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def perturb(model: nn.Module, seed: int) -> None:
    """Noise on all parameters and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn(buffer.shape, generator=generator) * 0.2)
            if name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator))


def pixels(name: str, *, seed: int = 0, rows: int = 2) -> Inputs:
    """Random images of the size that an architecture takes."""
    side = ALL[name].side
    return {"pixel_values": torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))}


def logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """The logits of a batch, without gradients."""
    with torch.no_grad():
        result: Tensor = model(**inputs).logits
    return result


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and statistics."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def save_checkpoint(folder: Path, name: str = "vit", **settings: Any) -> Path:
    """A folder with a tiny pretrained model and its image processor."""
    tiny_model(name, **settings).save_pretrained(folder)
    side = ALL[name].side
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder
