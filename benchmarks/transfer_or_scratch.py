"""Is transfer real? Probe and full fine-tuning from the glyph backbones, against the same models from scratch.

    python -m benchmarks.transfer_or_scratch

Every arm has the same data, the same augmentation (none, and the recipe's default), the same learning-rate grid and
the same number of epochs (the probe is solved, and needs neither rate nor epochs). Its learning rate is the one with
the best mean validation accuracy over the first seeds; then all seeds are trained at that rate, and each uses the test
split once. Training from scratch for twice as many epochs shows whether the epochs are enough.
"""

import argparse
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.intervals import mean_interval
from benchmarks.trials import Arm, Trial, tuned, write_rows

BACKBONES = ("sample:vit-glyphs", "sample:resnet-glyphs")
# It has seen printed letters only, and its statistics do not fit handwriting.
WITH_BATCH_NORM = ("sample:resnet-glyphs",)
ARMS = ("linear_probe", "full", "scratch")
LONGER = "scratch, twice the epochs"
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2, 3, 4)
SEEDS_THAT_CHOOSE = (0, 1)
# By augmentation: if every epoch has new pictures, more epochs are useful.
EPOCHS = {"none": 100, "light": 200}
RESULTS = Path(__file__).parent / "results" / "transfer_or_scratch.json"
PICTURE = Path(__file__).parents[1] / "docs" / "transfer_or_scratch.png"


def trial(backbone: str, strategy: str, augmentation: str) -> Trial:
    """Ten images of each class. Half of the data are the test split, so that the gain is measured precisely."""
    settings = {
        "model_name_or_path": backbone,
        "dataset_name": "sample:digits",
        "strategy": strategy,
        "max_train_samples_per_class": 10,
        "test_fraction": 0.5,
        "num_train_epochs": EPOCHS[augmentation],
        "per_device_train_batch_size": 25,
        "per_device_eval_batch_size": 128,
        "augmentation": augmentation,
    }
    if strategy == "full" and backbone in WITH_BATCH_NORM:
        settings["batch_norm_statistics"] = "updated"
    return Trial("vision", settings)


def measure(backbones: Sequence[str], augmentation: str, processes: int) -> list[dict[str, Any]]:
    """A row for each backbone and arm: the chosen rate, and validation and test accuracies by seed."""
    arms: list[tuple[Arm, Trial]] = [
        ((name, arm), trial(name, arm, augmentation)) for name in backbones for arm in ARMS
    ]
    rows = tuned(arms, LEARNING_RATES, SEEDS, SEEDS_THAT_CHOOSE, processes)
    for row in [row for row in rows if row["arm"] == "scratch"]:
        longer = trial(row["backbone"], "scratch", augmentation)
        longer = longer.with_settings(num_train_epochs=2 * EPOCHS[augmentation])
        rows += tuned([((row["backbone"], LONGER), longer)], [row["learning_rate"]], SEEDS, (), processes)
    return [{"augmentation": augmentation, **row} for row in rows]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: mean test accuracy, and the gain over scratch, paired by seed."""
    rows = list(rows)
    scratch = {(row["augmentation"], row["backbone"]): row["test"] for row in rows if row["arm"] == "scratch"}
    lines = [
        "| augmentation | backbone | strategy | rate | test accuracy | against scratch |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        score, half = mean_interval([100 * value for value in row["test"]])
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        gain = ""
        if row["arm"] != "scratch":
            pairs = zip(row["test"], scratch[row["augmentation"], row["backbone"]], strict=True)
            difference, width = mean_interval([100 * (ours - theirs) for ours, theirs in pairs])
            gain = f"{difference:+.1f} ± {width:.1f}"
        names = f"{row['augmentation']} | `{row['backbone']}` | {row['arm']}"
        lines.append(f"| {names} | {rate} | {score:.1f} ± {half:.1f} % | {gain} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A picture of the table: mean test accuracies with their 95 % intervals, and every seed as a dot."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    panels = figure.subplots(len(EPOCHS), len(BACKBONES), sharey=True)
    for (augmentation, line), (column, backbone) in itertools.product(
        zip(EPOCHS, panels, strict=True), enumerate(BACKBONES)
    ):
        axes = line[column]
        shown = [row for row in rows if (row["augmentation"], row["backbone"]) == (augmentation, backbone)]
        for position, row in enumerate(row for row in shown if row["arm"] in ARMS):
            percent = [100 * value for value in row["test"]]
            score, half = mean_interval(percent)
            colour = "0.6" if row["arm"] == "scratch" else "C0"
            axes.bar(position, score, color=colour, width=0.6)
            axes.errorbar(position, score, yerr=half, color="black", capsize=4)
            axes.plot([position] * len(percent), percent, "o", color="white", markeredgecolor="black", markersize=4)
            axes.annotate(f"{score:.1f}", (position, 4), ha="center", color="white")
        axes.set_xticks(range(len(ARMS)), ARMS)
        axes.set(title=f"{backbone}, augmentation {augmentation}", ylim=(0, 100))
        axes.spines[["top", "right"]].set_visible(False)
    for line in panels:
        line[0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, save the figures beside those of other backbones, draw the picture, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=BACKBONES, help="Measure these only.")
    parser.add_argument("--augmentations", nargs="+", default=list(EPOCHS), choices=list(EPOCHS), help="These only.")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each.")
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    for augmentation in arguments.augmentations:
        measured = measure(arguments.backbones, augmentation, arguments.processes)
        kept = [
            row for row in kept if row["augmentation"] != augmentation or row["backbone"] not in arguments.backbones
        ]
        kept += measured
    rows = sorted(kept, key=_place)
    settings = {**trial("", "", "none").settings, "num_train_epochs": EPOCHS, "augmentation": list(EPOCHS)}
    write_rows(RESULTS, {**settings, "rates": LEARNING_RATES, "seeds": SEEDS, "choosing": SEEDS_THAT_CHOOSE}, rows)
    draw(rows, PICTURE)
    print(table(rows))


def _place(row: dict[str, Any]) -> tuple[int, int, int]:
    arms = (*ARMS, LONGER)
    return list(EPOCHS).index(row["augmentation"]), BACKBONES.index(row["backbone"]), arms.index(row["arm"])


if __name__ == "__main__":
    main()
