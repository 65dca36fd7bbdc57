"""Full fine-tuning of a BERT next to `transformers.Trainer`: how good, and how long does it take?

    python -m benchmarks.full_fine_tuning FOLDER        # FOLDER as written by `python -m benchmarks.debian_texts`

Ours has its default settings; Trainer has, beside its defaults, the better of the two usual choices of epochs and rate.
Both see the same splits and pad to the longest of a batch; Trainer is given the
test accuracy of its last epoch, ours that of the epoch that validation picked.
"""

import argparse
import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.intervals import mean_interval
from benchmarks.trials import data_of
from hf_transfer.config import TextConfig
from hf_transfer.data.tokens import TextRows
from hf_transfer.strategies.choice import choose_strategy, prepare_model
from hf_transfer.training.loop import fit, start_accelerator
from hf_transfer.training.predictions import predict_split

BACKBONE = "sample:minilm"
TRAINERS = ((5, 5e-5), (8, 1e-4))
OURS = ("full", "lp_ft")
SEEDS = (0, 1, 2, 3, 4)
RESULTS = Path(__file__).parent / "results" / "full_fine_tuning.json"


def settings(folder: Path, strategy: str, seed: int) -> TextConfig:
    """Our default settings."""
    return TextConfig(
        model_name_or_path=BACKBONE,
        dataset_name=str(folder),
        strategy=strategy,  # type: ignore[arg-type]
        seed=seed,
        output_dir="unused",
        save_steps=0,
    )


def ours(folder: Path, strategy: str, seed: int) -> dict[str, float]:
    """Test accuracy, and seconds of training and validation."""
    config = settings(folder, strategy, seed)
    checkpoint, splits, pipeline, make_loaders = data_of(config)
    chosen = choose_strategy(config)
    prepared = prepare_model(checkpoint, chosen, splits.label_names, config, pipeline.example())
    with start_accelerator(config) as accelerator, contextlib.redirect_stdout(io.StringIO()):
        loaders = make_loaders(splits, pipeline, config, accelerator, prepared.frozen_blocks)
        started = time.perf_counter()
        fitted = fit(prepared.model, chosen, prepared.groups, loaders, config, accelerator)
        seconds = time.perf_counter() - started
        accuracy = predict_split(fitted.model, loaders, "test", accelerator).metrics()["accuracy"]
    return {"accuracy": accuracy, "seconds": seconds}


def trainers(
    folder: Path, epochs: int, rate: float, seed: int, *, frozen: bool = False, judged_by: str = "test"
) -> dict[str, float]:
    """The same of `transformers.Trainer`, with its last epoch; of its head alone, if the backbone is frozen."""
    config = settings(folder, "full", seed)
    checkpoint, splits, pipeline, _ = data_of(config)
    model: Any = checkpoint.classifier(splits.label_names, seed=seed, fresh_weights=False)
    model.base_model.requires_grad_(not frozen)

    def rows(name: str) -> Any:
        split = TextRows(dict(splits.items())[name], pipeline)
        return [{**split[n]["tokens"], "labels": split[n]["label"]} for n in range(len(split))]

    arguments = TrainingArguments(
        output_dir="runs/trainer", num_train_epochs=epochs, learning_rate=rate, seed=seed, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=rows("train"), data_collator=DataCollatorWithPadding(pipeline.tokenizer)
    )
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
        seconds = time.perf_counter() - started
        found: Any = trainer.predict(rows(judged_by))
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean()), "seconds": seconds}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: accuracy and seconds of each arm."""
    lines = ["| arm | test accuracy | seconds |", "|---|---:|---:|"]
    for arm, runs in results.items():
        score, half = mean_interval([100 * run["accuracy"] for run in runs])
        seconds = float(np.median([run["seconds"] for run in runs]))
        lines.append(f"| {arm} | {score:.1f} ± {half:.1f} % | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure arm after arm in each round, so that all meet the same unrest; save and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        for strategy in OURS:
            arm = f"ours, `{strategy}`"
            results.setdefault(arm, []).append(ours(arguments.folder, strategy, seed))
            print(arm, seed, results[arm][-1], flush=True)
        for epochs, rate in TRAINERS:
            arm = f"Trainer, {epochs} epochs, {rate:g}"
            results.setdefault(arm, []).append(trainers(arguments.folder, epochs, rate, seed))
            print(arm, seed, results[arm][-1], flush=True)
        machine = {"threads": torch.get_num_threads(), "seeds": list(arguments.seeds)}
        RESULTS.write_text(json.dumps({"machine": machine, "arms": results}, indent=2) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
