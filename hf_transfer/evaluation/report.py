"""A finished run in words, numbers and pictures: results.json, report.md, and the table on the screen."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from hf_transfer.config import RunConfig
from hf_transfer.data.hub_access import is_hub_id
from hf_transfer.data.sources import Splits
from hf_transfer.evaluation.modalities import by_modality, headline, scores_by_name, worth_of_fusion
from hf_transfer.evaluation.run_folder import RESULTS_FILE, peak_memory_bytes
from hf_transfer.models.pretrained import AnyCheckpoint
from hf_transfer.training.predictions import Predictions
from hf_transfer.training.progress import Fit
from hf_transfer.versions import versions

CLASSES_WITH_NUMBERS = 20
CLASSES_WITH_NAMES = 60
RESAMPLES = 1000
CONFUSIONS_NAMED = 5
CLASS_COLUMNS = ("label", "precision", "recall", "f1", "samples")


def write_report(
    folder: Path, config: RunConfig, splits: Splits, fitted: Fit, predictions: Mapping[str, Predictions],
    checkpoint: AnyCheckpoint, notes: Sequence[str], total_seconds: float,
    single: Mapping[str, Predictions] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write `results.json`, `report.md` and its pictures; the results last, as they mark a finished run.

    Args:
        folder: the run's folder.
        config: the run's settings.
        splits: the data.
        fitted: the finished model and its history, which is empty after `--evaluate_only`.
        predictions: of the finished model, for validation and test.
        checkpoint: what the model was made from.
        notes: sentences on the data and on what was frozen.
        total_seconds: time since the start of the run.
        single: of pairs: see `predict_alone`.

    Returns:
        What `results.json` holds.
    """
    test, label_names = predictions["test"], splits.label_names
    confusion = _confusion(test, len(label_names))
    per_class = _per_class(test, label_names)
    judged = {**predictions, **{f"test {name}_only": said for name, said in (single or {}).items()}}
    told = [*notes, *worth_of_fusion(test, single or {})]
    results = {
        "recipe": config.recipe,
        "strategy": "evaluate_only" if config.evaluate_only else " + ".join(config.strategies()),
        "model_name_or_path": checkpoint.name,
        "names": {part: str(getattr(config, part)) for part in checkpoint.commits},
        "dataset_name": config.dataset_name,
        "commits": _commits(config, checkpoint, splits),
        "languages": list(splits.found.languages) if splits.found else [],
        "seed": config.seed,
        "labels": label_names,
        "parameters": {"total": _parameters(fitted.model), "trainable": fitted.trainable},
        "metrics": {name: said.metrics() for name, said in predictions.items()} | by_modality(test, single),
        "intervals": {name: _intervals(said, len(label_names)) for name, said in judged.items()},
        "classes": [dict(zip(CLASS_COLUMNS, row, strict=True)) for row in per_class],
        "confusions": _confusions(confusion, label_names),
        "best_epoch": fitted.best_epoch + 1,
        "soup": [epoch + 1 for epoch in fitted.soup],
        "history": fitted.history,
        "resumed_at_steps": fitted.resumed,
        "notes": told,
        "frozen_store": fitted.notes,
        "samples": {name: len(split) for name, split in splits.items()},
        "masked": {"train": len(splits.train.bad), **{name: said.masked for name, said in predictions.items()}},
        "duplicates_of_training": splits.duplicates,
        "seconds": {"total": total_seconds, "train": fitted.seconds, "frozen": fitted.frozen_seconds},
        "peak_memory_bytes": peak_memory_bytes(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions(),
    }
    _draw(folder, fitted, confusion, label_names)
    text = _markdown(results, per_class, [*told, *fitted.notes], bool(fitted.history))
    _write(folder, results, text)
    return results


def _write(folder: Path, results: Mapping[str, Any], report: str) -> None:
    """Results last, and whole or not at all: a run that is killed here is done again."""
    (folder / "report.md").write_text(report, encoding="utf-8")
    partial = folder / ".results-partial"
    partial.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / RESULTS_FILE)


def _commits(config: RunConfig, checkpoint: AnyCheckpoint, splits: Splits) -> dict[str, str | None]:
    """By the settings that name something on the Hub: the commit that was loaded; None where the Hub did not answer."""
    loaded = checkpoint.commits | {"dataset_name": splits.found.commit if splits.found else None}
    return {name: commit for name, commit in loaded.items() if is_hub_id(getattr(config, name))}


def results_table(results: Mapping[str, Any], output_dir: str) -> str:
    """The end of a run on the screen: metrics, size, time, and where everything is."""
    folder = Path(output_dir)
    lines = ["", f"{results['strategy']} from {results['model_name_or_path']} on {results['dataset_name']}", ""]
    lines.append(f"{'split':12} {'accuracy':>9} {'macro F1':>9} {'loss':>8}")
    for split, metrics in scores_by_name(results["metrics"]).items():
        lines.append(f"{split:12} {metrics['accuracy']:9.4f} {metrics['f1_macro']:9.4f} {metrics['loss']:8.4f}")
    lines += ["", *warnings] if (warnings := [note for note in results["notes"] if note.startswith("Warning")]) else []
    parameters, seconds = results["parameters"], results["seconds"]
    lines += [
        "",
        f"learned      {parameters['trainable']:,} of {parameters['total']:,} parameters",
        f"took         {seconds['total']:.0f} s, {seconds['train']:.0f} s of them in training",
        f"report       {folder / 'report.md'}",
        f"model        {folder / 'model'}" if (folder / "model").is_dir() else "",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _parameters(model: torch.nn.Module) -> int:
    """How many parameters a model has, without the copies that peft keeps of what it has replaced."""
    return sum(value.numel() for name, value in model.named_parameters() if ".original_module." not in name)


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927,
    https://doi.org/10.1080/01621459.1927.10502953.
    """
    z = 1.959963984540054
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_f1_interval(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int
) -> tuple[float, float]:
    """95 % interval of the macro F1, from percentiles over samples drawn anew with replacement.

    Reference: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979,
    https://doi.org/10.1214/aos/1176344552.

    Args:
        labels: class numbers [samples].
        predicted: class numbers [samples].
        classes: how many there are.
    """
    draw, scores = np.random.default_rng(0), np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        rows = draw.integers(0, len(labels), len(labels))
        true, said = labels[rows], predicted[rows]
        hits = np.bincount(true[true == said], minlength=classes)
        both = np.bincount(true, minlength=classes) + np.bincount(said, minlength=classes)
        # A class that a draw has not met has no score in it.
        scores[number] = (2 * hits[both > 0] / both[both > 0]).mean()
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def plain(text: str) -> str:
    """A name from the user's data as it may stand in a Markdown table: no markup, no line break, no column."""
    signs = "&\\`*_{}[]<>|#$~"
    return "".join(f"&#{ord(sign)};" if sign in signs else sign for sign in " ".join(text.split()))


def _per_class(predictions: Predictions, label_names: Sequence[str]) -> list[tuple[str, float, float, float, int]]:
    columns = precision_recall_fscore_support(
        predictions.labels,
        predictions.logits.argmax(-1).numpy(),
        labels=range(len(label_names)),
        zero_division=0.0,
    )
    return [
        (name, float(p), float(r), float(f), int(n)) for name, p, r, f, n in zip(label_names, *columns, strict=True)
    ]


def _intervals(predictions: Predictions, classes: int) -> dict[str, tuple[float, float]]:
    """95 % intervals by metric."""
    predicted, rows = predictions.logits.argmax(-1).numpy(), len(predictions.labels)
    right = int((predicted == predictions.labels).sum())
    return {
        "accuracy": wilson_interval(right, rows),
        "f1_macro": bootstrap_f1_interval(predictions.labels, predicted, classes),
    }


def _confusions(matrix: npt.NDArray[np.int64], label_names: Sequence[str]) -> list[dict[str, Any]]:
    """What is taken for what most often."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    most = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS_NAMED]
    pairs = [tuple(map(int, np.unravel_index(place, wrong.shape))) for place in most]
    return [
        {"true": label_names[true], "predicted": label_names[said], "samples": int(wrong[true, said])}
        for true, said in pairs
        if wrong[true, said]
    ]


def _confusion(predictions: Predictions, classes: int) -> npt.NDArray[np.int64]:
    found = predictions.logits.argmax(-1).numpy()
    matrix: npt.NDArray[np.int64] = confusion_matrix(predictions.labels, found, labels=range(classes))
    return matrix


def _markdown(
    results: Mapping[str, Any], per_class: Sequence[tuple[str, float, float, float, int]],
    notes: Sequence[str], trained: bool,
) -> str:  # fmt: skip
    test, rows = headline(results["metrics"]["test"]), results["samples"]["test"]
    low, high = results["intervals"]["test"]["accuracy"]
    parameters = results["parameters"]
    lines = [
        f"# {plain(results['strategy'])} of {plain(results['model_name_or_path'])} on {plain(results['dataset_name'])}",
        "",
        f"**Test accuracy {test['accuracy']:.2%}** (95 % Wilson interval {low:.2%} to {high:.2%}, {rows:,} samples), "
        f"macro F1 {test['f1_macro']:.4f}. {parameters['trainable']:,} of {parameters['total']:,} parameters learned.",
        "",
        "| split | samples | accuracy | macro F1 | loss |",
        "|---|---:|---:|---:|---:|",
    ]
    for split, metrics in scores_by_name(results["metrics"]).items():
        lines.append(
            f"| {split} | {metrics.get('samples', results['samples'].get(split)):,} | {metrics['accuracy']:.4f} "
            f"| {metrics['f1_macro']:.4f} "
            f"| {metrics['loss']:.4f} |"
        )
    lines += ["", "## Data and model", "", *(f"- {plain(note)}" for note in notes), ""]
    if trained:
        lines += ["## Training", "", f"Kept: {_kept(results['soup'])} of {len(results['history'])}.", ""]
        lines += ["![Loss and validation score by epoch](curves.png)", ""]
    lines += ["## Classes (test)", "", "| class | precision | recall | F1 | samples |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {plain(name)} | {p:.4f} | {r:.4f} | {f:.4f} | {n} |" for name, p, r, f, n in per_class]
    lines += ["", "![Confusion matrix of the test split](confusion.png)", ""]
    lines += [
        "## Again",
        "",
        f"`recipes/{results['recipe']}.py --config config.yaml --output_dir NEW` repeats this run.",
        "",
    ]
    return "\n".join(lines)


def _kept(epochs: Sequence[int]) -> str:
    """What the saved weights are, of epochs counted from 1."""
    if len(epochs) == 1:
        return f"epoch {epochs[0]}"
    return f"the average of epochs {', '.join(map(str, sorted(epochs)))}"


def _draw(folder: Path, fitted: Fit, confusion: npt.NDArray[np.int64], label_names: Sequence[str]) -> None:
    _draw_confusion(folder / "confusion.png", confusion, label_names)
    if fitted.history:
        _draw_curves(folder / "curves.png", fitted.history, fitted.soup)


def _draw_curves(path: Path, history: Sequence[Mapping[str, float]], kept: Sequence[int]) -> None:
    epochs = [row["epoch"] + 1 for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in history], label="training")
    left.plot(epochs, [row["loss"] for row in history], label="validation")
    left.set(title="Loss", xlabel="epoch", ylim=(0, None))
    right.plot(epochs, [row["accuracy"] for row in history], label="accuracy", color="C2")
    right.plot(epochs, [row["f1_macro"] for row in history], label="macro F1", color="C3", linestyle="--")
    right.set(title="Validation score", xlabel="epoch", ylim=(0, 1.02))
    for axes in (left, right):
        for number, epoch in enumerate(kept):
            label = f"kept: {_kept([one + 1 for one in kept])}" if number == 0 else None
            axes.axvline(epoch + 1, color="0.6", linestyle=":", label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _draw_confusion(path: Path, matrix: npt.NDArray[np.int64], label_names: Sequence[str]) -> None:
    """Shares of each true class (row); counts are written in as long as they can be read."""
    classes = len(label_names)
    side = min(12.0, 3.5 + 0.35 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="Test split, share of each true class")
    if classes <= CLASSES_WITH_NAMES:
        # A dollar sign would start a formula.
        names = [name[:24].replace("$", r"\$") for name in label_names]
        axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(classes), names)
    if classes <= CLASSES_WITH_NUMBERS:
        for (true, predicted), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[true, predicted] > 0.5 else "black"
                axes.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=120)
