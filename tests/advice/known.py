"""Evidence as it could be gathered, and data of texts that a tiny model can tell apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from hf_transfer.advice.costs import Costs
from hf_transfer.advice.evidence import Evidence
from hf_transfer.advice.probes import ConstantAnswer, Difference, FreshWeights, JudgedRows, LearningCurve, Probe
from hf_transfer.settings.run import MultimodalConfig, TextConfig
from hf_transfer.settings.strategy import Strategy

COSTS = Costs(forward=0.01, step=0.03, solving=2.0, train=100, validation=20, epochs=5, views=0, cycle=1, stores=True)
LESS, MORE = Difference(-0.1, 0.05, (-0.2, 0.0)), Difference(0.1, 0.02, (0.06, 0.14))
HELPS = FreshWeights(100, "mean_2", 0.6, 0.05, 0.8, Difference(0.2, 0.05, (0.1, 0.3)))
NO_HELP = FreshWeights(100, "mean_2", 0.75, 0.05, 0.8, Difference(0.05, 0.05, (-0.05, 0.15)))

CONSTANT = ConstantAnswer("always the most frequent class", 0.25, Difference(0.45, 0.04, (0.37, 0.53)))
NO_PROBES: dict[str, Any] = {
    "probes": (), "best": "", "judged": None, "constant": None, "neighbours": None, "curve": None,
    "why_no_probes": "the head of m has several layers",
}  # fmt: skip


def evidence(
    rows_per_class: float = 50, *, best: str = "head", over_head: Difference = LESS, **others: Any
) -> Evidence:
    """Evidence on 4 classes and a model of 6 blocks; `over_head` is that of the probe of `mean_6`."""
    known = Evidence(
        "model", "4 classes", "accuracy", round(4 * rows_per_class), "class", 4, round(rows_per_class), 6,
        COSTS,
        seconds={name: 60.0 for name in get_args(Strategy) if name != "auto"}, unsuitable={},
        probes=(
            Probe("head", 0.7, 0.03, None), Probe("mean_6", 0.7 + over_head.mean, 0.03, over_head),
            Probe("first_6", 0.6, 0.03, LESS), Probe("mean_2 + mean_6", 0.6, 0.03, LESS),
        ),
        best=best, judged=JudgedRows((3, 5, 8), (1.0, 0.5, 0.0), (0, 1, 1)), constant=CONSTANT, neighbours=0.5,
        curve=LearningCurve((10.0, 20.0, 40.0), (0.4, 0.5, 0.7), (0.1, 0.1, 0.05), MORE),
    )  # fmt: skip
    return replace(known, **others)


def pair_evidence(best: str = "image_head + text_head", over_head: Difference = LESS, **others: Any) -> Evidence:
    """Evidence on images with texts, each head of which reads both towers."""
    names = ("image_head + text_head", "image_mean_4 + text_head", "image_head + text_mean_6")
    others["probes"] = (
        Probe(names[0], 0.7, 0.03, None),
        *(Probe(name, 0.7 + over_head.mean, 0.03, over_head) for name in names[1:]),
    )
    return evidence(best=best, **others)


def pair_config(**settings: Any) -> MultimodalConfig:
    towers = {"image_model_name_or_path": "i", "text_model_name_or_path": "t"}
    return MultimodalConfig.of(**{**towers, "dataset_name": "d", "output_dir": "o", **settings})


def text_config(**settings: Any) -> TextConfig:
    return TextConfig.of(**{"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", **settings})


def texts(folder: Path, rows: int = 60, *, name: str = "train.csv", seed: int = 0, shuffled: bool = False) -> Path:
    """A table of texts whose words tell three classes apart, not without error; or labels say nothing of the texts."""
    generator = np.random.default_rng(seed)
    lines = ["text,label"]
    labels = generator.permutation(rows) % 3 if shuffled else np.arange(rows) % 3
    for row in range(rows):
        kind = row % 3
        words = [f"word{generator.integers(20 * kind, 20 * kind + 30) % 59}" for _ in range(6)]
        lines.append(f"{' '.join(words)},{'abc'[labels[row]]}")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
