"""What does the loop cost? An epoch of ours against an epoch of a loop written by hand, on equal models and batches.

    python -m benchmarks.loop_overhead

Rounds are interleaved: in each, in an order drawn at random, the hand-written loop runs one epoch, ours runs one, and
the hand-written loop runs another on a third copy of the model. The ratio of the two hand-written epochs (A/A) shows
how much of a difference is noise of the machine.
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import get_scheduler

from benchmarks.intervals import median_interval
from benchmarks.trials import epochs_of_ours, ready_run
from hf_transfer.data.batches import EpochSampler
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.run import Run
from hf_transfer.settings.run import VisionConfig

BACKBONES = ("sample:vit-glyphs", "sample:resnet-glyphs")
ROUNDS = 30
SAMPLES_PER_CLASS = 32
BATCH_SIZE = 32
RESULTS = Path(__file__).parent / "results" / "loop_overhead.json"
Epoch = Callable[[int], object]


def settings(backbone: str) -> VisionConfig:
    """Full fine-tuning of a sample backbone on 320 digits; BatchNorm is trained, as in the loop written by hand."""
    statistics = {"batch_norm_statistics": "updated"} if backbone == "sample:resnet-glyphs" else {}
    return VisionConfig.of(
        model_name_or_path=backbone,
        dataset_name="sample:digits",
        strategy="full",
        max_train_samples_per_class=SAMPLES_PER_CLASS,
        per_device_train_batch_size=BATCH_SIZE,
        augmentation="none",
        num_train_epochs=ROUNDS + 1,
        learning_rate=1e-4,
        output_dir="unused",
        save_steps=0,
        **statistics,
    )


def hand_written(run: Run) -> Epoch:
    """The loop that a practitioner writes, on the same rows in the same order, with the same optimizer and clipping."""
    model, training = run.prepared.model, run.config.training
    preprocessing: PixelPreprocessing = run.preprocessing  # type: ignore[assignment]
    sampler = EpochSampler(len(run.splits.train), training.seed)
    loader = DataLoader(run.loaders.train.dataset, batch_size=BATCH_SIZE, sampler=sampler)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    steps = len(loader) * training.num_train_epochs
    scheduler = get_scheduler("cosine", optimizer, round(0.1 * steps), steps)

    def epoch(number: int) -> float:
        model.train()
        sampler.set_epoch(number)
        total = 0.0
        for batch in loader:
            logits = model(pixel_values=preprocessing.normalise(batch["pixel_values"].float())).logits
            loss = cross_entropy(logits, batch["target"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            total += loss.item()
        return total / len(loader)

    return epoch


def ours(run: Run) -> Epoch:
    """An epoch of `training.loop`, on the same rows; what it returns is the mean loss."""
    epoch = epochs_of_ours(run)
    return lambda number: epoch(number)["train_loss"]


def measure(backbone: str) -> dict[str, Any]:
    """Median ratios with 95 % intervals: ours to hand-written, and hand-written to hand-written."""
    config = settings(backbone)
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"hand": [], "ours": [], "hand again": []}
    with ExitStack() as runs:
        makers = {"hand": hand_written, "ours": ours, "hand again": hand_written}
        loops = {name: make(runs.enter_context(ready_run(config))) for name, make in makers.items()}
        losses = {name: epoch(0) for name, epoch in loops.items()}  # pixels are decoded and kept in this round
        assert losses["hand"] == losses["hand again"]
        assert abs(float(str(losses["hand"])) - float(str(losses["ours"]))) < 1e-5, f"different work: {losses}"
        for number in range(1, ROUNDS + 1):
            for name in generator.permutation(list(loops)).tolist():
                started = time.perf_counter()
                loops[name](number)
                seconds[name].append(time.perf_counter() - started)
    hand = np.asarray(seconds["hand"])
    return {
        "backbone": backbone,
        "epoch_seconds": float(np.median(hand)),
        "ours": median_interval((np.asarray(seconds["ours"]) / hand).tolist()),
        "control": median_interval((np.asarray(seconds["hand again"]) / hand).tolist()),
    }


def main() -> None:
    """Measure, print the table, save the figures."""
    rows = [measure(backbone) for backbone in BACKBONES]
    machine = {"threads": torch.get_num_threads(), "rounds": ROUNDS, "samples": 10 * SAMPLES_PER_CLASS}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print("| backbone | epoch by hand | ours / by hand | A/A control |")
    print("|---|---:|---:|---:|")
    for row in rows:
        ratios = ["{:.3f} ({:.3f} to {:.3f})".format(*row[name]) for name in ("ours", "control")]
        print(f"| `{row['backbone']}` | {row['epoch_seconds']:.3f} s | {ratios[0]} | {ratios[1]} |")


if __name__ == "__main__":
    main()
