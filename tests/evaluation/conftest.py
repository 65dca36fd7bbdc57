"""A finished run on tiny pictures, shared by the tests of this folder."""

import contextlib
import hashlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import VisionConfig
from tests.conftest import Finished, exit_code, load_recipe

CLASSES = ("blue", "green", "red")
# Where the steps of a run are imported from.
STEPS = {
    "open_data": "hf_transfer.data.checked",
    "fit": "hf_transfer.training.loop",
    "predict_split": "hf_transfer.training.predictions",
    "write_report": "hf_transfer.run",
}
COUNTS = {"train": 6, "validation": 5, "test": 7}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its data, and what it printed."""

    out: Path
    data: Path
    cache: Path
    printed: str

    def argv(self, **changes: object) -> list[str]:
        """The command line of this run, with changes."""
        settings: dict[str, object] = {
            "model_name_or_path": "sample:vit-glyphs",
            "dataset_name": self.data,
            "output_dir": self.out,
            "cache_dir": self.cache,
            "strategy": "scratch",
            "num_train_epochs": 2,
            "per_device_train_batch_size": 9,
        }
        return [f"--{name}={value}" for name, value in (settings | changes).items() if value is not None]


def start(argv: list[str], **replaced: object) -> Finished:
    """Run `recipes/vision.py` in this process; `replaced` are its steps to replace."""
    recipe = load_recipe("vision")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        for name, replacement in replaced.items():
            stack.enter_context(patch(f"{STEPS[name]}.{name}", replacement))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = exit_code(lambda: run_recipe(recipe.main, VisionConfig, argv))
    return Finished(code, out.getvalue(), err.getvalue())


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tinted(number: int, generator: np.random.Generator) -> Image.Image:
    """A noisy picture of one of three colours; a few are of another one, so that no model is always right."""
    noise = generator.integers(0, 180, (20, 26, 3))
    noise[..., number if generator.random() < 0.7 else (number + 1) % 3] += 60
    return Image.fromarray(noise.astype(np.uint8))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained once; a test that changes its folder takes `copied_run`."""
    root = tmp_path_factory.mktemp("finished")
    generator = np.random.default_rng(5)
    for split, count in COUNTS.items():
        for number, name in enumerate(CLASSES):
            folder = root / "pictures" / split / name
            folder.mkdir(parents=True)
            for position in range(count):
                tinted(number, generator).save(folder / f"{position}.png")
    made = Run(root / "out", root / "pictures", root / "cache", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "hf")
        ended = start(made.argv())
    assert ended.code == 0, ended.err
    return Run(made.out, made.data, made.cache, ended.out)


@pytest.fixture
def copied_run(finished_run: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, which the test may change."""
    shutil.copytree(finished_run.out, tmp_path / "out")
    return Run(tmp_path / "out", finished_run.data, finished_run.cache, finished_run.printed)
