"""A deep probe on an encoder for which transformers has no classifier: see `modeling_deep_probe.py`.

What is read is our classifier on that encoder, of `modeling_pooled.py` or `modeling_pooled_image.py`. This file is
saved with the weights, beside those that it imports, and needs only torch and transformers:

    pipeline("image-classification", "path/to/this/folder", trust_remote_code=True)
"""

from typing import Any

from transformers import PretrainedConfig

from .modeling_deep_probe import DeepProbeConfig, DeepProbeForImageClassification, DeepProbeForSequenceClassification
from .modeling_pooled import PooledConfig, PooledForSequenceClassification
from .modeling_pooled_image import PooledForImageClassification, PooledImageConfig


class PooledProbeConfig(DeepProbeConfig):
    """The same; `backbone_config` is that of one of our classifiers."""

    model_type = "pooled_deep_probe"

    # Without one of its own, transformers would make the class a dataclass.
    def __init__(self, backbone_config: PretrainedConfig | dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(backbone_config, **kwargs)

    @staticmethod
    def _configuration(settings: dict[str, Any]) -> PretrainedConfig:
        kind = PooledConfig if settings.get("model_type") == PooledConfig.model_type else PooledImageConfig
        return kind.from_dict(settings)


class PooledProbeForImageClassification(DeepProbeForImageClassification):
    """See `PooledProbeConfig`, for images."""

    config_class = PooledProbeConfig
    _fresh_backbone = PooledForImageClassification._from_config


class PooledProbeForSequenceClassification(DeepProbeForSequenceClassification):
    """See `PooledProbeConfig`, for texts."""

    config_class = PooledProbeConfig
    _fresh_backbone = PooledForSequenceClassification._from_config
