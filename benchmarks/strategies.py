"""Every strategy on both samples with few labels: how good, how many parameters, how long, how much memory?

    python -m benchmarks.strategies

`sample:digits` with 10 images of each class from `sample:vit-glyphs`, `sample:intents` with 8 messages of each class
from `sample:minilm`. Every arm has the same grid of learning rates, chosen on validation, and the same epochs.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.intervals import mean_interval
from benchmarks.trials import Arm, Trial, tuned, write_rows

STRATEGIES = (
    "linear_probe", "partial", "gradual", "lp_ft", "full", "bitfit", "lora", "dora", "ia3", "lokr", "adapter",
    "scratch",
)  # fmt: skip
MORE: dict[str, dict[str, int]] = {"partial": {"trainable_layers": 2}}
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2, 3, 4)
SEEDS_THAT_CHOOSE = (0,)
SAMPLES: dict[str, Trial] = {
    "digits": Trial(
        "vision",
        {
            "model_name_or_path": "sample:vit-glyphs",
            "dataset_name": "sample:digits",
            "max_train_samples_per_class": 10,
            "test_fraction": 0.5,
            "num_train_epochs": 50,
            "per_device_train_batch_size": 25,
            "per_device_eval_batch_size": 128,
        },
    ),
    "intents": Trial(
        "text",
        {
            "model_name_or_path": "sample:minilm",
            "dataset_name": "sample:intents",
            "max_train_samples_per_class": 8,
            "num_train_epochs": 20,
            "per_device_train_batch_size": 16,
        },
    ),
}
RESULTS = Path(__file__).parent / "results" / "strategies.json"


def arms(samples: Sequence[str]) -> list[tuple[Arm, Trial]]:
    """Every strategy with every sample."""
    return [
        ((name, strategy), SAMPLES[name].with_settings(strategy=strategy, **MORE.get(strategy, {})))
        for name in samples
        for strategy in STRATEGIES
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each sample and strategy."""
    lines = [
        "| sample | strategy | rate | test accuracy | parameters that learn | seconds | peak memory |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        score, half = mean_interval([100 * value for value in row["test"]])
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        lines.append(
            f"| {row['backbone']} | `{row['arm']}` | {rate} | {score:.1f} ± {half:.1f} % | {row['trainable']:,} "
            f"| {np.median(row['seconds']):.0f} | {row['peak_bytes'] / 2**20:,.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, save the figures beside those of the other sample, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", nargs="+", default=list(SAMPLES), choices=list(SAMPLES), help="Only these.")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each.")
    parser.add_argument(
        "--journal", type=Path, help="A file of finished trainings, to continue an interrupted measurement."
    )
    arguments = parser.parse_args()
    measured = tuned(
        arms(arguments.samples), LEARNING_RATES, SEEDS, SEEDS_THAT_CHOOSE, arguments.processes, arguments.journal
    )
    earlier = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    rows = [row for row in earlier if row["backbone"] not in arguments.samples] + measured
    rows.sort(key=lambda row: (list(SAMPLES).index(row["backbone"]), STRATEGIES.index(row["arm"])))
    settings = {name: trial.settings for name, trial in SAMPLES.items()}
    write_rows(RESULTS, {"rates": LEARNING_RATES, "seeds": SEEDS, "samples": settings}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
