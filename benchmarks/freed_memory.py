"""What does it change that malloc keeps freed memory? Kernel time and peak memory of passes and of training.

    OMP_NUM_THREADS=1 python -m benchmarks.freed_memory [--shapes NAME ...] [--rounds N]

Models of real size with random weights go over 32 pictures of noise with 224 pixels or 32 texts of 128 tokens, in
batches of 16: forwards as a frozen backbone ("pass"), or training ("training"), with our settings of malloc ("kept")
and with those of glibc ("returned"). Each is a process of its own; rounds are interleaved in an order drawn at random,
and the table has their medians. Loading, and a first batch that warms up, do not count; the peak is of resident memory.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.processes import run_alone
from benchmarks.random_models import REPOSITORY, SHAPES, SIDE, random_weights
from benchmarks.trials import ready_run, settings_of, write_rows

RESULTS = Path(__file__).parent / "results" / "freed_memory.json"
NAMES = {"efficientnet": "EfficientNet-B0", "resnet": "ResNet-50", "vit": "ViT-B", "bert": "BERT-base"}
WORK = ("pass", "training")
MALLOC = ("returned", "kept")
SAMPLES, WORDS, BATCH_SIZE = 32, 126, 16


def build(folder: Path) -> Path:
    """Pictures and texts of two classes, in folders `vision` and `text`; the folder."""
    generator = np.random.default_rng(0)
    for number in range(SAMPLES + 2 * BATCH_SIZE):
        split = "train" if number < SAMPLES else ("validation", "test")[number % 2]
        place = folder / "vision" / split / "ab"[number // 2 % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(place / f"{number}.png")
        text = " ".join(generator.choice(["one", "two", "three", "four", "five"], WORDS))
        line = json.dumps({"text": f"{text} {number}", "label": "ab"[number // 2 % 2]})
        (folder / "text").mkdir(exist_ok=True)
        with (folder / "text" / f"{split}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return folder


def work(kind: str, model: str, recipe: str, data: str, malloc: str) -> dict[str, float]:
    """Do the work in this process: seconds of the processor, of the kernel, and the peak of resident memory."""
    from hf_transfer.host_memory import freed_memory_kept

    settings = {
        "model_name_or_path": model, "dataset_name": data, "output_dir": "unused", "strategy": "full", "save_steps": 0,
        "per_device_train_batch_size": BATCH_SIZE, "per_device_eval_batch_size": BATCH_SIZE, "num_train_epochs": 2,
        **({"augmentation": "none"} if recipe == "vision" else {"rdrop_alpha": 0.0, "max_seq_length": 128}),
    }  # fmt: skip
    with ready_run(settings_of(recipe, settings)) as run, freed_memory_kept(scarce=malloc == "returned"):
        some, whole = _steps(kind, run)
        some()
        # Start the peak anew: it was that of loading.
        Path("/proc/self/clear_refs").write_text("5")
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        whole()
        clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "clock": clock, "user": after.ru_utime - before.ru_utime, "kernel": after.ru_stime - before.ru_stime,
        "peak": int(peak.split()[1]) * 1024,
    }  # fmt: skip


def _steps(kind: str, run: Any) -> tuple[Any, Any]:
    """What warms up, and what is measured."""
    from functools import partial

    from benchmarks.trials import epochs_of_ours
    from hf_transfer.training.predictions import predict_split

    if kind == "training":
        epoch = epochs_of_ours(run)
        return partial(epoch, 0), partial(epoch, 1)
    some, whole = (
        partial(predict_split, run.model, run.loaders, split, run.accelerator) for split in ("test", "train")
    )
    return some, whole


def measure(shape: str, rounds: int, data: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each work and setting of malloc."""
    model, generator = random_weights(shape, folder / shape), np.random.default_rng(0)
    recipe = "text" if shape == "bert" else "vision"
    runs: dict[tuple[str, str], list[dict[str, float]]] = {(kind, malloc): [] for kind in WORK for malloc in MALLOC}
    for _ in range(rounds):
        for kind, malloc in generator.permutation(list(runs)).tolist():
            words = ["-m", "benchmarks.freed_memory", "--work", kind, model, recipe, str(data / recipe), malloc]
            ended = run_alone([sys.executable, *words], folder=REPOSITORY, environment={"HF_HUB_OFFLINE": "1"})
            runs[kind, malloc].append(json.loads(ended.printed.strip().splitlines()[-1]))
            print(f"{shape}, {kind}, {malloc}: {runs[kind, malloc][-1]}", file=sys.stderr, flush=True)
    for (kind, malloc), results in runs.items():
        medians = {key: median(one[key] for one in results) for key in results[0]}
        yield {"shape": shape, "work": kind, "malloc": malloc, "rounds": rounds, **medians}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a line for each shape and work."""
    yield "| model | work | processor, s: returned | kept | in the kernel: returned | kept | peak: kept / returned |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    by_cell = {(row["shape"], row["work"], row["malloc"]): row for row in rows}
    for shape, kind in dict.fromkeys((row["shape"], row["work"]) for row in rows):
        both = [by_cell[shape, kind, malloc] for malloc in MALLOC]
        used = [row["user"] + row["kernel"] for row in both]
        shares = [row["kernel"] / seconds for row, seconds in zip(both, used, strict=True)]
        cells = [
            NAMES[shape], kind, *(f"{seconds:.1f}" for seconds in used), *(f"{share:.0%}" for share in shares),
            f"{both[1]['peak'] / both[0]['peak']:.2f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, save the figures beside earlier ones, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(NAMES), choices=SHAPES, help="Only these.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(*arguments.work)))
        return
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = build(folder / "data")
        for shape in arguments.shapes:
            rows = [row for row in rows if row["shape"] != shape]
            rows += measure(shape, arguments.rounds, data, folder)
            rows.sort(key=lambda row: list(NAMES).index(row["shape"]))
            write_rows(RESULTS, {"threads": 1, "samples": SAMPLES, "batch_size": BATCH_SIZE}, rows)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
