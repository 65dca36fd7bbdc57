"""A pretrained backbone with a new head, and the errors for unsuitable checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification, BertConfig, BertModel

from hf_transfer.errors import UserError
from hf_transfer.models.groups import Group
from hf_transfer.models.pretrained import Checkpoint, load_classifier, renew_head
from hf_transfer.targets.classes import Classes
from tests.tiny_models import CLASSES, pixels, save_checkpoint, state, tiny_model

NAMES = ("ant", "bee", "cat", "dog", "eel")


def load(
    folder: Path, *, names: tuple[str, ...] = NAMES, fresh: bool = False, seed: int = 0, architecture: str = "vit",
    **more: Any,
) -> nn.Module:  # fmt: skip
    model, _ = load_classifier(
        Checkpoint(str(folder)), Classes(names), pixels(architecture), seed=seed, fresh_weights=fresh, **more
    )
    return model


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("classes", [3, CLASSES])
def test_the_backbone_is_that_of_the_checkpoint_and_the_head_is_new(checkpoint: Path, classes: int) -> None:
    """Also when the checkpoint has as many classes as the data."""
    saved = state(AutoModelForImageClassification.from_pretrained(checkpoint))
    loaded = state(load(checkpoint, names=NAMES[:classes]))
    head = {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(loaded[name], saved[name]) for name in saved.keys() - head)
    assert loaded["classifier.weight"].shape == (classes, 24)
    assert not loaded["classifier.bias"].any()
    shared = min(classes, CLASSES)
    assert not torch.isclose(loaded["classifier.weight"][:shared], saved["classifier.weight"][:shared]).all(1).any()


def test_the_head_depends_only_on_the_seed(checkpoint: Path) -> None:
    torch.manual_seed(11)
    first = state(load(checkpoint, seed=1))
    torch.manual_seed(12)
    again, other = state(load(checkpoint, seed=1)), state(load(checkpoint, seed=2))
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert {name for name in first if not torch.equal(other[name], first[name])} == {"classifier.weight"}


def test_a_head_is_drawn_from_a_narrow_normal_distribution() -> None:
    model = nn.Sequential(nn.Linear(200, 200))
    renew_head(model, Group("head", ("0",), ("0.weight", "0.bias")), seed=3)
    weights = model.get_parameter("0.weight").detach()
    expected = torch.randn(200, 200, generator=torch.Generator().manual_seed(3)) * 0.02
    torch.testing.assert_close(weights, expected)
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.get_parameter("0.bias").any()


def test_a_head_without_a_bias_is_renewed_too() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    before = state(model)["0.weight"]
    renew_head(model, Group("head", ("0",), ("0.weight",)), seed=0)
    assert not torch.equal(model.get_parameter("0.weight"), before)


def test_loading_does_not_change_the_global_generator(checkpoint: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(checkpoint, names=NAMES[:3], fresh=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_fresh_weights_have_only_the_architecture_of_the_checkpoint(checkpoint: Path) -> None:
    pretrained, fresh, again, other = (
        state(load(checkpoint, fresh=is_fresh, seed=seed))
        for is_fresh, seed in ((False, 0), (True, 0), (True, 0), (True, 1))
    )
    assert {name: value.shape for name, value in fresh.items()} == {n: v.shape for n, v in pretrained.items()}
    assert not any(
        torch.equal(fresh[name], pretrained[name])
        for name in fresh
        if name != "classifier.bias" and name != "classifier.weight"
    )
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    matrices = [name for name, value in fresh.items() if value.ndim > 1 and value.any()]
    assert len(matrices) > 10
    assert not any(torch.equal(fresh[name], other[name]) for name in matrices)


@pytest.mark.parametrize("fresh", [False, True])
def test_class_names_are_saved_with_the_model(checkpoint: Path, tmp_path: Path, fresh: bool) -> None:
    names = ("zebra", "ape", "ünïcode")
    model: Any = load(checkpoint, names=names, fresh=fresh)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["id2label"] == {"0": "zebra", "1": "ape", "2": "ünïcode"}
    assert saved["label2id"] == {"zebra": 0, "ape": 1, "ünïcode": 2}


def test_weights_saved_in_half_precision_are_loaded_in_single_precision(tmp_path: Path) -> None:
    tiny_model("vit").bfloat16().save_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in load(tmp_path / "half").parameters()} == {torch.float32}


def test_a_finished_model_keeps_its_head_and_its_classes(tmp_path: Path) -> None:
    target = Classes(NAMES)
    folder = save_checkpoint(tmp_path / "done", **target.model_settings())
    saved = state(AutoModelForImageClassification.from_pretrained(folder))
    checkpoint = Checkpoint(str(folder))
    loaded = state(checkpoint.finished_classifier())
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert Classes.of_model(checkpoint.config) == target


def test_the_processor_is_the_checkpoints_own(checkpoint: Path) -> None:
    change = checkpoint / "preprocessor_config.json"
    change.write_text(json.dumps(json.loads(change.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    processor: Any = Checkpoint(str(checkpoint)).processor()
    assert (processor.size["height"], processor.image_mean) == (16, (0.1, 0.2, 0.3))


def test_gradient_checkpointing_gives_the_same_loss_and_gradients(checkpoint: Path) -> None:
    plain, saving = load(checkpoint), load(checkpoint, gradient_checkpointing=True)
    assert [getattr(model, "is_activation_checkpointing") for model in (plain, saving)] == [False, True]  # noqa: B009
    losses = []
    for model in (plain, saving):
        model.train()
        losses.append(nn.functional.cross_entropy(model(**pixels("vit")).logits, torch.tensor([0, 3])))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    for one, two in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_a_model_that_cannot_checkpoint_gradients_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "poolformer", "poolformer")
    with pytest.raises(UserError) as caught:
        load(folder, architecture="poolformer", gradient_checkpointing=True)
    assert str(caught.value).splitlines() == [
        "Expected: a model that supports --gradient_checkpointing",
        "Found:    PoolFormerForImageClassification, which does not",
        "Do this:  leave the flag out, or lower --per_device_train_batch_size",
    ]


def test_a_folder_without_a_config_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(UserError, match=r"a saved model with a config.json in .*\nFound:    a folder without one"):
        Checkpoint(str(checkpoint))


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "some/folder/deep"])
def test_a_path_without_a_folder_is_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"no folder {name.removeprefix('./')}\nDo this:  correct --model_name_or_path"
    ):
        Checkpoint(name)


def test_an_unknown_model_without_a_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"the model nobody/nothing on the Hub or in the local cache"):
        Checkpoint("nobody/nothing")


def test_an_unknown_sample_is_refused() -> None:
    with pytest.raises(UserError, match=r"Found:    sample:vit-glyph\nDo this:  use sample:vit-glyphs"):
        Checkpoint("sample:vit-glyph")


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(small).save_pretrained(tmp_path / "bert")
    with pytest.raises(
        UserError, match=r"load as a classifier or an encoder of images \(ViT.*\nFound:    .*/bert, a bert model\n"
    ):
        Checkpoint(str(tmp_path / "bert"))


def test_a_model_of_grey_images_is_refused(checkpoint: Path) -> None:
    change_config(checkpoint, num_channels=1)
    with pytest.raises(UserError, match=r"images of 3 channels\nFound:    .*/checkpoint with 1\n"):
        Checkpoint(str(checkpoint))


@pytest.mark.parametrize("content", [b"", b"\xff" * 5000, b"cut"])
def test_broken_weights_are_refused(checkpoint: Path, content: bytes) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(content if content != b"cut" else weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"a complete transformers checkpoint in .*\nFound:    .*[Hh]eader"):
        load(checkpoint)


def test_a_checkpoint_without_weights_is_refused_unless_fresh_weights_are_wanted(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"a complete transformers checkpoint in .*\nFound:    .*no file named model"):
        load(checkpoint)
    assert load(checkpoint, fresh=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not a valid JSON file"), ('{"model_type": "nosuch"}', "nosuch"), ("{}", "Unrecognized model")],
)
def test_a_config_that_cannot_be_read_is_refused(checkpoint: Path, content: str, reason: str) -> None:
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"Found:    .*{reason}.*\nDo this:  check its config.json"):
        Checkpoint(str(checkpoint))


def test_a_config_value_of_the_wrong_type_is_refused(checkpoint: Path) -> None:
    change_config(checkpoint, hidden_size="wide")
    with pytest.raises(UserError, match=r"Found:    .*'hidden_size'"):
        Checkpoint(str(checkpoint))


def test_a_missing_processor_is_refused(checkpoint: Path) -> None:
    (checkpoint / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"Found:    .*image processor"):
        Checkpoint(str(checkpoint)).processor()


@pytest.mark.parametrize(("change", "missing"), [({"num_hidden_layers": 4}, ".3."), ({"intermediate_size": 48}, "mlp")])
def test_a_checkpoint_without_some_weights_of_its_backbone_is_refused(
    checkpoint: Path, change: dict[str, int], missing: str
) -> None:
    """Otherwise layers of the pretrained backbone would be random without a message."""
    change_config(checkpoint, **change)
    with pytest.raises(UserError, match="missing or of another shape") as refused:
        load(checkpoint)
    assert missing in str(refused.value)
    load(checkpoint, fresh=True)


def test_missing_weights_between_the_blocks_and_the_head_are_named(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith("vit.layernorm")},
        checkpoint / "model.safetensors",
        metadata={"format": "pt"},
    )
    incomplete = Checkpoint(str(checkpoint))
    _, groups = load_classifier(incomplete, Classes(NAMES), pixels("vit"), seed=0, fresh_weights=False)
    (note,) = incomplete.describe_missing(groups)
    assert note.startswith("Not in the checkpoint, and initialised randomly: ")
    assert "vit.layernorm.weight" in note
    assert "classifier" not in note


def test_the_problem_type_of_an_earlier_task_is_replaced(tmp_path: Path) -> None:
    """A pipeline reads it from the config, and would apply a sigmoid instead of a softmax."""
    save_checkpoint(tmp_path, problem_type="multi_label_classification")
    model = Checkpoint(str(tmp_path)).classifier(Classes(("a", "b", "c")), seed=0, fresh_weights=False)
    assert model.config.problem_type == "single_label_classification"
