"""Are the defaults of training good with real backbones? Full fine-tuning with one setting changed at a time.

    python -m benchmarks.training_defaults DATA WEIGHTS

DATA and WEIGHTS are those of `benchmarks.auto`, and so are the tasks; of texts with what a head reads: the model's own
pooling, or the mean of the tokens. What is compared is test accuracy, so nothing may be tuned on these figures beyond a
default that is the same for every task. Every finished run is added to the results at once: an interrupted measurement
goes on from there.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.auto import Row, correct, trained
from benchmarks.intervals import difference

STRATEGY = "full"
FEW_TEXTS = ("intents, 8 per class", "intents, 60 per class", "wordnet, 8 per class", "manpages_de, 16 per class")
MANY_TEXTS = ("wordnet, 60 per class", "manpages_de, all")
PICTURES = ("stamps, 16 per class",)
# Cell, and the pooling of texts.
TASKS = (
    *((cell, pooling) for cell in (*FEW_TEXTS, *MANY_TEXTS) for pooling in ("own", "mean")),
    *((cell, "") for cell in PICTURES),
)
DEFAULTS = "defaults"
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    "without R-Drop": {"rdrop_alpha": 0.0},
    "without R-Drop, twice the epochs": {"rdrop_alpha": 0.0, "num_train_epochs": 12},
    "with R-Drop": {"rdrop_alpha": 1.0},
    "learning_rate x 1/3": {"learning_rate": 3e-5},
    "learning_rate x 3": {"learning_rate": 3e-4},
    "half of the epochs": {"num_train_epochs": 3},
    "twice the epochs": {"num_train_epochs": 12},
    "layer_lr_decay 0.8": {"layer_lr_decay": 0.8},
    "head_learning_rate 1e-3": {"head_learning_rate": 1e-3},
    "ema_decay 0.99": {"ema_decay": 0.99},
    "soup_size 3": {"soup_size": 3},
    "weight_decay 0.01": {"weight_decay": 0.01},
    "label_smoothing_factor 0.1": {"label_smoothing_factor": 0.1},
    "augmentation none": {"augmentation": "none"},
    "augmentation standard": {"augmentation": "standard"},
    "mixup_alpha 0.2": {"mixup_alpha": 0.2},
}
# The only tasks for some variants; few texts have R-Drop by default, many have none.
ONLY = {
    "without R-Drop": FEW_TEXTS, "without R-Drop, twice the epochs": FEW_TEXTS, "with R-Drop": MANY_TEXTS,
    "augmentation none": PICTURES, "augmentation standard": PICTURES, "mixup_alpha 0.2": PICTURES,
}  # fmt: skip
# Pictures are trained for more epochs than texts.
EPOCHS_OF_PICTURES = {3: 5, 12: 20}
RESULTS = Path(__file__).parent / "results" / "training_defaults.json"


def settings_for(cell: str, pooling: str, variant: str) -> dict[str, Any] | None:
    """The settings of a variant for a task; None: it is not for this task.

    Args:
        cell: of `benchmarks.auto_cells`.
        pooling: of a text model's head; "": samples are pictures.
        variant: one of `VARIANTS`.
    """
    if cell not in ONLY.get(variant, [cell]):
        return None
    settings = dict(VARIANTS[variant])
    if not pooling and "num_train_epochs" in settings:
        settings["num_train_epochs"] = EPOCHS_OF_PICTURES[settings["num_train_epochs"]]
    return settings | ({"pooling": "mean"} if pooling == "mean" else {})


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: a line for each task and variant: accuracy, better than the defaults by how much, and seconds."""
    yield f"| task | head reads | `{STRATEGY}` | seeds | test accuracy | better than the defaults | seconds |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for cell, pooling in TASKS:
        of_task = [row for row in rows if (row["cell"], row["pooling"]) == (cell, pooling)]
        measured = {(row["variant"], row["seed"]): row for row in of_task}
        for variant in VARIANTS:
            seeds = [seed for name, seed in measured if name == variant and (DEFAULTS, seed) in measured]
            if seeds:
                yield f"| {cell} | {pooling} | {variant} | {_compared(variant, measured, sorted(seeds))} |"


def _compared(variant: str, measured: Mapping[tuple[str, int], Row], seeds: Sequence[int]) -> str:
    of_variant, of_defaults = ([measured[name, seed] for seed in seeds] for name in (variant, DEFAULTS))
    right, right_of_defaults = (np.stack([*map(correct, one)]) for one in (of_variant, of_defaults))
    better = "{:+.1f} ({:+.1f} to {:+.1f})".format(*difference(right, right_of_defaults))
    seconds = median(row["cpu_seconds"] for row in of_variant)
    return f"{len(seeds)} | {100 * right.mean():.1f} | {'' if variant == DEFAULTS else better} | {seconds:.0f}"


def main() -> None:
    """Measure what is missing, save each figure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder of the data sets.")
    parser.add_argument("weights", type=Path, help="The folder of the pretrained models.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    known = {(row["cell"], row["pooling"], row["variant"], row["seed"]) for row in rows}
    for seed in arguments.seeds:
        for variant in VARIANTS:
            for cell, pooling in TASKS:
                settings = settings_for(cell, pooling, variant)
                if settings is None or (cell, pooling, variant, seed) in known:
                    continue
                row = trained(cell, STRATEGY, seed, arguments.data, arguments.weights, settings)
                rows.append({**row, "pooling": pooling, "variant": variant})
                RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
