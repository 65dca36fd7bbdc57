"""The program beside an exported model: it answers as `hf-transfer predict`, where torch cannot be imported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from PIL import Image
from transformers import PreTrainedModel

from tests.export.exported import exported, predicted, same_answers, served
from tests.export.finished_models import (
    NAMES,
    TARGETS,
    picture,
    save_image_model,
    save_pair_model,
    save_text_model,
)
from tests.tiny_pairs import tiny_pair, tiny_pair_probe

TEXT = "Word4 word7, word9 unknown word30"
LONG_TEXT = " ".join(f"word{number % 50}" for number in range(60))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of images with several labels, and its export in `onnx`."""
    folder = tmp_path_factory.mktemp("images")
    exported(save_image_model(folder / "model", target=TARGETS["labels"]), folder / "onnx")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts that predicts numbers, and its export in `onnx`."""
    folder = tmp_path_factory.mktemp("texts")
    exported(save_text_model(folder / "model", target=TARGETS["numbers"]), folder / "onnx")
    return folder


def metadata(folder: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    about: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["hf_transfer"])
    return about


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [("a.png", "RGB", (61, 45)), ("a.png", "L", (7, 90)), ("a.png", "RGBA", (16, 16)), ("deep.png", "I;16", (40, 30)),
     ("large.jpg", "RGB", (640, 480))],
)  # fmt: skip
def test_pictures_of_all_kinds_are_answered_alike(
    images: Path, name: str, mode: str, size: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture(tmp_path / name, mode=mode, size=size)
    answer = served(images / "onnx", str(photo), scratch=tmp_path)
    assert set(answer) == {"labels", "scores"}
    assert len(answer["scores"]) == 3
    assert same_answers(answer, predicted(images / "model", [str(photo)], capsys))


@pytest.mark.slow
def test_a_picture_is_turned_as_its_exif_tag_says(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture(tmp_path / "a.png")).save(tmp_path / "turned.jpg", exif=exif)
    answer = served(images / "onnx", str(tmp_path / "turned.jpg"), scratch=tmp_path)
    assert same_answers(answer, predicted(images / "model", [str(tmp_path / "turned.jpg")], capsys))


@pytest.mark.slow
@pytest.mark.parametrize("text", [TEXT, LONG_TEXT, "word3"], ids=["usual", "truncated", "one word"])
def test_texts_are_answered_alike_with_intervals(
    texts: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = served(texts / "onnx", text, scratch=tmp_path)
    assert list(answer["values"]) == list(NAMES)
    assert set(answer) == {"intervals", "values"}
    assert same_answers(answer, predicted(texts / "model", ["--text", text], capsys))


@pytest.mark.slow
def test_pairs_of_texts_are_answered_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"text_column_name": "question", "text_pair_column_name": "answer"}
    model = save_text_model(tmp_path / "model", columns=columns)
    exported(model, tmp_path / "onnx")
    answer = served(tmp_path / "onnx", TEXT, "word2 word40", scratch=tmp_path)
    assert same_answers(answer, predicted(model, ["--text", TEXT, "--text_pair", "word2 word40"], capsys))
    with pytest.raises(AssertionError, match="takes 2 parts of a sample, not 1"):
        served(tmp_path / "onnx", TEXT, scratch=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_pair, tiny_pair_probe])
def test_images_with_texts_are_answered_alike_also_where_one_is_missing(
    make: Callable[[], PreTrainedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a head that was trained, and by one that is solved on several depths."""
    model, photo = save_pair_model(tmp_path / "model", make()), str(picture(tmp_path / "a.png"))
    assert exported(model, tmp_path / "onnx")["largest_difference"] <= 1e-5
    for image, text in ((photo, TEXT), (photo, ""), ("", TEXT)):
        answer = served(tmp_path / "onnx", image, text, scratch=tmp_path)
        given = [*(["--image", image] if image else []), *(["--text", text] if text else [])]
        assert same_answers(answer, predicted(model, given, capsys))


@pytest.mark.slow
def test_the_file_says_what_answers_depend_on_and_names_nothing_of_this_machine(images: Path, texts: Path) -> None:
    about = metadata(images / "onnx")
    assert (about["modality"], about["problem_type"]) == ("image", "multi_label_classification")
    assert about["labels"] == list(NAMES)
    assert about["thresholds"] == [0.2, 0.8, 0.5, 0.4, 0.6]
    assert about["preprocessing"]["pixels"]["size"] == [16, 16]
    numbers = metadata(texts / "onnx")
    assert numbers["prediction_interval"]["half_widths"] == [0.5, 1.0, 1.5, 2.0, 2.5]
    content = (images / "onnx/model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(images).encode() not in content


@pytest.mark.slow
def test_axes_have_names(images: Path, texts: Path) -> None:
    pictures, tokens = (onnxruntime.InferenceSession(folder / "onnx/model.onnx") for folder in (images, texts))
    assert [one.shape for one in pictures.get_inputs()] == [["batch", 3, 16, 16]]
    assert {tuple(one.shape) for one in tokens.get_inputs()} == {("batch", "length")}
    assert [one.name for one in tokens.get_outputs()] == ["logits"]
