"""A timm checkpoint is loaded as any other: the backbone as it was saved, and a new head for the target."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hf_transfer.errors import UserError
from hf_transfer.models.pretrained import Checkpoint, load_classifier
from hf_transfer.models.pretrained_pair import PairCheckpoint
from hf_transfer.settings.model import PairModelSettings
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.table import target_of_model, write_settings
from hf_transfer.targets.target import Target
from tests.tiny_text_models import save_text_checkpoint
from tests.with_timm.tiny_timm import EARLIER, save_timm, tiny_timm

INPUTS = {"pixel_values": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))}
CLASSES = Classes(("ant", "bee", "cat", "dog"))
LABELS, NUMBERS = LabelSets(("red", "round")), Numbers(("height",))


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(folder: Path, target: Target, **more: Any) -> Any:
    return load_classifier(Checkpoint(str(folder)), target, INPUTS, seed=0, **{"fresh_weights": False} | more)[0]


@pytest.mark.parametrize("target", [CLASSES, Classes(("x", "y", "z")), LABELS, NUMBERS])
def test_the_backbone_is_that_of_the_checkpoint_and_the_head_is_new(target: Target, tmp_path: Path) -> None:
    """Also when the checkpoint has as many classes as the data."""
    saved = load_file(save_timm(tmp_path / "timm") / "model.safetensors")
    loaded = load(tmp_path / "timm", target).timm_model.state_dict()
    assert loaded.keys() == saved.keys()
    head = {"fc.weight", "fc.bias"}
    assert all(torch.equal(loaded[name], saved[name]) for name in saved.keys() - head)
    assert loaded["fc.weight"].shape[0] == len(target.names)
    assert not loaded["fc.bias"].any()
    shared = min(len(target.names), len(EARLIER))
    assert not torch.isclose(loaded["fc.weight"][:shared], saved["fc.weight"][:shared]).any(1).all()


@pytest.mark.parametrize("target", [CLASSES, LABELS, NUMBERS])
def test_the_target_survives_saving_and_loading_also_by_transformers_alone(target: Target, tmp_path: Path) -> None:
    model = load(save_timm(tmp_path / "timm"), target)
    write_settings(model.config, target)
    model.save_pretrained(tmp_path / "saved")
    again = Checkpoint(str(tmp_path / "saved"))
    assert target_of_model(again.config).names == target.names
    plain: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    for read in (again.finished_classifier(), plain):
        assert read.config.id2label == dict(enumerate(target.names))
        assert read.config.label2id == {name: number for number, name in enumerate(target.names)}
        assert read.config.problem_type == target.problem_type
        with torch.no_grad():
            torch.testing.assert_close(read.eval()(**INPUTS).logits, model.eval()(**INPUTS).logits)


def test_a_finished_model_of_timm_gives_the_logits_of_timm(tmp_path: Path) -> None:
    """Its configuration names the number of classes twice, on which transformers alone fails."""
    folder = save_timm(tmp_path / "timm")
    with pytest.raises(TypeError, match="multiple values"):
        AutoModelForImageClassification.from_pretrained(folder)
    model: Any = Checkpoint(str(folder)).finished_classifier()
    with torch.no_grad():
        expected = tiny_timm("test_resnet")(INPUTS["pixel_values"])
        torch.testing.assert_close(model.eval()(**INPUTS).logits, expected, rtol=0, atol=0)
    assert model.config.id2label == dict(enumerate(EARLIER))


def test_arguments_of_the_architecture_are_kept(tmp_path: Path) -> None:
    folder = save_timm(tmp_path / "timm", "test_vit", arguments={"depth": 2})
    model = load(folder, CLASSES)
    assert len(model.timm_model.blocks) == 2
    assert model.config.model_args == {"depth": 2}


def test_without_weights_of_the_checkpoint_nothing_is_read(tmp_path: Path) -> None:
    folder = save_timm(tmp_path / "timm")
    (folder / "model.safetensors").unlink()
    first, again = (load(folder, CLASSES, fresh_weights=True).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("values", "expected", "found"),
    [
        ({"architecture": "resnet19"}, "an architecture that timm 1", "'resnet19' in "),
        ({"architecture": "resnet18.no_such_tag"}, "an architecture that timm 1", "'resnet18.no_such_tag' in "),
        ({"architecture": "hf-hub:somebody/something"}, "an architecture that timm 1", "'hf-hub:somebody/something'"),
        ({"architecture": None}, "an architecture that timm 1", "'None' in "),
        ({"model_args": {"checkpoint_path": "weights.pth"}}, "only what changes the layers", "checkpoint_path"),
        ({"model_args": {"depth": 2, "pretrained": True}}, "only what changes the layers", "pretrained"),
    ],
)
def test_what_timm_would_not_build_or_would_read_elsewhere_is_refused(
    values: dict[str, Any], expected: str, found: str, tmp_path: Path
) -> None:
    change_config(save_timm(tmp_path / "timm"), **values)
    with pytest.raises(UserError) as caught:
        Checkpoint(str(tmp_path / "timm"))
    lines = str(caught.value).splitlines()
    assert expected in lines[0]
    assert found in lines[1]


@pytest.mark.parametrize(
    ("values", "found"),
    [({"model_args": {"checkpoint_path": "weights.pth"}}, "checkpoint_path"), ({"architecture": "hf-hub:a/b"}, "a/b")],
)
def test_the_same_is_refused_in_the_backbone_of_a_finished_model(
    values: dict[str, Any], found: str, tmp_path: Path
) -> None:
    """timm would read that file when the finished model is loaded."""
    backbone = json.loads((save_timm(tmp_path / "timm") / "config.json").read_text())
    backbone |= {"model_type": "timm_wrapper", "model_args": {}, **values}
    change_config(tmp_path / "timm", model_type="deep_probe", backbone_config=backbone)
    with pytest.raises(UserError, match=f"Found: .*{found}"):
        Checkpoint(str(tmp_path / "timm"))


def test_near_names_of_an_unknown_architecture_are_suggested(tmp_path: Path) -> None:
    change_config(save_timm(tmp_path / "timm"), architecture="resnet_18")
    with pytest.raises(UserError, match="resnet18"):
        Checkpoint(str(tmp_path / "timm"))


def test_images_with_texts_take_no_model_of_timm(tmp_path: Path) -> None:
    save_text_checkpoint(tmp_path / "bert", "bert")
    models = PairModelSettings(
        image_model_name_or_path=str(save_timm(tmp_path / "timm")), text_model_name_or_path=str(tmp_path / "bert")
    )
    with pytest.raises(UserError) as caught:
        PairCheckpoint(models)
    assert str(caught.value).splitlines()[1:] == [
        f"Found:    {tmp_path / 'timm'}, a model of timm",
        "Do this:  choose another --image_model_name_or_path",
    ]


def test_a_finished_model_with_equal_labels_is_refused_but_can_be_a_start(tmp_path: Path) -> None:
    folder = save_timm(tmp_path / "timm")
    change_config(folder, label_names=["crane", "shark", "crane"])
    with pytest.raises(UserError) as caught:
        Checkpoint(str(folder)).finished_classifier()
    assert "Found:    label_names with several classes called crane\n" in str(caught.value)
    assert load(folder, CLASSES).config.id2label == dict(enumerate(CLASSES.names))
