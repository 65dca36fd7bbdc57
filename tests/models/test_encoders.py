"""Encoders of every family: features, what is saved, and refusals."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    DPRConfig,
    DPRQuestionEncoder,
    ImageGPTConfig,
    PretrainedConfig,
    Siglip2VisionConfig,
    TimmBackboneConfig,
    VideoMAEConfig,
    VideoMAEModel,
    ViTMAEConfig,
)

from hf_transfer.errors import UserError
from hf_transfer.models.determinism import refuse_random_outputs
from hf_transfer.models.modeling_pooled_image import PooledForImageClassification, PooledImageConfig
from hf_transfer.models.pretrained import Checkpoint, load_classifier
from hf_transfer.models.pretrained_pair import PairCheckpoint
from hf_transfer.models.tasks import TASKS
from hf_transfer.settings.model import PairModelSettings
from hf_transfer.strategies.adapters import LowRankAdaptation
from hf_transfer.targets.classes import Classes
from tests.conftest import Recipe
from tests.models.families import FAMILIES, Family, mean
from tests.tiny_models import CLASSES, Inputs, logits, perturb

TEXT = "text-classification"
TARGET = Classes(tuple(f"kind {number}" for number in range(CLASSES)))
# A mean over tokens is summed in another order.
ROUNDING = 1e-6


def new_classifier(folder: Path, family: Family) -> nn.Module:
    model: nn.Module
    model, _ = load_classifier(
        Checkpoint(str(folder), task=family.task, pooling="own"), TARGET, family.inputs(), seed=0, fresh_weights=False
    )
    model.eval()
    return model


def read_by_head(model: nn.Module, inputs: Inputs) -> Tensor:
    """What enters the last Linear of a classifier [batch, width]."""
    heads = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == CLASSES]
    entered: list[Tensor] = []
    with heads[-1].register_forward_pre_hook(lambda _, args: entered.append(args[0])), torch.no_grad():
        model(**inputs)
    return entered[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_reads_the_hidden_states_of_the_published_model(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder, inputs = family.checkpoint(tmp_path), family.inputs()
    model: Any = new_classifier(folder, family)
    assert type(model).__name__ == family.result
    features, expected = read_by_head(model, inputs), family.features(folder, inputs)
    assert features.shape == expected.shape
    assert (features - expected).abs().max() <= ROUNDING * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_of_each_family_is_loaded_again_and_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model: Any = new_classifier(family.checkpoint(tmp_path / "base"), family)
    perturb(model, 5)
    model.save_pretrained(tmp_path / "done")
    again = Checkpoint(str(tmp_path / "done"), task=family.task).finished_classifier().eval()
    assert type(again) is type(model)
    assert torch.equal(logits(again, family.inputs()), logits(model, family.inputs()))
    assert (tmp_path / "done" / "modeling_pooled_image.py").exists() is (
        family.result == "PooledForImageClassification"
    )
    # Training can start from it, too; its head is new, and its notes are not repeated.
    assert Checkpoint(str(tmp_path / "done"), task=family.task).notes == ()
    other: Any = new_classifier(tmp_path / "done", family)
    backbone = [key for key in model.state_dict() if not key.startswith("classifier.")]
    assert backbone
    assert all(torch.equal(other.state_dict()[key], model.state_dict()[key]) for key in backbone)


def test_a_masked_autoencoder_is_saved_as_a_vision_transformer(tmp_path: Path) -> None:
    """Nothing loads a classifier of the type `vit_mae`; what only its decoder needs is left out."""
    model: Any = new_classifier(FAMILIES["vit_mae"].checkpoint(tmp_path / "base"), FAMILIES["vit_mae"])
    model.save_pretrained(tmp_path / "done")
    settings = json.loads((tmp_path / "done" / "config.json").read_text(encoding="utf-8"))
    assert settings["model_type"] == "vit"
    assert settings["architectures"] == ["ViTForImageClassification"]
    assert not [name for name in settings if "decoder" in name or "mask" in name]
    (note,) = Checkpoint(str(tmp_path / "base")).notes
    assert note.startswith("The model is loaded and saved as a vit: the class for vit_mae leaves out patches at random")


def test_a_head_of_ours_is_said(tmp_path: Path) -> None:
    image, text = (FAMILIES[name].checkpoint(tmp_path / name) for name in ("dinov3_vit", "t5"))
    assert Checkpoint(str(image)).notes == (
        "transformers has no classifier for a dinov3_vit model: its head is ours, and its code is saved with it.",
    )
    (note,) = Checkpoint(str(text), task=TEXT, pooling="own").notes
    assert note.startswith("The head reads the mean of all tokens: the decoder is left out")
    assert Checkpoint(str(text), task=TEXT).notes == ()


def test_fresh_weights_and_the_outline_have_the_same_shapes(tmp_path: Path) -> None:
    for name in ("dinov3_convnext", "siglip_vision", "t5", "vit_mae"):
        family = FAMILIES[name]
        folder = family.checkpoint(tmp_path / name)
        checkpoint = Checkpoint(str(folder), task=family.task, pooling="own")
        outline, groups = checkpoint.outline(TARGET, family.inputs())
        assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
        shapes = {key: value.shape for key, value in outline.named_parameters()}
        for fresh in (False, True):
            model = checkpoint.classifier(TARGET, seed=0, fresh_weights=fresh)
            assert {key: value.shape for key, value in model.named_parameters()} == shapes
        assert checkpoint.groups_of(model, family.inputs()) == groups
        assert sum(group.is_block for group in groups) >= 3


def test_an_encoder_without_weights_of_its_pooler_is_read_by_the_mean(tmp_path: Path) -> None:
    """A random pooler would hide the features; this one has no class token."""
    family = FAMILIES["siglip_vision"]
    folder, inputs = family.checkpoint(tmp_path), family.inputs()
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "head." not in key}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    model: Any = new_classifier(folder, family)
    assert model.config.pooling == "mean"
    expected = replace(family, reads=mean).features(folder, inputs)
    torch.testing.assert_close(read_by_head(model, inputs), expected)


def test_pictures_for_dinov3_are_those_of_its_own_processor_up_to_a_rounding(tmp_path: Path) -> None:
    """That one needs torchvision; its formula is: scale, resize with antialiasing, subtract the mean, divide."""
    FAMILIES["dinov3_vit"].checkpoint(tmp_path)
    mean_and_spread = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    published = {
        "image_processor_type": "DINOv3ViTImageProcessorFast", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "resample": 2, "rescale_factor": 1 / 255, "size": {"height": 16, "width": 16},
        "crop_size": None, "do_center_crop": None, "device": None, **mean_and_spread,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published), encoding="utf-8")
    values = np.random.default_rng(0).integers(0, 256, (48, 37, 3), dtype=np.uint8)
    pixels: Any = Checkpoint(str(tmp_path)).processor()(Image.fromarray(values), return_tensors="pt")["pixel_values"]
    whole = torch.from_numpy(values).permute(2, 0, 1)[None].double() / 255
    resized = nn.functional.interpolate(whole, (16, 16), mode="bilinear", antialias=True)
    middle, spread = (torch.tensor(numbers)[:, None, None] for numbers in mean_and_spread.values())
    steps = (pixels * spread + middle - resized) * 255
    assert steps.abs().max() <= 1.0


def refusal(name: str, task: str) -> str:
    with pytest.raises(UserError) as caught:
        Checkpoint(name, task=task)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "reason", "advice"),
    [
        (ImageGPTConfig(), "an imagegpt model: it reads numbers of colour clusters", "choose another image model"),
        (
            Siglip2VisionConfig(),
            "a siglip2_vision_model model: it reads patches of pictures of any shape",
            "siglip2-base",
        ),
        (
            TimmBackboneConfig(backbone="resnet18"),
            "a timm_backbone model: transformers makes it from the name",
            "timm/",
        ),
    ],
)
def test_a_model_that_reads_no_pixels_of_one_size_is_refused_with_the_reason(
    config: PretrainedConfig, reason: str, advice: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    message = refusal(str(tmp_path), "image-classification")
    assert reason.removeprefix("a ").removeprefix("an ") in message
    assert advice in message
    assert "(--model_name_or_path)" in message


def test_a_model_of_two_towers_is_no_encoder_of_texts(tmp_path: Path) -> None:
    FAMILIES["clip"].checkpoint(tmp_path)
    assert "Do this:  choose a text model" in refusal(str(tmp_path), TEXT)


def test_an_encoder_of_videos_is_refused_with_its_own_words(tmp_path: Path) -> None:
    """It reads `pixel_values`, too, but of several frames."""
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
    VideoMAEModel(VideoMAEConfig(**sizes, intermediate_size=32, patch_size=8, num_frames=2)).save_pretrained(tmp_path)
    checkpoint = Checkpoint(str(tmp_path))
    with pytest.raises(UserError) as caught:
        checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Expected: an encoder that makes hidden states from a picture alone"
    assert lines[1].startswith(f"Found:    {tmp_path}, a videomae model: ")


def test_an_encoder_of_whole_texts_is_refused_with_the_shape_of_its_outputs(tmp_path: Path) -> None:
    """DPR returns one vector of a text, and no hidden states of its tokens."""
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    DPRQuestionEncoder(DPRConfig(**sizes, intermediate_size=32)).save_pretrained(tmp_path)
    checkpoint = Checkpoint(str(tmp_path), task=TEXT, pooling="own")
    with pytest.raises(UserError) as caught:
        checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Expected: an encoder that makes hidden states from the tokens of a text alone"
    assert lines[1].endswith("a dpr model: outputs of shape [1, 24] for one text of two tokens")
    # A run looks at the outline first.
    with pytest.raises(UserError, match="for one text of two tokens"):
        checkpoint.outline(TARGET, FAMILIES["bert"].inputs())


@pytest.mark.parametrize(
    ("kind", "tasks"),
    [
        ("vit", {"image-classification"}),
        ("vit_mae", {"image-classification"}),
        ("dinov3_vit", {"image-classification"}),
        ("bert", {TEXT}),
        ("t5", {TEXT}),
        ("splinter", {TEXT}),
        ("clip", {"image-classification", "dual-encoder"}),
        ("whisper", set()),
        ("clap", set()),
        ("nougat", set()),
        ("no such type", set()),
    ],
)
def test_the_type_of_a_model_says_for_which_tasks_it_can_be_used(kind: str, tasks: set[str]) -> None:
    assert {name for name, task in TASKS.items() if task.takes(kind)} == tasks


# Of 16 patches, two draws of four are hardly ever the same.
LARGER = replace(FAMILIES["vit"], side=32, settings=FAMILIES["vit"].settings | {"image_size": 32})


def random_encoder() -> PooledForImageClassification:
    """A classifier on an encoder that leaves out patches at random."""
    config = ViTMAEConfig(**LARGER.settings, mask_ratio=0.75)
    model = PooledForImageClassification(PooledImageConfig(config, "mean", 24, num_labels=CLASSES))
    perturb(model, 3)
    return model


def test_a_run_with_a_model_that_is_random_in_evaluation_ends_with_exit_code_2(vision: Recipe, tmp_path: Path) -> None:
    LARGER.checkpoint(tmp_path / "model")
    random_encoder().save_pretrained(tmp_path / "model")
    ended = vision(model_name_or_path=tmp_path / "model")
    assert ended.code == 2
    assert "so a part of it is random" in ended.err


class NoisyModel(nn.Module):
    """A classifier that drops at random in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, pixel_values: Tensor) -> Any:
        kept = nn.functional.dropout(pixel_values.flatten(1)[:, :12], 0.5, training=True)
        return SimpleNamespace(logits=self.classifier(kept))


def test_a_model_that_is_random_in_evaluation_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        refuse_random_outputs("some/model", NoisyModel(), FAMILIES["vit"].inputs())
    lines = str(caught.value).splitlines()
    assert lines[0] == "Expected: a model that gives the same outputs for the same inputs in evaluation mode"
    assert lines[1].startswith("Found:    some/model, a NoisyModel: two passes differ by ")
    assert lines[1].endswith(", so a part of it is random")


def test_a_classifier_on_an_encoder_that_masks_at_random_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    """Such a folder could come from anywhere: its encoder is the very class that we do not use for vit_mae."""
    random_encoder().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="so a part of it is random"):
        new_classifier(tmp_path, LARGER)


def test_dropout_that_is_off_in_evaluation_is_not_random(tmp_path: Path) -> None:
    dropping = replace(FAMILIES["vit"], settings=FAMILIES["vit"].settings | {"hidden_dropout_prob": 0.5})
    model = new_classifier(dropping.checkpoint(tmp_path), dropping).train()
    refuse_random_outputs("some/model", model, dropping.inputs())
    assert model.training


@pytest.mark.parametrize("name", ["dinov3_vit", "t5"])
def test_an_adapter_on_a_head_of_ours_must_be_merged(name: str, tmp_path: Path) -> None:
    """peft would load the base as a class of transformers, with other names of layers."""
    family = FAMILIES[name]
    checkpoint = Checkpoint(str(family.checkpoint(tmp_path)), task=family.task, pooling="own")
    outline, groups = checkpoint.outline(TARGET, family.inputs())
    LowRankAdaptation(merges=True).check(outline, groups)
    with pytest.raises(UserError) as caught:
        LowRankAdaptation().check(outline, groups)
    assert str(caught.value) == (
        "Expected: an adapter that peft can load elsewhere, or --merge_adapter\n"
        f"Found:    {family.result}, whose code is saved with it\n"
        "Do this:  add --merge_adapter, or use another strategy"
    )


def test_a_masked_autoencoder_can_be_the_tower_of_pairs(tmp_path: Path) -> None:
    """It is no random model there, either."""
    models = PairModelSettings(
        image_model_name_or_path=str(FAMILIES["vit_mae"].checkpoint(tmp_path / "image")),
        text_model_name_or_path=str(FAMILIES["bert"].checkpoint(tmp_path / "text")),
    )
    model: Any = PairCheckpoint(models).classifier(TARGET, seed=0, fresh_weights=False).eval()
    assert type(model.image_tower).__name__ == "ViTModel"
    inputs = FAMILIES["vit_mae"].inputs()
    with torch.no_grad():
        read = model.image_tower(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(read, FAMILIES["vit_mae"].features(tmp_path / "image", inputs))


def test_the_encoder_of_a_model_with_a_decoder_is_no_tower_of_pairs(tmp_path: Path) -> None:
    models = PairModelSettings(
        image_model_name_or_path=str(FAMILIES["vit"].checkpoint(tmp_path / "image")),
        text_model_name_or_path=str(FAMILIES["t5"].checkpoint(tmp_path / "text")),
    )
    with pytest.raises(UserError, match="a t5 model with an encoder and a decoder"):
        PairCheckpoint(models)
