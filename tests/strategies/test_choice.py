"""Settings name the strategy, and a model that does not fit it is refused before its weights are read."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from hf_transfer.config import RunConfig, TextConfig, UserError, VisionConfig
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.strategies.adapters import (
    InfusedAdapters,
    KroneckerAdaptation,
    LowRankAdaptation,
    OtherAdapters,
    WeightDecomposedAdaptation,
)
from hf_transfer.strategies.choice import choose_strategy, prepare_model
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
from tests.tiny_models import pixels, save_checkpoint
from tests.tiny_text_models import save_text_checkpoint, token_ids

LABELS = ["a", "b", "c"]
ADAPTED: dict[str, Any] = {"adapter_rank": 4, "adapter_alpha": 3.0, "adapter_dropout": 0.2, "adapter_layers": 2}
CHOICES: dict[str, tuple[dict[str, Any], Strategy]] = {
    "linear_probe": ({}, LinearProbe()),
    "partial": ({"trainable_layers": 3}, PartialFineTuning(layers=3)),
    "gradual": ({}, GradualUnfreezing()),
    "lp_ft": ({}, LinearProbeThenFineTuning()),
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


def settings(**more: Any) -> VisionConfig:
    return VisionConfig(model_name_or_path="m", dataset_name="d", output_dir="o", **more)


def test_all_of_a_text_model_learns_behind_a_larger_head() -> None:
    config = TextConfig(model_name_or_path="m", dataset_name="d", output_dir="o", strategy="full")
    assert choose_strategy(config) == FullFineTuning(larger_head=True)


@pytest.mark.parametrize("name", CHOICES)
def test_each_name_chooses_its_strategy_with_all_its_settings(name: str) -> None:
    chosen, expected = CHOICES[name]
    found = choose_strategy(settings(strategy=name, **chosen))
    assert (type(found), found) == (type(expected), expected)


def test_every_name_that_the_settings_take_is_known() -> None:
    names = get_args(RunConfig.__dataclass_fields__["strategy"].type)
    assert list(CHOICES) == list(names)


def test_without_settings_an_adapter_has_the_usual_ones() -> None:
    found = choose_strategy(settings(strategy="lora"))
    assert found == LowRankAdaptation(rank=8, alpha=None, dropout=0.05, layers=None)
    assert isinstance(found, LowRankAdaptation)
    assert found.settings() == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are not read: whoever tries fails."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("the weights were read")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)


def prepare(folder: Path, name: str, **chosen: Any) -> Any:
    checkpoint = Checkpoint(str(save_checkpoint(folder / "model", name)))
    config = settings(**chosen)
    return prepare_model(checkpoint, choose_strategy(config), LABELS, config, pixels(name))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"strategy": "partial", "trainable_layers": 4}, "--trainable_layers from 1 to 3, the blocks of this model"),
        ({"strategy": "lora", "adapter_layers": 4}, "--adapter_layers from 1 to 3, the blocks of this model"),
        ({"strategy": "adapter", "peft_type": "ADALORA"}, "a method of peft that adapts single layers"),
        ({"strategy": "adapter", "peft_type": "NONSENSE"}, "a method of peft that adapts single layers"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(
    tmp_path: Path, unreadable: None, chosen: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, "vit", **chosen)
    assert words in str(caught.value)


def test_scratch_reads_no_weights_at_all(tmp_path: Path, unreadable: None) -> None:
    prepared = prepare(tmp_path, "vit", strategy="scratch")
    assert [group.name for group in prepared.groups][-1] == "head"


@pytest.mark.parametrize(
    ("strategy", "frozen"),
    # Of a ViT's groups: embeddings, three blocks, final, head.
    [("linear_probe", 5), ("partial", 3), ("gradual", 0), ("lp_ft", 0), ("full", 0), ("bitfit", 0), ("lora", 1)],
)
def test_what_never_learns_is_counted_from_the_input(tmp_path: Path, strategy: str, frozen: int) -> None:
    prepared = prepare(tmp_path, "vit", strategy=strategy, num_train_epochs=5)
    assert len(prepared.frozen[""]) == frozen
    with torch.no_grad():
        assert prepared.model(**pixels("vit")).logits.shape == (2, len(LABELS))


def test_adapters_are_put_in_with_the_seed_of_the_run(tmp_path: Path) -> None:
    models = [prepare(tmp_path / str(n), "vit", strategy="lora", seed=seed).model for n, seed in enumerate((1, 1, 2))]
    first, again, other = ([v for k, v in model.named_parameters() if "lora_A" in k] for model in models)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_an_adapter_is_no_model_to_start_from(tmp_path: Path) -> None:
    """Its folder has a config.json, but no weights of its own."""
    save_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="name its base model, or the model of a run with --merge_adapter"):
        prepare_model(Checkpoint(str(tmp_path)), FullFineTuning(), LABELS, settings(), pixels("vit"))


def test_only_frozen_blocks_are_worth_storing(tmp_path: Path) -> None:
    """With adapters in every block the embeddings alone are frozen, and each epoch shall see new views."""
    checkpoint = Checkpoint(str(save_checkpoint(tmp_path)))
    found = {}
    for strategy in ("lora", "linear_probe"):
        config = settings(strategy=strategy)
        found[strategy] = prepare_model(checkpoint, choose_strategy(config), LABELS, config, pixels("vit"))
    assert (len(found["lora"].frozen[""]), found["lora"].frozen_blocks) == (1, False)
    assert found["linear_probe"].frozen_blocks


@pytest.mark.parametrize(("strategy", "told"), [("full", True), ("lp_ft", False)])
def test_two_looks_at_a_text_are_told(strategy: Any, told: bool, tmp_path: Path) -> None:
    save_text_checkpoint(tmp_path, "bert")
    config = TextConfig(model_name_or_path=str(tmp_path), dataset_name="d", output_dir="o", strategy=strategy)
    checkpoint = Checkpoint(str(tmp_path), task="text-classification")
    notes = prepare_model(checkpoint, choose_strategy(config), LABELS, config, token_ids()).notes
    assert ("R-Drop: a step looks at each text twice (--rdrop_alpha 1)." in notes) == told
