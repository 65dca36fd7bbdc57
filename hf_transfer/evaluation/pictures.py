"""The pictures of a report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_transfer.targets.reporting import Metric, Picture
from hf_transfer.targets.target import Metrics

CLASSES_WITH_NUMBERS = 20
CLASSES_WITH_NAMES = 60
METRICS_DRAWN = 2
LONGEST_NAME = 24
# A font that has a box for every character.
PLACEHOLDERS = "Last Resort High-Efficiency"
LINE_STYLES = ("-", "--", ":", "-.")


def kept_epochs(epochs: Sequence[int]) -> str:
    """The epochs whose weights were saved, counted from 1, as text."""
    if len(epochs) == 1:
        return f"epoch {epochs[0]}"
    return f"the average of epochs {', '.join(map(str, sorted(epochs)))}"


def draw_curves(path: Path, history: Sequence[Metrics], kept: Sequence[int], metrics: Sequence[Metric]) -> None:
    """Loss and validation metrics by epoch.

    Args:
        path: of the picture.
        history: a row for each epoch.
        kept: the epochs whose weights were saved, counted from 1.
        metrics: the first two are drawn beside the loss.
    """
    epochs = [row["epoch"] + 1 for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = {"training": [row["train_loss"] for row in history], "validation": [row["loss"] for row in history]}
    for split, values in losses.items():
        left.plot(epochs, values, label=split)
    left.set(title="Loss", xlabel="epoch")
    if min(map(min, losses.values())) >= 0:
        left.set(ylim=(0, None))
    metrics = metrics[:METRICS_DRAWN]
    for number, metric in enumerate(metrics):
        values, style = [row[metric.name] for row in history], LINE_STYLES[number % len(LINE_STYLES)]
        right.plot(epochs, values, label=metric.title, color=f"C{2 + number}", linestyle=style)
    right.set(title="Validation score", xlabel="epoch")
    if all(0 <= row[metric.name] <= 1 for row in history for metric in metrics):
        right.set(ylim=(0, 1.02))
    for axes in (left, right):
        for number, epoch in enumerate(kept):
            label = f"kept: {kept_epochs(kept)}" if number == 0 else None
            axes.axvline(epoch, color="0.6", linestyle=":", label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def draw_confusion(path: Path, data: tuple[npt.NDArray[np.int64], Sequence[str]]) -> None:
    """The share of each predicted class (column) in each true class (row); with counts, if there are few classes."""
    matrix, label_names = data
    classes = len(label_names)
    side = min(12.0, 3.5 + 0.35 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="Test split, share of each true class")
    if classes <= CLASSES_WITH_NAMES:
        names, fonts = drawn_names(label_names, "class")
        axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0, fontfamily=fonts)
        axes.set_yticks(range(classes), names, fontfamily=fonts)
    if classes <= CLASSES_WITH_NUMBERS:
        for (true, predicted), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[true, predicted] > 0.5 else "black"
                axes.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=120)


def draw_residuals(path: Path, data: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Sequence[str]]) -> None:
    """Residuals (true minus predicted) against predictions, for each number a row of its own."""
    predicted, true, label_names = data
    names, fonts = drawn_names(label_names, "output")
    figure = Figure(figsize=(7, 3.6 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), squeeze=False)[:, 0]
    for place, (axes, name) in enumerate(zip(rows, names, strict=True)):
        residuals = true[:, place] - predicted[:, place]
        axes.scatter(predicted[:, place], residuals, s=14, alpha=0.6, edgecolors="none")
        axes.axhline(0, color="0.4", linewidth=1)
        axes.set_xlabel(f"predicted {name}", fontfamily=fonts)
        axes.set_ylabel("true - predicted")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].set_title("Test split")
    figure.savefig(path, dpi=120)


def drawn_names(names: Sequence[str], kind: str) -> tuple[list[str], list[str]]:
    """Names as a picture shows them, and the families of fonts that have their characters.

    They are shortened, on one line, and no formulas, for which matplotlib takes text between dollar signs. A name whose
    characters are in no installed font is replaced by its number, counted from 0 as in the model's configuration.

    Args:
        names: of all outputs, in their order.
        kind: what a number without a name is called.
    """
    short = [" ".join(name.split())[:LONGEST_NAME] for name in names]
    missing = {ord(sign) for sign in "".join(short)} - _characters(font_manager.findfont(font_manager.FontProperties()))
    fonts = list(rcParams["font.family"])
    for font in font_manager.fontManager.ttflist if missing else ():
        if font.name != PLACEHOLDERS and (new := missing & _characters(font.fname)):
            fonts.append(font.name)
            missing -= new
    shown = [f"{kind} {number}" if missing & set(map(ord, name)) else name for number, name in enumerate(short)]
    return [name.replace("$", r"\$") for name in shown], fonts


def _characters(file: str) -> set[int]:
    """The numbers of the characters that a font has."""
    try:
        return {*font_manager.get_font(file).get_charmap()}
    except (OSError, RuntimeError):
        # matplotlib keeps its list of fonts from process to process: this one may have been removed since.
        return set()


DRAWN: Mapping[str, Callable[[Path, Any], None]] = {"confusion": draw_confusion, "residuals": draw_residuals}


def draw(folder: Path, pictures: Sequence[Picture]) -> None:
    """Draw the pictures of a target into the folder of a run."""
    for picture in pictures:
        DRAWN[picture.kind](folder / picture.file, picture.data)
