"""What is gained by computing frozen layers once: next to `transformers.Trainer`, a loop by hand, and scikit-learn.

    python -m benchmarks.frozen_store

Linear probes: ours, cold (nothing stored yet) and warm, against ten epochs of a head on a frozen backbone, by Trainer
and by hand, each with the rate of the grid that is best on validation, and against features and logistic regression by
scikit-learn. All judge themselves on validation after each epoch, or for each regularisation.

Partial fine-tuning of ten epochs: with the store, cold, and without it, and the ratio that no store could exceed: the
frozen groups once, the others in every epoch, by times measured in the same round on batches that are in memory.

Every arm starts from the same splits, tokens and decoded pixels; rounds are interleaved, with one thread, and for the
probes each round cuts the images anew into training, validation and test.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.intervals import median_interval
from benchmarks.trials import data_of
from hf_transfer.config import RunConfig, TextConfig, VisionConfig
from hf_transfer.models.cutting import Cut
from hf_transfer.strategies.choice import Prepared, choose_strategy, prepare_model
from hf_transfer.strategies.freezing import set_trainable
from hf_transfer.training.loop import fit, start_accelerator
from hf_transfer.training.predictions import predict_split

EPOCHS = 10
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
BATCH_SIZE = 32
RESULTS = Path(__file__).parent / "results" / "frozen_store.json"
Batches = list[tuple[dict[str, Tensor], Tensor]]


@dataclass
class Task:
    """A backbone and its data.

    Attributes:
        kind: the settings' class.
        settings: those that differ from the defaults.
        layers: for partial fine-tuning, how many blocks learn: half of them, a quarter, one.
    """

    kind: type[RunConfig]
    settings: dict[str, Any]
    layers: tuple[int, ...]
    loaded: dict[int, tuple[Any, Any, Any, Any]] = field(default_factory=dict, repr=False)
    pixels: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def config(self, **more: Any) -> RunConfig:
        """The settings of a run."""
        return self.kind(
            **{
                **self.settings, "num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH_SIZE,
                "output_dir": "unused", "save_steps": 0, **more,
            }
        )  # fmt: skip

    def run(self, config: RunConfig) -> "Run":
        """A fresh model and its data, which is loaded once for each cut."""
        if config.split_seed not in self.loaded:
            self.loaded[config.split_seed] = data_of(config)
        checkpoint, splits, pipeline, make_loaders = self.loaded[config.split_seed]
        prepared = prepare_model(checkpoint, choose_strategy(config), splits.label_names, config, pipeline.example())
        return Run(config, prepared, splits, pipeline, make_loaders, self.pixels)


@dataclass(frozen=True)
class Run:
    """Everything a training needs."""

    config: RunConfig
    prepared: Prepared
    splits: Any
    pipeline: Any
    make_loaders: Callable[..., Any]
    pixels: dict[int, Tensor]

    def loaders(self, accelerator: Any) -> Any:
        """Loaders that find the images of earlier runs decoded."""
        loaders = self.make_loaders(self.splits, self.pipeline, self.config, accelerator, True)
        for split in ("train", "validation", "test"):
            if hasattr(loaders.of(split).dataset, "_kept"):
                loaders.of(split).dataset._kept = self.pixels
        return loaders

    def train(self) -> tuple[float, float, float]:
        """Ours: seconds of `fit`, accuracy on validation, accuracy on test."""
        with start_accelerator(self.config) as accelerator, contextlib.redirect_stdout(io.StringIO()):
            loaders = self.loaders(accelerator)
            started = time.perf_counter()
            fitted = fit(
                self.prepared.model, choose_strategy(self.config), self.prepared.groups, loaders, self.config,
                accelerator,
            )  # fmt: skip
            seconds = time.perf_counter() - started
            test = predict_split(fitted.model, loaders, "test", accelerator).metrics()["accuracy"]
        return seconds, fitted.history[fitted.best_epoch]["accuracy"], test


TASKS = {
    "vit": Task(
        VisionConfig,
        {"model_name_or_path": "sample:vit-glyphs", "dataset_name": "sample:digits", "augmentation": "none"},
        (3, 2, 1),
    ),
    "resnet": Task(
        VisionConfig,
        {"model_name_or_path": "sample:resnet-glyphs", "dataset_name": "sample:digits", "augmentation": "none"},
        (2, 1),
    ),
    "bert": Task(TextConfig, {"model_name_or_path": "sample:minilm", "dataset_name": "sample:intents"}, (3, 2, 1)),
}


class Prober:
    """Linear probes of one task, all on the same decoded samples."""

    def __init__(self, task: Task, split_seed: int) -> None:
        self.task, self.split_seed = task, split_seed

    def ours(self, folder: Path) -> tuple[float, float, float]:
        """A probe with its store in `folder`."""
        more = {"cache_frozen": "on", "cache_dir": str(folder), "split_seed": self.split_seed}
        return self.task.run(self.task.config(strategy="linear_probe", **more)).train()

    def batches(self) -> tuple[nn.Module, str, Callable[[str], Any]]:
        """A fresh model with a frozen backbone, the name of its head, and what gives the samples of a split."""
        run = self.task.run(self.task.config(strategy="linear_probe", split_seed=self.split_seed))
        model, groups = run.prepared.model, run.prepared.groups
        set_trainable(model, groups, frozenset(groups[-1].parameters))
        with start_accelerator(run.config) as accelerator:
            loaders = run.loaders(accelerator)

        def samples(split: str) -> Batches:
            found = []
            for batch in loaders.of(split):
                inputs, labels, _ = loaders.to_inputs(batch, torch.device("cpu"), split, None)
                found.append((inputs, labels))
            return found

        return model, groups[-1].modules[0], samples

    def by_hand(self, rate: float) -> tuple[float, float, float]:
        """A loop as people write it: backbone in evaluation mode, AdamW on the head, validation after each epoch."""
        model, head, samples = self.batches()
        layer = model.get_submodule(head)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=rate)
        model.eval()
        samples("train")
        started, best, test = time.perf_counter(), -1.0, 0.0
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
        test = accuracy(model, samples("test"))
        return seconds, best, test

    def trainers(self, rate: float) -> tuple[float, float, float]:
        """`transformers.Trainer`: ten epochs, judged on validation after each, the best one kept."""
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, default_data_collator

        model, _, samples = self.batches()
        rows = {split: _single(samples(split)) for split in ("train", "validation", "test")}
        tokens = "input_ids" in rows["train"][0]
        collator: Any = DataCollatorWithPadding(self.task.loaded[self.split_seed][2].tokenizer) if tokens else None
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, num_train_epochs=EPOCHS, learning_rate=rate, report_to="none", disable_tqdm=True,
                per_device_train_batch_size=BATCH_SIZE, per_device_eval_batch_size=64, use_cpu=True,
                eval_strategy="epoch", save_strategy="no", seed=0,
            )  # fmt: skip
            trainer: Any = Trainer(
                model, arguments, train_dataset=rows["train"], eval_dataset=rows["validation"],
                data_collator=collator or default_data_collator,
                compute_metrics=lambda found: {"accuracy": float((found[0].argmax(-1) == found[1]).mean())},
            )  # fmt: skip
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.train()
            seconds = time.perf_counter() - started
            best = max(entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry)
            found: Any = trainer.predict(rows["test"])
        return seconds, best, float((found.predictions.argmax(-1) == found.label_ids).mean())

    def scikit_learns(self, _: float) -> tuple[float, float, float]:
        """Features once, then logistic regression on them, its strength chosen on validation."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model, head, samples = self.batches()
        model.set_submodule(head, nn.Identity())
        model.eval()

        def features(split: str) -> tuple[Any, Any]:
            with torch.no_grad():
                parts = [(model(**inputs).logits.numpy(), labels.numpy()) for inputs, labels in samples(split)]
            return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

        samples("train")
        started = time.perf_counter()
        train, validation = features("train"), features("validation")
        best, chosen = -1.0, None
        for strength in np.logspace(-4, 3, 15):
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(*train)
            if (score := classifier.score(*validation)) > best:
                best, chosen = score, classifier
        seconds = time.perf_counter() - started
        assert chosen is not None
        return seconds, best, float(chosen.score(*features("test")))


@torch.no_grad()
def accuracy(model: nn.Module, samples: Batches) -> float:
    """Share of the samples that a model gets right."""
    right = sum(int((model(**inputs).logits.argmax(-1) == labels).sum()) for inputs, labels in samples)
    return right / sum(len(labels) for _, labels in samples)


def _single(batches: Batches) -> list[dict[str, Any]]:
    """Samples one by one, as Trainer wants them; texts without their padding."""
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
    arms = {"Trainer": Prober.trainers, "by hand": Prober.by_hand, "scikit-learn": Prober.scikit_learns}
    first = Prober(task, 0)
    scores = {name: {rate: arm(first, rate)[1] for rate in RATES} for name, arm in arms.items() if "learn" not in name}
    rates = {name: max(found, key=found.__getitem__) for name, found in scores.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("cold", "warm", *arms)}
    test: dict[str, list[float]] = {name: [] for name in seconds}
    for number in range(rounds):
        prober = Prober(task, number)
        with tempfile.TemporaryDirectory() as folder:
            found = {name: prober.ours(Path(folder)) for name in ("cold", "warm")}
        found |= {name: arm(prober, rates.get(name, 0.0)) for name, arm in arms.items()}
        for name, (taken, _, score) in found.items():
            seconds[name].append(taken)
            test[name].append(score)
    ratios = {
        f"{name} / {own}": median_interval((np.asarray(seconds[name]) / np.asarray(seconds[own])).tolist())
        for name in arms
        for own in ("cold", "warm")
    }
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {"seconds": medians, "test": test, "rates": rates, "ratios": ratios}


class _Parts:
    """The two sides of a cut, timed on batches that are in memory."""

    def __init__(self, task: Task, layers: int) -> None:
        run = task.run(task.config(strategy="partial", trainable_layers=layers))
        self.model, groups = run.prepared.model, run.prepared.groups
        stage = choose_strategy(run.config).stages(groups, EPOCHS)[0]
        set_trainable(self.model, groups, stage.trainable)
        with start_accelerator(run.config) as accelerator:
            loaders = run.loaders(accelerator)
        self.batches = {
            split: [loaders.to_inputs(batch, torch.device("cpu"), split, None)[:2] for batch in loaders.of(split)]
            for split in ("train", "validation")
        }
        self.cut = Cut(self.model, groups, len(run.prepared.frozen[""]), run.pipeline.example())
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=True)

    def bound(self) -> tuple[float, float]:
        """Seconds of ten epochs without a store, and the least with one."""
        prefix, recorded = 0.0, dict[str, list[list[Tensor]]]()
        for split, batches in self.batches.items():
            started = time.perf_counter()
            recorded[split] = [self.cut.record(self.model, inputs) for inputs, _ in batches]
            prefix += time.perf_counter() - started
        with self.cut.skipped(self.model) as stand:

            def steps(split: str) -> float:
                self.model.train(split == "train")
                started = time.perf_counter()
                for (inputs, labels), tensors in zip(self.batches[split], recorded[split], strict=True):
                    stand.put([tensor.clone() for tensor in tensors], inputs)
                    with torch.set_grad_enabled(split == "train"):
                        loss = cross_entropy(self.model(**self.cut.blank(inputs)).logits, labels)
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
    parts = _Parts(task, layers)
    found: dict[str, list[float]] = {"off": [], "cold": [], "warm": [], "bound": []}
    for _ in range(rounds):
        folder = tempfile.mkdtemp()
        for name, cache in (("off", "off"), ("cold", "on"), ("warm", "on")):
            config = task.config(strategy="partial", trainable_layers=layers, cache_frozen=cache, cache_dir=folder)
            found[name].append(task.run(config).train()[0])
        shutil.rmtree(folder)
        without, least = parts.bound()
        found["bound"].append(without / least)
    values = {name: np.asarray(numbers) for name, numbers in found.items()}
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
            keys = [f"{arm} / {own}" for own in ("cold", "warm")]
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
