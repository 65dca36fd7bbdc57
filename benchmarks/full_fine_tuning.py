"""Full fine-tuning of a BERT next to `transformers.Trainer`: how good, and how long does it take?

    python -m benchmarks.full_fine_tuning FOLDER        # FOLDER as written by `python -m benchmarks.debian_texts`

Ours has its default settings, and `full` R-Drop. Trainer has its own, apart from epochs and rate: two usual choices are
measured. Both use the same splits and pad to the longest text of a batch. The test accuracy of Trainer is that of its
last epoch, ours that of the epoch that was best on validation.
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
from benchmarks.trials import accuracy_on_test, ready_run, train
from hf_transfer.modalities.text_batches import TextRows
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.settings.run import TextConfig

BACKBONE = "sample:minilm"
TRAINERS = ((5, 5e-5), (8, 1e-4))
OURS: dict[str, dict[str, Any]] = {
    "`full` with R-Drop": {"strategy": "full", "rdrop_alpha": 1.0},
    "`lp_ft`": {"strategy": "lp_ft"},
}
SEEDS = (0, 1, 2, 3, 4)
RESULTS = Path(__file__).parent / "results" / "full_fine_tuning.json"


def settings(folder: Path, seed: int, **more: Any) -> TextConfig:
    """Our default settings, but for some."""
    return TextConfig.of(
        model_name_or_path=BACKBONE,
        dataset_name=str(folder),
        seed=seed,
        output_dir="unused",
        save_steps=0,
        **more,
    )


def ours(folder: Path, arm: str, seed: int) -> dict[str, float]:
    """Test accuracy, and seconds of training and validation."""
    with ready_run(settings(folder, seed, **OURS[arm])) as run:
        fitted, seconds = train(run)
        return {"accuracy": accuracy_on_test(run, fitted), "seconds": seconds}


def trainers(
    folder: Path, epochs: int, rate: float, seed: int, *, frozen: bool = False, judged_by: str = "test"
) -> dict[str, float]:
    """The same of `transformers.Trainer`, with its last epoch; of its head alone, if the backbone is frozen."""
    with ready_run(settings(folder, seed, strategy="full")) as run:
        # Not the run's own model: its new head is larger.
        model: Any = run.checkpoint.classifier(run.splits.target, seed=seed, fresh_weights=False)
        preprocessing: TokenPreprocessing = run.preprocessing  # type: ignore[assignment]
        model.base_model.requires_grad_(not frozen)

        def rows(name: str) -> Any:
            split = TextRows(run.splits.of(name), preprocessing)
            return [{**split[n]["tokens"], "labels": split[n]["target"]} for n in range(len(split))]

        train_rows, judged_rows = rows("train"), rows(judged_by)
    arguments = TrainingArguments(
        output_dir="runs/trainer", num_train_epochs=epochs, learning_rate=rate, seed=seed, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=train_rows, data_collator=DataCollatorWithPadding(preprocessing.tokenizer)
    )
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
        seconds = time.perf_counter() - started
        judged: Any = trainer.predict(judged_rows)
    return {"accuracy": float((judged.predictions.argmax(-1) == judged.label_ids).mean()), "seconds": seconds}


def table(arms: dict[str, list[dict[str, float]]], what_took: str = "seconds", *, digits: int = 0) -> str:
    """Markdown: accuracy and seconds of each arm, with so many digits after the point."""
    lines = [f"| arm | test accuracy | {what_took} |", "|---|---:|---:|"]
    for arm, runs in arms.items():
        score, half = mean_interval([100 * run["accuracy"] for run in runs])
        seconds = float(np.median([run["seconds"] for run in runs]))
        lines.append(f"| {arm} | {score:.1f} ± {half:.1f} % | {seconds:.{digits}f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all arms in each round, so that noise of the machine is the same for all; save and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        for name in OURS:
            arm = f"ours, {name}"
            results.setdefault(arm, []).append(ours(arguments.folder, name, seed))
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
