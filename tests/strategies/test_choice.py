"""Settings name the strategy, and a model that it does not suit is refused before weights are read."""

import importlib
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from hf_transfer.advice.auto import decided
from hf_transfer.errors import UserError
from hf_transfer.modalities.text import TextModality
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.run import open_run
from hf_transfer.settings.run import TextConfig, VisionConfig
from hf_transfer.settings.strategy import Strategy as StrategyName
from hf_transfer.settings.strategy import StrategySettings
from hf_transfer.strategies.adapters import (
    InfusedAdapters,
    KroneckerAdaptation,
    LowRankAdaptation,
    OtherAdapters,
    WeightDecomposedAdaptation,
)
from hf_transfer.strategies.choice import Prepared, choose_strategy, load_model, prepare_model
from hf_transfer.strategies.deep_probe import DeepProbe
from hf_transfer.strategies.freezing import (
    BiasTuning,
    FromScratch,
    FullFineTuning,
    GradualUnfreezing,
    LinearProbe,
    LinearProbeThenFineTuning,
    PartialFineTuning,
    Strategy,
)
from hf_transfer.targets.classes import Classes
from tests.tiny_models import pixels, save_checkpoint
from tests.tiny_text_models import save_text_checkpoint, token_ids

TARGET = Classes(("a", "b", "c"))
ADAPTED: dict[str, Any] = {"adapter_rank": 4, "adapter_alpha": 3.0, "adapter_dropout": 0.2, "adapter_layers": 2}
UPDATED = {"batch_norm_statistics": "updated"}
CHOICES: dict[str, tuple[dict[str, Any], Strategy]] = {
    "linear_probe": ({}, LinearProbe()),
    "deep_probe": ({"taps": ["mean_2", "head"]}, DeepProbe(taps=("mean_2", "head"))),
    "partial": ({"trainable_layers": 3}, PartialFineTuning(layers=3)),
    "gradual": (UPDATED, GradualUnfreezing(updates_statistics=True)),
    "lp_ft": (UPDATED, LinearProbeThenFineTuning(updates_statistics=True)),
    "full": ({}, FullFineTuning()),
    "scratch": ({}, FromScratch()),
    "bitfit": ({}, BiasTuning()),
    "lora": (ADAPTED, LowRankAdaptation(rank=4, alpha=3.0, dropout=0.2, layers=2)),
    "dora": (ADAPTED, WeightDecomposedAdaptation(rank=4, alpha=3.0, dropout=0.2, layers=2)),
    "ia3": ({"adapter_layers": 2}, InfusedAdapters(layers=2)),
    "lokr": (ADAPTED, KroneckerAdaptation(rank=4, alpha=3.0, dropout=0.2, layers=2)),
    "adapter": (
        ADAPTED | {"peft_type": "OFT"},
        OtherAdapters(peft_type="OFT", rank=4, alpha=3.0, dropout=0.2, layers=2),
    ),
}


def settings(**more: Any) -> StrategySettings:
    return VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o", **more).strategy


@pytest.mark.parametrize(("name", "kind"), [("full", FullFineTuning), ("scratch", FromScratch)])
def test_all_of_a_text_model_learns_behind_a_larger_head(name: str, kind: type[FullFineTuning]) -> None:
    """From fresh weights too: else the difference of the two would not be that of their weights alone."""
    strategy = choose_strategy(settings(strategy=name), larger_head=TextModality().larger_head)
    assert strategy == kind(larger_head=True)


@pytest.mark.parametrize("name", CHOICES)
def test_each_name_chooses_its_strategy_with_all_its_settings(name: str) -> None:
    chosen, expected = CHOICES[name]
    strategy = choose_strategy(settings(strategy=name, **chosen))
    assert (type(strategy), strategy) == (type(expected), expected)


def test_every_strategy_of_the_settings_can_be_chosen() -> None:
    assert list(CHOICES) == list(get_args(StrategyName))


def test_an_adapter_has_the_usual_default_settings() -> None:
    strategy = choose_strategy(settings(strategy="lora"))
    assert strategy == LowRankAdaptation(rank=8, alpha=None, dropout=0.05, layers=None)
    assert isinstance(strategy, LowRankAdaptation)
    assert strategy.settings() == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}


@pytest.fixture
def weights_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights fails the test."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("the weights were read")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)


def prepare(
    checkpoint: Checkpoint, *, seed: int = 0, epochs: int = 5, cache_frozen: str = "auto", **chosen: Any
) -> Prepared:
    """Load a model and prepare it, as a run does."""
    chosen_settings, inputs = settings(**chosen), token_ids() if "text" in checkpoint.task else pixels("vit")
    strategy = choose_strategy(chosen_settings)
    new = load_model(checkpoint, strategy, TARGET, inputs, seed=seed, feature_layers=chosen_settings.feature_layers)
    return prepare_model(new, strategy, inputs, seed=seed, epochs=epochs, cache_frozen=cache_frozen)


@pytest.fixture
def vit(tmp_path: Path) -> Checkpoint:
    return Checkpoint(str(save_checkpoint(tmp_path / "model", "vit")))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"strategy": "partial", "trainable_layers": 4}, "--trainable_layers from 1 to 3, the blocks of this model"),
        ({"strategy": "lora", "adapter_layers": 4}, "--adapter_layers from 1 to 3, the blocks of this model"),
        ({"strategy": "adapter", "peft_type": "ADALORA"}, "a method of peft that adapts single layers"),
        ({"strategy": "adapter", "peft_type": "NONSENSE"}, "a method of peft that adapts single layers"),
        ({"strategy": "linear_probe", "feature_layers": [2, 4]}, "--feature_layers from 1 to 3, the blocks of this"),
    ],
)
def test_a_strategy_that_does_not_suit_the_model_is_refused_before_weights_are_read(
    vit: Checkpoint, weights_are_not_read: None, chosen: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        prepare(vit, **chosen)
    assert expected in str(caught.value)


def test_scratch_reads_no_weights(vit: Checkpoint, weights_are_not_read: None) -> None:
    prepared = prepare(vit, strategy="scratch")
    assert [group.name for group in prepared.groups][-1] == "head"


@pytest.mark.parametrize(
    ("strategy", "frozen"),
    # Of a ViT's groups: embeddings, three blocks, final, head.
    [
        ("linear_probe", 5),
        ("deep_probe", 5),
        ("partial", 3),
        ("gradual", 0),
        ("lp_ft", 0),
        ("full", 0),
        ("bitfit", 0),
        ("lora", 1),
    ],
)
def test_frozen_groups_are_counted_from_the_input(vit: Checkpoint, strategy: str, frozen: int) -> None:
    prepared = prepare(vit, strategy=strategy)
    assert len(prepared.frozen[""]) == frozen
    with torch.no_grad():
        assert prepared.model(**pixels("vit")).logits.shape == (2, len(TARGET.names))


def test_the_weights_of_adapters_depend_on_the_seed_of_the_run(vit: Checkpoint) -> None:
    models = [prepare(vit, strategy="lora", seed=seed).model for seed in (1, 1, 2)]
    first, again, other = ([v for k, v in model.named_parameters() if "lora_A" in k] for model in models)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_training_cannot_start_from_an_adapter(tmp_path: Path) -> None:
    """Its folder has a config.json, but no weights of a whole model."""
    save_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="name its base model, or the model of a run with --merge_adapter"):
        prepare(Checkpoint(str(tmp_path)), strategy="full")


def test_only_frozen_blocks_are_worth_storing(vit: Checkpoint) -> None:
    """With adapters in every block only the embeddings are frozen: each epoch can have new views."""
    lora, probe = (prepare(vit, strategy=strategy) for strategy in ("lora", "linear_probe"))
    assert (len(lora.frozen[""]), lora.frozen_blocks) == (1, False)
    assert probe.frozen_blocks


def test_storing_is_refused_if_no_layer_is_frozen_in_any_stage(vit: Checkpoint) -> None:
    """In the first stage of lp_ft all layers but the head are."""
    prepare(vit, strategy="lp_ft", cache_frozen="on")
    with pytest.raises(UserError) as caught:
        prepare(vit, strategy="full", cache_frozen="on")
    assert str(caught.value).splitlines()[:2] == [
        "Expected: with --cache_frozen on a strategy that leaves the first layers frozen",
        "Found:    a strategy with which every layer learns",
    ]


@pytest.mark.parametrize(("strategy", "has_note"), [("full", True), ("scratch", True), ("lp_ft", False)])
def test_a_note_says_that_r_drop_passes_each_text_twice_through_the_model(
    strategy: str, has_note: bool, tmp_path: Path
) -> None:
    save_text_checkpoint(tmp_path, "bert")
    config = TextConfig.of(model_name_or_path=str(tmp_path), dataset_name="d", output_dir="o", strategy=strategy)
    model = prepare(Checkpoint(str(tmp_path), task="text-classification"), strategy=strategy).model
    notes = TextModality().regularisation(config, model, TARGET, 12).notes
    assert (notes == ("R-Drop: a step passes each text twice through the model (--rdrop_alpha 1).",)) == has_note
    assert len(notes) == has_note


def test_auto_is_decided_before_a_run_is_opened(tmp_path: Path) -> None:
    """A recipe that was copied before there was auto lacks that line; it is refused before its data are looked for."""
    config = TextConfig.of(model_name_or_path="m", dataset_name="no such data", output_dir=str(tmp_path / "out"))
    with pytest.raises(UserError) as refused, open_run(config):
        pass
    assert not (tmp_path / "out").exists()
    assert str(refused.value).startswith("Expected: a strategy that has been chosen, before open_run\n")
    _, module, _, name = str(refused.value).split("`")[1].split()
    assert getattr(importlib.import_module(module), name) is decided
    with pytest.raises(UserError, match="has been chosen"):
        choose_strategy(settings(strategy="auto"))
    pooled = config.replaced(strategy="full", pooling="auto")
    with pytest.raises(UserError, match="a pooling that has been chosen"), open_run(pooled):
        pass
    # Whoever only looks ahead trains nothing, and a finished model is only evaluated.
    for one, ahead in ((config, True), (config.replaced(evaluate_only=True), False)):
        with open_run(one, ahead=ahead) as run:
            assert not run.is_finished
