"""Is transfer real? Probe and full fine-tuning from the glyph backbones, against the same models from scratch.

    python -m benchmarks.transfer_or_scratch

Every arm has the same data, the same learning-rate grid and the same number of epochs (the probe is solved, and needs
neither). Its learning rate is the one with the best mean validation accuracy over the first seeds; then all seeds are
trained at that rate, and the test split is looked at once for each. Whether the epochs are enough is shown by training
from scratch for twice as many at the chosen rate.
"""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.intervals import mean_interval
from benchmarks.trials import Arm, Trial, tuned, write_rows

BACKBONES = ("sample:vit-glyphs", "sample:resnet-glyphs")
ARMS = ("linear_probe", "full", "scratch")
LONGER = "scratch, twice the epochs"
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2, 3, 4)
SEEDS_THAT_CHOOSE = (0, 1)
EPOCHS = 200
RESULTS = Path(__file__).parent / "results" / "transfer_or_scratch.json"
PICTURE = Path(__file__).parents[1] / "docs" / "transfer_or_scratch.png"


def trial(backbone: str, strategy: str) -> Trial:
    """Ten images of each class; half of the data for the test, since a small test split blurs the gain."""
    settings = {
        "model_name_or_path": backbone,
        "dataset_name": "sample:digits",
        "strategy": strategy,
        "max_train_samples_per_class": 10,
        "test_fraction": 0.5,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 25,
        "per_device_eval_batch_size": 128,
        "augmentation": "light",
    }
    return Trial("vision", settings)


def measure(backbones: Sequence[str], processes: int) -> list[dict[str, Any]]:
    """A row for each backbone and arm: the chosen rate, and validation and test accuracies by seed."""
    arms: list[tuple[Arm, Trial]] = [((name, arm), trial(name, arm)) for name in backbones for arm in ARMS]
    rows = tuned(arms, LEARNING_RATES, SEEDS, SEEDS_THAT_CHOOSE, processes)
    for row in [row for row in rows if row["arm"] == "scratch"]:
        longer = trial(row["backbone"], "scratch").with_settings(num_train_epochs=2 * EPOCHS)
        rows += tuned([((row["backbone"], LONGER), longer)], [row["learning_rate"]], SEEDS, (), processes)
    return rows


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: mean test accuracy, and what is gained over scratch, paired by seed."""
    rows = list(rows)
    scratch = {row["backbone"]: row["test"] for row in rows if row["arm"] == "scratch"}
    lines = ["| backbone | strategy | rate | test accuracy | against scratch |", "|---|---|---:|---:|---:|"]
    for row in rows:
        score, half = mean_interval([100 * value for value in row["test"]])
        gain = ""
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        if row["arm"] != "scratch":
            pairs = zip(row["test"], scratch[row["backbone"]], strict=True)
            difference, width = mean_interval([100 * (ours - theirs) for ours, theirs in pairs])
            gain = f"{difference:+.1f} ± {width:.1f}"
        lines.append(f"| `{row['backbone']}` | `{row['arm']}` | {rate} | {score:.1f} ± {half:.1f} % | {gain} |")
    return "\n".join(lines)


def draw(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """A picture of the table: mean test accuracies with their 95 % intervals, and every seed as a dot."""
    rows = list(rows)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, len(BACKBONES), sharey=True)
    for axes, backbone in zip(panels, BACKBONES, strict=True):
        shown = [row for row in rows if row["backbone"] == backbone and row["arm"] in ARMS]
        for position, row in enumerate(shown):
            percent = [100 * value for value in row["test"]]
            score, half = mean_interval(percent)
            colour = "0.6" if row["arm"] == "scratch" else "C0"
            axes.bar(position, score, color=colour, width=0.6)
            axes.errorbar(position, score, yerr=half, color="black", capsize=4)
            axes.plot([position] * len(percent), percent, "o", color="white", markeredgecolor="black", markersize=4)
            axes.annotate(f"{score:.1f}", (position, 3), ha="center", color="white")
        axes.set_xticks(range(len(ARMS)), ARMS)
        axes.set(title=backbone, ylim=(0, 100))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, save the numbers beside those of other backbones, draw the picture, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=BACKBONES, help="Measure these only.")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each.")
    arguments = parser.parse_args()
    measured = measure(arguments.backbones, arguments.processes)
    earlier = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    rows = [row for row in earlier if row["backbone"] not in arguments.backbones] + measured
    rows.sort(key=lambda row: (BACKBONES.index(row["backbone"]), (*ARMS, LONGER).index(row["arm"])))
    settings = trial("", "").settings
    write_rows(RESULTS, {**settings, "rates": LEARNING_RATES, "seeds": SEEDS, "choosing": SEEDS_THAT_CHOOSE}, rows)
    draw(rows, PICTURE)
    print(table(rows))


if __name__ == "__main__":
    main()
