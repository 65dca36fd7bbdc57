"""What a head reads of an image encoder is the same for images alone and for images with texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, CvtConfig

from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.image_encoders import image_pooling
from hf_transfer.models.modeling_pair_probe import pooled_tower
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.pretrained_pair import PairCheckpoint
from hf_transfer.models.towers import Tower, fuse
from hf_transfer.settings.model import PairModelSettings
from hf_transfer.targets.classes import Classes
from tests.models.families import FAMILIES
from tests.tiny_models import ARCHITECTURES, logits, perturb, pixels, save_checkpoint
from tests.tiny_pairs import LABELS, pair_inputs, towers

TARGET = Classes(("a", "b"))
# By name: the pooling that the classifier of transformers, or the one of ours, reads; None: of a finished classifier.
PUBLISHED = {
    "vit": "first", "deit": "first", "beit": "pooler", "dinov2": "first_and_others", "dinov3_vit": "pooler",
    "ijepa": "mean", "hiera": "pooler", "clip_vision": "pooler", "siglip_vision": "pooler", "pixio": "pooler",
}  # fmt: skip
CLASSIFIERS = {"swin": "pooler", "convnext": "pooler", "resnet_basic": "pooler", "mobilenet_v2": "pooler"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["bert"].checkpoint(tmp_path_factory.mktemp("text") / "bert")


def pair_of(image: Path, text: Path, *, fresh_weights: bool = False) -> Any:
    models = PairModelSettings(image_model_name_or_path=str(image), text_model_name_or_path=str(text))
    return PairCheckpoint(models).classifier(TARGET, seed=0, fresh_weights=fresh_weights)


def read_alone(folder: Path, inputs: dict[str, Tensor]) -> Tensor:
    """What enters the last layer of the classifier of images."""
    model = Checkpoint(str(folder)).classifier(TARGET, seed=0, fresh_weights=False).eval()
    layer = [one for one in model.modules() if isinstance(one, nn.Linear)][-1]
    entered: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    with torch.no_grad():
        model(**inputs)
    return entered[0]


def read_in_pair(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output: Tensor = pooled_tower(model.image_tower.eval(), model.config.image_pooling, **inputs)["logits"]
    return output


def saved(name: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint, and some pictures."""
    if name in PUBLISHED:
        return FAMILIES[name].checkpoint(folder / name), FAMILIES[name].inputs()
    return save_checkpoint(folder / name, name), pixels(name, seed=3)


@pytest.mark.parametrize(("name", "pooling"), (PUBLISHED | CLASSIFIERS).items())
def test_pairs_read_what_the_classifier_of_images_reads(name: str, pooling: str, text: Path, tmp_path: Path) -> None:
    folder, inputs = saved(name, tmp_path)
    model = pair_of(folder, text)
    torch.testing.assert_close(read_in_pair(model, inputs), read_alone(folder, inputs), rtol=1e-5, atol=1e-5)
    assert model.config.image_pooling == pooling
    assert model.config.image_width == read_in_pair(model, inputs).shape[1]


@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext", "clip_vision"])
def test_an_architecture_alone_is_read_in_the_same_way(name: str, text: Path, tmp_path: Path) -> None:
    """Also on a device without values, where models are outlined."""
    folder, _ = saved(name, tmp_path)
    pooling = (PUBLISHED | CLASSIFIERS)[name]
    assert pair_of(folder, text, fresh_weights=True).config.image_pooling == pooling
    with torch.device("meta"):
        assert pair_of(folder, text, fresh_weights=True).config.image_pooling == pooling


def test_a_pooler_without_weights_is_not_read(text: Path, tmp_path: Path) -> None:
    """It would be random; transformers' classifier for this type reads it."""
    folder, _ = saved("beit", tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    model = pair_of(folder, text)
    assert model.config.image_pooling == "first"
    assert model.image_tower.pooler is None


def test_of_a_classifier_with_further_layers_the_mean_is_read(text: Path, tmp_path: Path) -> None:
    """The norm of this one is not a part of its encoder."""
    folder, inputs = saved("poolformer", tmp_path)
    model = pair_of(folder, text)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state.mean((2, 3))
    torch.testing.assert_close(read_in_pair(model, inputs), expected, rtol=1e-5, atol=1e-5)


def test_of_maps_beside_a_class_token_the_mean_is_read_and_no_corner(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2]}
    encoder = AutoModel.from_config(CvtConfig(**sizes))
    assert any("cls_token" in name for name, _ in encoder.named_parameters())
    assert image_pooling(str(tmp_path), encoder, frozenset()) == "mean"


@pytest.mark.parametrize("name", ["deit", "vit"])
def test_a_configuration_need_not_name_its_class(name: str, text: Path, tmp_path: Path) -> None:
    """Of DeiT transformers has two classifiers."""
    folder, _ = saved(name, tmp_path)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del settings["architectures"]
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert pair_of(folder, text).config.image_pooling == PUBLISHED[name]


def test_asking_leaves_the_encoder_as_it_is(tmp_path: Path) -> None:
    folder, inputs = saved("dinov2", tmp_path)
    encoder: Any = AutoModel.from_pretrained(folder)
    before, names = encoder.config.to_dict(), encoder.config.name_or_path
    with torch.no_grad():
        expected = encoder.eval()(**inputs).last_hidden_state
    encoder.train()
    assert image_pooling(str(folder), encoder, frozenset()) == "first_and_others"
    assert (encoder.config.to_dict(), encoder.config.name_or_path, encoder.training) == (before, names, True)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(**inputs).last_hidden_state, expected)


def test_a_model_that_was_saved_with_another_pooling_answers_as_before(tmp_path: Path) -> None:
    """Earlier versions read the mean of a ConvNeXt's last maps."""
    image = AutoModel.from_config(ARCHITECTURES["convnext"].config())
    side = ARCHITECTURES["convnext"].side
    model = fuse(Tower(image, "mean"), towers("vit")[1], image_size=side, labels=LABELS, head_size=16)
    perturb(model, 1)
    model.train(False)
    model.save_pretrained(tmp_path)
    again: Any = FusionModel.from_pretrained(tmp_path)
    inputs = pair_inputs("vit") | pixels("convnext")
    assert again.config.image_pooling == "mean"
    assert torch.equal(logits(again.eval(), inputs), logits(model, inputs))
