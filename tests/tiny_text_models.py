"""Text classifiers of several architectures, tiny and with perturbed random weights, and a tokenizer for them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from tests.tiny_models import Architecture, perturb, pixels, tiny_model

CLASSES = 5
VOCABULARY = 64
PAD, START, END, UNKNOWN, MASK = range(5)
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
}


def _bert(**more: Any) -> PretrainedConfig:
    return BertConfig(**(_ENCODER | more))


def _roberta(**more: Any) -> PretrainedConfig:
    return RobertaConfig(**(_ENCODER | {"type_vocab_size": 1} | more))


def _distilbert(**more: Any) -> PretrainedConfig:
    sizes = {"dim": 24, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": VOCABULARY}
    return DistilBertConfig(max_position_embeddings=40, pad_token_id=PAD, **(sizes | more))


def _gpt2(**more: Any) -> PretrainedConfig:
    sizes = {"n_embd": 24, "n_layer": 3, "n_head": 2, "n_inner": 32, "n_positions": 40}
    sizes |= {"vocab_size": VOCABULARY, "pad_token_id": PAD}
    return GPT2Config(bos_token_id=END, eos_token_id=END, **(sizes | more))


def _deberta(**more: Any) -> PretrainedConfig:
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"}
    return DebertaV2Config(**(_ENCODER | relative | more))


def _blocks(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in range(3))


TEXT_ARCHITECTURES = {
    "bert": Architecture(_bert, 0, ("bert.embeddings",), _blocks("bert.encoder.layer.{}"), ("bert.pooler", "dropout")),
    "roberta": Architecture(
        _roberta,
        0,
        ("roberta.embeddings",),
        _blocks("roberta.encoder.layer.{}"),
        ("classifier.dropout", "classifier.dense"),
        head="classifier.out_proj",
    ),
    "distilbert": Architecture(
        _distilbert,
        0,
        ("distilbert.embeddings",),
        _blocks("distilbert.transformer.layer.{}"),
        ("pre_classifier", "dropout"),
    ),
    "gpt2": Architecture(
        _gpt2,
        0,
        ("transformer.wte", "transformer.wpe", "transformer.drop"),
        _blocks("transformer.h.{}"),
        ("transformer.ln_f",),
        head="score",
    ),
    "deberta": Architecture(
        _deberta,
        0,
        ("deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm"),
        _blocks("deberta.encoder.layer.{}"),
        ("pooler", "dropout"),
    ),
}


def tiny_text_model(name: str, *, seed: int = 0, num_labels: int = CLASSES, **settings: Any) -> PreTrainedModel:
    """A perturbed classifier in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = TEXT_ARCHITECTURES[name].config(num_labels=num_labels, **settings)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    perturb(model, seed + 1)
    model.eval()
    return model


def model_and_inputs(name: str, **settings: Any) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A tiny model of any architecture, of images or texts, and a batch for it."""
    if name in TEXT_ARCHITECTURES:
        return tiny_text_model(name, **settings), token_ids()
    return tiny_model(name, **settings), pixels(name)


def token_ids(*, seed: int = 0, rows: int = 2, length: int = 9) -> dict[str, Tensor]:
    """Random texts, each one token shorter than the one before, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(MASK + 1, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        short = row % (length - 2)
        if short:
            ids[row, -short:] = PAD
            mask[row, -short:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def tiny_tokenizer(*, pad: bool = True, end: bool = True, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: `word0` to `word58` are known.

    Args:
        pad: whether it has a padding token.
        end: whether it has an end-of-text token.
        settings: further arguments of the tokenizer; by default it takes 32 tokens.
    """
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    words = special + [f"word{number}" for number in range(VOCABULARY - len(special))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", START), ("[SEP]", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]" if end else None,
        pad_token="[PAD]" if pad else None,
        **({"model_max_length": 32, "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} | settings),
    )


def forget_input_names(folder: Path) -> None:
    """Remove from a saved tokenizer which inputs it makes: most on the Hub leave that to their class."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    del settings["model_input_names"]
    file.write_text(json.dumps(settings), encoding="utf-8")


def save_text_checkpoint(folder: Path, name: str = "bert", *, pad: bool = True, **settings: Any) -> Path:
    """A folder with a tiny pretrained model and its tokenizer."""
    tiny_text_model(name, **settings).save_pretrained(folder)
    tiny_tokenizer(pad=pad).save_pretrained(folder)
    return folder
