"""What an export refuses, before anything slow, and what it writes of a whole run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from hf_transfer.command_line import main
from hf_transfer.errors import UserError
from hf_transfer.export import folder as export_folder
from hf_transfer.export import onnx_file, parity, quantisation
from hf_transfer.export.folder import export_model
from tests.conftest import Recipe
from tests.export.exported import exported, predicted, same_answers, served
from tests.export.finished_models import image_preprocessing, save_image_model
from tests.tiny_models import save_checkpoint


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command says that a user must change."""
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, words)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def failing(**_: Any) -> Any:
    raise RuntimeError("no such shape")


def test_missing_packages_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name != "onnx" else name)
    message = refused(capsys, tmp_path / "nothing", "--format", "onnx")
    assert "Found:    no onnxscript, no onnxruntime" in message
    assert "pip install 'hf-transfer-learning[onnx]'" in message


def test_another_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'tflite'" in refused(capsys, "out", "--format", "tflite")


def test_a_model_on_the_hub_needs_a_folder_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert "add --output FOLDER for a model on the Hub" in refused(capsys, "sample:vit-glyphs")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    message = refused(capsys, "sample:vit-glyphs", "--output", tmp_path)
    assert f"Found:    {tmp_path} with other files" in message
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_eight_bits_need_a_run_that_judges_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_checkpoint(tmp_path / "model")
    message = refused(capsys, folder, "--int8")
    assert "whose test split judges the answers in 8 bits" in message
    assert "without a config.yaml" in message


def test_a_processor_that_does_more_than_resizing_is_refused(tmp_path: Path) -> None:
    preprocessing = image_preprocessing(16)
    preprocessing._resizing = None
    with pytest.raises(UserError, match="resizes, crops and scales, and nothing else"):
        preprocessing.portable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("expected", "outputs", "difference"),
    [([0.5, 0.25], [0.5, 0.3], 0.05), ([100.0, 50.0], [100.0, 45.0], 0.05), ([-20.0, 1.0], [-19.0, 1.0], 0.05)],
)
def test_differences_are_relative_to_logits_above_one(
    expected: list[float], outputs: list[float], difference: float
) -> None:
    measured = parity.relative_difference(torch.tensor([expected]), torch.tensor([outputs]))
    assert measured == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_an_export_with_other_answers_is_refused(change: float) -> None:
    def model(pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=pixel_values.mean((2, 3)))

    def other(pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=pixel_values.mean((2, 3)) + change)

    with pytest.raises(UserError, match="this export cannot be used, and was not written"):
        parity.differences(model, other, image_preprocessing(16))
    assert len(parity.differences(model, model, image_preprocessing(16))) == 3


def test_an_export_that_does_not_run_with_other_shapes_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[1, 3, 16, 16\].*RuntimeError: no such shape"):
        parity.differences(failing, failing, image_preprocessing(16))


@pytest.mark.slow
def test_a_model_that_torch_cannot_export_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model looks at a value to decide what it computes: no graph has both ways."""
    model = save_image_model(tmp_path / "model")
    usual = nn.Linear.forward

    def depends_on_values(layer: nn.Linear, values: torch.Tensor) -> torch.Tensor:
        outputs = usual(layer, values)
        return outputs * 2 if bool(outputs.sum() > 0) else outputs

    monkeypatch.setattr(nn.Linear, "forward", depends_on_values)
    with pytest.raises(UserError, match=r"ViTForImageClassification: .*data-dependent"):
        export_model(str(model), tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_an_export_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_image_model(tmp_path / "model")
    exported(model, tmp_path / "onnx")
    before = {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()}

    def refuse(*_: object) -> None:
        raise UserError("other answers")

    monkeypatch.setattr(parity, "differences", refuse)
    with pytest.raises(UserError, match="other answers"):
        export_model(str(model), tmp_path / "onnx")
    assert {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "onnx"]


@pytest.mark.slow
def test_a_run_is_exported_with_eight_bits_if_the_answers_to_its_test_split_stay(
    vision: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vision(strategy="linear_probe", max_train_samples_per_class=40).code == 0
    out = tmp_path / "out"
    main(["export", str(out), "--format", "onnx", "--int8"])
    printed = capsys.readouterr().out
    content = json.loads((out / "onnx/parity.json").read_text(encoding="utf-8"))
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    gate = content["int8"]
    assert (gate["written"], gate["reason"]) == (True, "")
    assert gate["samples"] == results["samples"]["test"]
    # The model in 32 bits is as good as the run reported it.
    assert gate["float32"] == pytest.approx(results["metrics"]["test"]["accuracy"], abs=1e-6)
    assert content["bytes"]["model.int8.onnx"] < content["bytes"]["model.onnx"] / 2
    assert set(content["seconds"]["64"]) == {"torch", "onnx", "int8"}
    assert "difference to torch" in printed
    assert "of 269 answers the same" in printed

    photo = tmp_path / "a.png"
    Image.new("L", (8, 8), 90).save(photo)
    answer = served(out / "onnx", str(photo), scratch=tmp_path)
    assert same_answers(answer, predicted(out, [str(photo)], capsys))
    assert served(out / "onnx", str(photo), "--model", "model.int8.onnx", scratch=tmp_path).keys() == answer.keys()

    monkeypatch.setattr(quantisation, "LEAST_SAME", 1.01)
    main(["export", str(out / "model"), "--int8"])
    printed = capsys.readouterr().out
    refused_gate = json.loads((out / "onnx/parity.json").read_text(encoding="utf-8"))["int8"]
    assert not refused_gate["written"]
    assert f"not written: {refused_gate['reason']}" in printed
    assert sorted(path.name for path in (out / "onnx").iterdir()) == [
        "levels.py", "model.onnx", "parity.json", "resizing.py", "serve.py",
    ]  # fmt: skip


def test_the_folder_may_be_the_present_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert export_folder._output_folder("model", Path()) == tmp_path.resolve()


def test_the_folder_of_a_run_is_that_around_its_model(tmp_path: Path) -> None:
    assert export_folder._output_folder(str(tmp_path / "run/model"), None) == tmp_path / "run/onnx"
    assert export_folder._output_folder(str(tmp_path / "run"), None) == tmp_path / "run/onnx"
