"""Classifiers of texts with another pooling than that of their checkpoint, for which transformers has no class.

They are saved with `modeling_pooled.py` beside their weights. The copy of that file in such a folder is never executed
here: a folder of our model type is loaded by the class in this package.

Whether the mean of all tokens or the first token is better depends on the checkpoint: Reimers & Gurevych,
Sentence-BERT, EMNLP 2019, https://arxiv.org/abs/1908.10084
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_transfer.errors import user_error
from hf_transfer.models import timm_models
from hf_transfer.models.encoders import TEXT_RULES, WITHOUT_DECODER, Pooling, Rule, retyped
from hf_transfer.models.fusion import FusionConfig
from hf_transfer.models.loading import read_weights
from hf_transfer.models.modeling_deep_probe import DeepProbeConfig
from hf_transfer.models.modeling_pair_probe import PairProbeConfig
from hf_transfer.models.modeling_pooled import (
    PooledConfig,
    PooledForSequenceClassification,
    encoder_class,
    without_pooler,
)
from hf_transfer.models.modeling_pooled_image import PooledImageConfig
from hf_transfer.models.modeling_pooled_probe import PooledProbeConfig
from hf_transfer.models.tracing import evaluating

# Names, in the configurations of architectures, of the dropout before the head.
DROPOUTS = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "resid_pdrop")
OUR_CONFIGS = (PooledConfig, PooledImageConfig, DeepProbeConfig, PooledProbeConfig, FusionConfig, PairProbeConfig)


def read_config(path: str, *, revision: str = "main", **settings: Any) -> PretrainedConfig:
    """The configuration of a checkpoint, of our model types or those of transformers; none of its code is run.

    Args:
        path: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.
        settings: values that replace those of the checkpoint.
    """
    values, _ = PretrainedConfig.get_config_dict(path, revision=revision)
    if "pretrained_cfg" in values:
        timm_models.refuse_without_timm(path)
    for part in values.values():
        if isinstance(part, Mapping) and part.get("model_type") == timm_models.MODEL_TYPE:
            timm_models.refuse_unsuitable(part, path)
    for our_config in OUR_CONFIGS:
        if values.get("model_type") == our_config.model_type:
            return our_config.from_dict(values, name_or_path=path, **settings)
    if values.get("model_type") == timm_models.MODEL_TYPE:
        return timm_models.timm_config(values, path, **settings)
    values, rule = retyped(values)
    if rule is not None:
        return CONFIG_MAPPING[rule.loaded_as].from_dict(values, name_or_path=path, **settings)
    # Without `trust_remote_code`, transformers would ask at a terminal whether to run the checkpoint's code.
    config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False, **settings)
    return config


def rule_of_type(path: str, *, revision: str = "main") -> Rule | None:
    """Why `read_config` gives a configuration of another type than the checkpoint's; None: it is of the same."""
    return retyped(PretrainedConfig.get_config_dict(path, revision=revision)[0])[1]


def pooling_of(config: PretrainedConfig) -> Pooling | None:
    """The pooling of our model type; None for the models of transformers, which have their own."""
    return config.pooling if isinstance(config, PooledConfig) else None


def is_normalized(config: PretrainedConfig) -> bool:
    """Whether the pooled vectors of our model type are scaled to one length."""
    return isinstance(config, PooledConfig) and config.normalized


def backbone_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the backbone, with its number of positions and its type of tokenizer."""
    if isinstance(config, DeepProbeConfig):
        return backbone_config(config.backbone_config)
    if isinstance(config, PooledImageConfig):
        return config.image_config
    return config.text_config if isinstance(config, PooledConfig) else config


def default_pooling(config: PretrainedConfig) -> Pooling:
    """What the head reads where transformers has no classifier for an encoder of texts, or another one is better."""
    rule = TEXT_RULES.get(config.model_type)
    if rule is not None and rule.pooling is not None:
        return rule.pooling
    return "last" if looks_back_only(config) else "mean"


def without_task(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration without the classes of an earlier task and the path on this machine: all of it is saved."""
    config.id2label = None
    config.num_labels = 2
    config.name_or_path = ""
    return config


def check_pooling(name: str, config: PretrainedConfig, pooling: Pooling, *, may_split: bool = True) -> None:
    """Refuse a pooling that does not work with the model.

    Args:
        name: the checkpoint, as the user names it.
        config: its configuration.
        pooling: the input of the head.
        may_split: whether the encoder of a model with a decoder can be taken alone.

    Raises:
        UserError: the model has an encoder and a decoder; or it reads from left to right, and the first token is asked
            for.
    """
    backbone = backbone_config(config)
    kind = backbone.model_type
    # An encoder that was taken alone has the type of the whole model, which would be made of its configuration again.
    if not may_split and (backbone.is_encoder_decoder or kind in WITHOUT_DECODER):
        raise user_error(
            expected="for texts with images a model with one stack of layers (BERT, RoBERTa, GPT-2, ...)",
            found=f"{name}, a {kind} model with an encoder and a decoder",
            do="choose another --text_model_name_or_path",
        )
    if backbone.is_encoder_decoder and kind not in WITHOUT_DECODER:
        raise user_error(
            expected=f"for --pooling {pooling} a model with one stack of layers (BERT, RoBERTa, GPT-2, ...)",
            found=f"{name}, a {kind} model with an encoder and a decoder",
            do="use --pooling own",
        )
    if pooling == "cls":
        do = "use --pooling mean, or --pooling own, which takes the last token"
        check_first_token(name, backbone, "--pooling cls", do)


def check_first_token(name: str, config: PretrainedConfig, flag: str, do: str) -> None:
    """Refuse to read the first token of a model that reads from left to right.

    Args:
        name: the checkpoint.
        config: of the backbone.
        flag: what asks for the first token.
        do: the advice.

    Raises:
        UserError: it is such a model.
    """
    if looks_back_only(config):
        raise user_error(
            expected=f"for {flag} a model whose first token sees the whole text (BERT, RoBERTa, ...)",
            found=f"{name}, a {backbone_config(config).model_type} model, in which a token sees only earlier tokens",
            do=do,
        )


def pooled_classifier(
    path: str, *, pooling: Pooling, labels: Mapping[str, Any], normalized: bool = False, revision: str = "main",
    fresh_weights: bool = False,
) -> tuple[PreTrainedModel, frozenset[str]]:  # fmt: skip
    """A classifier with that pooling, in float32, and the names of its weights that the checkpoint does not have.

    Missing weights are drawn from torch's global generator.

    Args:
        path: a folder or a Hub id; also of our model type, with any pooling.
        pooling: the input of the head: the first token, the last one, or the mean of all.
        labels: the target's values for the model's configuration.
        normalized: whether that input is scaled to one length.
        revision: branch, tag or commit on the Hub.
        fresh_weights: use only the architecture; no weights are read, and no names are returned.

    Raises:
        UserError: the backbone makes no hidden states from the tokens of a text.
    """
    config = read_config(path, revision=revision)
    settings = {"pooling": pooling, "normalized": normalized, **labels}
    if fresh_weights:
        model = PooledForSequenceClassification(_pooled_config(config, settings, path))
        _refuse_other_outputs(path, model)
        return model, frozenset()
    if isinstance(config, PooledConfig):
        return read_weights(PooledForSequenceClassification.from_pretrained, path, revision, **settings)
    load = encoder_class(alone=config.model_type in WITHOUT_DECODER).from_pretrained
    backbone, missing = read_weights(partial(without_pooler, load), path, revision)
    model = PooledForSequenceClassification(_pooled_config(backbone.config, settings, path), backbone)
    _refuse_other_outputs(path, model)
    head = {f"classifier.{name}" for name, _ in model.classifier.named_parameters()}
    return model, frozenset({f"backbone.{name}" for name in missing} | head)


def _refuse_other_outputs(path: str, model: PooledForSequenceClassification) -> None:
    """Refuse a backbone that makes no hidden states from tokens alone; an outline is not asked."""
    if model.device.type == "meta":
        return
    try:
        with evaluating(model), torch.no_grad():
            hidden = model.backbone(input_ids=torch.ones(1, 2, dtype=torch.long, device=model.device))[0]
        reason = "" if hidden.ndim == 3 else f"outputs of shape {list(hidden.shape)} for one text of two tokens"
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
    if reason:
        raise user_error(
            expected="an encoder that makes hidden states from the tokens of a text alone",
            found=f"{path}, a {model.config.text_config.model_type} model: {reason}",
            do="choose another text model",
        )


def _pooled_config(config: PretrainedConfig, settings: Mapping[str, Any], path: str) -> PooledConfig:
    backbone = without_task(backbone_config(config))
    dropouts = [getattr(backbone, name, None) for name in DROPOUTS]
    dropout = next((value for value in dropouts if value is not None), 0.0)
    return PooledConfig(
        text_config=backbone, classifier_dropout=dropout, name_or_path=path,
        encoder_alone=backbone.model_type in WITHOUT_DECODER, **settings,
    )  # fmt: skip


def looks_back_only(config: PretrainedConfig) -> bool:
    """Whether a token sees only earlier tokens: a model made to continue texts, or configured as a decoder.

    A type whose head reads the last token by our table is also one.
    """
    config = backbone_config(config)
    rule = TEXT_RULES.get(config.model_type)
    if rule is not None and rule.pooling == "last":
        return True
    continues = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    fills = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(getattr(config, "is_decoder", False)) or (continues and not fills)
