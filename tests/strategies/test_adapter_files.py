"""Adapters are saved in peft's format, load without this package, and can be merged into a plain model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForSequenceClassification,
    LilyConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    pipeline,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.errors import UserError
from hf_transfer.models.groups import trace_groups
from hf_transfer.strategies.adapter_files import is_adapter_folder, load_adapter, merged, save_adapter
from hf_transfer.strategies.adapters import (
    Adapters,
    InfusedAdapters,
    KroneckerAdaptation,
    LowRankAdaptation,
    WeightDecomposedAdaptation,
)
from hf_transfer.strategies.freezing import set_trainable
from tests.strategies.test_adapters import Adapted, adapt
from tests.tiny_models import logits, save_checkpoint, state
from tests.tiny_text_models import TEXT_ARCHITECTURES, model_and_inputs, save_text_checkpoint

SAVED = [
    ("vit", LowRankAdaptation()),
    ("vit", WeightDecomposedAdaptation()),
    ("vit", InfusedAdapters()),
    ("vit", KroneckerAdaptation()),
    ("resnet_basic", LowRankAdaptation()),
    ("convnext", KroneckerAdaptation()),
    ("bert", LowRankAdaptation()),
    ("roberta", LowRankAdaptation()),
    ("distilbert", InfusedAdapters()),
    ("gpt2", LowRankAdaptation()),
]
LABELS = {"id2label": {number: f"class {number}" for number in range(4)}}
LABELS |= {"label2id": {name: number for number, name in LABELS["id2label"].items()}}  # type: ignore[misc]


def pretrained(folder: Path, name: str) -> Path:
    """A checkpoint of three classes."""
    return (save_text_checkpoint if name in TEXT_ARCHITECTURES else save_checkpoint)(folder, name, num_labels=3)


def classifier(base: Path, name: str, *, seed: int, **more: Any) -> PreTrainedModel:
    """The checkpoint with a new head of four classes; the seed is that of the head."""
    kind = AutoModelForSequenceClassification if name in TEXT_ARCHITECTURES else AutoModelForImageClassification
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = kind.from_pretrained(base, ignore_mismatched_sizes=True, **(more or LABELS))
    model.eval()
    return model


def trained(base: Path, name: str, strategy: Adapters) -> Adapted:
    """An adapted model whose adapters and head were trained for a few steps."""
    model, inputs = classifier(base, name, seed=1), model_and_inputs(name)[1]
    adapted, groups = strategy.prepare(model, trace_groups(model, inputs), inputs, 0)
    set_trainable(adapted, groups, strategy.stages(groups, 1)[0].trainable)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.02)
    torch.manual_seed(0)
    for _ in range(3):
        adapted.train()
        nn.functional.cross_entropy(adapted(**inputs).logits, torch.tensor([0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Adapted(adapted.eval(), groups, inputs)


@pytest.mark.parametrize(("name", "strategy"), SAVED)
def test_peft_alone_loads_what_was_saved(name: str, strategy: Adapters, tmp_path: Path) -> None:
    """Also if the base model has other random weights in place of those that the checkpoint does not have."""
    base = pretrained(tmp_path / "base", name)
    adapted = trained(base, name, strategy)
    expected = logits(adapted.model, adapted.inputs)
    assert (expected - logits(classifier(base, name, seed=1), adapted.inputs)).abs().max() > 0.01
    folder = tmp_path / "saved"
    save_adapter(adapted.model, folder)
    assert is_adapter_folder(folder)
    config = AutoConfig.from_pretrained(folder)
    assert (config.id2label, config.label2id) == (LABELS["id2label"], LABELS["label2id"])
    loaded = PeftModel.from_pretrained(classifier(base, name, seed=2, config=config), folder).eval()
    assert torch.allclose(logits(loaded, adapted.inputs), expected, rtol=1e-5, atol=1e-5)
    auto = AutoPeftModelForSequenceClassification if name in TEXT_ARCHITECTURES else AutoPeftModel
    loaded = auto.from_pretrained(folder, num_labels=4, ignore_mismatched_sizes=True).eval()
    assert torch.allclose(logits(loaded, adapted.inputs), expected, rtol=1e-5, atol=1e-5)
    ours = load_adapter(folder, classifier(base, name, seed=3))
    assert torch.allclose(logits(ours, adapted.inputs), expected, rtol=1e-5, atol=1e-5)
    assert not ours.training


@pytest.mark.parametrize(("name", "strategy"), SAVED)
def test_a_merged_model_is_a_plain_model_with_the_same_logits(name: str, strategy: Adapters, tmp_path: Path) -> None:
    adapted = trained(pretrained(tmp_path / "base", name), name, strategy)
    before, expected = state(adapted.model), logits(adapted.model, adapted.inputs)
    plain = merged(adapted.model)
    assert isinstance(plain, PreTrainedModel)
    assert torch.allclose(logits(plain, adapted.inputs), expected, rtol=1e-5, atol=1e-5)
    plain.save_pretrained(tmp_path / "plain")
    kind = AutoModelForSequenceClassification if name in TEXT_ARCHITECTURES else AutoModelForImageClassification
    loaded, info = kind.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.allclose(logits(loaded.eval(), adapted.inputs), expected, rtol=1e-5, atol=1e-5)
    after = adapted.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_a_grouped_convolution_that_cannot_be_merged_gets_no_adapter() -> None:
    """LoRA of rank 8 runs on 8 groups, but peft cannot merge it."""
    grouped = [
        layer.get_base_layer()
        for layer in adapt("convnext", LowRankAdaptation()).layers().values()
        if getattr(layer.get_base_layer(), "groups", 1) > 1
    ]
    assert grouped == []


def test_the_folder_has_the_same_bytes_each_time_and_no_template(tmp_path: Path) -> None:
    adapted = adapt("bert", LowRankAdaptation())
    folder = tmp_path / "new" / "model"
    save_adapter(adapted.model, folder, base_model_name="someone/bert")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() == {"adapter_config.json", "adapter_model.safetensors", "config.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    settings = json.loads(files["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "someone/bert"
    assert settings["task_type"] == "SEQ_CLS"
    assert settings["modules_to_save"] == ["bert.pooler.dense", "classifier", "score"]
    assert settings["target_modules"] == sorted(settings["target_modules"])
    (folder / "README.md").write_text("ours", encoding="utf-8")
    loaded = load_adapter(folder, model_and_inputs("bert")[0])
    save_adapter(loaded, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files | {"README.md": b"ours"}


def test_transformers_alone_also_needs_the_weights_of_the_base_in_the_folder(tmp_path: Path) -> None:
    """As the documentation of `pipeline` says: with config.json but no model.safetensors it finds no weights."""
    base = pretrained(tmp_path / "base", "vit")
    adapted = trained(base, "vit", LowRankAdaptation())
    folder = tmp_path / "saved"
    save_adapter(adapted.model, folder)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForImageClassification.from_pretrained(folder)
    classifier(base, "vit", seed=5).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    model = pipeline("image-classification", str(folder)).model
    assert model.config.id2label == LABELS["id2label"]
    assert torch.allclose(logits(model, adapted.inputs), logits(adapted.model, adapted.inputs), rtol=1e-5, atol=1e-5)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    model = model_and_inputs("vit")[0]
    model.save_pretrained(tmp_path / "plain")
    assert not is_adapter_folder(tmp_path / "plain")
    for folder, found in ((tmp_path / "plain", "a folder without these files"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UserError) as caught:
            load_adapter(folder, model)
        assert str(caught.value) == (
            f"Expected: an adapter in {folder}: adapter_config.json and adapter_model.safetensors\n"
            f"Found:    {found}\n"
            "Do this:  name the folder OUT/model of a run with adapters"
        )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_labels": 7}, "the shape in current model is torch.Size([7])."),
        ({"num_hidden_layers": 2}, "the adapter has weights of other layers"),
    ],
)
def test_an_adapter_of_another_base_model_is_refused(settings: dict[str, Any], problem: str, tmp_path: Path) -> None:
    """peft only warns about missing layers."""
    save_adapter(adapt("vit", LowRankAdaptation()).model, tmp_path, base_model_name="someone/vit")
    with pytest.raises(UserError) as caught:
        load_adapter(tmp_path, model_and_inputs("vit", **settings)[0])
    expected, found, do = str(caught.value).splitlines()
    assert expected == f"Expected: the base model of the adapter in {tmp_path}: someone/vit"
    assert found.startswith("Found:    ViTForImageClassification with other layers or classes: ")
    assert found.endswith(problem)
    assert do == "Do this:  load the base model that adapter_config.json names, with the labels in config.json"


def test_an_adapter_that_cannot_be_merged_is_refused() -> None:
    model = get_peft_model(model_and_inputs("vit")[0], LilyConfig(target_modules=["fc1"]))
    with pytest.raises(UserError) as caught:
        merged(model)
    assert str(caught.value) == (
        "Expected: an adapter that can be merged into the weights\n"
        "Found:    LILY, which peft cannot merge: This method is not supported for Lily.\n"
        "Do this:  leave --merge_adapter out, or use --strategy lora"
    )
    # The rank divides the groups, which may be so in adapters that were trained elsewhere.
    grouped = get_peft_model(
        model_and_inputs("convnext")[0], LoraConfig(r=8, target_modules=["stages.0.layers.0.dwconv"])
    )
    with pytest.raises(UserError, match="LORA, which peft cannot merge"):
        merged(grouped)


def test_of_two_towers_the_adapter_that_cannot_be_merged_is_named() -> None:
    towers = nn.ModuleDict({
        "image_tower": get_peft_model(model_and_inputs("vit")[0], LoraConfig(target_modules=["fc1"])),
        "text_tower": get_peft_model(model_and_inputs("vit")[0], LilyConfig(target_modules=["fc1"])),
    })  # fmt: skip
    with pytest.raises(UserError, match="LILY, which peft cannot merge"):
        merged(towers)
    assert all(isinstance(tower, PeftModel) for tower in towers.values())
