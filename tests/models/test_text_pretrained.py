"""A pretrained text model with a new head, its tokenizer, and the errors for unsuitable checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel, GPT2Model, PreTrainedModel

from hf_transfer.errors import UserError
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.groups import trace_groups
from hf_transfer.models.pretrained import Checkpoint, load_classifier
from hf_transfer.targets.classes import Classes
from tests.tiny_models import state
from tests.tiny_text_models import (
    CLASSES,
    END,
    PAD,
    TEXT_ARCHITECTURES,
    save_text_checkpoint,
    tiny_text_model,
    tiny_tokenizer,
    token_ids,
)

NAMES = ("ant", "bee", "cat", "dog", "eel")
TARGET = Classes(NAMES)
TASK = "text-classification"


def load(folder: Path, *, target: Classes = TARGET, fresh: bool = False) -> PreTrainedModel:
    checkpoint = Checkpoint(str(folder), task=TASK)
    return load_classifier(checkpoint, target, token_ids(), seed=0, fresh_weights=fresh)[0]


def without_pad_token(folder: Path, **settings: Any) -> Path:
    """GPT-2 as on the Hub: neither config nor tokenizer has a padding token."""
    tiny_text_model("gpt2", pad_token_id=None, **settings).save_pretrained(folder)
    tiny_tokenizer(pad=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("classes", [3, CLASSES])
@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_the_backbone_is_that_of_the_checkpoint_and_the_head_is_new(name: str, classes: int, tmp_path: Path) -> None:
    """Also when the checkpoint has as many classes as the data."""
    save_text_checkpoint(tmp_path, name)
    saved = state(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    loaded = state(load(tmp_path, target=Classes(NAMES[:classes])))
    head = TEXT_ARCHITECTURES[name].head
    new = {f"{head}.weight", f"{head}.bias"}
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved.keys() - new)
    assert loaded[f"{head}.weight"].shape == (classes, 24)
    shared = min(classes, CLASSES)
    assert not torch.isclose(loaded[f"{head}.weight"][:shared], saved[f"{head}.weight"][:shared]).all(1).any()


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_fresh_weights_have_only_the_architecture_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    save_text_checkpoint(tmp_path, name)
    pretrained, fresh, again = (state(load(tmp_path, fresh=is_fresh)) for is_fresh in (False, True, True))
    assert {key: value.shape for key, value in fresh.items()} == {k: v.shape for k, v in pretrained.items()}
    matrices = [key for key, value in fresh.items() if value.ndim > 1]
    head = f"{TEXT_ARCHITECTURES[name].head}.weight"
    assert not any(torch.equal(fresh[key], pretrained[key]) for key in matrices if key != head)
    assert all(torch.equal(fresh[key], again[key]) for key in fresh)


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_the_outline_has_the_groups_of_the_real_model_and_takes_no_memory(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(save_text_checkpoint(tmp_path, name)), task=TASK)
    outline, groups = checkpoint.outline(TARGET, token_ids())
    real = checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    assert groups == trace_groups(real, token_ids())
    assert type(outline) is type(real)
    assert {key: value.shape for key, value in outline.named_parameters()} == {
        key: value.shape for key, value in real.named_parameters()
    }
    if name == "bert":
        assert all(parameter.is_meta for parameter in outline.parameters())


def test_an_outline_reads_no_weights(tmp_path: Path) -> None:
    """A strategy that does not suit the model is refused before gigabytes are read."""
    save_text_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    _, groups = Checkpoint(str(tmp_path), task=TASK).outline(TARGET, token_ids())
    assert [group.name for group in groups] == TEXT_ARCHITECTURES["bert"].group_names


def test_a_checkpoint_without_a_head_gets_one_and_other_missing_weights_are_named(tmp_path: Path) -> None:
    """A pretrained BERT without a pooler, as sentence models often are."""
    whole: Any = tiny_text_model("bert")
    bare = BertModel(whole.config, add_pooling_layer=False)
    bare.load_state_dict(whole.bert.state_dict(), strict=False)
    bare.save_pretrained(tmp_path)
    checkpoint = Checkpoint(str(tmp_path), task=TASK)
    loaded = checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    groups = trace_groups(loaded, token_ids())
    assert checkpoint.describe_missing(groups) == [
        "Not in the checkpoint, and initialised randomly: bert.pooler.dense.weight, bert.pooler.dense.bias."
    ]
    weights = state(loaded)
    assert all(torch.equal(weights[f"bert.{key}"], value) for key, value in bare.state_dict().items())


def test_the_tokenizer_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    save_text_checkpoint(tmp_path)
    tokenizer = Checkpoint(str(tmp_path), task=TASK).tokenizer()
    assert type(tokenizer) is type(AutoTokenizer.from_pretrained(tmp_path))
    assert tokenizer("word7 word8")["input_ids"] == tiny_tokenizer()("word7 word8")["input_ids"]
    assert tokenizer.model_max_length == 32


@pytest.mark.parametrize(
    ("name", "limit"), [("bert", 40), ("roberta", 39), ("distilbert", 40), ("gpt2", 40), ("deberta", 40)]
)
def test_the_longest_input_is_the_number_of_positions_in_the_config(name: str, limit: int, tmp_path: Path) -> None:
    assert Checkpoint(str(save_text_checkpoint(tmp_path, name)), task=TASK).longest_input == limit


def test_the_packaged_sample_is_a_text_model_with_its_tokenizer() -> None:
    """It has six layers of width 384."""
    checkpoint = Checkpoint("sample:minilm", task=TASK)
    preprocessing = TokenPreprocessing(checkpoint.tokenizer(), model_limit=checkpoint.longest_input)
    outline, groups = checkpoint.outline(TARGET, preprocessing.example())
    assert len([group for group in groups if ".layer." in group.name]) == 6
    assert outline.config.hidden_size == 384


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("pad", [True, False])
def test_a_config_without_a_padding_token_gets_that_of_the_tokenizer(pad: bool, fresh: bool, tmp_path: Path) -> None:
    """GPT-2 without one refuses a batch of two texts; without a padding token, the end-of-text token is used."""
    without_pad_token(tmp_path)
    tiny_tokenizer(pad=pad).save_pretrained(tmp_path)
    model = load(tmp_path, fresh=fresh)
    assert model.config.pad_token_id == (PAD if pad else END)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["pad_token_id"] == (PAD if pad else END)


def test_a_config_with_a_padding_token_keeps_it(tmp_path: Path) -> None:
    save_text_checkpoint(tmp_path, "gpt2", pad_token_id=9)
    assert load(tmp_path).config.pad_token_id == 9


def test_a_backbone_with_missing_weights_is_refused(tmp_path: Path) -> None:
    """GPT-2 with two blocks, and a config for three."""
    whole: Any = tiny_text_model("gpt2", n_layer=2)
    GPT2Model(whole.config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_layer": 3}))
    with pytest.raises(UserError, match=r"missing or of another shape: transformer\.h\.2\."):
        load(tmp_path)


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_a_checkpoint_without_a_tokenizer_is_refused(name: str, tmp_path: Path) -> None:
    """transformers makes an empty one, for which all texts are equal."""
    tiny_text_model(name).save_pretrained(tmp_path)
    tokenizer = Checkpoint(str(tmp_path), task=TASK).tokenizer()
    with pytest.raises(UserError, match=r"a tokenizer with a vocabulary\nFound:    .*Tokenizer without any word\n"):
        TokenPreprocessing(tokenizer, model_limit=40)


def test_a_finished_text_model_keeps_its_head_and_its_classes(tmp_path: Path) -> None:
    model = load(save_text_checkpoint(tmp_path / "base"))
    model.save_pretrained(tmp_path / "done")
    checkpoint = Checkpoint(str(tmp_path / "done"), task=TASK)
    loaded = checkpoint.finished_classifier()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert Classes.of_model(checkpoint.config) == TARGET


def test_an_image_model_is_refused_as_a_text_classifier() -> None:
    with pytest.raises(UserError) as caught:
        Checkpoint("sample:resnet-glyphs", task=TASK)
    assert str(caught.value) == (
        "Expected: a model that transformers can load as a classifier or an encoder of texts (BERT, RoBERTa, T5, "
        "GPT-2, ...)\nFound:    sample:resnet-glyphs, a resnet model\n"
        "Do this:  choose a text model in --model_name_or_path"
    )


def test_a_text_model_is_refused_as_an_image_classifier(tmp_path: Path) -> None:
    save_text_checkpoint(tmp_path)
    with pytest.raises(UserError, match="a bert model\nDo this:  choose an image model in --model_name_or_path"):
        Checkpoint(str(tmp_path))
