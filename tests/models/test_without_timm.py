"""Messages where timm is not installed, or torchvision was built for another torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_transfer.errors import UserError
from hf_transfer.models.loading import loading_errors
from hf_transfer.models.pretrained import Checkpoint
from tests.conftest import REPOSITORY, Recipe

MISMATCH = "operator torchvision::nms does not exist"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "timm-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for timm and for a torchvision that cannot be imported beside this torch."""
    packages = tmp_path / "packages"
    for name, source in (("timm", "import torchvision"), ("torchvision", f"raise RuntimeError({MISMATCH!r})")):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text(source)
    (packages / "torchvision-0.1.dist-info").mkdir()
    (packages / "torchvision-0.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(packages)
    for name in ("timm", "torchvision"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_timm_model_needs_timm_which_is_said_before_training(checkpoint: Path, vision: Recipe) -> None:
    finished = vision(model_name_or_path=checkpoint)
    assert finished.code == 2
    assert finished.err.strip().removeprefix("error:\n") == (
        f"Expected: timm, to load {checkpoint}\n"
        "Found:    timm and torchvision not installed\n"
        'Do this:  pip install "hf-transfer-learning[timm]"'
    )


@pytest.mark.usefixtures("installed")
def test_a_torchvision_for_another_torch_is_named(checkpoint: Path) -> None:
    with pytest.raises(UserError) as caught:
        Checkpoint(str(checkpoint))
    expected, found, do = str(caught.value).splitlines()
    assert expected == f"Expected: a torchvision that was built for torch {torch.__version__}"
    assert found == f"Found:    torchvision 0.1, which cannot be imported ({MISMATCH})"
    assert do.startswith("Do this:  install both from one index: pip install --force-reinstall torch torchvision")


@pytest.mark.usefixtures("installed")
def test_it_is_named_too_where_transformers_imports_it_for_another_model() -> None:
    def load() -> None:
        import torchvision  # noqa: F401

    with pytest.raises(UserError, match=r"torchvision 0\.1, which cannot be imported"), loading_errors("a/model"):
        load()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("program", ["recipe", "command"])
def test_a_program_that_cannot_import_it_ends_with_the_same_message(program: str, tmp_path: Path) -> None:
    """In a new process, transformers fails as soon as its image processors are imported."""
    words = {
        "recipe": ["recipes/vision.py", "--dataset_name", "sample:digits", "--model_name_or_path", "sample:vit-glyphs",
                   "--strategy", "linear_probe", "--output_dir", str(tmp_path / "out")],
        "command": ["-m", "hf_transfer.command_line", "rank", "--dataset_name", "sample:digits", "--models",
                    "sample:vit-glyphs", "sample:resnet-glyphs"],
    }[program]  # fmt: skip
    paths = os.pathsep.join([str(tmp_path / "packages"), str(REPOSITORY)])
    ended = subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr[-2_000:]
    assert f"torchvision 0.1, which cannot be imported ({MISMATCH})" in ended.stderr
    assert "Traceback" not in ended.stderr
