"""A classifier whose one linear layer reads a frozen backbone at several depths.

This file is saved with the weights and needs only torch and transformers:

    pipeline("image-classification", "path/to/this/folder", trust_remote_code=True)

Each place that is read is a tap: the mean over all tokens or places of a hidden state, its first token, or what enters
the head of the backbone's own classifier. Hidden states are those that the backbone returns, by number: names of
modules change from one version of transformers to the next. Where it returns none for a depth, as models of timm do,
they are the outputs of modules, by name.

Reference: Evci, Dumoulin, Larochelle and Mozer, "Head2Toe: Utilizing Intermediate Representations for Better Transfer
Learning", ICML 2022, https://arxiv.org/abs/2201.03529.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

HEAD, MEAN, FIRST = "head", "mean", "first"


class DeepProbeConfig(PretrainedConfig):
    """The configuration of a backbone, and where it is read.

    Attributes:
        backbone_config: configuration of the backbone's own classifier.
        head_layer: name of the last layer of that classifier, which is left out.
        head_bias: whether the linear layer has a bias.
        taps: what the linear layer reads, in this order: `["mean", number of the hidden state]`, `["first", number]`,
            or `["head", 0]`; in place of the number, the name of a module whose output is that state.
        widths: how many features each tap has.
    """

    model_type = "deep_probe"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    # `save_pretrained` writes it into `auto_map`, and copies this file.
    _auto_class = "AutoConfig"

    # Written out instead of a dataclass, so that other versions of transformers accept it, too.
    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        head_layer: str = "classifier",
        head_bias: bool = True,
        taps: Sequence[Sequence[Any]] = ((HEAD, 0),),
        widths: Sequence[int] = (768,),
        **kwargs: Any,
    ) -> None:
        if not taps or len(taps) != len(widths) or any(kind not in (HEAD, MEAN, FIRST) for kind, _ in taps):
            raise ValueError(f"taps are 'head', 'mean' or 'first' with a number, each with a width, not {taps!r}")
        # A copy: `super().__init__` resets its attention implementation, which would change a model in use.
        is_config = isinstance(backbone_config, PretrainedConfig)
        settings = backbone_config.to_dict() if is_config else backbone_config or {}  # type: ignore[union-attr]
        # transformers makes a configuration without arguments, to compare others with its defaults.
        self.backbone_config = self._configuration(dict(settings))
        self.head_layer, self.head_bias = head_layer, head_bias
        self.taps = [[kind, state if isinstance(state, str) else int(state)] for kind, state in taps]
        self.widths = list(widths)
        super().__init__(**kwargs)

    @staticmethod
    def _configuration(settings: dict[str, Any]) -> PretrainedConfig:
        """The configuration of the backbone; without settings, of any."""
        config: PretrainedConfig = AutoConfig.for_model(**{"model_type": "bert", **settings})
        return config


class _DeepProbe(PreTrainedModel):
    """A frozen backbone, and a linear layer on its taps.

    Args:
        config: the architecture.
        backbone: a loaded classifier of `config.backbone_config` without its last layer; None makes one with fresh
            weights.
    """

    config_class: type[DeepProbeConfig] = DeepProbeConfig
    base_model_prefix = "backbone"
    # transformers' Trainer would otherwise pass a number of samples for the loss, which the backbone does not take.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _fresh_backbone: Any
    _output_class: Any

    def __init__(self, config: DeepProbeConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        if backbone is None:
            # In the precision in which the whole model is made, whatever the backbone's configuration says.
            backbone = self._fresh_backbone(config.backbone_config, dtype=torch.get_default_dtype())
            backbone.set_submodule(config.head_layer, nn.Identity())
        self.backbone = backbone
        config.backbone_config = backbone.config
        self._input_names = frozenset(inspect.signature(backbone.forward).parameters)
        self.classifier = nn.Linear(sum(config.widths), self.num_labels, bias=config.head_bias)
        self.post_init()  # type: ignore[no-untyped-call]

    def joined(self, vectors: Sequence[Tensor]) -> Tensor:
        """What the linear layer reads [batch, features], of the vectors of all taps."""
        return joined(vectors)

    def _answer(
        self, inputs: Mapping[str, Tensor | None], labels: Tensor | None, return_dict: bool | None, more: dict[str, Any]
    ) -> Any:
        if "use_cache" in self._input_names:
            more["use_cache"] = False
        given = {name: value for name, value in inputs.items() if value is not None and name in self._input_names}
        features = self.joined(tap_vectors(self.backbone, self.config.taps, given, **more))
        logits = self.classifier(features.to(self.classifier.weight.dtype))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        result = self._output_class(loss, logits)
        as_output = self.config.return_dict if return_dict is None else return_dict
        return result if as_output else result.to_tuple()


class DeepProbeForImageClassification(_DeepProbe):
    """See `DeepProbeConfig`, for images."""

    _auto_class = "AutoModelForImageClassification"
    main_input_name = "pixel_values"
    _fresh_backbone = AutoModelForImageClassification.from_config
    _output_class = ImageClassifierOutput

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
            **kwargs: further arguments of the backbone.
        """
        return self._answer({"pixel_values": pixel_values}, labels, return_dict, kwargs)  # type: ignore[no-any-return]


class DeepProbeForSequenceClassification(_DeepProbe):
    """See `DeepProbeConfig`, for texts."""

    _auto_class = "AutoModelForSequenceClassification"
    _fresh_backbone = AutoModelForSequenceClassification.from_config
    _output_class = SequenceClassifierOutput

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
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self._answer(inputs, labels, return_dict, kwargs)  # type: ignore[no-any-return]


def tap_vectors(
    backbone: Callable[..., Any], taps: Sequence[Sequence[Any]], inputs: Mapping[str, Tensor], **more: Any
) -> list[Tensor]:
    """The vectors of some taps, by one pass [batch, width].

    Args:
        backbone: a classifier without its last layer, or what returns the same.
        taps: see `DeepProbeConfig`.
        inputs: of the backbone.
        **more: further arguments of the backbone.
    """
    mask = inputs.get("attention_mask")
    of_modules: dict[tuple[str, str], Tensor] = {}
    with ExitStack() as hooks:
        for kind, state in taps:
            if isinstance(state, str):

                def read(_: Any, __: Any, output: Tensor, tap: tuple[str, str] = (kind, state)) -> None:
                    # At once: a later layer may work in place.
                    of_modules[tap] = pooled(tap[0], output, mask)

                assert isinstance(backbone, nn.Module)
                hooks.enter_context(backbone.get_submodule(state).register_forward_hook(read))
            elif kind != HEAD:
                more["output_hidden_states"] = True
        output = backbone(**inputs, **more)
    return [
        output.logits if kind == HEAD
        else of_modules[kind, state] if isinstance(state, str)
        else pooled(kind, output.hidden_states[state], mask)
        for kind, state in taps
    ]  # fmt: skip


def pooled(kind: str, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """One vector of a hidden state [batch, width], in single precision.

    Args:
        kind: `mean` or `first`.
        hidden: of tokens [batch, length, width], or of places [batch, width, height, width of the image], or one vector
            [batch, width].
        mask: 1 for a token, 0 for padding [batch, length]; None if nothing is padded.
    """
    if hidden.ndim == 2:
        return hidden.float()
    if hidden.ndim > 3:
        return hidden.float().flatten(2).mean(2)
    if kind == FIRST:
        first = torch.zeros(len(hidden), dtype=torch.long) if mask is None else (mask != 0).int().argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), first.to(hidden.device)].float()
    if mask is None:
        return hidden.float().mean(1)
    padding = (mask == 0)[:, :, None]
    return hidden.float().masked_fill(padding, 0.0).sum(1) / (~padding).sum(1).clamp(min=1)


def joined(vectors: Sequence[Tensor]) -> Tensor:
    """One vector as it is; several side by side, each scaled to unit length, so that none outweighs the others."""
    return vectors[0] if len(vectors) == 1 else torch.cat([normalize(vector.float(), dim=1) for vector in vectors], 1)
