"""Does `hf-transfer rank` name the model that is best after fine-tuning? With real pretrained models.

    python -m benchmarks.ranking DATA WEIGHTS [--sets NAME ...] [--seeds N ...]

DATA is a folder with the data sets `wordnet` and `manpages_de` (texts) and `stamps` (pictures), each with its three
splits; WEIGHTS has the models of `SETS`. Of each class the first rows are used. Every model is ranked on the training
rows, and fine-tuned on them with `--strategy full` and the settings in `SETS`, each in a process of its own with one
thread. Each finished training is written at once: the same command continues an interrupted measurement.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas
from scipy.stats import weightedtau

from benchmarks.intervals import Floats, difference
from benchmarks.processes import run_alone
from benchmarks.random_models import REPOSITORY
from benchmarks.trials import ALONE, answers, trained_alone

RESULTS = Path(__file__).parent / "results" / "ranking.json"
SEEDS = (0, 1)
# What may name the first model, and what stands for it in the file of a ranking.
SCORES = {
    "probe, our score": "probe",
    "nearest neighbours": "neighbours",
    "LogME": "log_evidence",
    "H-score": "h_score",
    "number of parameters": "parameters",
}


class Case(NamedTuple):
    """A data set and the models for it.

    Attributes:
        recipe: vision or text.
        models: folders of the weights, or samples.
        train_rows: of each class at most; None: all.
        validation_rows: the same.
        ranked_with: settings of ranking and training.
        trained_with: further settings of training.
    """

    recipe: str
    models: tuple[str, ...]
    train_rows: int | None
    validation_rows: int | None
    ranked_with: dict[str, Any]
    trained_with: dict[str, Any]


ENCODERS = ("minilm_l6", "minilm_l3", "mpnet_base", "e5_small_enpt", "e5_small_multilingual")
BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "sample:resnet-glyphs")
# All encoders were made for the mean of the tokens. R-Drop would double the time.
TEXTS = {"pooling": "mean", "bf16": True, "rdrop_alpha": 0.0}
SETS = {
    "wordnet": Case("text", ENCODERS, 16, 15, {}, {**TEXTS, "num_train_epochs": 6}),
    "manpages_de": Case("text", ENCODERS, 40, None, {"max_seq_length": 128}, {**TEXTS, "num_train_epochs": 3}),
    "stamps": Case("vision", BACKBONES, None, None, {}, {"num_train_epochs": 6, "learning_rate": 3e-4}),
}


def cut(data: Path, folder: Path, most: Mapping[str, int | None]) -> Path:
    """A data set of tables with the first rows of each class.

    Args:
        data: its folder.
        folder: for the tables that are cut.
        most: rows of a class by split; None, or a split that is not named: all.
    """
    if not any(most.values()):
        return data
    for split in ("train", "validation", "test"):
        rows, count = pandas.read_csv(data / f"{split}.csv"), most.get(split)
        rows = rows if count is None else rows.groupby("label").head(count)
        rows.to_csv(folder / f"{split}.csv", index=False)
    return folder


def trained(case: Case, model: str, seed: int, data: Path) -> dict[str, Any]:
    """The figures of a fine-tuned model on the test split: see `trained_alone`."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            **case.ranked_with, **case.trained_with, "strategy": "full", "seed": seed, "dataset_name": str(data),
            "model_name_or_path": model, "output_dir": f"{folder}/out", "cache_dir": f"{folder}/cache",
            "save_steps": 0,
        }  # fmt: skip
        return trained_alone(case.recipe, settings)


def ranked(case: Case, models: Sequence[str], data: Path) -> list[dict[str, Any]]:
    """What `hf-transfer rank` says of each model, as in its file."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [word for name, value in case.ranked_with.items() for word in (f"--{name}", str(value))]
        output = Path(folder) / "ranking.json"
        words = [
            sys.executable, "-m", "hf_transfer.command_line", "rank", "--recipe", case.recipe, "--dataset_name",
            str(data), "--models", *models, "--output", str(output), "--cache_dir", f"{folder}/cache", *settings,
        ]  # fmt: skip
        run_alone(words, folder=REPOSITORY, environment=ALONE)
        placed: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))["models"]
    return placed


def scores_of(placed: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a model in the file of a ranking, as numbers by name, with the features that they are of."""
    scores = {name: placed[name] for name in SCORES.values() if name != "probe"}
    probe = placed["probe"]
    return {"probe": probe["score"], "error": probe["standard_error"], "features": placed["features"], **scores}


def measure(name: str, data: Path, weights: Path, seed: int, results: dict[str, Any]) -> None:
    """Rank the models of a set if that is not done, train them, and write each figure as soon as it is known.

    Args:
        name: of the set.
        data: the folder of the data sets.
        weights: the folder of the models.
        seed: of the trainings.
        results: figures of earlier calls, to which those of this one are added.
    """
    case = SETS[name]
    paths = {model: model if model.startswith("sample:") else str(weights / model) for model in case.models}
    with tempfile.TemporaryDirectory() as folder:
        most = {"train": case.train_rows, "validation": case.validation_rows}
        rows = cut(data / name, Path(folder), most)
        if name not in results["rankings"]:
            placed = {one["model_name_or_path"]: scores_of(one) for one in ranked(case, list(paths.values()), rows)}
            results["rankings"][name] = {model: placed[path] for model, path in paths.items()}
            write(results)
        for model, path in paths.items():
            if any((row["set"], row["model"], row["seed"]) == (name, model, seed) for row in results["rows"]):
                continue
            row = {"set": name, "model": model, "seed": seed, **trained(case, path, seed, rows)}
            results["rows"].append(row)
            write(results)
            words = f"{name}, {model}, seed {seed}: {row['accuracy']:.3f} in {row['cpu_seconds']:.0f} CPU s"
            print(words, file=sys.stderr, flush=True)


def write(results: Mapping[str, Any]) -> None:
    """Save all figures, with the settings."""
    content = {"settings": {name: case._asdict() for name, case in SETS.items()}, **results}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def quality(scores: Mapping[str, float], right: Mapping[str, Floats]) -> dict[str, Any]:
    """How well a score orders models, by their accuracy after fine-tuning.

    Reference: Vigna, "A weighted correlation index for rankings with ties", WWW 2015,
    https://doi.org/10.1145/2736277.2741088.

    Args:
        scores: of models, higher is better.
        right: their answers after fine-tuning: see `answers`.

    Returns:
        The weighted Kendall tau, the model that the score names, and the regret: how many points it is behind the
        best one, with a 95 % interval.
    """
    accuracies = {model: float(one.mean()) for model, one in right.items()}
    chosen, best = max(scores, key=scores.__getitem__), max(accuracies, key=accuracies.__getitem__)
    regret, low, high = difference(right[best], right[chosen]) if chosen != best else (0.0, 0.0, 0.0)
    tau = weightedtau([scores[model] for model in right], list(accuracies.values())).statistic
    return {"tau": float(tau), "chosen": chosen, "best": best, "regret": regret, "interval": (low, high)}


def tables(results: Mapping[str, Any]) -> Iterator[str]:
    """Markdown: the models of each set of which all were trained, and the quality of each score."""
    right = {name: trained_models(name, results["rows"]) for name in SETS}
    complete = {name: models for name, models in right.items() if len(models) == len(SETS[name].models)}
    yield "| data | model | fine-tuned, each seed | probe | its features | neighbours | LogME | H-score | parameters |"
    yield "|---|---|---:|---:|---|---:|---:|---:|---:|"
    for name, models in complete.items():
        for model in sorted(models, key=lambda model: -models[model].mean()):
            of = results["rankings"][name][model]
            yield (
                f"| {name} | {model} | {', '.join(f'{100 * one.mean():.1f}' for one in models[model])} % "
                f"| {100 * of['probe']:.1f} ± {100 * of['error']:.1f} % | {of['features']} "
                f"| {100 * of['neighbours']:.1f} % | {of['log_evidence']:.3f} | {of['h_score']:.2f} "
                f"| {of['parameters'] / 1e6:.1f}M |"
            )
    yield "\n| data | score | weighted tau | it names | regret@1, points (95 % interval) |"
    yield "|---|---|---:|---|---:|"
    for name, models in complete.items():
        for title, key in SCORES.items():
            one = quality({model: results["rankings"][name][model][key] for model in models}, models)
            low, high = one["interval"]
            regret = "0" if one["chosen"] == one["best"] else f"{one['regret']:.1f} ({low:.1f} to {high:.1f})"
            yield f"| {name} | {title} | {one['tau']:.2f} | {one['chosen']} | {regret} |"


def trained_models(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    """The answers of the models of a set that were trained: see `answers`; of all, the same seeds.

    Args:
        name: of the set.
        rows: all trainings.
    """
    models = SETS[name].models
    by_seed: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["set"] == name:
            by_seed.setdefault(row["seed"], {})[row["model"]] = row
    whole = [trained for _, trained in sorted(by_seed.items()) if len(trained) == len(models)]
    return {model: answers([trained[model] for trained in whole]) for model in models} if whole else {}


def main() -> None:
    """Measure what is missing, save each figure beside earlier ones, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder of the data sets.")
    parser.add_argument("weights", type=Path, help="The folder of the pretrained models.")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="Only these.")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="Of the trainings.")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"rankings": {}, "rows": []}
    if RESULTS.is_file():
        results |= json.loads(RESULTS.read_text(encoding="utf-8"))
    for seed in arguments.seeds:
        for name in arguments.sets:
            measure(name, arguments.data, arguments.weights, seed, results)
    print("\n".join(tables(results)))


if __name__ == "__main__":
    main()
