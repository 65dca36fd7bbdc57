"""What does the demo cost? Its answer to one picture against a bare `pipeline` call, with a model of ViT-B's size.

    OMP_NUM_THREADS=1 python -m benchmarks.space_speed

Rounds are interleaved: in each, in an order drawn at random, the pipeline is called twice, and the demo answers without
and with the picture of where the model looked. The ratio of the two pipeline calls (A/A) shows how much of a difference
is noise of the machine. Seconds are those of the processor, so that other work on the machine does not matter; for the
way over HTTP, and for the time until the page is ready, they are those of the clock. The benchmark fails if the page
needs ten seconds or more.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from benchmarks.intervals import median_interval
from hf_transfer.hub.space import demo_folder

ROUNDS = 12
REQUESTS = 10
LONGEST_SECONDS = 300
# A visitor of a Space that has gone to sleep waits no longer than this.
READY_WITHIN = 10.0
PORT = 7861
RESULTS = Path(__file__).parent / "results" / "space_speed.json"
Call = Callable[[], object]


def save_model(folder: Path) -> Path:
    """ViT-B with random weights."""
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(id2label={number: str(number) for number in range(10)})).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)
    return folder


def photograph(path: Path) -> Path:
    """A picture of the size of a camera's preview, as hard to decode."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def calls(model: Path, picture: Path) -> dict[str, Call]:
    """What is compared, by name."""
    # As in the Space: its files import each other from one folder.
    sys.path.insert(0, str(demo_folder()))
    from about import Settings
    from classifier import Classifier
    from service import Service

    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    classify: Any = pipeline("image-classification", str(model), image_processor=processor, device="cpu")
    service = Service(Classifier(model), Settings(model=str(model)), model, uploads=model)
    assert service.explainer.method == "attention rollout"
    path = str(picture)
    return {
        "pipeline": lambda: classify(path),
        "pipeline, again": lambda: classify(path),
        "demo": lambda: service.show(path, explain=False),
        "demo, with where it looked": lambda: service.show(path, explain=True),
    }


def measure(compared: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor of each call, round by round; the first round does not count."""
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds + 1):
        for name in generator.permutation(list(compared)):
            started = time.process_time()
            compared[name]()
            seconds[name].append(time.process_time() - started)
    return {name: values[1:] for name, values in seconds.items()}


@contextlib.contextmanager
def served(model: Path) -> Iterator[dict[str, float]]:
    """The demo in its own process; seconds until its page is ready."""
    variables = os.environ | {"MODEL_ID": str(model), "GRADIO_SERVER_PORT": str(PORT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "app.py"], cwd=demo_folder(), env=variables, stdout=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started < LONGEST_SECONDS:
            assert process.poll() is None, "the demo has ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{PORT}/config", timeout=5):
                break
            time.sleep(0.05)
        wall = time.perf_counter() - started
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        processor = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        yield {"clock": wall, "processor": processor}
    finally:
        process.terminate()
        process.wait()


def round_trips(picture: Path, count: int) -> list[float]:
    """Seconds from an upload to the answer, for a program."""
    from gradio_client import Client, handle_file

    with contextlib.redirect_stdout(io.StringIO()):
        client = Client(f"http://127.0.0.1:{PORT}")
    seconds = []
    for _ in range(count + 1):
        started = time.perf_counter()
        client.predict(picture=handle_file(str(picture)), explain=False, api_name="/classify")
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def main() -> None:
    """Measure, print, save."""
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "rounds": ROUNDS}
    with TemporaryDirectory() as scratch:
        model, picture = save_model(Path(scratch) / "model"), photograph(Path(scratch) / "picture.jpg")
        with served(model) as ready:
            figures["ready"] = ready
            figures["round_trip"] = median_interval(round_trips(picture, REQUESTS))
        seconds = measure(calls(model, picture), ROUNDS)
    bare = np.asarray(seconds["pipeline"])
    for name, values in seconds.items():
        figures[name] = {
            "seconds": median_interval(values),
            "ratio": median_interval((np.asarray(values) / bare).tolist()),
        }
        middle, low, high = figures[name]["ratio"]
        print(f"{name:28} {figures[name]['seconds'][0] * 1000:6.0f} ms  {middle:.3f} [{low:.3f}, {high:.3f}]")
    print(f"{'round trip over HTTP':28} {figures['round_trip'][0] * 1000:6.0f} ms of the clock")
    print(f"{'ready':28} {ready['clock']:6.1f} s of the clock, {ready['processor']:.1f} s of the processor")
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if ready["clock"] >= READY_WITHIN:
        raise SystemExit(f"Expected: ready within {READY_WITHIN:.0f} s. Found: {ready['clock']:.1f} s.")


if __name__ == "__main__":
    main()
