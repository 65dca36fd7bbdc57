"""Shared by all tests: tiny pictures, tiny models with random weights, and a recipe as a user runs it."""

import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

REPOSITORY = Path(__file__).parents[1]
# Set before torch or the Hub's client is imported: tests ask no network and share two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples in every run; no limits on time on a shared machine, where drawing them can take a while, too.
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)  # fmt: skip
hypothesis.settings.load_profile("repeatable")
# For examples that take a tenth of a second each: to search for a smaller one that fails would take minutes.
DRAWN_ONLY = (hypothesis.Phase.explicit, hypothesis.Phase.generate)


# The class that all progress bars inherit from has a lock of this process, before one of them makes a lock that forks
# share: a fork that is killed while it holds that one would stop all others forever.
tqdm.set_lock(threading.RLock())


def trace_nothing() -> None:
    """For child processes: measuring their coverage would take several times as long."""
    threading.settrace(None)
    sys.settrace(None)


os.register_at_fork(after_in_child=trace_nothing)


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


Recipe = Callable[..., Finished]


def exit_code(command: Callable[[], object]) -> int:
    """The exit code of a command that is called in this process."""
    try:
        command()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def load_recipe(name: str) -> ModuleType:
    """The module `recipes/NAME.py`, loaded by its path, since nobody may import a recipe."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", REPOSITORY / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """Garbage collection skips what was imported: accelerate collects often, and that would take 0.2 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test uses a data set that another one has cached."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_datasets")


@pytest.fixture
def vision(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Recipe:
    """`recipes/vision.py` with flags, in this process: `vision(dataset_name=..., ...)` -> `Finished`.

    Settings that a test does not name make the run tiny, unless they have no effect on it, which is an error. The exit
    code is 0, or that of `SystemExit`.
    """
    from hf_transfer.settings.parsing import run_recipe
    from hf_transfer.settings.run import VisionConfig

    def recipe(*flags: str, **settings: object) -> Finished:
        words = f"{' '.join(flags)} {settings.get('strategy')} "
        evaluates = "evaluate_only" in settings or "--evaluate_only" in words
        chosen_elsewhere = evaluates or any(flag.startswith(("--strategy", "--config")) for flag in flags)
        defaults: dict[str, object] = {
            "model_name_or_path": "sample:vit-glyphs",
            "dataset_name": "sample:digits",
            "output_dir": tmp_path / "out",
            "cache_dir": tmp_path / "cache",
            "num_train_epochs": None if evaluates or "_probe " in words else 1,
            "max_train_samples_per_class": None if evaluates else 2,
            "strategy": None if chosen_elsewhere else "full",
        }
        chosen = defaults | settings
        argv = [f"--{name}={value}" for name, value in chosen.items() if value is not None]
        code = exit_code(lambda: run_recipe(load_recipe("vision").main, VisionConfig, [*argv, *flags]))
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return recipe


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes an imagefolder of noisy pictures, one colour for each class: `picture_folder(cat=10, dog=10)`."""

    def make(*, name: str = "pictures", size: tuple[int, int] = (24, 20), **classes: int) -> Path:
        folder = tmp_path / name
        generator = np.random.default_rng(0)
        for number, (label, count) in enumerate(classes.items()):
            (folder / label).mkdir(parents=True, exist_ok=True)
            for position in range(count):
                noise = generator.integers(0, 100, (size[1], size[0], 3))
                noise[..., number % 3] += 120
                Image.fromarray(noise.astype(np.uint8)).save(folder / label / f"{position:03}.png")
        return folder

    return make
