"""Which families of models are exported: architectures with random weights at reduced size, and our own kinds."""

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.export.exported import exported, predicted, same_answers, served
from tests.export.finished_models import IMAGES, KINDS, TEXTS, picture, save_image_model, save_text_model

TOLERANCE = 1e-5
TEXT = "word4 word7 word9 word30"


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_models_of_images_answer_as_in_torch(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, photo = save_image_model(tmp_path / "model", name), picture(tmp_path / "a.png")
    compared = exported(model, tmp_path / "onnx")
    assert [one["shapes"]["pixel_values"][0] for one in compared["compared"]] == [1, 3, 5]
    assert compared["largest_difference"] <= TOLERANCE
    answer = served(tmp_path / "onnx", str(photo), scratch=tmp_path)
    assert same_answers(answer, predicted(model, [str(photo)], capsys))


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_models_of_texts_answer_as_in_torch(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_text_model(tmp_path / "model", name)
    compared = exported(model, tmp_path / "onnx")
    lengths = {one["shapes"]["input_ids"][1] for one in compared["compared"]}
    assert len(lengths) > 1
    assert compared["largest_difference"] <= TOLERANCE
    answer = served(tmp_path / "onnx", TEXT, scratch=tmp_path)
    assert same_answers(answer, predicted(model, ["--text", TEXT], capsys))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_our_own_kinds_of_models_answer_as_in_torch(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = KINDS[kind](tmp_path / "model")
    assert exported(model, tmp_path / "onnx")["largest_difference"] <= TOLERANCE
    sample = [str(picture(tmp_path / "a.png"))] if "images" in kind else ["--text", TEXT]
    answer = served(tmp_path / "onnx", sample[-1], scratch=tmp_path)
    assert same_answers(answer, predicted(model, sample, capsys))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample:vit-glyphs", "sample:resnet-glyphs"])
def test_the_sample_backbones_answer_as_in_torch(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(name, tmp_path / "onnx")["largest_difference"] <= TOLERANCE
    photo = str(picture(tmp_path / "a.png"))
    assert same_answers(served(tmp_path / "onnx", photo, scratch=tmp_path), predicted(name, [photo], capsys))


def test_the_page_names_the_families_that_are_tested() -> None:
    page = (REPOSITORY / "docs/export.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w ]+)` \|", page.partition("## Which models")[2], flags=re.MULTILINE)
    assert sorted(rows) == sorted([*IMAGES, *TEXTS, *KINDS])
