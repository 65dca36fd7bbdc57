"""A linear probe on real models, from data to a saved model that was loaded again: ours next to scripts.

    python -m benchmarks.probe_speed DATA WEIGHTS [--cases NAME ...] [--arms NAME ...] [--rounds N]

DATA is a folder with the data sets `stamps` (545 pictures) and `manpages_de` (900 long texts); WEIGHTS has the models
`efficientnet_lite0` and `minilm_l6`. ResNet-50 and ViT-B have random weights: their accuracy means nothing. Each run is
a process of its own, with one thread and an empty cache ("ours, again" is the A/A control; "ours, warm" has the caches
of "ours", and "ours, bfloat16" has `--bf16`). The order of a round is drawn. Trainer, which takes long, and bfloat16
run in the first round alone. Of the data of slow models a part is used, the first of so many rows of each class.
Scripts: `benchmarks/probe_scripts.py`.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas

from benchmarks.processes import run_alone
from benchmarks.random_models import REPOSITORY, random_weights
from benchmarks.trials import write_rows

RESULTS = Path(__file__).parent / "results" / "probe_speed.json"
ONCE, WARM, BFLOAT16 = "Trainer", "ours, warm", "ours, bfloat16"
ARMS = (ONCE, "plain script", "tuned script", "ours", "ours, again", BFLOAT16, WARM)


class Case(NamedTuple):
    """A model and its data.

    Attributes:
        kind: image or text.
        data: the name of the data set.
        model: the name of the model; None: one with random weights.
        shape: the architecture of a model with random weights.
        one_of: of so many rows of a class in a split, the first is used.
    """

    kind: str
    data: str
    model: str | None
    shape: str = ""
    one_of: int = 1


CASES = {
    "EfficientNet-Lite0": Case("image", "stamps", "efficientnet_lite0"),
    "MiniLM-L6": Case("text", "manpages_de", "minilm_l6", one_of=3),
    "ResNet-50 (shape)": Case("image", "stamps", None, "resnet", one_of=2),
    "ViT-B (shape)": Case("image", "stamps", None, "vit", one_of=3),
}


def part_of(data: Path, one_of: int, folder: Path) -> Path:
    """The same data set with the first of so many rows of each class."""
    if one_of == 1:
        return data
    for table in (*data.glob("*.csv"), *data.glob("*/metadata.csv")):
        rows = pandas.read_csv(table)
        rows = rows[rows.groupby("label").cumcount() % one_of == 0]
        place = folder / table.relative_to(data)
        place.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(place, index=False)
        for name in rows.get("file_name", ()):
            shutil.copy(table.with_name(name), place.with_name(name))
    return folder


def measured(arm: str, case: Case, model: str, data: Path, folder: Path) -> dict[str, Any]:
    """Seconds of the clock, of the processor and of the kernel, peak bytes and accuracy of a run."""
    out = folder / f"{arm}-{time.monotonic_ns()}"
    cache = folder / ("cache" if arm in ("ours", WARM) else f"cache-{time.monotonic_ns()}")
    environment = {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    is_ours = arm.startswith("ours")
    if is_ours:
        recipe = "vision" if case.kind == "image" else "text"
        words = [
            f"recipes/{recipe}.py", "--strategy", "linear_probe", "--model_name_or_path", model, "--dataset_name",
            str(data), "--output_dir", str(out), "--cache_dir", str(cache), *(["--bf16"] if arm == BFLOAT16 else []),
        ]  # fmt: skip
    else:
        how = arm.split()[0].lower()
        words = ["-m", "benchmarks.probe_scripts", how, case.kind, model, str(data), str(out)]
    ended = run_alone([sys.executable, *words], folder=REPOSITORY, environment=environment)
    printed = ended.printed.strip().splitlines()
    results = json.loads((out / "results.json").read_text())["metrics"]["test"] if is_ours else json.loads(printed[-1])
    return {
        "seconds": ended.clock, "user": ended.user, "kernel": ended.kernel, "peak": ended.peak,
        "accuracy": results["accuracy"],
    }  # fmt: skip


def measure(name: str, data: Path, weights: Path, rounds: int, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each of some arms: medians over the rounds."""
    case, generator = CASES[name], np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = str(weights / case.model) if case.model else random_weights(case.shape, folder / "model")
        part = part_of(data / case.data, case.one_of, folder / case.data)
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for number in range(rounds):
            place = folder / str(number)
            place.mkdir()
            cold = [arm for arm in arms if arm != WARM and not (number and arm in (ONCE, BFLOAT16))]
            for arm in [*generator.permutation(cold).tolist(), *(arm for arm in arms if arm == WARM)]:
                runs[arm].append(measured(arm, case, model, part, place))
                print(f"{name}, {arm}: {runs[arm][-1]}", file=sys.stderr, flush=True)
            shutil.rmtree(place)
    for arm, results in runs.items():
        yield {
            "case": name,
            "arm": arm,
            "rounds": len(results),
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
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=ARMS, help='Only these; "ours, warm" needs ours.'
    )
    parser.add_argument("--rounds", type=int, default=3, help="Rounds of each case.")
    arguments = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    for name in arguments.cases:
        rows = [row for row in rows if row["case"] != name]
        rows += measure(name, arguments.data, arguments.weights, arguments.rounds, arguments.arms)
        rows.sort(key=lambda row: (list(CASES).index(row["case"]), ARMS.index(row["arm"])))
        write_rows(RESULTS, {"threads": 1}, rows)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
