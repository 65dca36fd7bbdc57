"""How fast does a BERT learn? An epoch of ours against one of `transformers.Trainer`, and like lengths against padding.

    python -m benchmarks.text_speed

Rounds are interleaved, in an order drawn at random, on copies of `sample:minilm` and texts of mixed length: docstrings
of Python's own library. Trainer gets the very batches that our loop gets, in the same order. Next to each ratio stands
that of two identical arms (A/A), which shows what the machine's own unrest makes of it.
"""

import ast
import contextlib
import io
import json
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.intervals import median_interval
from benchmarks.trials import epochs_of_ours
from hf_transfer.config import TextConfig
from hf_transfer.data.sources import Splits, load_text_splits
from hf_transfer.data.tokens import TokenPipeline, text_loaders
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.strategies.choice import choose_strategy, prepare_model
from hf_transfer.training.loop import start_accelerator

ROUNDS = 20
TEXTS = 64
BATCH_SIZE = 16
FIXED_LENGTH = 128
RESULTS = Path(__file__).parent / "results" / "text_speed.json"
Epoch = Callable[[int], object]


def docstrings(count: int, seed: int = 0) -> list[str]:
    """Docstrings of functions and classes in Python's library, drawn with `seed`: from three words to hundreds."""
    found = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                found.add(" ".join(text.split()))
    texts = sorted(text for text in found if len(text.split()) >= 3)
    return [texts[number] for number in np.random.default_rng(seed).permutation(len(texts))[:count]]


def write_texts(folder: Path) -> None:
    """The docstrings as a data set of two classes, which are of no interest here."""
    for split in ("train", "validation", "test"):
        rows = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(docstrings(TEXTS))]
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")


class _Arm:
    """A copy of the model with its batches."""

    def __init__(self, folder: Path, *, fixed_length: bool = False, sampling: str = "group_by_length") -> None:
        self.config = TextConfig(
            model_name_or_path="sample:minilm",
            dataset_name=str(folder),
            strategy="full",
            rdrop_alpha=0.0,
            learning_rate=1e-5,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=0,
            num_train_epochs=ROUNDS + 1,
            per_device_train_batch_size=BATCH_SIZE,
            max_seq_length=FIXED_LENGTH,
            train_sampling_strategy=sampling,  # type: ignore[arg-type]
            output_dir="unused",
            save_steps=0,
        )
        checkpoint = Checkpoint("sample:minilm", task="text-classification")
        self.pipeline: TokenPipeline = (_FixedLength if fixed_length else TokenPipeline)(
            checkpoint.tokenizer(), model_limit=checkpoint.longest_input, max_seq_length=FIXED_LENGTH
        )
        self.splits: Splits = load_text_splits(self.config)
        self.strategy = choose_strategy(self.config)
        self.prepared = prepare_model(
            checkpoint, self.strategy, self.splits.label_names, self.config, self.pipeline.example()
        )

    def ours(self, accelerator: Any) -> Epoch:
        """An epoch of `training.loop`."""
        prepared, config = self.prepared, self.config
        loaders = text_loaders(self.splits, self.pipeline, config, accelerator)
        epoch = epochs_of_ours(prepared.model, prepared.groups, loaders, config, accelerator)
        return lambda number: epoch(number)["seconds"]

    def trainers(self, accelerator: Any) -> Epoch:
        """An epoch of `transformers.Trainer` on the same batches; only the epoch itself counts."""
        loaders = text_loaders(self.splits, self.pipeline, self.config, accelerator)
        clock = _Clock()
        batches = loaders.train

        class OnTheseBatches(Trainer):
            def get_train_dataloader(self) -> DataLoader[Any]:
                return _WithoutIndex(batches)  # type: ignore[return-value]

        arguments = TrainingArguments(
            output_dir="runs/trainer", num_train_epochs=1, learning_rate=1e-5, lr_scheduler_type="constant",
            weight_decay=self.config.weight_decay, per_device_train_batch_size=BATCH_SIZE, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = OnTheseBatches(self.prepared.model, arguments, train_dataset=batches.dataset, callbacks=[clock])

        def epoch(number: int) -> float:
            batches.set_epoch(number)
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.train()
            return clock.seconds

        return epoch


class _FixedLength(TokenPipeline):
    """Pads every text to the same length, as many scripts do."""

    def pad(self, texts: Any) -> Any:
        return dict(self.tokenizer.pad(texts, padding="max_length", max_length=FIXED_LENGTH, return_tensors="pt"))


class _WithoutIndex:
    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.dataset = batches.dataset

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield {name: value for name, value in batch.items() if name != "index"}


class _Clock(TrainerCallback):
    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def measure(folder: Path) -> dict[str, Any]:
    """Median ratios with 95 % intervals."""
    write_texts(folder)
    generator = np.random.default_rng(0)
    config = _Arm(folder).config
    with start_accelerator(config) as accelerator:
        loops: dict[str, Epoch] = {
            "ours": _Arm(folder).ours(accelerator),
            "ours again": _Arm(folder).ours(accelerator),
            "Trainer": _Arm(folder).trainers(accelerator),
            "fixed length": _Arm(folder, fixed_length=True, sampling="random").ours(accelerator),
            "padded, random order": _Arm(folder, sampling="random").ours(accelerator),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(ROUNDS + 1):
            for name in generator.permutation(list(loops)).tolist():
                taken = float(str(loops[name](number)))
                if number:  # the first warms up
                    seconds[name].append(taken)
    ours = np.asarray(seconds["ours"])
    ratios = {
        "ours / Trainer": (ours / np.asarray(seconds["Trainer"])).tolist(),
        "ours / ours again (A/A)": (ours / np.asarray(seconds["ours again"])).tolist(),
        "speed against a fixed length": (np.asarray(seconds["fixed length"]) / ours).tolist(),
        "speed against random order": (np.asarray(seconds["padded, random order"]) / ours).tolist(),
    }
    return {
        "epoch_seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ratios": {name: median_interval(values) for name, values in ratios.items()},
    }


def main() -> None:
    """Measure, print the table, save the numbers."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    machine = {"threads": torch.get_num_threads(), "rounds": ROUNDS, "texts": TEXTS, "fixed_length": FIXED_LENGTH}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n", encoding="utf-8")
    print("| ratio | median (95 % interval) |\n|---|---:|")
    for name, values in found["ratios"].items():
        print("| {} | {:.3f} ({:.3f} to {:.3f}) |".format(name, *values))


if __name__ == "__main__":
    main()
