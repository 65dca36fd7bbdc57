"""Are the defaults of training good with real backbones? Full fine-tuning with one setting changed at a time.

    python -m benchmarks.training_defaults DATA WEIGHTS

DATA and WEIGHTS are those of `benchmarks.auto`, and so are the tasks. What is compared is test accuracy, so nothing may
be tuned on these figures beyond a default that is the same for every task. Every finished run is added to the results
at once: an interrupted measurement goes on from there.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.auto import Row, accuracy, trained
from benchmarks.auto_cells import CELLS

STRATEGY = "full"
TASKS = ("wordnet, 60 per class", "manpages_de, 16 per class", "stamps, 16 per class")
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rate x 1/3": {"learning_rate": 3e-5},
    "rate x 3": {"learning_rate": 3e-4},
    "half of the epochs": {"num_train_epochs": 3},
    "twice the epochs": {"num_train_epochs": 12},
    "layer_lr_decay 0.8": {"layer_lr_decay": 0.8},
    "head_learning_rate 1e-3": {"head_learning_rate": 1e-3},
    "ema_decay 0.99": {"ema_decay": 0.99},
    "soup_size 3": {"soup_size": 3},
    "weight_decay 0.01": {"weight_decay": 0.01},
    "label_smoothing_factor 0.1": {"label_smoothing_factor": 0.1},
    "pooling mean": {"pooling": "mean"},
    "no R-Drop": {"rdrop_alpha": 0.0},
    "augmentation none": {"augmentation": "none"},
    "augmentation standard": {"augmentation": "standard"},
    "mixup_alpha 0.2": {"mixup_alpha": 0.2},
}
# What only one kind of samples has; pictures are trained for more epochs than texts.
OF_TEXTS, OF_PICTURES = {"pooling", "rdrop_alpha"}, {"augmentation", "mixup_alpha"}
EPOCHS_OF_PICTURES = {3: 5, 12: 20}
RESULTS = Path(__file__).parent / "results" / "training_defaults.json"


def settings_for(task: str, variant: str) -> dict[str, Any] | None:
    """The settings of a variant; None, if the task has no such setting."""
    settings = dict(VARIANTS[variant])
    is_picture = CELLS[task].recipe == "vision"
    if settings.keys() & (OF_TEXTS if is_picture else OF_PICTURES):
        return None
    if is_picture and "num_train_epochs" in settings:
        settings["num_train_epochs"] = EPOCHS_OF_PICTURES[settings["num_train_epochs"]]
    return settings


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: a line for each variant with its test accuracy, and its difference from the defaults."""
    yield f"| {STRATEGY} with | {' | '.join(TASKS)} |"
    yield f"|---|{'---:|' * len(TASKS)}"
    for variant in VARIANTS:
        cells = [_cell(rows, task, variant) for task in TASKS]
        if any(cells):
            yield f"| {variant} | {' | '.join(cells)} |"


def _cell(rows: Sequence[Row], task: str, variant: str) -> str:
    scores = {
        name: np.mean(
            [100 * accuracy(row) for row in rows if (row["cell"], row["variant"]) == (task, name)] or [np.nan]
        )
        for name in (variant, "defaults")
    }
    if np.isnan(scores[variant]):
        return ""
    difference = "" if variant == "defaults" else f" ({scores[variant] - scores['defaults']:+.1f})"
    return f"{scores[variant]:.1f}{difference}"


def main() -> None:
    """Measure what is missing, save each figure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder of the data sets.")
    parser.add_argument("weights", type=Path, help="The folder of the pretrained models.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    known = {(row["cell"], row["variant"], row["seed"]) for row in rows}
    for seed in arguments.seeds:
        for variant in VARIANTS:
            for task in TASKS:
                settings = settings_for(task, variant)
                if settings is None or (task, variant, seed) in known:
                    continue
                row = trained(task, STRATEGY, seed, arguments.data, arguments.weights, settings)
                rows.append({**row, "variant": variant})
                RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
