"""Is transfer real? Probe and full fine-tuning from the glyph backbones, against the same models from scratch.

    python -m benchmarks.transfer_or_scratch

Every arm has the same data, the same learning-rate grid and the same number of epochs.
Its learning rate is the one with the best mean validation accuracy over the first seeds; then all seeds are trained at
that rate, and the test split is looked at once for each.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from matplotlib.figure import Figure

from benchmarks.intervals import mean_interval

BACKBONES = ("sample:vit-glyphs", "sample:resnet-glyphs")
Arm = Literal["linear_probe", "full", "scratch"]
ARMS: tuple[Arm, ...] = ("linear_probe", "full", "scratch")
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2, 3, 4)
SEEDS_THAT_CHOOSE = (0, 1)
EPOCHS = 200
SAMPLES_PER_CLASS = 10
# Half of the data, since ten images of each class are all that training needs: a small test split blurs the gain.
TEST_FRACTION = 0.5
RESULTS = Path(__file__).parent / "results" / "transfer_or_scratch.json"
PICTURE = Path(__file__).parents[1] / "docs" / "transfer_or_scratch.png"


@dataclass(frozen=True)
class Trial:
    """One training run."""

    backbone: str
    arm: Arm
    learning_rate: float
    seed: int

    def folder(self, root: Path) -> Path:
        """Where its trained model is kept."""
        return root / f"{self.backbone.partition(':')[2]}-{self.arm}-{self.learning_rate}-{self.seed}"


def train(trial: Trial, root: Path) -> float:
    """Train, keep the model in its folder, and return the validation accuracy of its best epoch."""
    return _Run(trial, root).train()


def test(trial: Trial, root: Path) -> float:
    """The test accuracy of a trial that was trained before."""
    return _Run(trial, root).test()


class _Run:
    """The recipe's steps, without its files."""

    def __init__(self, trial: Trial, root: Path) -> None:
        import torch

        from hf_transfer.config import VisionConfig
        from hf_transfer.data.inputs import PixelPipeline
        from hf_transfer.data.sources import load_image_splits
        from hf_transfer.models.pretrained import Checkpoint

        torch.set_num_threads(1)
        self.config = VisionConfig(
            model_name_or_path=trial.backbone,
            dataset_name="sample:digits",
            strategy=trial.arm,
            learning_rate=trial.learning_rate,
            seed=trial.seed,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=25,
            per_device_eval_batch_size=128,
            max_train_samples_per_class=SAMPLES_PER_CLASS,
            test_fraction=TEST_FRACTION,
            augmentation="light",
            output_dir=str(trial.folder(root)),
        )
        self.checkpoint = Checkpoint(trial.backbone)
        self.splits = load_image_splits(self.config)
        self.pipeline = PixelPipeline(self.checkpoint.processor())

    def train(self) -> float:
        from hf_transfer.data.inputs import image_loaders
        from hf_transfer.models.pretrained import load_classifier
        from hf_transfer.strategies.choice import choose_strategy
        from hf_transfer.strategies.freezing import frozen_prefix
        from hf_transfer.training.loop import fit, start_accelerator

        strategy = choose_strategy(self.config)
        model, groups = load_classifier(
            self.checkpoint,
            self.splits.label_names,
            self.config,
            self.pipeline.example(),
            fresh_weights=strategy.fresh_weights,
        )
        frozen = frozen_prefix(groups, strategy.stages(groups, EPOCHS))
        # The epochs of 54 runs tell nobody anything.
        with start_accelerator(self.config) as accelerator, contextlib.redirect_stdout(io.StringIO()):
            loaders = image_loaders(self.splits, self.pipeline, self.config, accelerator, frozen_prefix=frozen > 0)
            fitted = fit(model, strategy, groups, loaders, self.config, accelerator)
        model.save_pretrained(self.config.output_dir)
        self.checkpoint.processor().save_pretrained(Path(self.config.output_dir))
        return fitted.history[fitted.best_epoch]["accuracy"]

    def test(self) -> float:
        from hf_transfer.data.inputs import image_loaders
        from hf_transfer.models.pretrained import Checkpoint
        from hf_transfer.training.loop import start_accelerator
        from hf_transfer.training.predictions import predict_split

        model = Checkpoint(self.config.output_dir).finished_classifier(self.splits.label_names)
        with start_accelerator(self.config) as accelerator:
            loaders = image_loaders(self.splits, self.pipeline, self.config, accelerator, frozen_prefix=False)
            return predict_split(model, loaders, "test", accelerator).metrics()["accuracy"]


def measure(backbones: Sequence[str], processes: int, root: Path) -> list[dict[str, Any]]:
    """A row for each backbone and arm: the chosen rate, and validation and test accuracies by seed."""
    arms = list(itertools.product(backbones, ARMS))
    choosing = [
        Trial(*arm, rate, seed) for arm, rate, seed in itertools.product(arms, LEARNING_RATES, SEEDS_THAT_CHOOSE)
    ]
    with ProcessPoolExecutor(max_workers=processes, mp_context=get_context("spawn")) as pool:
        validation = dict(zip(choosing, pool.map(train, choosing, itertools.repeat(root)), strict=True))
        scores = {
            arm: {
                rate: mean(validation[Trial(*arm, rate, seed)] for seed in SEEDS_THAT_CHOOSE) for rate in LEARNING_RATES
            }
            for arm in arms
        }
        rates = {arm: max(by_rate, key=by_rate.__getitem__) for arm, by_rate in scores.items()}
        others = [Trial(*arm, rates[arm], seed) for arm in arms for seed in SEEDS if seed not in SEEDS_THAT_CHOOSE]
        validation |= dict(zip(others, pool.map(train, others, itertools.repeat(root)), strict=True))
        rows = []
        for arm in arms:
            chosen = [Trial(*arm, rates[arm], seed) for seed in SEEDS]
            rows.append(
                {
                    "backbone": arm[0],
                    "arm": arm[1],
                    "learning_rate": rates[arm],
                    "validation_by_rate": {f"{rate:g}": score for rate, score in scores[arm].items()},
                    "validation": [validation[trial] for trial in chosen],
                    "test": list(pool.map(test, chosen, itertools.repeat(root))),
                }
            )
    return rows


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: mean test accuracy, and what is gained over scratch, paired by seed."""
    rows = list(rows)
    scratch = {row["backbone"]: row["test"] for row in rows if row["arm"] == "scratch"}
    lines = ["| backbone | strategy | rate | test accuracy | against scratch |", "|---|---|---:|---:|---:|"]
    for row in rows:
        score, half = mean_interval([100 * value for value in row["test"]])
        gain = ""
        if row["arm"] != "scratch":
            pairs = zip(row["test"], scratch[row["backbone"]], strict=True)
            difference, width = mean_interval([100 * (ours - theirs) for ours, theirs in pairs])
            gain = f"{difference:+.1f} ± {width:.1f}"
        lines.append(
            f"| `{row['backbone']}` | `{row['arm']}` | {row['learning_rate']:g} | {score:.1f} ± {half:.1f} % | {gain} |"
        )
    return "\n".join(lines)


def draw(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """A picture of the table: mean test accuracies with their 95 % intervals, and every seed as a dot."""
    rows = list(rows)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, len(BACKBONES), sharey=True)
    for axes, backbone in zip(panels, BACKBONES, strict=True):
        for position, row in enumerate(row for row in rows if row["backbone"] == backbone):
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
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as root:
        measured = measure(arguments.backbones, arguments.processes, Path(root))
    earlier = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    rows = [row for row in earlier if row["backbone"] not in arguments.backbones] + measured
    rows.sort(key=lambda row: (BACKBONES.index(row["backbone"]), ARMS.index(row["arm"])))
    settings = {
        "epochs": EPOCHS,
        "samples_per_class": SAMPLES_PER_CLASS,
        "test_fraction": TEST_FRACTION,
        "rates": LEARNING_RATES,
        "seeds": SEEDS,
        "seeds_that_choose": SEEDS_THAT_CHOOSE,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    draw(rows, PICTURE)
    print(table(rows))


if __name__ == "__main__":
    main()
