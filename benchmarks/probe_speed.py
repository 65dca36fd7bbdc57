"""A linear probe on real models, from data to a saved model that was loaded again: ours next to scripts.

    python -m benchmarks.probe_speed DATA WEIGHTS [--cases NAME ...] [--rounds N]

DATA is a folder with the data sets `stamps` (545 pictures) and `manpages_de` (900 long texts); WEIGHTS has the models
`efficientnet_lite0` and `minilm_l6`. ResNet-50 and ViT-B have random weights: their accuracy means nothing. Each run is
a process of its own, with one thread and an empty cache ("ours, again" is the A/A control; "ours, warm" has the caches
of "ours"). The order of a round is drawn. Scripts: `benchmarks/probe_scripts.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.trials import write_rows

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "probe_speed.json"
ARMS = ("plain script", "tuned script", "ours", "ours, again", "ours, warm")


class Case(NamedTuple):
    """A model and its data."""

    kind: str
    data: str
    model: str | None
    shape: str | None = None


CASES = {
    "EfficientNet-Lite0": Case("image", "stamps", "efficientnet_lite0"),
    "MiniLM-L6": Case("text", "manpages_de", "minilm_l6"),
    "ResNet-50 (shape)": Case("image", "stamps", None, "resnet"),
    "ViT-B (shape)": Case("image", "stamps", None, "vit"),
}
MAKE_SHAPE = """
import sys, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
torch.manual_seed(0)
AutoModelForImageClassification.from_config(AutoConfig.for_model(sys.argv[1])).save_pretrained(sys.argv[2])
from transformers import ViTImageProcessor
ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(sys.argv[2])
"""


def measured(arm: str, case: Case, model: str, data: str, folder: Path) -> dict[str, Any]:
    """Seconds of the clock, of the processor and of the kernel, peak bytes and accuracy of a run."""
    out = folder / f"{arm}-{time.monotonic_ns()}"
    cache = folder / ("cache" if arm in ("ours", "ours, warm") else f"cache-{time.monotonic_ns()}")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    if arm.endswith("script"):
        script = ["-m", "benchmarks.probe_scripts", arm.split()[0], case.kind, model, data, str(out)]
    else:
        recipe = "vision" if case.kind == "image" else "text"
        script = [
            f"recipes/{recipe}.py", "--strategy", "linear_probe", "--model_name_or_path", model, "--dataset_name", data,
            "--output_dir", str(out), "--cache_dir", str(cache),
        ]  # fmt: skip
    started = time.perf_counter()
    with (folder / "log").open("w+") as log:
        child = subprocess.Popen([sys.executable, *script], cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        log.seek(0)
        printed = log.read()
    if status:
        raise RuntimeError(printed[-2_000:])
    accuracy = (
        json.loads(printed.strip().splitlines()[-1])["accuracy"]
        if arm.endswith("script")
        else json.loads((out / "results.json").read_text())["metrics"]["test"]["accuracy"]
    )
    return {
        "seconds": seconds, "user": used.ru_utime, "kernel": used.ru_stime, "peak": used.ru_maxrss * 1024,
        "accuracy": accuracy,
    }  # fmt: skip


def measure(name: str, data: Path, weights: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each arm: medians over the rounds."""
    case, generator = CASES[name], np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = str(weights / str(case.model)) if case.model else str(folder / "model")
        if case.shape:
            subprocess.run([sys.executable, "-c", MAKE_SHAPE, case.shape, model], check=True, capture_output=True)
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for number in range(rounds):
            place = folder / str(number)
            place.mkdir()
            for arm in [*generator.permutation(ARMS[:-1]).tolist(), ARMS[-1]]:
                runs[arm].append(measured(arm, case, model, str(data / case.data), place))
                print(f"{name}, {arm}: {runs[arm][-1]}", file=sys.stderr, flush=True)
    for arm, results in runs.items():
        yield {
            "case": name,
            "arm": arm,
            "rounds": rounds,
            **{key: median(one[key] for one in results) for key in results[0]},
        }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield "| model | what | clock, s | processor, s | of it in the kernel | peak memory, MiB | test accuracy |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for row in rows:
        used = row["user"] + row["kernel"]
        cells = [
            row["case"], row["arm"], f"{row['seconds']:.1f}", f"{used:.1f}", f"{row['kernel'] / used:.0%}",
            f"{row['peak'] / 2**20:.0f}", f"{row['accuracy']:.1%}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, save the figures beside earlier ones, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder of the data sets.")
    parser.add_argument("weights", type=Path, help="The folder of the models.")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="Only these.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds of each case.")
    arguments = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    for name in arguments.cases:
        rows = [row for row in rows if row["case"] != name]
        rows += measure(name, arguments.data, arguments.weights, arguments.rounds)
        rows.sort(key=lambda row: (list(CASES).index(row["case"]), ARMS.index(row["arm"])))
        write_rows(RESULTS, {"threads": 1}, rows)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
