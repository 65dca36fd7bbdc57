"""Texts, all rows: ours next to `transformers.Trainer` at its best of three rates, and to AutoGluon.

    python -m benchmarks.automl DATA WEIGHTS [--strategies NAME ...] [--autogluon PYTHON] [--sets NAME ...]

DATA is a folder with the data sets `wordnet` and `manpages_de`, each with its three splits; WEIGHTS has the model
`minilm_l6`, from which all start. AutoGluon has an environment of its own, whose Python is named; without it the others
are measured. Each run is a process of its own with one thread; the arms of a seed are run in an order that is drawn.
Each finished run is written at once: the same command continues an interrupted measurement.

    python3 -m venv AG && AG/bin/pip install autogluon.multimodal==1.6.3 torch==2.13.0
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.intervals import difference
from benchmarks.processes import run_alone
from benchmarks.random_models import REPOSITORY
from benchmarks.ranking import cut
from benchmarks.text_classifiers import Task
from benchmarks.trials import ALONE, answers, trained_alone, write_rows

RESULTS = Path(__file__).parent / "results" / "automl.json"
MODEL = "minilm_l6"
# Tokens of a text, for all.
SETS = {"wordnet": 64, "manpages_de": 256}
RATES = (5e-5, 1e-4, 3e-4)
EPOCHS, BATCH = 6, 16
SEEDS = (0, 1)
AUTOGLUON, TRAINER, OURS = "AutoGluon", "Trainer, rate {:g}", "ours, {}"


def measured(arm: str, data: Path, weights: Path, length: int, seed: int, python: str) -> dict[str, Any]:
    """The figures of a run: see `trained_alone`.

    Args:
        arm: what is run.
        data: the folder of the data set.
        weights: the folder of the models.
        length: tokens of a text at most.
        seed: of the run.
        python: with which AutoGluon runs.
    """
    model = str(weights / MODEL)
    if arm.startswith(OURS.format("")):
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "strategy": arm.removeprefix(OURS.format("")), "pooling": "mean", "max_seq_length": length,
                "seed": seed, "dataset_name": str(data), "model_name_or_path": model, "output_dir": f"{folder}/out",
                "cache_dir": f"{folder}/cache",
            }  # fmt: skip
            return trained_alone("text", settings)
    rates = {TRAINER.format(rate): rate for rate in RATES}
    task = Task(str(data), model, length, BATCH, seed, rates.get(arm, 0.0), EPOCHS)
    if arm == AUTOGLUON:
        words = [python, str(Path(__file__).with_name("text_classifiers.py")), "autogluon"]
    else:
        words = [sys.executable, "-m", "benchmarks.text_classifiers", "trainer"]
    ended = run_alone([*words, json.dumps(task._asdict())], folder=REPOSITORY, environment=ALONE)
    figures: dict[str, Any] = json.loads(ended.printed.strip().splitlines()[-1])
    return {**figures, "seconds": ended.clock, "cpu_seconds": ended.processor}


def chosen_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of a set by what is shown: of Trainer, the rate with the best validation, by the mean over the seeds."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    trainers = [arm for arm in by_arm if arm in map(TRAINER.format, RATES)]
    best = max(trainers, key=lambda arm: mean(row["validation"] for row in by_arm[arm]), default=None)
    return {arm: of for arm, of in by_arm.items() if arm not in trainers or arm == best}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: for each set a line for each way of training, compared with Trainer and with AutoGluon."""
    yield "| data | what | test accuracy (95 % interval) | better than Trainer | than AutoGluon | seconds of the CPU |"
    yield "|---|---|---:|---:|---:|---:|"
    for name in SETS:
        of_set = [row for row in rows if row["set"] == name]
        shown = chosen_rows(of_set)
        trainer = next((arm for arm in shown if arm in map(TRAINER.format, RATES)), None)
        search = sum(row["cpu_seconds"] for row in of_set if row["arm"] in map(TRAINER.format, RATES))
        for arm, of_arm in sorted(shown.items(), key=lambda one: -mean(row["accuracy"] for row in one[1])):
            right = answers(of_arm)
            # Against none that is right: the interval of the accuracy itself.
            accuracy = "{:.1f} % ({:.1f} to {:.1f})".format(*difference(right, np.zeros_like(right)))
            better = [
                "" if reference == arm else _better(of_arm, shown.get(reference or "", []))
                for reference in (trainer, AUTOGLUON)
            ]
            seconds = f"{median(row['cpu_seconds'] for row in of_arm):.0f}"
            if arm == trainer:
                seconds += f"; all rates {search / len(of_arm):.0f}"
            yield f"| {name} | {arm} | {accuracy} | {' | '.join(better)} | {seconds} |"


def _better(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    """By how many points rows are better than others, with its 95 % interval, on the seeds that both have."""
    shared = {row["seed"] for row in rows} & {row["seed"] for row in others}
    if not shared:
        return ""
    pair = (answers([row for row in one if row["seed"] in shared]) for one in (rows, others))
    return "{:+.1f} ({:.1f} to {:.1f})".format(*difference(*pair))


def main() -> None:
    """Measure what is missing, save each figure beside earlier ones, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder of the data sets.")
    parser.add_argument("weights", type=Path, help="The folder of the pretrained models.")
    parser.add_argument("--strategies", nargs="+", default=["full", "lp_ft"], help="Ours, by the names of --strategy.")
    parser.add_argument("--autogluon", metavar="PYTHON", help="The Python of AutoGluon's environment.")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="Only these.")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="Of the runs.")
    parser.add_argument("--rows_of_a_class", type=int, help="Of training: the first ones (default: all).")
    parser.add_argument("--results", type=Path, default=RESULTS, help="The file of the figures.")
    arguments = parser.parse_args()
    rows = json.loads(arguments.results.read_text(encoding="utf-8"))["rows"] if arguments.results.is_file() else []
    arms = [*map(OURS.format, arguments.strategies), *map(TRAINER.format, RATES)]
    arms += [AUTOGLUON] if arguments.autogluon else []
    settings = {
        "model": MODEL, "lengths": SETS, "epochs": EPOCHS, "batch": BATCH, "rows_of_a_class": arguments.rows_of_a_class
    }  # fmt: skip
    for seed in arguments.seeds:
        for name in arguments.sets:
            with tempfile.TemporaryDirectory() as folder:
                data = cut(arguments.data / name, Path(folder), {"train": arguments.rows_of_a_class})
                for arm in np.random.default_rng(seed).permutation(arms).tolist():
                    if any((row["set"], row["arm"], row["seed"]) == (name, arm, seed) for row in rows):
                        continue
                    figures = measured(arm, data, arguments.weights, SETS[name], seed, arguments.autogluon or "")
                    rows.append({"set": name, "arm": arm, "seed": seed, **figures})
                    write_rows(arguments.results, settings, rows)
                    words = f"{name}, {arm}, seed {seed}: {figures['accuracy']:.3f} in {figures['cpu_seconds']:.0f} s"
                    print(words, file=sys.stderr, flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
