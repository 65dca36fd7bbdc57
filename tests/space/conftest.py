"""Demos: one with hostile names in this process, and those of finished runs, served as a user serves them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from filelock import FileLock

from hf_transfer.data.samples import load_sample
from hf_transfer.hub.space import assemble_space
from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import RunConfig, TextConfig, VisionConfig
from tests.conftest import load_recipe
from tests.ports import held_port
from tests.space.browser import chromium
from tests.space.hostile import Demo, hostile_demo
from tests.space.pairs import pair_space

LONGEST_SECONDS = 300
LABELS_OF_TEXTS = ("payment", "product", "return_refund")


@dataclass(frozen=True)
class Served:
    """A demo in its own process.

    Attributes:
        url: its address.
        folder: the Space's folder.
        seconds_of_processor: processor time until it was ready.
        log: its output.
    """

    url: str
    folder: Path
    seconds_of_processor: float
    log: Path


@contextlib.contextmanager
def served(script: Path, log: Path, **environment: str) -> Iterator[Served]:
    """Run `python app.py` and wait until it answers."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MODEL_ID")}
    # PYTHONFAULTHANDLER is for `wait_for`: on SIGABRT the stacks of all threads are in the log.
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **environment}
    with log.open("w") as output, held_port() as port:
        # Last: an environment that was copied from this process may have the port of another demo.
        variables |= {"GRADIO_SERVER_PORT": str(port)}
        url = f"http://127.0.0.1:{port}/"
        process = subprocess.Popen(
            [sys.executable, str(script)], cwd=script.parent, env=variables, stdout=output, stderr=output
        )
        try:
            wait_for(url, process, log)
            yield Served(url, script.parent, seconds_of(process.pid), log)
        finally:
            process.kill()
            process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the page is served."""
    end = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}config", timeout=5) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.05)
    process.send_signal(signal.SIGABRT)
    process.wait()
    raise AssertionError(f"not ready within {LONGEST_SECONDS} s: {log.read_text()}")


def seconds_of(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def trained(recipe: str, kind: type[RunConfig], folder: Path, **settings: object) -> Path:
    """A finished run with a solved head."""
    settings |= {"strategy": "linear_probe", "output_dir": folder, "cache_dir": folder.parent / "checks"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.parent / "hf")
        run_recipe(load_recipe(recipe).main, kind, [f"--{name}={value}" for name, value in settings.items()])
    return folder


def some_texts(folder: Path) -> Path:
    """A few texts of three classes, so that a probe takes seconds."""
    for split, count in {"train": 20, "validation": 8, "test": 8}.items():
        chosen: dict[str, list[str]] = {label: [] for label in LABELS_OF_TEXTS}
        data = load_sample("sample:intents")[split]
        for row in data:
            label = data.features["label"].int2str(row["label"])
            if label in chosen and len(chosen[label]) < count:
                chosen[label].append(row["text"])
        folder.mkdir(exist_ok=True)
        texts, labels = zip(*((text, label) for label, texts in chosen.items() for text in texts), strict=True)
        datasets.Dataset.from_dict({"text": texts, "label": labels}).to_csv(folder / f"{split}.csv")
    return folder


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """What `make` makes in an empty folder; one of several test processes makes it for all of them."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    done = root / f"{name}-done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir()
            done.write_text(str(make(root / name)))
    return Path(done.read_text())


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits, from a ViT pretrained on printed letters."""
    return once(
        tmp_path_factory, "digits",
        lambda root: trained("vision", VisionConfig, root / "hand-written_digits",
                             model_name_or_path="sample:vit-glyphs", dataset_name="sample:digits",
                             max_train_samples_per_class=10),
    )  # fmt: skip


@pytest.fixture(scope="session")
def texts_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Messages to a bookshop, from a small BERT."""
    return once(
        tmp_path_factory, "texts",
        lambda root: trained("text", TextConfig, root / "messages", model_name_or_path="sample:minilm",
                             dataset_name=some_texts(root / "data"), max_seq_length=64),
    )  # fmt: skip


@pytest.fixture(scope="session")
def digits_space(tmp_path_factory: pytest.TempPathFactory, digits_run: Path) -> Path:
    """The Space of the digits, as it would be published."""
    return once(tmp_path_factory, "digits-space", lambda root: assemble_space(digits_run, root / "space"))


@pytest.fixture(scope="session")
def texts_space(tmp_path_factory: pytest.TempPathFactory, texts_run: Path) -> Path:
    """The Space of the messages to a bookshop."""
    return once(tmp_path_factory, "texts-space", lambda root: assemble_space(texts_run, root / "space"))


@pytest.fixture(scope="session")
def digits_demo(tmp_path_factory: pytest.TempPathFactory, digits_space: Path) -> Iterator[Served]:
    """The digits, served."""
    with served(digits_space / "app.py", tmp_path_factory.mktemp("digits") / "log") as demo:
        yield demo


@pytest.fixture(scope="session")
def texts_demo(tmp_path_factory: pytest.TempPathFactory, texts_space: Path) -> Iterator[Served]:
    """The messages, served."""
    with served(texts_space / "app.py", tmp_path_factory.mktemp("texts") / "log") as demo:
        yield demo


@pytest.fixture(scope="session")
def pairs_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Images with texts, served."""
    space = pair_space(tmp_path_factory.mktemp("pairs") / "space")
    with served(space / "app.py", space.parent / "log") as demo:
        yield demo


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; for one module, since no other event loop may run in the process meanwhile."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo of a model with hostile names, in this process."""
    with hostile_demo(tmp_path_factory.mktemp("hostile")) as demo:
        yield demo
