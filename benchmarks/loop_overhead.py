"""What does the loop cost? An epoch of ours against an epoch of a loop written by hand, on equal models and batches.

    python -m benchmarks.loop_overhead
    python -m benchmarks.loop_overhead --real DATA WEIGHTS

Rounds are interleaved: in each, in an order drawn at random, the hand-written loop runs one epoch, ours runs one,
`transformers.Trainer` runs one, and the hand-written loop runs another on a copy of the model. The ratio of the two
hand-written epochs (A/A) shows how much of a difference is noise of the machine.

`--real` measures EfficientNet-Lite0 and a ViT-B with random weights on pictures of `stamps`, and MiniLM-L6 on texts of
`wordnet`: two folders in DATA. All loops keep freed memory (see `hf_transfer.host_memory`): else its cost would hide
the rest. Dropout is off, so that the losses of the loops can be compared.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import get_scheduler

from benchmarks.intervals import median_interval
from benchmarks.random_models import random_weights
from benchmarks.trainer_epochs import epochs_of_trainer, model_inputs
from benchmarks.trials import epochs_of_ours, ready_run, settings_of, write_rows
from hf_transfer.data.batches import EpochSampler
from hf_transfer.host_memory import freed_memory_kept
from hf_transfer.run import Run

RATE = 1e-4
RESULTS = Path(__file__).parent / "results"
Epoch = Callable[[int], object]
SHARED = {"strategy": "full", "learning_rate": RATE, "output_dir": "unused", "save_steps": 0}
OF_RECIPE: dict[str, dict[str, Any]] = {
    "vision": {"augmentation": "none"},
    "text": {"train_sampling_strategy": "random", "rdrop_alpha": 0.0},
}


class Case(NamedTuple):
    """A backbone, and how much of it is measured.

    Attributes:
        recipe: vision or text.
        settings: of the run, beside those that all share.
        rounds: that count.
    """

    recipe: str
    settings: dict[str, Any]
    rounds: int


def sample_cases() -> Iterator[tuple[str, Case]]:
    """The sample backbones on 320 digits; BatchNorm is trained, as in the loop written by hand."""
    for name, statistics in (("sample:vit-glyphs", None), ("sample:resnet-glyphs", "updated")):
        settings = {
            "model_name_or_path": name, "dataset_name": "sample:digits", "max_train_samples_per_class": 32,
            "per_device_train_batch_size": 32, "batch_norm_statistics": statistics,
        }  # fmt: skip
        yield name, Case("vision", {key: value for key, value in settings.items() if value}, 30)


def real_cases(data: Path, weights: Path, folder: Path) -> Iterator[tuple[str, Case]]:
    """Three backbones of real size on few samples, so that there are many rounds.

    Args:
        data: the folder of the data sets.
        weights: the folder of the models.
        folder: for a model with random weights.
    """
    pictures, texts = {"dataset_name": str(data / "stamps")}, {"dataset_name": str(data / "wordnet")}
    yield "EfficientNet-Lite0", Case("vision", {
        **pictures, "model_name_or_path": str(weights / "efficientnet_lite0"), "batch_norm_statistics": "updated",
        "max_train_samples_per_class": 4, "per_device_train_batch_size": 16,
    }, 20)  # fmt: skip
    yield "ViT-B (shape)", Case("vision", {
        **pictures, "model_name_or_path": random_weights("vit", folder / "vit"), "max_train_samples_per_class": 1,
        "per_device_train_batch_size": 8,
    }, 20)  # fmt: skip
    yield "MiniLM-L6", Case("text", {
        **texts, "model_name_or_path": str(weights / "minilm_l6"), "max_train_samples_per_class": 4,
        "per_device_train_batch_size": 16,
    }, 20)  # fmt: skip


def hand_written(run: Run) -> Epoch:
    """The loop that a practitioner writes, on the same rows in the same order, with the same optimizer and clipping."""
    model, training, batches = run.prepared.model, run.config.training, run.loaders.train
    sampler = EpochSampler(len(run.splits.train), training.seed)
    loader: DataLoader[Any] = DataLoader(
        batches.dataset, training.per_device_train_batch_size, sampler=sampler, collate_fn=batches.collate_fn
    )
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    steps = len(loader) * training.num_train_epochs
    scheduler = get_scheduler("cosine", optimizer, round(0.1 * steps), steps)

    def epoch(number: int) -> float:
        model.train()
        sampler.set_epoch(number)
        total = 0.0
        for batch in loader:
            logits = model(**model_inputs(run, batch)).logits
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


def ready(case: Case) -> Any:
    """A run that is ready to be trained; a context manager."""
    settings = {**SHARED, **OF_RECIPE[case.recipe], **case.settings, "num_train_epochs": case.rounds + 1}
    return ready_run(settings_of(case.recipe, settings))


def without_dropout(run: Run) -> Run:
    """The same run, whose dropout layers do nothing."""
    for module in run.prepared.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return run


def measure(name: str, case: Case) -> dict[str, Any]:
    """Median ratios to the hand-written loop with 95 % intervals: ours, Trainer, and the hand-written loop again."""
    generator = np.random.default_rng(0)
    makers = {"hand": hand_written, "ours": ours, "Trainer": epochs_of_trainer, "hand again": hand_written}
    seconds: dict[str, list[float]] = {arm: [] for arm in makers}
    with ExitStack() as stack:
        stack.enter_context(freed_memory_kept(scarce=False))
        loops = {arm: make(without_dropout(stack.enter_context(ready(case)))) for arm, make in makers.items()}
        losses = {arm: float(str(loop(0))) for arm, loop in loops.items()}  # samples are read and kept in this round
        assert losses["hand"] == losses["hand again"]
        assert abs(losses["hand"] - losses["ours"]) < 1e-4, f"different work: {losses}"
        for number in range(1, case.rounds + 1):
            for arm in generator.permutation(list(loops)).tolist():
                started = time.perf_counter()
                result = loops[arm](number)
                clock = time.perf_counter() - started
                # Trainer prepares each epoch anew, which is not counted.
                seconds[arm].append(float(str(result)) if arm == "Trainer" else clock)
    hand = np.asarray(seconds["hand"])
    ratios = {
        key: median_interval((np.asarray(seconds[arm]) / hand).tolist())
        for key, arm in (("ours", "ours"), ("trainer", "Trainer"), ("control", "hand again"))
    }
    return {"backbone": name, "rounds": case.rounds, "epoch_seconds": float(np.median(hand)), **ratios}


def main() -> None:
    """Measure, save the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, nargs=2, metavar=("DATA", "WEIGHTS"), help="Backbones of real size.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = sample_cases()
        if arguments.real:
            data, weights = arguments.real
            cases = real_cases(data, weights, Path(folder))
        rows = [measure(name, case) for name, case in cases]
    results = RESULTS / ("real_loop_overhead.json" if arguments.real else "loop_overhead.json")
    write_rows(results, {"threads": torch.get_num_threads()}, rows)
    print("| backbone | epoch by hand | ours / by hand | Trainer / by hand | A/A control |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        ratios = ["{:.3f} ({:.3f} to {:.3f})".format(*row[name]) for name in ("ours", "trainer", "control")]
        print(f"| {row['backbone']} | {row['epoch_seconds']:.3f} s | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
