"""Explanations against independent computations, and predictions that do not change with them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from classifier import Classifier, Sample
from explanation import STEPS, Explainer, grad_cam, grid_of, rollout, weigh_words
from heat import SIDE, overlay, seen_by
from target import Labels, Numbers
from tests.space.finished import TEXTS, labels_of_texts, number_of_pictures
from tests.tiny_models import ALL, save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("vit", "attention rollout"), ("dinov2", "attention rollout"), ("deit", "attention rollout"),
        ("beit", "attention rollout"), ("swin", "Grad-CAM"), ("convnext", "Grad-CAM"), ("resnet_basic", "Grad-CAM"),
        ("resnet_bottleneck", "Grad-CAM"), ("mobilenet_v2", "Grad-CAM"), ("poolformer", "Grad-CAM"),
    ],
)  # fmt: skip
def test_each_architecture_is_explained_with_the_same_prediction_as_without(
    tmp_path: Path, name: str, method: str
) -> None:
    """The method is found from a forward pass, not by name; rollout cannot multiply windowed attention."""
    classifier = Classifier(save_checkpoint(tmp_path / "model", name))
    explainer = Explainer(classifier)
    assert explainer.method == method
    answer = explainer.answer(Sample(PICTURE))
    assert answer.scores == pytest.approx(classifier.scores([Sample(PICTURE)])[0], abs=1e-6)
    assert answer.heat is not None
    assert answer.heat.ndim == 2
    assert answer.heat.min() == 0
    # Without evidence for the label, which random weights allow, the map is zero.
    assert answer.heat.max() == pytest.approx(1) or (method == "Grad-CAM" and answer.heat.max() < 1e-6)
    assert answer.words == ()
    # Predictions without explanation do not use the slower attention.
    assert classifier.model.config._attn_implementation != "eager" or method != "attention rollout"


def test_both_models_share_their_weights(tmp_path: Path) -> None:
    """So that they need memory only once."""
    classifier = Classifier(save_checkpoint(tmp_path / "model"))
    twin = Explainer(classifier)._model
    assert twin is not classifier.model
    for one, other in zip(classifier.model.parameters(), twin.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()


def test_the_rollout_is_that_of_its_paper(tmp_path: Path) -> None:
    """Products of averaged attention with the residual path, in numpy, from the attentions of transformers."""
    explainer = Explainer(Classifier(save_checkpoint(tmp_path / "again", "vit")))
    explainer.classifier.model.set_attn_implementation("eager")
    inputs, _ = explainer.classifier.encode([Sample(PICTURE)])
    with torch.no_grad():
        layers = explainer.classifier.model(**inputs, output_attentions=True).attentions
    product = np.eye(5)
    for layer in layers:
        mean = layer[0].mean(0).double().numpy()
        mixed = 0.5 * mean + 0.5 * np.eye(5)
        product = (mixed / mixed.sum(-1, keepdims=True)) @ product
    expected = product[0, 1:].reshape(2, 2)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    heat = explainer.answer(Sample(PICTURE)).heat
    assert heat == pytest.approx(expected, abs=1e-4)


def test_without_a_class_token_the_rollout_is_averaged_over_all_tokens() -> None:
    """Of four patches all attend to the third."""
    layer = torch.zeros(4, 4)
    layer[:, 2] = 1
    layer[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    heat = rollout([layer], (16, 16))
    assert heat.reshape(-1).argmax() == 2


def test_grad_cam_is_that_of_its_paper(tmp_path: Path) -> None:
    """Feature maps weighted by the mean gradient of the label's logit, negative sums left out."""
    classifier = Classifier(save_checkpoint(tmp_path / "model", "resnet_basic"))
    explainer = Explainer(classifier)
    model, kept = classifier.model, {}
    inputs, _ = classifier.encode([Sample(PICTURE)])

    def keep(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept["map"] = output

    model.requires_grad_(True)
    handle = model.resnet.encoder.stages[-1].register_forward_hook(keep)
    logits = model(**inputs).logits[0]
    logits[logits.argmax()].backward()
    handle.remove()
    model.requires_grad_(False)
    slopes = kept["map"].grad
    assert slopes is not None
    weights = slopes[0].mean((1, 2)).double().numpy()
    maps = kept["map"].detach()[0].double().numpy()
    expected = np.maximum(np.tensordot(weights, maps, 1), 0)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert explainer.answer(Sample(PICTURE)).heat == pytest.approx(expected, abs=1e-4)


class Additive(nn.Module):
    """A text classifier that adds up its words, so that the share of each in the logits is known."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.head(self.table(input_ids).sum(1)))


def additive(tmp_path: Path) -> tuple[Classifier, Additive]:
    """Such a model with a tokenizer."""
    classifier = Classifier(save_text_checkpoint(tmp_path / "model"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Additive()
    model.config = classifier.model.config
    classifier.model = model.requires_grad_(False)
    return classifier, model


def test_words_of_an_additive_model_get_the_weights_that_they_add(tmp_path: Path) -> None:
    """Relative to padding; integrated gradients are exact there, and the strongest weight is scaled to 1."""
    classifier, model = additive(tmp_path)
    text = "word7 word8, word9"
    answer = Explainer(classifier).answer(Sample(texts=(text,)))
    ids = classifier.tokenizer(text)["input_ids"]
    expected = added_by_words(model, ids, int(np.argmax(answer.scores)))
    pieces = [(piece, weight) for piece, weight in answer.words[0] if weight is not None]
    assert [piece for piece, _ in pieces] == ["word7", "word8", ",", "word9"]
    assert [weight for _, weight in pieces] == pytest.approx(expected, abs=1e-5)
    assert "".join(piece for piece, _ in answer.words[0]) == text


def added_by_words(model: Additive, ids: list[int], output: int) -> list[float]:
    """What each word adds to an output, relative to padding, scaled so that the strongest is 1 or -1."""
    added = [float((model.table.weight[i] - model.table.weight[0]) @ model.head.weight[output]) for i in ids[1:-1]]
    return [value / max(map(abs, added)) for value in added]


@pytest.mark.parametrize(
    ("thresholds", "explained"),
    [
        ((0.0, 0.0, 0.0), "most probable"),
        ((2.0, 2.0, 2.0), "most probable"),
        ((2.0, 2.0, 0.0), 2),
        ((0.0, 2.0, 2.0), 0),
    ],
)
def test_of_several_labels_the_most_probable_chosen_one_is_explained(
    tmp_path: Path, thresholds: tuple[float, ...], explained: str | int
) -> None:
    """The most probable of all, if none is chosen."""
    classifier, model = additive(tmp_path)
    classifier.target = Labels(("a", "b", "c"), thresholds)
    answer = Explainer(classifier).answer(Sample(texts=("word7 word8, word9",)))
    ids = classifier.tokenizer("word7 word8, word9")["input_ids"]
    logits = model(torch.tensor([ids])).logits[0]
    assert answer.scores == pytest.approx(logits.sigmoid().tolist(), abs=1e-6)
    number = int(logits.argmax()) if isinstance(explained, str) else explained
    weights = [weight for _, weight in answer.words[0] if weight is not None]
    assert weights == pytest.approx(added_by_words(model, ids, number), abs=1e-5)


def test_of_numbers_the_words_say_what_raises_and_lowers_the_first(tmp_path: Path) -> None:
    """Even if another number is larger."""
    classifier, model = additive(tmp_path)
    classifier.target = Numbers(("a", "b", "c"))
    ids = classifier.tokenizer("word7 word8, word9")["input_ids"]
    # The first word has the opposite effect.
    model.table.weight[ids[1]] = 2 * model.table.weight[0] - model.table.weight[ids[1]]
    answer = Explainer(classifier).answer(Sample(texts=("word7 word8, word9",)))
    logits = model(torch.tensor([ids])).logits[0]
    assert logits.argmax() != 0
    assert answer.scores == pytest.approx(logits.tolist(), abs=1e-6)
    weights = [weight for _, weight in answer.words[0] if weight is not None]
    assert weights == pytest.approx(added_by_words(model, ids, 0), abs=1e-5)
    assert min(weights) < 0 < max(weights)


def test_of_a_number_areas_that_lower_it_are_hot_too() -> None:
    """Two maps, one of them against the output: for a class only the other one counts."""
    features = torch.zeros(1, 2, 2, 2)
    features[0, 0, 0, 0], features[0, 1, 1, 1] = 1.0, 2.0
    slopes = torch.tensor([1.0, -1.0])[None, :, None, None].expand(1, 2, 2, 2)
    assert grad_cam(features, slopes, (8, 8)).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert grad_cam(features, slopes, (8, 8), both_signs=True).tolist() == [[0.5, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("name", ["vit", "resnet_basic"])
def test_a_number_of_a_picture_is_explained_and_stays_the_same(tmp_path: Path, name: str) -> None:
    classifier = Classifier(number_of_pictures(tmp_path / "model", name))
    answer = Explainer(classifier).answer(Sample(PICTURE))
    assert answer.scores == pytest.approx(classifier.scores([Sample(PICTURE)])[0], rel=1e-5)
    assert answer.heat is not None
    assert (answer.heat.min(), answer.heat.max()) == (0, pytest.approx(1))


def test_labels_of_a_text_are_explained_and_stay_the_same(tmp_path: Path) -> None:
    classifier = Classifier(labels_of_texts(tmp_path / "model"))
    for text in TEXTS:
        sample = Sample(texts=(text,))
        answer = Explainer(classifier).answer(sample)
        assert answer.scores == pytest.approx(classifier.scores([sample])[0], abs=1e-5)
        assert "".join(piece for piece, _ in answer.words[0]) == text


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "deberta"])
def test_words_of_each_architecture_get_weights_and_the_prediction_stays(tmp_path: Path, name: str) -> None:
    """The text itself is in the batch beside the points between padding and text."""
    classifier = Classifier(save_text_checkpoint(tmp_path / "model", name))
    explainer = Explainer(classifier)
    assert (explainer.method, explainer.weighs_words) == (None, True)
    sample = Sample(texts=("word7 word8 word9",))
    answer = explainer.answer(sample)
    assert answer.scores == pytest.approx(classifier.scores([sample])[0], abs=1e-6)
    weights = [weight for _, weight in answer.words[0] if weight is not None]
    assert len(weights) == 3
    assert max(map(abs, weights)) == pytest.approx(1)


def test_integrated_gradients_are_those_of_their_paper(tmp_path: Path) -> None:
    """The mean gradient at the middles of the steps, times the difference, computed on embeddings by hand."""
    classifier = Classifier(save_text_checkpoint(tmp_path / "model"))
    sample = Sample(texts=("word7 word8 word9",))
    answer = Explainer(classifier).answer(sample)
    inputs, _ = classifier.encode([sample])
    table = classifier.model.get_input_embeddings()
    end = table(inputs["input_ids"])[0]
    start = end.clone()
    start[1:-1] = table.weight[classifier.tokenizer.pad_token_id]
    best = int(np.argmax(answer.scores))
    total = torch.zeros_like(end)
    for step in range(STEPS):
        point = (start + (step + 0.5) / STEPS * (end - start)).detach().requires_grad_()
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        classifier.model(inputs_embeds=point[None], **rest).logits[0, best].backward()
        assert point.grad is not None
        total += point.grad
    weights = ((end - start) * total / STEPS).sum(-1)[1:-1]
    expected = (weights / weights.abs().max()).tolist()
    assert [w for _, w in answer.words[0] if w is not None] == pytest.approx(expected, abs=1e-4)


def test_the_tokens_of_a_word_get_one_weight_and_no_character_is_lost(tmp_path: Path) -> None:
    """Words as the tokenizer groups them."""

    encoding = SimpleNamespace(
        sequence_ids=[None, 0, 0, 0, None, 1, None],
        word_ids=[None, 0, 0, 1, None, 0, None],
        offsets=[(0, 0), (1, 3), (3, 6), (8, 9), (0, 0), (0, 2), (0, 0)],
    )
    weights = np.array([9, 1, 2, -1, 9, 0.75, 9], dtype=np.float32)
    first, second = weigh_words((" unfold a!", "ok"), SimpleNamespace(encodings=[encoding]), weights)
    assert first == [(" ", None), ("unfol", 1.0), ("d ", None), ("a", pytest.approx(-1 / 3)), ("!", None)]
    assert second == [("ok", 0.25)]


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (197, (224, 224), (1, 14, 14)),
        (198, (224, 224), (2, 14, 14)),
        (261, (224, 224), (5, 16, 16)),
        (196, (224, 224), (0, 14, 14)),
        (33, (64, 128), (1, 4, 8)),
        (12, (224, 224), None),
        (1, (16, 16), None),
    ],
)
def test_tokens_are_laid_out_in_the_grid_that_fits_the_picture(
    tokens: int, size: tuple[int, int], grid: tuple[int, int, int] | None
) -> None:
    """With a class token, two, four registers, or none; of pictures that are no squares, too."""
    assert grid_of(tokens, size) == grid


def test_the_overlay_is_orange_where_the_heat_is_and_keeps_the_shape_of_the_picture() -> None:
    """On black and on white."""
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[0, 0] = 1
    for colour in ("black", "white"):
        drawn = np.asarray(overlay(Image.new("RGB", (80, 40), colour), heat)).astype(int)
        assert drawn.shape == (SIDE // 2, SIDE, 3)
        hot, cold = drawn[5, 5], drawn[-5, -5]
        assert hot[0] - hot[2] > 100
        assert abs(cold[0] - cold[2]) < 3


def test_the_heat_map_is_drawn_over_the_part_that_the_processor_keeps(tmp_path: Path) -> None:
    classifier = Classifier(save_checkpoint(tmp_path / "model"))
    assert seen_by(classifier.processor, PICTURE) is PICTURE
    classifier.processor.do_center_crop = True
    classifier.processor.crop_size = {"height": 16, "width": 16}
    classifier.processor.size = {"height": 32, "width": 32}
    shown = seen_by(classifier.processor, PICTURE)
    assert shown.size == (16, 16)
    expected = PICTURE.resize((32, 32), Image.Resampling.BILINEAR).crop((8, 8, 24, 24))
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(expected)).max() <= 2


def test_every_tiny_architecture_is_tested_here_except_one() -> None:
    assert set(ALL) - {"segformer"} == {
        "vit", "dinov2", "deit", "beit", "swin", "convnext", "resnet_basic", "resnet_bottleneck", "mobilenet_v2",
        "poolformer",
    }  # fmt: skip
