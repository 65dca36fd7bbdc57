"""A text classifier whose head sees the mean of all tokens, or the first one, whatever its backbone's own pooling is.

This file lies beside the weights and needs torch and transformers alone:

    pipeline("text-classification", "path/to/this/folder", trust_remote_code=True)
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PooledConfig(PretrainedConfig):
    """The configuration of a backbone, and how its tokens become one vector.

    Attributes:
        text_config: the backbone's own configuration.
        pooling: `mean` of the last hidden states of all tokens, or `cls`, the one of the first token.
        classifier_dropout: dropout in front of the head.
    """

    model_type = "pooled_text_classifier"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    # What `save_pretrained` writes into `auto_map`, and why it copies this file.
    _auto_class = "AutoConfig"

    # Written out, not left to a dataclass: transformers of other years take it, too.
    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        classifier_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling is 'mean' or 'cls', not {pooling!r}")
        # A copy: what follows sets its attention implementation back, which a model in use would notice.
        settings = text_config.to_dict() if isinstance(text_config, PretrainedConfig) else text_config or {}
        # Without arguments transformers makes one, to know what is special about another.
        self.text_config = AutoConfig.for_model(**{"model_type": "bert", **settings})
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        super().__init__(**kwargs)


class PooledForSequenceClassification(PreTrainedModel):
    """A backbone without its own pooling, dropout, and a linear head.

    Args:
        config: what to build.
        backbone: loaded already, and of `config.text_config`; None makes one with fresh weights.
    """

    config_class = PooledConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _auto_class = "AutoModelForSequenceClassification"
    # The rest of what `forward` is given goes to the backbone; no count of samples for a Trainer's loss is among it.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PooledConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        if backbone is None:
            # In the precision that the whole model is made in, whatever the backbone's own configuration names.
            backbone = without_pooler(AutoModel.from_config, config.text_config, dtype=torch.get_default_dtype())
        self.backbone = backbone
        config.text_config = backbone.config
        self._takes = frozenset(inspect.signature(backbone.forward).parameters)
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
            position_ids: places of the tokens [batch, length], for a backbone that takes them.
            inputs_embeds: vectors in place of tokens [batch, length, width].
            labels: classes, or numbers for a regression.
            return_dict: False for a tuple, as transformers has it.
            **kwargs: whatever else the backbone takes.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if "use_cache" in self._takes:
            kwargs["use_cache"] = False
        known = {name: value for name, value in given.items() if value is not None and name in self._takes}
        output = self.backbone(**known, **kwargs)
        hidden = output[0]
        pooled = first_token(hidden, attention_mask) if self.config.pooling == "cls" else mean(hidden, attention_mask)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        result = SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )
        named = self.config.return_dict if return_dict is None else return_dict
        return result if named else result.to_tuple()


def without_pooler(make: Callable[..., Any], *names: Any, **settings: Any) -> Any:
    """What `make` makes, a backbone, without a pooler that nobody would use; some have none to leave out."""
    try:
        return make(*names, add_pooling_layer=False, **settings)
    except TypeError:
        return make(*names, **settings)


def mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over all tokens [batch, width] of [batch, length, width], added up in single precision."""
    if mask is None:
        return hidden.float().mean(1).to(hidden.dtype)
    padding = (mask == 0)[:, :, None]
    total = hidden.float().masked_fill(padding, 0.0).sum(1)
    return (total / (~padding).sum(1).clamp(min=1)).to(hidden.dtype)


def first_token(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The first token that is no padding [batch, width], of [batch, length, width]."""
    if mask is None:
        return hidden[:, 0]
    first = (mask != 0).int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]
