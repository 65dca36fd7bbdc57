"""The classifier of images with texts: values by hand, missing modalities, saving, and use without this package."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.models.fusion import FUSIONS, FusionConfig, FusionModel
from hf_transfer.models.groups import trace_groups
from hf_transfer.models.towers import SingleTower, fuse, groups_of, towers_of, trace
from tests.conftest import REPOSITORY
from tests.data.conftest import noise
from tests.data.test_pictures import exif
from tests.tiny_models import CLASSES, state
from tests.tiny_pairs import CLIP_WIDTH, LABELS, PAIRS, pair_inputs, side, tiny_pair, towers
from tests.tiny_text_models import tiny_tokenizer

Floats = np.ndarray[Any, np.dtype[np.float64]]


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    with torch.no_grad():
        return model(**inputs)


def numbers(model: nn.Module, name: str) -> Floats:
    values: Floats = model.get_parameter(name).detach().double().numpy()
    return values


def linear(model: nn.Module, name: str, values: Floats) -> Floats:
    return values @ numbers(model, f"{name}.weight").T + numbers(model, f"{name}.bias")


def norm(model: nn.Module, name: str, values: Floats) -> Floats:
    centred = values - values.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(values.var(-1, keepdims=True) + 1e-5)
    result: Floats = scaled * numbers(model, f"{name}.weight") + numbers(model, f"{name}.bias")
    return result


def vectors(model: FusionModel, inputs: dict[str, Tensor]) -> tuple[Floats, Floats]:
    """Both towers' vectors, by hand from their last hidden states."""
    with torch.no_grad():
        patches = model.image_tower(pixel_values=inputs["pixel_values"]).last_hidden_state.double().numpy()
        tokens = (
            model.text_tower(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            .last_hidden_state.double()
            .numpy()
        )
    texts = [row[mask.bool().numpy()].mean(0) for row, mask in zip(tokens, inputs["attention_mask"], strict=True)]
    image = norm(model, "image_norm", linear(model, "image_projection", patches[:, 0]))
    text = norm(model, "text_norm", linear(model, "text_projection", np.stack(texts)))
    return image, text


def head(model: nn.Module, fused: Floats) -> Floats:
    inner = linear(model, "inner.0", fused)
    inner = np.where(inner > 0, inner, 0.01 * inner)
    return linear(model, "classifier", norm(model, "inner.2", inner))


@pytest.mark.parametrize("fusion", ["concat", "gated", "product"])
def test_the_logits_are_those_of_both_vectors_by_hand(fusion: str) -> None:
    model, inputs = tiny_pair(fusion=fusion), pair_inputs(rows=4)
    image, text = vectors(model, inputs)
    present = np.ones((4, 2))
    fusions: dict[str, Callable[[], list[Floats]]] = {
        "concat": lambda: [image, text],
        "product": lambda: [image, text, image * text, np.abs(image - text)],
        "gated": lambda: [gated(model, image, text, present)],
    }
    expected = head(model, np.concatenate([*fusions[fusion](), present], 1))
    actual = outputs(model, inputs)
    np.testing.assert_allclose(actual.logits.numpy(), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        actual.image_logits.numpy(), linear(model, "image_classifier", image), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(actual.text_logits.numpy(), linear(model, "text_classifier", text), rtol=1e-3, atol=1e-4)


def gated(model: nn.Module, image: Floats, text: Floats, present: Floats) -> Floats:
    gate: Floats = 1 / (1 + np.exp(-linear(model, "mixture.gate", np.concatenate([image, text, present], 1))))
    return gate * image + (1 - gate) * text


def test_with_attention_the_tokens_attend_to_the_patches_without_padding() -> None:
    model, inputs = tiny_pair(fusion="attention"), pair_inputs(rows=3)
    before = outputs(model, inputs).logits
    # Padding is not part of the mean.
    longer = {
        name: torch.cat([value, torch.zeros_like(value[:, :2])], 1)
        if name in ("input_ids", "attention_mask")
        else value
        for name, value in inputs.items()
        if name != "token_type_ids"
    }
    assert torch.allclose(outputs(model, longer).logits, before, atol=1e-5)
    weights = model.mixture.attention.in_proj_weight
    with torch.no_grad():
        weights[: len(weights) // 3].zero_()
    # Without queries all patches have the same weight.
    assert not torch.allclose(outputs(model, inputs).logits, before, atol=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", PAIRS)
def test_the_inputs_of_missing_modalities_have_no_effect(name: str, fusion: str) -> None:
    model, inputs = tiny_pair(name, fusion=fusion), pair_inputs(name, rows=3)
    inputs["image_present"] = torch.tensor([True, False, True])
    inputs["text_present"] = torch.tensor([True, True, False])
    before = outputs(model, inputs).logits
    other = {**inputs, "pixel_values": inputs["pixel_values"].clone(), "input_ids": inputs["input_ids"].clone()}
    other["pixel_values"][1] += 1.0
    other["input_ids"][2] = other["input_ids"][0]
    assert torch.equal(outputs(model, other).logits, before)
    other["pixel_values"][0] += 1.0
    assert not torch.allclose(outputs(model, other).logits[0], before[0])
    only_text = {
        key: value for key, value in pair_inputs(name, rows=3).items() if key in ("input_ids", "attention_mask")
    }
    assert torch.allclose(outputs(model, only_text).logits[1], before[1], atol=1e-5)


def test_a_sample_without_image_and_text_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_values or input_ids must be given"):
        tiny_pair()()
    with pytest.raises(ValueError, match="an image or a text must be given"):
        tiny_pair().predict(image=[None], text=[None])


def test_in_training_complete_samples_lose_one_of_both_and_never_both(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_pair(modality_dropout=0.4), []

    def note_present(_: nn.Module, args: Any) -> None:
        batches.append(torch.stack(args[2:4], 1))

    model.mixture.register_forward_pre_hook(note_present)
    inputs = pair_inputs(rows=50)
    inputs["text_present"][:10] = False
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(40):
            outputs(model, inputs)
    present = torch.stack(batches).float()
    assert present.sum(-1).min() == 1
    assert (present[:, :10] == torch.tensor([1.0, 0.0])).all()
    share = 1 - present[:, 10:].mean((0, 1))
    assert share.tolist() == pytest.approx([0.2, 0.2], abs=0.03)
    model.train(False)
    outputs(model, inputs)
    assert batches[-1][10:].all()


def test_the_projections_of_a_dual_encoder_are_kept() -> None:
    image, text = towers("clip")
    assert image.projection is not None
    assert text.projection is not None
    model = fuse(image, text, image_size=side("clip"), labels=LABELS)
    assert model.config.hidden_size == CLIP_WIDTH
    assert torch.equal(model.image_projection.weight, image.projection)
    assert torch.equal(model.text_projection.weight, text.projection)
    assert not model.text_projection.bias.any()


def save(folder: Path, name: str = "vit", **settings: Any) -> FusionModel:
    model = tiny_pair(name, **settings)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side(name), "width": side(name)}).save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", PAIRS)
def test_a_saved_model_is_loaded_with_the_same_weights_and_outputs(name: str, tmp_path: Path) -> None:
    model = save(tmp_path, name, fusion="gated")
    again = FusionModel.from_pretrained(tmp_path)
    assert isinstance(again.config.image_config, type(model.config.image_config))
    assert again.config.id2label == LABELS["id2label"]
    assert all(torch.equal(value, state(again)[key]) for key, value in state(model).items())
    inputs = pair_inputs(name)
    assert torch.equal(outputs(again, inputs).logits, outputs(model, inputs).logits)


@pytest.mark.slow
def test_without_this_package_it_predicts_the_same(tmp_path: Path) -> None:
    """In a new process that cannot import it, from the copy of the file beside the weights.

    Not bit for bit: the process may use another number of threads.
    """
    save(tmp_path / "model", fusion="product")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    ours = FusionModel.from_pretrained(tmp_path / "model").predict(image=str(tmp_path / "a.png"), text="word1 word2")
    code = f"""
import json, sys
sys.modules["hf_transfer"] = None
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
print(json.dumps(model.predict(image={str(tmp_path / "a.png")!r}, text="word1 word2")))
print(json.dumps([model.predict(text=["word1 word4 word9", "word2"])[1], model.predict(text="word2")]))
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    first, (in_batch, alone) = map(json.loads, finished.stdout.splitlines())
    for one, other in ((first, ours), (in_batch, alone)):
        assert [answer["label"] for answer in one] == [answer["label"] for answer in other]
        assert [answer["score"] for answer in one] == pytest.approx([answer["score"] for answer in other], abs=1e-5)
    assert [answer["score"] for answer in ours] == sorted((answer["score"] for answer in ours), reverse=True)
    assert sum(answer["score"] for answer in ours) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_a_single_tower_is_a_classifier_with_the_same_names(name: str) -> None:
    model, inputs = tiny_pair(name), pair_inputs(name)
    image, text = SingleTower(model, "image"), SingleTower(model, "text")
    pixels = {"pixel_values": inputs["pixel_values"]}
    assert torch.allclose(outputs(image, pixels).logits, outputs(model, inputs).image_logits, atol=1e-6)
    assert {key for key, _ in image.named_parameters()} < {key for key, _ in model.named_parameters()}
    assert not {key for key, _ in image.named_parameters()} & {key for key, _ in text.named_parameters()}
    assert [group.name for group in trace_groups(image, pixels)][-1] == "head"


@pytest.mark.parametrize("name", PAIRS)
def test_the_groups_are_those_of_both_towers_and_have_each_trainable_parameter_once(name: str) -> None:
    model, inputs = tiny_pair(name), pair_inputs(name)
    groups = trace(model, inputs)
    names = [parameter for group in groups for parameter in group.parameters]
    assert len(names) == len(set(names))
    loss = loss_of(model, inputs)
    learns = {
        key
        for (key, _), gradient in zip(
            model.named_parameters(),
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True),
            strict=True,
        )
        if gradient is not None
    }
    assert learns == set(names)
    assert [group.name for group in groups if not group.tower] == ["head"]
    assert towers_of(groups) == ["image", "text"]
    for tower in ("image", "text"):
        of_tower = groups_of(tower, groups)
        assert of_tower[-1] == groups[-1]
        assert sum(group.is_block for group in of_tower) >= 2
        assert all(name.startswith(f"{tower}_tower.") for group in of_tower[:-1] for name in group.parameters)


def loss_of(model: FusionModel, inputs: dict[str, Tensor]) -> Tensor:
    """A sum of all logits; the second image is missing."""
    output = model(**{**inputs, "image_present": torch.tensor([True, False])})
    total: Tensor = output.logits.sum() + output.image_logits.sum() + output.text_logits.sum()
    return total


def test_an_unknown_fusion_is_refused_and_the_file_needs_nothing_of_this_package() -> None:
    with pytest.raises(ValueError, match="fusion is one of"):
        FusionConfig(fusion="sum")
    assert FusionConfig().num_labels == 2
    assert (REPOSITORY / "hf_transfer/models/fusion.py").read_text(encoding="utf-8").count("hf_transfer") == 0
    assert tiny_pair().config.num_labels == CLASSES


def names_of(count: int) -> dict[str, Any]:
    """Labels of a configuration."""
    names = [f"label {number}" for number in range(count)]
    return {
        "num_labels": count, "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }  # fmt: skip


TRUE_CLASSES = torch.tensor([2, 0, 1, 1])
TRUE_LABELS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
TRUE_NUMBERS = torch.tensor([[1.5, 0, -1], [0, 2, 0], [1, 1, 1], [0, 1, 0]])


def by_hand(problem_type: str, logits: Floats, true: Floats) -> float:
    """The mean loss: squared error, binary cross-entropy or cross-entropy."""
    if problem_type == "regression":
        return float(((logits - true.reshape(logits.shape)) ** 2).mean())
    if problem_type == "multi_label_classification":
        return float((np.log1p(np.exp(logits)) - true * logits).mean())
    chosen = logits[np.arange(len(logits)), true.astype(int)]
    return float((np.log(np.exp(logits).sum(1)) - chosen).mean())


@pytest.mark.parametrize(
    ("problem_type", "labels", "true"),
    [
        ("single_label_classification", 3, TRUE_CLASSES),
        ("multi_label_classification", 3, TRUE_LABELS),
        ("regression", 3, TRUE_NUMBERS),
        ("regression", 1, TRUE_NUMBERS[:, 0]),
        ("regression", 1, TRUE_NUMBERS[:, :1]),
    ],
)
def test_the_loss_follows_the_problem_type(problem_type: str, labels: int, true: Tensor) -> None:
    """One number for each sample may have no second axis; a batch may have one sample only."""
    model, inputs = tiny_pair(**{"problem_type": problem_type, **names_of(labels)}), pair_inputs(rows=4)
    for rows in (4, 1):
        batch = {name: value[:rows] for name, value in inputs.items()}
        output = outputs(model, {**batch, "labels": true[:rows]})
        expected = by_hand(problem_type, output.logits.double().numpy(), true[:rows].double().numpy())
        assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert outputs(model, inputs).loss is None


def test_without_a_problem_type_class_numbers_are_classes() -> None:
    """As in transformers' own models."""
    model, inputs = tiny_pair(**{"problem_type": None, **names_of(3)}), pair_inputs(rows=4)
    output = outputs(model, {**inputs, "labels": TRUE_CLASSES})
    expected = by_hand("single_label_classification", output.logits.double().numpy(), TRUE_CLASSES.double().numpy())
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("problem_type", "labels", "function"),
    [
        ("multi_label_classification", 5, torch.sigmoid),
        ("regression", 5, lambda logits: logits),
        ("regression", 1, lambda logits: logits),
        (None, 1, torch.sigmoid),
        (None, 5, lambda logits: logits.softmax(-1)),
    ],
)
def test_it_predicts_the_scores_that_a_pipeline_would(
    tmp_path: Path, problem_type: str | None, labels: int, function: Callable[[Tensor], Tensor]
) -> None:
    """Largest first, and only the first ones if asked to."""
    save(tmp_path, **{"problem_type": problem_type, **names_of(labels)})
    model = FusionModel.from_pretrained(tmp_path)
    rows = model.predict(text="word1 word2", top_k=None)
    inputs = tiny_tokenizer()("word1 word2", return_tensors="pt")
    expected = function(outputs(model, dict(inputs)).logits[0]).tolist()
    assert {row["label"]: row["score"] for row in rows} == pytest.approx(
        {f"label {number}": score for number, score in enumerate(expected)}, abs=1e-5
    )
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert model.predict(text="word1 word2", top_k=2) == rows[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_pillow_turns_it_also_where_another_tag_has_a_wrong_type(
    orientation: int, tmp_path: Path
) -> None:
    """As broken software writes it: a resolution that is text."""
    save(tmp_path / "model", fusion="product")
    model = FusionModel.from_pretrained(tmp_path / "model")
    picture, path = Image.fromarray(noise(20, 32, 3)), tmp_path / "one.jpg"
    turned = (0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    picture.save(path, exif=exif(turned), quality=95)
    expected = model.predict(image=ImageOps.exif_transpose(Image.open(path)))
    assert model.predict(image=str(path)) == expected
    picture.save(path, exif=exif(turned, (0x011A, 2, 2, b"ab")), quality=95)
    assert model.predict(image=str(path)) == expected
