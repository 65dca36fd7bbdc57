"""An image classifier on an encoder for which transformers has no classifier: one linear layer on its pooled output.

This file is saved with the weights and needs only torch and transformers:

    pipeline("image-classification", "path/to/this/folder", trust_remote_code=True)
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class PooledImageConfig(PretrainedConfig):
    """The configuration of an encoder, and how its outputs become one vector.

    Attributes:
        image_config: configuration of the encoder.
        pooling: `pooler`: the encoder's own pooled output; `first` or `mean` of the last hidden states.
        width: how many numbers that vector has.
    """

    model_type = "pooled_image_classifier"
    sub_configs = {"image_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    # `save_pretrained` writes it into `auto_map`, and copies this file.
    _auto_class = "AutoConfig"

    # Written out instead of a dataclass, so that other versions of transformers accept it, too.
    def __init__(
        self,
        image_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: Literal["pooler", "first", "mean"] = "pooler",
        width: int = 768,
        **kwargs: Any,
    ) -> None:
        if pooling not in ("pooler", "first", "mean"):
            raise ValueError(f"pooling is 'pooler', 'first' or 'mean', not {pooling!r}")
        # A copy: `super().__init__` resets its attention implementation, which would change a model in use.
        settings = image_config.to_dict() if isinstance(image_config, PretrainedConfig) else image_config or {}
        # transformers makes a configuration without arguments, to compare others with its defaults.
        self.image_config = AutoConfig.for_model(**{"model_type": "vit", **settings})
        self.pooling, self.width = pooling, width
        super().__init__(**kwargs)


class PooledForImageClassification(PreTrainedModel):
    """An encoder of images, and a linear head on one vector of each.

    Args:
        config: the architecture.
        backbone: a loaded encoder of `config.image_config`; None makes one with fresh weights.
    """

    config_class = PooledImageConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _auto_class = "AutoModelForImageClassification"
    # transformers' Trainer would otherwise pass a number of samples for the loss, which the encoder does not take.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PooledImageConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        if backbone is None:
            # In the precision in which the whole model is made, whatever the encoder's configuration says.
            backbone = AutoModel.from_config(config.image_config, dtype=torch.get_default_dtype())
        if config.pooling != "pooler" and getattr(backbone, "pooler", None) is not None:
            # It is not read: DistributedDataParallel would wait for its gradients.
            setattr(backbone, "pooler", None)  # noqa: B010 - the types of transformers do not allow None
        self.backbone = backbone
        config.image_config = backbone.config
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.classifier = nn.Linear(config.width, self.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Logits [batch, labels], and the loss if there are labels [batch].

        Args:
            pixel_values: images [batch, channels, height, width].
            labels: classes, or numbers for a regression.
            return_dict: False for a tuple; None: as the configuration says.
            **kwargs: further arguments of the encoder.
        """
        output = self.backbone(pixel_values=pixel_values, **kwargs)
        logits = self.classifier(pooled(self.config.pooling, output))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        hidden_states, attentions = (getattr(output, name, None) for name in ("hidden_states", "attentions"))
        result = ImageClassifierOutput(loss, logits, hidden_states, attentions)
        as_output = self.config.return_dict if return_dict is None else return_dict
        return result if as_output else result.to_tuple()


def pooled(kind: str, output: Any) -> Tensor:
    """One vector of each image [batch, width]; see `PooledImageConfig.pooling`.

    Args:
        kind: how it is made.
        output: of the encoder; the last hidden states are [batch, patches, width], or maps of a convolution
            [batch, width, height of the map, its width].
    """
    if kind == "pooler":
        vectors: Tensor = output.pooler_output
        return vectors.flatten(1)
    hidden: Tensor = output.last_hidden_state
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    return hidden[:, 0] if kind == "first" else hidden.float().mean(1).to(hidden.dtype)
