"""A text classifier whose head reads the mean of all tokens, or one of them, whatever pooling its backbone has.

This file is saved with the weights and needs only torch and transformers:

    pipeline("text-classification", "path/to/this/folder", trust_remote_code=True)
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PooledConfig(PretrainedConfig):
    """The configuration of a backbone, and how its tokens become one vector.

    Attributes:
        text_config: configuration of the backbone.
        pooling: `mean` of the last hidden states of all tokens, or `cls`: that of the first token, or `last`.
        classifier_dropout: dropout before the head.
        encoder_alone: the backbone is the encoder of a model that also has a decoder (T5).
        normalized: each vector is scaled to the length of one whose entries are all 1, the square root of its width.
    """

    model_type = "pooled_text_classifier"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    # `save_pretrained` writes it into `auto_map`, and copies this file.
    _auto_class = "AutoConfig"

    # Written out instead of a dataclass, so that other versions of transformers accept it, too.
    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: Literal["mean", "cls", "last"] = "mean",
        classifier_dropout: float = 0.1,
        encoder_alone: bool = False,
        normalized: bool = False,
        **kwargs: Any,
    ) -> None:
        if pooling not in ("mean", "cls", "last"):
            raise ValueError(f"pooling is 'mean', 'cls' or 'last', not {pooling!r}")
        # A copy: `super().__init__` resets its attention implementation, which would change a model in use.
        settings = text_config.to_dict() if isinstance(text_config, PretrainedConfig) else text_config or {}
        # transformers makes a configuration without arguments, to compare others with its defaults.
        self.text_config = AutoConfig.for_model(**{"model_type": "bert", **settings})
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        self.encoder_alone = encoder_alone
        self.normalized = normalized
        super().__init__(**kwargs)


class PooledForSequenceClassification(PreTrainedModel):
    """A backbone without its own pooling, dropout, and a linear head.

    Args:
        config: the architecture.
        backbone: a loaded backbone of `config.text_config`; None makes one with fresh weights.
    """

    config_class = PooledConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _auto_class = "AutoModelForSequenceClassification"
    # transformers' Trainer would otherwise pass a number of samples for the loss, which the backbone does not take.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PooledConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        if backbone is None:
            # In the precision in which the whole model is made, whatever the backbone's configuration says.
            make = encoder_class(alone=config.encoder_alone).from_config
            backbone = without_pooler(make, config.text_config, dtype=torch.get_default_dtype())
        self.backbone = backbone
        config.text_config = backbone.config
        self._input_names = frozenset(inspect.signature(backbone.forward).parameters)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(backbone.config.hidden_size, self.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Logits [batch, labels], and the loss if there are labels [batch].

        Args:
            input_ids: tokens [batch, length], padded on either side.
            attention_mask: 1 for a token, 0 for padding [batch, length]; None if nothing is padded.
            token_type_ids: which text of a pair [batch, length], for a backbone that takes it.
            position_ids: positions of the tokens [batch, length], for a backbone that takes them.
            inputs_embeds: vectors instead of tokens [batch, length, width].
            labels: classes, or numbers for a regression.
            return_dict: False for a tuple; None: as the configuration says.
            **kwargs: further arguments of the backbone.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if "use_cache" in self._input_names:
            kwargs["use_cache"] = False
        inputs = {name: value for name, value in given.items() if value is not None and name in self._input_names}
        output = self.backbone(**inputs, **kwargs)
        pool = {"cls": first_token, "last": last_token, "mean": mean}[self.config.pooling]
        vectors = pool(output[0], attention_mask)
        if self.config.normalized:
            vectors = of_equal_length(vectors)
        logits = self.classifier(self.dropout(vectors))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        hidden_states, attentions = (getattr(output, name, None) for name in ("hidden_states", "attentions"))
        result = SequenceClassifierOutput(loss, logits, hidden_states, attentions)
        as_output = self.config.return_dict if return_dict is None else return_dict
        return result if as_output else result.to_tuple()


def encoder_class(*, alone: bool) -> Any:
    """The class of transformers that loads a backbone.

    Args:
        alone: whether only the encoder of a model with a decoder is wanted.
    """
    return AutoModelForTextEncoding if alone else AutoModel


def without_pooler(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call `make` so that it returns a backbone without its pooler, which would not be used."""
    try:
        return make(*args, add_pooling_layer=False, **options)
    except TypeError:
        # This architecture has no pooler.
        return make(*args, **options)


def mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over all tokens [batch, width] of [batch, length, width], summed in single precision."""
    if mask is None:
        return hidden.float().mean(1).to(hidden.dtype)
    padding = (mask == 0)[:, :, None]
    total = hidden.float().masked_fill(padding, 0.0).sum(1)
    return (total / (~padding).sum(1).clamp(min=1)).to(hidden.dtype)


def of_equal_length(vectors: Tensor) -> Tensor:
    """Vectors [batch, width] with the same directions, each as long as the square root of the width.

    Their entries then have a size of about 1, as a layer with initial weights expects. A vector of zeros stays.
    """
    # In single precision: lengths may be too large for half precision.
    width: int = vectors.shape[1]
    return (normalize(vectors.float(), dim=1) * math.sqrt(width)).to(vectors.dtype)


def first_token(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The first token that is not padding [batch, width], of [batch, length, width]."""
    if mask is None:
        return hidden[:, 0]
    first = (mask != 0).int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def last_token(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The last token that is not padding [batch, width], of [batch, length, width]."""
    if mask is None:
        return hidden[:, -1]
    last = mask.shape[1] - 1 - (mask != 0).int().flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
