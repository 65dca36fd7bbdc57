"""The answer to a sample does not depend on the other samples of its batch: in no modality, with no pooling."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer, pipeline

from classifier import Classifier, Sample
from hf_transfer.evaluation.predictor import load
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.fusion import FUSIONS, FusionModel
from tests.data.conftest import noise
from tests.padded_models import FURTHER, OF_ONE_LENGTH, save_images_with_texts, save_texts
from tests.tiny_models import ARCHITECTURES, save_checkpoint
from tests.tiny_text_models import TEXT_ARCHITECTURES, forget_input_names, tiny_text_model, tiny_tokenizer

TEXTS = [
    "word7 word8", "word9", " ".join(f"word{number}" for number in range(5, 29)), "word30 word31 word5",
    "nothing known here", "word12 " * 12,
]  # fmt: skip
PICTURES = [Image.fromarray(noise(9 + number, 14, 3, seed=number)) for number in range(3)]
# Only these have another pooling than their own: the first token of a decoder has seen nothing.
POOLED = [("bert", "cls"), ("bert", "mean"), ("roberta", "mean"), ("distilbert", "cls"), ("gpt2", "mean"),
          ("xlnet", "mean"), ("convbert", "mean"), ("fnet", "cls"), ("fnet", "mean")]  # fmt: skip
OWN = [(name, "own") for name in (*TEXT_ARCHITECTURES, *FURTHER)]
NUMBERS = Callable[[Sequence[Any]], list[dict[str, float]]]


def scores(answers: Sequence[dict[str, float]]) -> Any:
    """Numbers in the order of the labels [samples, labels]."""
    return np.array([[one[label] for label in sorted(one)] for one in answers])


def assert_alone_as_together(answer: NUMBERS, samples: Sequence[Any]) -> None:
    together = scores(answer(samples))
    alone = np.concatenate([scores(answer([sample])) for sample in samples])
    assert np.abs(together - alone).max() < 1e-5
    backwards = scores(answer(samples[::-1]))[::-1]
    assert np.abs(together - backwards).max() < 1e-5
    assert np.ptp(together, axis=0).max() > 1e-3, "a model that always answers the same shows nothing"


def predicting(folder: Path, modality: str | None = None) -> NUMBERS:
    predictor = load(folder, modality=modality)
    return lambda samples: predictor(samples, top=99)


def in_a_pipeline(folder: Path, **options: Any) -> NUMBERS:
    classify: Any = pipeline("text-classification", str(folder), device="cpu", trust_remote_code=True)

    def answers(texts: Sequence[str]) -> list[dict[str, float]]:
        rows = classify(list(texts), top_k=None, batch_size=len(texts), truncation=True, **options)
        return [{one["label"]: one["score"] for one in row} for row in rows]

    return answers


def in_a_space(folder: Path) -> Callable[[Sequence[Sample]], list[dict[str, float]]]:
    classifier = Classifier(folder, trust_remote_code=True)
    return lambda samples: [dict(zip(classifier.labels, row, strict=True)) for row in classifier.scores(samples)]


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize(("name", "pooling"), OWN + POOLED)
def test_a_text_has_one_answer_whatever_texts_are_beside_it(
    name: str, pooling: str, padding_side: str, tmp_path: Path
) -> None:
    """Longer or shorter ones, before or behind it, and on whichever side the tokenizer would pad."""
    folder = save_texts(tmp_path / "model", name, pooling, padding_side=padding_side)
    assert_alone_as_together(predicting(folder, "text"), TEXTS)


@pytest.mark.parametrize("name", ["bert", "gpt2", "bloom", "mobilebert", "convbert", "nystromformer"])
def test_the_saved_files_give_the_same_answers_in_a_pipeline_and_in_a_space(name: str, tmp_path: Path) -> None:
    """GPT-2 and BERT with a tokenizer that would pad on the left; convolutions with the padding that the run names."""
    predictor = load(save_texts(tmp_path / "model", name, padding_side="left"))
    folder = tmp_path / "finished"
    predictor.model.save_pretrained(folder)  # type: ignore[operator]
    predictor.preprocessing.save(folder)
    expected = scores(predictor(TEXTS, top=99))
    options = {"padding": "max_length"} if name in OF_ONE_LENGTH else {}
    for answer in (
        in_a_pipeline(folder, **options),
        lambda texts: in_a_space(folder)([Sample(None, (one,)) for one in texts]),
    ):
        assert_alone_as_together(answer, TEXTS)
        assert scores(answer(TEXTS)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("name", "pooling"), [("fnet", "own"), ("fnet", "mean"), ("bert", "own")])
def test_a_tokenizer_is_saved_with_the_inputs_that_its_model_takes(name: str, pooling: str, tmp_path: Path) -> None:
    """Of one tokenizer, FNet takes no mask, but the mean of its tokens does; the class of the tokenizer makes one."""
    folder = save_texts(tmp_path / "model", name, pooling)
    forget_input_names(folder)
    predictor = load(folder)
    finished = tmp_path / "finished"
    predictor.model.save_pretrained(finished)  # type: ignore[operator]
    predictor.preprocessing.save(finished)
    used = set(predictor.preprocessing.example())
    assert set(AutoTokenizer.from_pretrained(finished)("word7")) == used
    assert ("attention_mask" in used) is (name != "fnet" or pooling == "mean")
    options = {"padding": "max_length"} if name in OF_ONE_LENGTH else {}
    expected = scores(predictor(TEXTS, top=99))
    assert scores(in_a_pipeline(finished, **options)(TEXTS)) == pytest.approx(expected, abs=1e-5)
    assert scores(in_a_space(finished)([Sample(None, (one,)) for one in TEXTS])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", ["vit", "resnet_basic", "clip", "siglip"])
def test_an_image_with_a_text_has_one_answer_whatever_is_beside_it(name: str, fusion: str, tmp_path: Path) -> None:
    """Also where the image or the text is missing."""
    folder = save_images_with_texts(tmp_path / "model", name, fusion=fusion)
    samples = [*zip(PICTURES * 2, TEXTS, strict=True), (None, TEXTS[1]), (None, TEXTS[2]), (PICTURES[0], None)]
    assert_alone_as_together(predicting(folder), samples)


@pytest.mark.parametrize("name", ["vit", "clip", "siglip"])
def test_images_with_texts_are_answered_alike_by_the_saved_file_and_in_a_space(name: str, tmp_path: Path) -> None:
    predictor = load(save_images_with_texts(tmp_path / "model", name))
    folder = tmp_path / "finished"
    predictor.model.save_pretrained(folder)  # type: ignore[operator]
    predictor.preprocessing.save(folder)
    saved = FusionModel.from_pretrained(folder)

    def by_the_file(samples: Sequence[Any]) -> list[dict[str, float]]:
        images, texts = zip(*samples, strict=True)
        return [{one["label"]: one["score"] for one in row} for row in saved.predict(images, texts, top_k=None)]

    def by_the_space(samples: Sequence[Any]) -> list[dict[str, float]]:
        return in_a_space(folder)([Sample(image, (text or "",)) for image, text in samples])

    samples = [*zip(PICTURES * 2, TEXTS, strict=True), (None, TEXTS[2]), (PICTURES[0], None)]
    expected = scores(predictor(samples, top=99))
    for answer in (by_the_file, by_the_space):
        assert_alone_as_together(answer, samples)
        assert scores(answer(samples)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_an_image_has_one_answer_whatever_images_are_beside_it(name: str, tmp_path: Path) -> None:
    """Of other sizes, too."""
    assert_alone_as_together(predicting(save_checkpoint(tmp_path / "model", name)), PICTURES)


def adapted(name: str, **tokens: Any) -> tuple[TokenPreprocessing, list[str]]:
    made = TokenPreprocessing(tiny_tokenizer(**tokens), model_limit=None)
    return made, made.adapt_to(tiny_text_model(name))


def test_a_tokenizer_that_makes_no_mask_makes_one_and_is_saved_with_it(tmp_path: Path) -> None:
    made, _ = adapted("bert", model_input_names=["input_ids"])
    batch = made.inputs([("word7 word8 word9",), ("word7",)])
    assert batch["attention_mask"].sum(1).tolist() == [5, 3]
    made.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("word7")["attention_mask"] == [1, 1, 1]


@pytest.mark.parametrize(("name", "preferred", "used"), [("bert", "left", "right"), ("gpt2", "left", "right"),
                                                         ("bert", "right", "right")])  # fmt: skip
def test_texts_are_padded_where_it_does_not_change_answers(
    name: str, preferred: str, used: str, tmp_path: Path
) -> None:
    made, notes = adapted(name, padding_side=preferred)
    assert (made.tokenizer.padding_side, made.padded_length, notes) == (used, None, [])
    made.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == used


def test_where_padding_changes_answers_all_texts_have_one_length_and_a_note_says_so(tmp_path: Path) -> None:
    predictor: Any = load(save_texts(tmp_path / "model", "mobilebert"))
    made, model = predictor.preprocessing, predictor.model
    assert (made.padded_length, model.config.padded_length) == (32, 32)
    assert made.inputs([("word7",)])["input_ids"].shape == (1, 32)
    assert made.adapt_to(model) == [
        "All texts are padded to 32 tokens, since padding changes the answers of this model. A pipeline needs "
        "padding='max_length' and truncation=True for this."
    ]
