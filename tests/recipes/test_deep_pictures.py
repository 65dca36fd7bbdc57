"""Pictures of 12 bits in files of 16: the same pixels in training, in evaluation, in `predict` and in the demo."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from about import read_settings, with_preprocessing
from classifier import Classifier
from hf_transfer.command_line import main as console
from hf_transfer.data.pictures import decode
from hf_transfer.evaluation.predictor import load
from hf_transfer.hub.space import assemble_space
from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import MultimodalConfig
from service import Service
from tests.conftest import Recipe, load_recipe
from tests.data.conftest import raw_path, same, write_table
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

NOTE = "In pictures of more than 8 bits for each channel 0 is black and 4,095 is white."


def ramp(number: int, *, rising: bool, largest: int = 3900) -> Image.Image:
    """Grey that rises or falls from left to right, of 16 bits."""
    noise = np.random.default_rng(number).normal(0, largest / 20, (32, 32))
    values = np.tile(np.linspace(0, largest, 32), (32, 1)) + noise
    return Image.fromarray((values if rising else values[:, ::-1]).clip(0, largest).astype(np.uint16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of two classes; half of them are TIFF files."""
    for name, rising in (("falling", False), ("rising", True)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(16):
            kind = "tif" if number % 2 else "png"
            ramp(number, rising=rising).save(tmp_path / "data" / name / f"{number}.{kind}")
    return tmp_path / "data"


@pytest.fixture
def dark(tmp_path: Path) -> Path:
    """A picture that is darker than those of training; by its own largest value it would be white."""
    ramp(99, rising=True, largest=255).save(tmp_path / "dark.png")
    return tmp_path / "dark.png"


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, float]:
    """The scores that `hf-transfer` prints for one sample."""
    capsys.readouterr()
    console([str(word) for word in words])
    scores: dict[str, float] = json.loads(capsys.readouterr().out)["scores"]
    return scores


def test_a_picture_is_scaled_alike_wherever_the_model_sees_it(
    vision: Recipe, folder: Path, dark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = vision(
        "--strategy=linear_probe", "--horizontal_flip=false", dataset_name=folder, max_train_samples_per_class=None
    )
    assert run.code == 0
    assert NOTE in run.out
    assert NOTE in (tmp_path / "out/report.md").read_text()
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["metrics"]["test"]["accuracy"] == 1.0
    saved = json.loads((tmp_path / "out/model/preprocessing.json").read_text())
    assert saved["columns"]["largest_pixel_value"] == 4095.0

    predictor = load(tmp_path / "out")
    expected, other = (
        dict(scores) for scores, _ in predictor.answers([decode(raw_path(dark), 4095.0), decode(raw_path(dark))], 2)
    )
    assert expected != pytest.approx(other, abs=1e-3)
    assert printed(capsys, "predict", tmp_path / "out", dark) == pytest.approx(expected, abs=1e-6)
    with Image.open(dark) as opened:
        for answer in predictor([dark, opened], top=2):
            assert answer == pytest.approx(expected, abs=1e-6)

    space = assemble_space(tmp_path / "out", tmp_path / "space")
    settings = with_preprocessing(read_settings(space), space / "model")
    classifier = Classifier(space / "model", white=settings.largest_pixel_value)
    answer = Service(classifier, settings, space, uploads=space).classify(str(dark))
    assert answer["scores"] == pytest.approx(expected, abs=1e-6)
    tests = {decode(raw_path(path), 4095.0).tobytes() for path in folder.rglob("*.*")}
    examples = [decode(raw_path(path)).tobytes() for path in (space / "examples").iterdir()]
    assert examples
    assert set(examples) <= tests


def test_evaluation_keeps_what_is_white_in_the_model(
    vision: Recipe, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dark data alone do not become brighter."""
    assert vision("--strategy=linear_probe", dataset_name=folder, max_train_samples_per_class=None).code == 0
    for name, rising in (("falling", False), ("rising", True)):
        (tmp_path / "others" / name).mkdir(parents=True)
        for number in range(8):
            ramp(number, rising=rising, largest=900).save(tmp_path / "others" / name / f"{number}.png")
    judged = vision(
        "--evaluate_only", dataset_name=tmp_path / "others", model_name_or_path=tmp_path / "out/model",
        output_dir=tmp_path / "judged",
    )  # fmt: skip
    assert judged.code == 0
    assert NOTE in judged.out


@pytest.mark.parametrize("wrong", [-3.0, np.nan, np.inf, 5000.0])
def test_predict_names_a_picture_whose_values_are_no_shades(
    wrong: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_checkpoint(tmp_path / "model")
    (model / "preprocessing.json").write_text(
        json.dumps({"schema": 1, "modality": "image", "columns": {"largest_pixel_value": 4095.0}})
    )
    values = np.full((8, 8), wrong, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "wrong.tif")
    with pytest.raises(SystemExit) as end:
        console(["predict", str(model), str(tmp_path / "wrong.tif")])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert f"{tmp_path}/wrong.tif (it" in message
    assert "correct or leave out these; all others are answered" in message


@pytest.mark.parametrize("value", [-5, 0, "white", None])
def test_a_saved_value_that_no_run_writes_is_refused(
    value: Any, dark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_checkpoint(tmp_path / "model")
    (model / "preprocessing.json").write_text(
        json.dumps({"schema": 1, "modality": "image", "columns": {"largest_pixel_value": value}})
    )
    with pytest.raises(SystemExit) as end:
        console(["predict", str(model), str(dark)])
    assert end.value.code == 2
    assert "preprocessing.json" in capsys.readouterr().err


def test_pictures_of_pairs_are_scaled_alike(dark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "pairs"
    data.mkdir()
    rows = []
    for number in range(40):
        rising = number % 2 == 0
        ramp(number, rising=rising).save(data / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"word{number % 9}", "label": "up" if rising else "down"})
    write_table(data / "metadata.csv", rows)
    save_checkpoint(tmp_path / "vit")
    save_text_checkpoint(tmp_path / "bert")
    settings = {
        "image_model_name_or_path": tmp_path / "vit", "text_model_name_or_path": tmp_path / "bert",
        "dataset_name": data, "output_dir": tmp_path / "out", "strategy": "linear_probe", "num_train_epochs": 1,
        "augmentation": "none", "cache_dir": tmp_path / "cache",
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in settings.items()]
    run_recipe(load_recipe("multimodal").main, MultimodalConfig, flags)
    assert NOTE in capsys.readouterr().out
    predictor = load(tmp_path / "out")
    samples = [(decode(raw_path(dark), 4095.0), "word1"), (decode(raw_path(dark)), "word1")]
    expected, other = (dict(scores) for scores, _ in predictor.answers(samples, 2))
    assert expected != other
    words = ("predict", tmp_path / "out", "--image", dark, "--text", "word1")
    assert printed(capsys, *words) == pytest.approx(expected, abs=1e-6)
    write_table(tmp_path / "table.csv", [{"file_name": "dark.png", "text": "word1"}])
    assert printed(capsys, "predict", tmp_path / "out", tmp_path / "table.csv") == pytest.approx(expected, abs=1e-6)


def test_decoded_pictures_of_training_are_those_of_the_demo(folder: Path) -> None:
    """Value by value, with the upper 8 of 12 bits."""
    for path in sorted(folder.rglob("*.*")):
        with Image.open(path) as picture:
            assert same(np.asarray(decode(raw_path(path), 4095.0))[..., 0], np.asarray(picture) >> 4)
