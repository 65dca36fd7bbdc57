"""What stored activations save, next to `transformers.Trainer`, a loop written by hand, and scikit-learn.

    python -m benchmarks.frozen_store

Linear probes: ours, cold (nothing is stored yet) and warm, against ten epochs of a head on a frozen backbone, by
Trainer and by hand, each with the rate of the grid that is best on validation, and against features and logistic
regression by scikit-learn. All are evaluated on validation after each epoch, or for each regularisation.

Partial fine-tuning of ten epochs: with the store, cold, and without it, and the ratio that no store can exceed: the
frozen groups once, the others in every epoch, by times measured in the same round on batches that are in memory.

Tokens and decoded pixels are in memory before the clock starts. Rounds are interleaved, with one thread. For the probes
each round splits the images anew into training, validation and test.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.intervals import median_interval
from benchmarks.trials import accuracy_on_test, ready_run, settings_of, train
from hf_transfer.models.cutting import Cut
from hf_transfer.models.stubs import with_stored
from hf_transfer.run import Run
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.freezing import set_trainable

EPOCHS = 10
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
BATCH_SIZE = 32
RESULTS = Path(__file__).parent / "results" / "frozen_store.json"
Batches = list[tuple[dict[str, Tensor], Tensor]]


class Timed(NamedTuple):
    """A training: seconds, accuracy on validation, accuracy on test."""

    seconds: float
    validation: float
    test: float


def samples_of(run: Run, split: str) -> Batches:
    """Model inputs and labels of a split, batch by batch."""
    labelled = (run.loaders.to_inputs(batch, torch.device("cpu"), split, None) for batch in run.loaders.of(split))
    return [(one.inputs, one.targets) for one in labelled]


@dataclass(frozen=True)
class Task:
    """A backbone and its data.

    Attributes:
        recipe: vision or text.
        settings: those that differ from the defaults.
        layers: for partial fine-tuning, how many blocks learn: half of them, a quarter, one.
    """

    recipe: str
    settings: dict[str, Any]
    layers: tuple[int, ...]

    def config(self, **more: Any) -> RunConfig:
        """The settings of a run."""
        settings = {
            **self.settings, "num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH_SIZE,
            "output_dir": "unused", "save_steps": 0, **more,
        }  # fmt: skip
        return settings_of(self.recipe, settings)

    @contextlib.contextmanager
    def ready(self, **more: Any) -> Iterator[Run]:
        """A run that is ready to be trained; its images are decoded."""
        with ready_run(self.config(**more)) as run:
            for split in ("train", "validation", "test"):
                rows = run.loaders.of(split).dataset
                for position in range(len(rows)):
                    rows[position]
            yield run

    def ours(self, **more: Any) -> Timed:
        """Seconds of `fit`, and accuracies."""
        with self.ready(**more) as run:
            fitted, seconds = train(run)
            return Timed(seconds, fitted.history[fitted.best_epoch]["accuracy"], accuracy_on_test(run, fitted))


TASKS = {
    "vit": Task(
        "vision",
        {"model_name_or_path": "sample:vit-glyphs", "dataset_name": "sample:digits", "augmentation": "none"},
        (3, 2, 1),
    ),
    "resnet": Task(
        "vision",
        {"model_name_or_path": "sample:resnet-glyphs", "dataset_name": "sample:digits", "augmentation": "none"},
        (2, 1),
    ),
    "bert": Task("text", {"model_name_or_path": "sample:minilm", "dataset_name": "sample:intents"}, (3, 2, 1)),
}


@dataclass(frozen=True)
class Frozen:
    """A model whose head alone learns.

    Attributes:
        model: the model.
        head: name of its head.
        samples: returns the model inputs and labels of a split.
        tokenizer: of texts; None for images.
    """

    model: nn.Module
    head: str
    samples: Callable[[str], Batches]
    tokenizer: Any


@contextlib.contextmanager
def frozen_model(task: Task, split_seed: int) -> Iterator[Frozen]:
    """A fresh model with a frozen backbone, and its samples."""
    with task.ready(strategy="linear_probe", split_seed=split_seed) as run:
        model, groups = run.prepared.model, run.prepared.groups
        set_trainable(model, groups, frozenset(groups[-1].parameters))
        tokenizer = getattr(run.preprocessing, "tokenizer", None)
        yield Frozen(model, groups[-1].modules[0], partial(samples_of, run), tokenizer)


def by_hand(frozen: Frozen, rate: float) -> Timed:
    """A loop as people write it: backbone in evaluation mode, AdamW on the head, validation after each epoch."""
    model, samples = frozen.model, frozen.samples
    layer = model.get_submodule(frozen.head)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=rate)
    model.eval()
    started, best = time.perf_counter(), -1.0
    weights: dict[str, Tensor] = {}
    for _ in range(EPOCHS):
        for inputs, labels in samples("train"):
            loss = cross_entropy(model(**inputs).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        score = accuracy(model, samples("validation"))
        if score > best:
            best, weights = score, {name: value.clone() for name, value in layer.state_dict().items()}
    seconds = time.perf_counter() - started
    layer.load_state_dict(weights)
    return Timed(seconds, best, accuracy(model, samples("test")))


def trainers(frozen: Frozen, rate: float) -> Timed:
    """`transformers.Trainer`: ten epochs, evaluated on validation after each, the best one kept."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, default_data_collator

    rows = {split: _single(frozen.samples(split)) for split in ("train", "validation", "test")}
    collator: Any = default_data_collator if frozen.tokenizer is None else DataCollatorWithPadding(frozen.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=EPOCHS, learning_rate=rate, report_to="none", disable_tqdm=True,
            per_device_train_batch_size=BATCH_SIZE, per_device_eval_batch_size=64, use_cpu=True,
            eval_strategy="epoch", save_strategy="no", seed=0,
        )  # fmt: skip
        trainer: Any = Trainer(
            frozen.model, arguments, train_dataset=rows["train"], eval_dataset=rows["validation"],
            data_collator=collator,
            compute_metrics=lambda answers: {"accuracy": float((answers[0].argmax(-1) == answers[1]).mean())},
        )  # fmt: skip
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        seconds = time.perf_counter() - started
        best = max(entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry)
        answers: Any = trainer.predict(rows["test"])
    return Timed(seconds, best, float((answers.predictions.argmax(-1) == answers.label_ids).mean()))


def scikit_learns(frozen: Frozen, _: float) -> Timed:
    """Features once, then logistic regression on them, its strength chosen on validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = frozen.model
    model.set_submodule(frozen.head, nn.Identity())
    model.eval()

    def features(split: str) -> tuple[Any, Any]:
        with torch.no_grad():
            parts = [(model(**inputs).logits.numpy(), labels.numpy()) for inputs, labels in frozen.samples(split)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    started = time.perf_counter()
    training, validation = features("train"), features("validation")
    best, chosen = -1.0, None
    for strength in np.logspace(-4, 3, 15):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(*training)
        if (score := classifier.score(*validation)) > best:
            best, chosen = score, classifier
    seconds = time.perf_counter() - started
    assert chosen is not None
    return Timed(seconds, best, float(chosen.score(*features("test"))))


ARMS: dict[str, Callable[[Frozen, float], Timed]] = {
    "Trainer": trainers, "by hand": by_hand, "scikit-learn": scikit_learns,
}  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, samples: Batches) -> float:
    """Share of the samples that a model gets right."""
    right = sum(int((model(**inputs).logits.argmax(-1) == labels).sum()) for inputs, labels in samples)
    return right / sum(len(labels) for _, labels in samples)


def _single(batches: Batches) -> list[dict[str, Any]]:
    """Samples one by one, as Trainer takes them; texts without their padding."""
    rows = []
    for inputs, labels in batches:
        for place, label in enumerate(labels.tolist()):
            row: dict[str, Any] = {name: value[place] for name, value in inputs.items()}
            if "attention_mask" in row:
                row = {name: value[row["attention_mask"].bool()].tolist() for name, value in row.items()}
            rows.append({**row, "labels": label})
    return rows


def measure_probe(task: Task, rounds: int) -> dict[str, Any]:
    """Seconds and accuracies of all arms, and the ratios to ours."""

    def run(arm: str, rate: float, split_seed: int) -> Timed:
        with frozen_model(task, split_seed) as frozen:
            return ARMS[arm](frozen, rate)

    with_rate = [arm for arm in ARMS if arm != "scikit-learn"]
    scores = {arm: {rate: run(arm, rate, 0).validation for rate in RATES} for arm in with_rate}
    rates = {arm: max(by_rate, key=by_rate.__getitem__) for arm, by_rate in scores.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("cold", "warm", *ARMS)}
    test: dict[str, list[float]] = {name: [] for name in seconds}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            stored: dict[str, Any] = {"cache_frozen": "on", "cache_dir": folder, "split_seed": number}
            timed = {name: task.ours(strategy="linear_probe", **stored) for name in ("cold", "warm")}
        timed |= {arm: run(arm, rates.get(arm, 0.0), number) for arm in ARMS}
        for name, one in timed.items():
            seconds[name].append(one.seconds)
            test[name].append(one.test)
    ratios = {
        f"{name} / {timing}": median_interval((np.asarray(seconds[name]) / np.asarray(seconds[timing])).tolist())
        for name in ARMS
        for timing in ("cold", "warm")
    }
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {"seconds": medians, "test": test, "rates": rates, "ratios": ratios}


class _Parts:
    """The two sides of a cut, timed on batches that are in memory."""

    def __init__(self, run: Run) -> None:
        self.model, groups = run.prepared.model, run.prepared.groups
        set_trainable(self.model, groups, run.strategy.stages(groups, EPOCHS)[0].trainable)
        self.batches = {split: samples_of(run, split) for split in ("train", "validation")}
        self.cut = Cut(self.model, groups, len(run.prepared.frozen[""]), run.preprocessing.example())
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=True)

    def bound(self) -> tuple[float, float]:
        """Seconds of ten epochs without a store, and the least with one."""
        prefix, recorded = 0.0, dict[str, list[list[Tensor]]]()
        for split, batches in self.batches.items():
            started = time.perf_counter()
            recorded[split] = [self.cut.record(self.model, inputs) for inputs, _ in batches]
            prefix += time.perf_counter() - started
        with self.cut.skipped(self.model):

            def steps(split: str) -> float:
                self.model.train(split == "train")
                started = time.perf_counter()
                for (inputs, labels), tensors in zip(self.batches[split], recorded[split], strict=True):
                    stored = with_stored(self.cut.blank(inputs), [tensor.clone() for tensor in tensors])
                    with torch.set_grad_enabled(split == "train"):
                        loss = cross_entropy(self.model(**stored).logits, labels)
                    if split == "train":
                        loss.backward()
                        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                return time.perf_counter() - started

            steps("train")
            suffix = steps("train") + steps("validation")
        return EPOCHS * (prefix + suffix), prefix + EPOCHS * suffix


def measure_partial(task: Task, layers: int, rounds: int) -> dict[str, Any]:
    """The ratio of a run without the store to one with it, cold, and how near that is to the bound."""
    partial_settings: dict[str, Any] = {"strategy": "partial", "trainable_layers": layers}
    with task.ready(**partial_settings) as run:
        parts = _Parts(run)
    measured: dict[str, list[float]] = {"off": [], "cold": [], "warm": [], "bound": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, cache in (("off", "off"), ("cold", "on"), ("warm", "on")):
                timed = task.ours(cache_frozen=cache, cache_dir=folder, **partial_settings)
                measured[name].append(timed.seconds)
        without, least = parts.bound()
        measured["bound"].append(without / least)
    values = {name: np.asarray(numbers) for name, numbers in measured.items()}
    ratio = values["off"] / values["cold"]
    return {
        "layers": layers,
        "seconds": {name: float(np.median(values[name])) for name in ("off", "cold", "warm")},
        "cold": median_interval(ratio.tolist()),
        "warm": median_interval((values["off"] / values["warm"]).tolist()),
        "bound": median_interval(values["bound"].tolist()),
        "share_of_bound": median_interval((ratio / values["bound"]).tolist()),
    }


def _interval(values: list[float] | tuple[float, ...]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def tables(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| backbone | arm | seconds | test accuracy | against ours, cold | against ours, warm |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for name, row in results["probe"].items():
        for arm, seconds in row["seconds"].items():
            keys = [f"{arm} / {timing}" for timing in ("cold", "warm")]
            cells = [_interval(row["ratios"][key]) if key in row["ratios"] else "" for key in keys]
            title = f"ours, {arm}" if arm in ("cold", "warm") else arm
            lines.append(
                f"| {name} | {title} | {seconds:.2f} | {100 * np.mean(row['test'][arm]):.1f} % | {' | '.join(cells)} |"
            )
    lines += ["", "| backbone | blocks that learn | without | cold | gain, cold | gain, warm | bound | cold / bound |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, rows in results["partial"].items():
        for row in rows:
            seconds = row["seconds"]
            gains = " | ".join(_interval(row[key]) for key in ("cold", "warm", "bound", "share_of_bound"))
            lines.append(f"| {name} | {row['layers']} | {seconds['off']:.1f} s | {seconds['cold']:.1f} s | {gains} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, save the figures beside those of other backbones, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(TASKS), choices=list(TASKS), help="Only these.")
    parser.add_argument("--parts", nargs="+", default=["probe", "partial"], choices=["probe", "partial"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"probe": {}, "partial": {}}
    if RESULTS.is_file():
        results |= json.loads(RESULTS.read_text(encoding="utf-8"))
    for name in arguments.backbones:
        task = TASKS[name]
        if "probe" in arguments.parts:
            results["probe"][name] = measure_probe(task, arguments.rounds)
        if "partial" in arguments.parts:
            results["partial"][name] = [measure_partial(task, layers, arguments.rounds) for layers in task.layers]
        results["machine"] = {"threads": torch.get_num_threads(), "rounds": arguments.rounds}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(tables(results))


if __name__ == "__main__":
    main()
