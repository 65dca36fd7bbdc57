"""The vision recipe as a user runs it, with a command line and files; where that is the matter in a fresh process."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from tests.conftest import REPOSITORY
from tests.training.launched import one_fork

LAUNCH = (
    *(str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
)


def launch(*flags: str) -> str:
    """Run `accelerate launch recipes/vision.py` and return what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [*LAUNCH, "recipes/vision.py", *flags]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def fork(*flags: str) -> str:
    """The same, but that the process need not import anything."""
    ended = one_fork("recipes/vision.py", *flags)
    assert ended.returncode == 0, ended.output[-3000:]
    return ended.output


def weights_digest(output_dir: Path) -> str:
    return hashlib.sha256((output_dir / "model" / "model.safetensors").read_bytes()).hexdigest()


def results_of(output_dir: Path) -> dict[str, object]:
    results: dict[str, object] = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    return results


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """An imagefolder of real pictures: pieces, of many sizes, of the two photographs that scikit-learn carries."""
    generator = np.random.default_rng(0)
    for label, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        folder = tmp_path / "photo graphs äöü" / label
        folder.mkdir(parents=True)
        height, width = photograph.shape[:2]
        for number in range(30):
            side = int(generator.integers(120, 300))
            top, left = int(generator.integers(0, height - side)), int(generator.integers(0, width - side))
            piece = photograph[top : top + side, left : left + side * 3 // 4]
            Image.fromarray(piece).save(folder / f"{number}.jpg", quality=90)
    return tmp_path / "photo graphs äöü"


@pytest.mark.slow
def test_the_demo_ends_with_a_table_of_metrics_and_the_paths_of_report_and_model(tmp_path: Path) -> None:
    out = launch(
        "--config=recipes/configs/digits.yaml", "--num_train_epochs=12", "--learning_rate=1e-3",
        f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    table = dict(re.findall(r"^(validation|test) +(\d\.\d{4}) ", out, flags=re.MULTILINE))
    assert float(table["test"]) > 0.5, "ten classes, after a backbone that knows letters"
    for name in ("report", "model"):
        assert Path(re.findall(rf"^{name} +(\S.*)$", out, flags=re.MULTILINE)[0]).exists()


@pytest.mark.slow
def test_two_runs_of_one_command_give_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    common = ("--config=recipes/configs/digits.yaml", "--num_train_epochs=2", "--augmentation=trivial")
    first, second = tmp_path / "first", tmp_path / "second"
    for start, out, workers in ((launch, first, 0), (fork, second, 2)):
        start(*common, f"--dataloader_num_workers={workers}", f"--output_dir={out}")
    assert weights_digest(first) == weights_digest(second)
    assert results_of(first)["metrics"] == results_of(second)["metrics"]


def test_a_folder_of_real_pictures_and_a_local_checkpoint_work_with_flags_alone(
    photographs: Path, tmp_path: Path
) -> None:
    """The checkpoint is a ResNet that is no sample, with a processor of its own."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "checkpoint")
    ConvNextImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(tmp_path / "checkpoint")
    out = fork(
        f"--dataset_name={photographs}", f"--model_name_or_path={tmp_path / 'checkpoint'}", "--strategy=full",
        "--learning_rate=3e-3", "--num_train_epochs=8", "--augmentation=standard", f"--output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    sizes = re.search(r"(\d+) train, (\d+) validation, (\d+) test images of 2 classes\.", out)
    assert sizes
    train, validation, test = map(int, sizes.groups())
    assert train + validation + test == 60
    assert 6 <= min(validation, test) <= max(validation, test) <= 12
    results = results_of(tmp_path / "out")
    assert results["labels"] == ["flower", "temple"]
    saved = json.loads((tmp_path / "out" / "model" / "config.json").read_text(encoding="utf-8"))
    assert saved["id2label"] == {"0": "flower", "1": "temple"}
    processor = json.loads((tmp_path / "out" / "model" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert processor["size"] == {"shortest_edge": 64}


@pytest.mark.slow
def test_the_configs_of_the_sample_backbones_run(tmp_path: Path) -> None:
    fork(
        "--config=recipes/configs/glyphs-resnet.yaml", "--max_train_samples_per_class=1", "--num_train_epochs=1",
        f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    assert len(results_of(tmp_path / "out")["labels"]) == 90  # type: ignore[arg-type]
