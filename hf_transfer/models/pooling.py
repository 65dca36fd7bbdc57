"""Text classifiers with another pooling than their checkpoint's own, which transformers has no class for.

They are saved with `modeling_pooled.py` beside their weights. Whatever such a folder holds, its copy of that file is
never executed here: a folder of our model type is loaded by the class in this package.

Whether the mean of all tokens or the first one serves better depends on the checkpoint: Reimers & Gurevych,
Sentence-BERT, EMNLP 2019, https://arxiv.org/abs/1908.10084
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hf_transfer.config import mistake
from hf_transfer.models.fusion import FusionConfig
from hf_transfer.models.modeling_pooled import PooledConfig, PooledForSequenceClassification, without_pooler

Pooling = Literal["cls", "mean"]
# The names that architectures have for the dropout in front of their own head.
DROPOUTS = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "resid_pdrop")


def read_config(path: str, *, revision: str = "main", **settings: Any) -> PretrainedConfig:
    """The configuration of a checkpoint, of a model of ours or of transformers; no code of the checkpoint is run.

    Args:
        path: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.
        settings: what it is to say in place of what it says.
    """
    found, _ = PretrainedConfig.get_config_dict(path, revision=revision)
    for own in (PooledConfig, FusionConfig):
        if found.get("model_type") == own.model_type:
            return own.from_dict(found, name_or_path=path, **settings)
    # Left open, transformers asks at a terminal whether to run it.
    config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False, **settings)
    return config


def pooling_of(config: PretrainedConfig) -> Pooling | None:
    """The pooling of a model of ours; None for the models of transformers, which have their own."""
    return config.pooling if isinstance(config, PooledConfig) else None


def backbone_config(config: PretrainedConfig) -> PretrainedConfig:
    """What a configuration says of the backbone: how many positions it has, say, and which tokenizer goes with it."""
    return config.text_config if isinstance(config, PooledConfig) else config


def check_pooling(name: str, config: PretrainedConfig, pooling: Pooling) -> None:
    """Refuse a pooling that tells nothing about a text.

    Args:
        name: the checkpoint, as the user calls it.
        config: its configuration.
        pooling: what the head is to see.

    Raises:
        UserError: two stacks of layers, or the first token of a model that reads from left to right.
    """
    backbone = backbone_config(config)
    kind = backbone.model_type
    if backbone.is_encoder_decoder:
        raise mistake(
            expected=f"for --pooling {pooling} a model with one stack of layers (BERT, RoBERTa, GPT-2, ...)",
            found=f"{name}, a {kind} model with an encoder and a decoder",
            do="use --pooling own",
        )
    if pooling == "cls" and _looks_back_only(backbone):
        raise mistake(
            expected="for --pooling cls a model whose first token sees the whole text (BERT, RoBERTa, ...)",
            found=f"{name}, a {kind} model, in which a token sees those in front of it",
            do="use --pooling mean, or --pooling own, which takes the last token",
        )


def pooled_classifier(
    path: str, *, pooling: Pooling, labels: Mapping[str, Any], revision: str = "main", fresh_weights: bool = False
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A classifier with that pooling, in float32, and the names of its weights that the checkpoint lacks.

    Weights that the checkpoint lacks are drawn from torch's global generator.

    Args:
        path: a folder or a Hub id; of a model of ours, too, whatever its pooling.
        pooling: what the head sees: the first token, or the mean of all.
        labels: `id2label` and `label2id`.
        revision: branch, tag or commit on the Hub.
        fresh_weights: take the architecture only; no weights are read, and no names are returned.
    """
    config = read_config(path, revision=revision)
    if fresh_weights:
        return PooledForSequenceClassification(_pooled_config(config, pooling, labels, path)), frozenset()
    settings: dict[str, Any] = {
        "revision": revision,
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
        # Pickles can run anything when they are read.
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    if isinstance(config, PooledConfig):
        loaded: Any = PooledForSequenceClassification.from_pretrained(path, pooling=pooling, **labels, **settings)
        return loaded[0], _lacking(loaded[1])
    backbone, found = without_pooler(AutoModel.from_pretrained, path, **settings)
    model = PooledForSequenceClassification(_pooled_config(backbone.config, pooling, labels, path), backbone)
    head = {f"classifier.{name}" for name, _ in model.classifier.named_parameters()}
    return model, frozenset({f"backbone.{name}" for name in _lacking(found)} | head)


def load_pooled(path: str, *, revision: str = "main") -> PreTrainedModel:
    """A finished model of ours with its own head, in float32; the code beside its weights is not run.

    Args:
        path: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.
    """
    model: PreTrainedModel = PooledForSequenceClassification.from_pretrained(
        path, revision=revision, dtype=torch.float32, use_safetensors=True
    )
    return model


def _pooled_config(config: PretrainedConfig, pooling: Pooling, labels: Mapping[str, Any], path: str) -> PooledConfig:
    backbone = backbone_config(config)
    # It is saved whole: neither classes of an earlier task nor where it lay on this machine belong to it.
    backbone.id2label = None
    backbone.num_labels = 2
    backbone.name_or_path = ""
    dropouts = [getattr(backbone, name, None) for name in DROPOUTS]
    dropout = next((value for value in dropouts if value is not None), 0.0)
    return PooledConfig(text_config=backbone, pooling=pooling, classifier_dropout=dropout, name_or_path=path, **labels)


def _looks_back_only(config: PretrainedConfig) -> bool:
    """Whether it was made to continue texts and not to fill gaps, or says so itself."""
    continues = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    fills = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(getattr(config, "is_decoder", False)) or (continues and not fills)


def _lacking(found: Mapping[str, Any]) -> frozenset[str]:
    """Names of weights that are missing or of another shape."""
    return frozenset(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]}
