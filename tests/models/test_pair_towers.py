"""Which checkpoints can be the towers of a classifier of pairs, among them results of earlier runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_transfer.errors import UserError
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.pretrained_pair import PairCheckpoint
from hf_transfer.settings.model import PairModelSettings
from hf_transfer.targets.classes import Classes
from tests.models.families import FAMILIES
from tests.tiny_models import perturb

TARGET = Classes(("a", "b"))


def published(name: str, folder: Path) -> Path:
    return FAMILIES[name].checkpoint(folder / name)


def result(name: str, folder: Path) -> Path:
    """A folder OUT/model of a run that started from a checkpoint of that family, with perturbed weights."""
    family = FAMILIES[name]
    checkpoint = Checkpoint(str(published(name, folder)), task=family.task, pooling="own")
    model = checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    perturb(model, 3)
    model.save_pretrained(folder / f"{name} result")
    return folder / f"{name} result"


def pair(image: Path, text: Path) -> PairCheckpoint:
    return PairCheckpoint(PairModelSettings(image_model_name_or_path=str(image), text_model_name_or_path=str(text)))


@pytest.mark.parametrize(("image", "text"), [("dinov3_vit", "bert"), ("clip_vision", "bert"), ("vit", "clip_text")])
def test_a_result_with_a_head_of_ours_gives_its_encoder(image: str, text: str, tmp_path: Path) -> None:
    image_folder = (published if image == "vit" else result)(image, tmp_path)
    text_folder = (published if text == "bert" else result)(text, tmp_path)
    model: Any = pair(image_folder, text_folder).classifier(TARGET, seed=0, fresh_weights=False)
    tower, folder = (model.text_tower, text_folder) if image == "vit" else (model.image_tower, image_folder)
    saved: Any = Checkpoint(str(folder), task=FAMILIES[text if image == "vit" else image].task).finished_classifier()
    assert type(tower) is type(saved.backbone)
    weights = saved.backbone.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize("name", ["dinov3_vit", "clip_text"])
def test_fresh_weights_are_none_of_such_a_result(name: str, tmp_path: Path) -> None:
    folder = result(name, tmp_path)
    is_text = name == "clip_text"
    checkpoint = pair(published("vit", tmp_path), folder) if is_text else pair(folder, published("bert", tmp_path))
    pretrained, fresh = (checkpoint.classifier(TARGET, seed=0, fresh_weights=one) for one in (False, True))
    tower = fresh.get_submodule("text_tower" if is_text else "image_tower")
    matrices = [name for name, value in tower.named_parameters() if name.endswith(".weight") and value.ndim > 1]
    assert matrices
    known = pretrained.get_submodule("text_tower" if is_text else "image_tower")
    assert not any(torch.equal(tower.get_parameter(name), known.get_parameter(name)) for name in matrices)


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_an_encoder_that_an_earlier_run_took_alone_is_no_tower(name: str, tmp_path: Path) -> None:
    """A saved pair would make the whole model of its configuration, with a decoder that has no weights."""
    with pytest.raises(UserError) as caught:
        pair(published("vit", tmp_path), result(name, tmp_path))
    assert str(caught.value) == (
        "Expected: for texts with images a model with one stack of layers (BERT, RoBERTa, GPT-2, ...)\n"
        f"Found:    {tmp_path / name} result, a {name} model with an encoder and a decoder\n"
        "Do this:  choose another --text_model_name_or_path"
    )


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_dual_encoder_is_no_tower_of_images(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        pair(published(name, tmp_path), published("bert", tmp_path))
    assert str(caught.value) == (
        "Expected: in --image_model_name_or_path a model of images alone\n"
        f"Found:    {tmp_path / name}, a {name} model with a tower for each\n"
        "Do this:  name it in --model_name_or_path, for both towers"
    )


def test_a_tower_that_is_loaded_as_another_type_is_reported(tmp_path: Path) -> None:
    (note,) = pair(published("vit_mae", tmp_path), published("bert", tmp_path)).notes
    assert note.startswith("The model is loaded and saved as a vit: ")
    assert pair(published("dinov3_vit", tmp_path), published("splinter", tmp_path)).notes == ()
