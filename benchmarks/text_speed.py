"""How fast does a BERT train? An epoch of ours against one of `transformers.Trainer`; similar lengths against padding.

    python -m benchmarks.text_speed

Rounds are interleaved, in an order drawn at random, on copies of `sample:minilm` and texts of mixed length: docstrings
of Python's own library. Trainer gets the very batches that our loop gets, in the same order. The ratio of two identical
arms (A/A) shows how much of a difference is noise of the machine.
"""

import ast
import contextlib
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.intervals import median_interval
from benchmarks.trainer_epochs import epochs_of_trainer
from benchmarks.trials import epochs_of_ours, ready_run
from hf_transfer.data.batches import Loaders
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.run import Run
from hf_transfer.settings.run import TextConfig

ROUNDS = 20
TEXTS = 64
BATCH_SIZE = 16
FIXED_LENGTH = 128
RESULTS = Path(__file__).parent / "results" / "text_speed.json"
Epoch = Callable[[int], object]


def docstrings(count: int, seed: int = 0) -> list[str]:
    """Docstrings of functions and classes in Python's library, drawn with `seed`: from three words to hundreds."""
    docstrings_found = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                docstrings_found.add(" ".join(text.split()))
    long_enough = sorted(text for text in docstrings_found if len(text.split()) >= 3)
    return [long_enough[number] for number in np.random.default_rng(seed).permutation(len(long_enough))[:count]]


def write_texts(folder: Path) -> None:
    """The docstrings as a data set of two classes, which mean nothing."""
    for split in ("train", "validation", "test"):
        rows = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(docstrings(TEXTS))]
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")


def settings(folder: Path, sampling: Literal["group_by_length", "random"] = "group_by_length") -> TextConfig:
    """Full fine-tuning of `sample:minilm` on the texts in a folder."""
    return TextConfig.of(
        model_name_or_path="sample:minilm",
        dataset_name=str(folder),
        strategy="full",
        rdrop_alpha=0.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=0.0,
        num_train_epochs=ROUNDS + 1,
        per_device_train_batch_size=BATCH_SIZE,
        max_seq_length=FIXED_LENGTH,
        train_sampling_strategy=sampling,
        output_dir="unused",
        save_steps=0,
    )


def ours(run: Run, loaders: Loaders | None = None) -> Epoch:
    """An epoch of `training.loop`; what it returns is seconds."""
    epoch = epochs_of_ours(run, loaders)
    return lambda number: epoch(number)["seconds"]


def padded_to_fixed_length(run: Run) -> Loaders:
    """The batches of a run, with every text padded to the same length, as many scripts do."""
    checkpoint = run.checkpoint.parts[0]
    preprocessing = _FixedLength(
        checkpoint.tokenizer(), model_limit=checkpoint.longest_input, max_seq_length=FIXED_LENGTH
    )
    return run.modality.loaders(run.splits, preprocessing, run.config, run.accelerator, frozen_prefix=False)


class _FixedLength(TokenPreprocessing):
    """Pads every text to the same length."""

    def pad(self, texts: Any) -> Any:
        return dict(self.tokenizer.pad(texts, padding="max_length", max_length=FIXED_LENGTH, return_tensors="pt"))


def measure(folder: Path) -> dict[str, Any]:
    """Median ratios with 95 % intervals."""
    write_texts(folder)
    generator = np.random.default_rng(0)
    with contextlib.ExitStack() as runs:

        def run(sampling: Literal["group_by_length", "random"] = "group_by_length") -> Run:
            return runs.enter_context(ready_run(settings(folder, sampling)))

        fixed = run("random")
        loops: dict[str, Epoch] = {
            "ours": ours(run()),
            "ours again": ours(run()),
            "Trainer": epochs_of_trainer(run()),
            "fixed length": ours(fixed, padded_to_fixed_length(fixed)),
            "padded, random order": ours(run("random")),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(ROUNDS + 1):
            for name in generator.permutation(list(loops)).tolist():
                taken = float(str(loops[name](number)))
                if number:  # the first warms up
                    seconds[name].append(taken)
    grouped = np.asarray(seconds["ours"])
    ratios = {
        "ours / Trainer": (grouped / np.asarray(seconds["Trainer"])).tolist(),
        "ours / ours again (A/A)": (grouped / np.asarray(seconds["ours again"])).tolist(),
        "speed against a fixed length": (np.asarray(seconds["fixed length"]) / grouped).tolist(),
        "speed against random order": (np.asarray(seconds["padded, random order"]) / grouped).tolist(),
    }
    return {
        "epoch_seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ratios": {name: median_interval(values) for name, values in ratios.items()},
    }


def main() -> None:
    """Measure, print the table, save the figures."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    machine = {"threads": torch.get_num_threads(), "rounds": ROUNDS, "texts": TEXTS, "fixed_length": FIXED_LENGTH}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n", encoding="utf-8")
    print("| ratio | median (95 % interval) |\n|---|---:|")
    for name, values in figures["ratios"].items():
        print("| {} | {:.3f} ({:.3f} to {:.3f}) |".format(name, *values))


if __name__ == "__main__":
    main()
