"""Every strategy on several labels and on numbers, with real pretrained weights: how good, and how long?

    python -m benchmarks.labels_and_numbers DATA WEIGHTS

DATA is a folder with the data sets `apps_tags` (texts with several labels), `valence` (words with a number) and
`furniture_height` (pictures with a number), each with its three splits; WEIGHTS has the models `mpnet_base`
(all-mpnet-base-v2), `minilm_l6` (all-MiniLM-L6-v2) and `efficientnet_lite0` (ImageNet). Each run has one thread and one
seed, and the defaults of its strategy except for the settings in `SETS` and `RATES`. Results are added to those of
earlier calls.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.strategies import STRATEGIES
from benchmarks.trials import write_rows

TEXT = {"recipe": "text", "pooling": "mean", "num_train_epochs": 3, "bf16": True}
SETS: dict[str, dict[str, Any]] = {
    "apps_tags, MPNet": {**TEXT, "data": "apps_tags", "model": "mpnet_base", "max_seq_length": 128},
    "apps_tags, MiniLM": {**TEXT, "data": "apps_tags", "model": "minilm_l6", "max_seq_length": 128},
    "valence, MPNet": {
        **TEXT, "data": "valence", "model": "mpnet_base", "label_column_name": "value",
        "per_device_train_batch_size": 64,
    },
    "furniture_height, EfficientNet": {
        "recipe": "vision", "data": "furniture_height", "model": "efficientnet_lite0", "label_column_name": "value",
        "num_train_epochs": 6,
    },
}  # fmt: skip
# In few epochs these need more than their default rate.
RATES: dict[tuple[str, str], float] = {
    ("furniture_height, EfficientNet", "full"): 3e-4,
    ("furniture_height, EfficientNet", "lp_ft"): 3e-4,
}
# A process keeps memory that it has freed; returning it and getting it again costs most of the time.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
SHOWN = {"multi_label_classification": ("map", "f1_micro", "f1_macro"), "regression": ("rmse", "mae", "r2")}
RESULTS = Path(__file__).parent / "results" / "labels_and_numbers.json"
# Runs one training in a process of its own, which prints its figures in the last line.
CHILD = """
import json, resource, sys
from benchmarks.trials import settings_of
from hf_transfer.whole_run import run_all_steps
recipe, settings = json.loads(sys.argv[1])
run = run_all_steps(settings_of(recipe, settings))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "cpu_seconds": used.ru_utime + used.ru_stime,
    "problem_type": run.results.problem_type, "test": run.metrics["test"], "intervals": run.results.test.intervals,
    "seconds": run.results.seconds, "trainable": run.results.parameters["trainable"],
    "best_epoch": run.results.best_epoch, "baseline": run.results.baseline.metrics,
}))
"""


def trained(name: str, strategy: str, data: Path, weights: Path) -> dict[str, Any]:
    """The figures of a run."""
    settings = dict(SETS[name])
    recipe, model, folder_of_data = settings.pop("recipe"), settings.pop("model"), settings.pop("data")
    if (name, strategy) in RATES:
        settings["learning_rate"] = RATES[name, strategy]
    with tempfile.TemporaryDirectory() as folder:
        settings |= {
            "strategy": strategy, "dataset_name": str(data / folder_of_data),
            "model_name_or_path": str(weights / model),
            "output_dir": f"{folder}/out", "cache_dir": f"{folder}/cache", "merge_adapter": True, "save_steps": 0,
        }  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps([recipe, settings])], capture_output=True, text=True,
            check=False, env={**os.environ, **KEPT_MEMORY, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{name} {strategy}: {ended.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    print(f"{name} {strategy}: {figures['test']} in {figures['cpu_seconds']:.0f} CPU s", flush=True)
    return {"set": name, "strategy": strategy, **figures}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: for each data set a table with a line for each strategy."""
    for name in SETS:
        chosen = [row for row in rows if row["set"] == name]
        if not chosen:
            continue
        metrics = SHOWN[chosen[0]["problem_type"]]
        yield f"\n`{name}`\n\n| strategy | {' | '.join(metrics)} | parameters that learn | seconds | of the CPU |"
        yield f"|---|{'---:|' * (len(metrics) + 3)}"
        baseline = chosen[0]["baseline"]
        yield f"| baseline | {' | '.join(f'{baseline[metric]:.3f}' for metric in metrics)} | | | |"
        for row in chosen:
            cells = []
            for metric in metrics:
                low, high = row["intervals"][metric]
                cells.append(f"{row['test'][metric]:.3f} ({low:.3f} to {high:.3f})")
            seconds, used = (f"{one:.0f}" if one else "" for one in (row["seconds"]["total"], row.get("cpu_seconds")))
            yield f"| `{row['strategy']}` | {' | '.join(cells)} | {row['trainable']:,} | {seconds} | {used} |"


def main() -> None:
    """Measure, save the figures beside earlier ones, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder of the data sets.")
    parser.add_argument("weights", type=Path, help="The folder of the pretrained models.")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), help="Only these.")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES, help="Only these.")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each.")
    arguments = parser.parse_args()
    wanted = [(name, strategy) for name in arguments.sets for strategy in arguments.strategies]
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    with ThreadPoolExecutor(arguments.processes) as pool:
        for row in pool.map(lambda one: trained(one[0], one[1], arguments.data, arguments.weights), wanted):
            rows = [other for other in rows if (other["set"], other["strategy"]) != (row["set"], row["strategy"])]
            rows.append(row)
            rows.sort(key=lambda row: (list(SETS).index(row["set"]), STRATEGIES.index(row["strategy"])))
            write_rows(RESULTS, {"sets": SETS}, rows)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
