"""The data sets, backbones and settings with which `benchmarks.auto` compares strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datasets

    from hf_transfer.settings.run import RunConfig

# Of the samples, which have no test split.
TEST_SHARE = 0.3
# Validation has a fourth as many rows of each class as training, as if both were cut from one small data set.
VALIDATION_SHARE = 4
MINILM, EFFICIENTNET = "minilm_l6", "efficientnet_lite0"


@dataclass(frozen=True)
class Cell:
    """A task: data of some size with a backbone.

    Attributes:
        recipe: vision, text or multimodal.
        data: the name of a folder, or of a sample.
        models: by the setting that names one, the name of a folder of weights, or of a sample.
        per_class: training rows of each class at most; None: all rows.
        settings: of the run, where they are not the default.
    """

    recipe: str
    data: str
    models: Mapping[str, str]
    per_class: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, ...]:
        """The strategies that are compared."""
        return PAIR_ARMS if self.recipe == "multimodal" else ARMS


ARMS = ("linear_probe", "deep_probe", "partial", "lp_ft", "full", "lora")
# The head of a linear probe has several layers, which are trained.
PAIR_ARMS = ("linear_probe", "deep_probe", "partial", "lp_ft", "full", "lora")


def _one(model: str) -> dict[str, str]:
    return {"model_name_or_path": model}


_SHORT = {"max_seq_length": 128}
_TOWERS = {"image_model_name_or_path": EFFICIENTNET, "text_model_name_or_path": MINILM}
CELLS = {
    "intents, 8 per class": Cell("text", "sample:intents", _one("sample:minilm"), 8),
    "intents, 60 per class": Cell("text", "sample:intents", _one("sample:minilm"), 60),
    "digits, 8 per class": Cell("vision", "sample:digits", _one("sample:resnet-glyphs"), 8),
    "digits, 60 per class": Cell("vision", "sample:digits", _one("sample:vit-glyphs"), 60),
    "wordnet, 8 per class": Cell("text", "wordnet", _one(MINILM), 8),
    "wordnet, 60 per class": Cell("text", "wordnet", _one(MINILM), 60),
    "manpages_de, 16 per class": Cell("text", "manpages_de", _one(MINILM), 16, _SHORT),
    "stamps, 16 per class": Cell("vision", "stamps", _one(EFFICIENTNET), 16, {"num_train_epochs": 10}),
    "manpages_de, all": Cell("text", "manpages_de", _one(MINILM), None, _SHORT),
    "stamps with texts, 16 per class": Cell("multimodal", "stamps", _TOWERS, 16, {"num_train_epochs": 10}),
}


def config_of(cell: Cell, weights: Path, output_dir: str, cache_dir: str, **settings: Any) -> RunConfig:
    """The settings of a run of a cell; those without effect on its strategy are left out.

    Args:
        cell: the task.
        weights: the folder of pretrained models.
        output_dir: of the run.
        cache_dir: of the run.
        **settings: of the run: its strategy, its seed.
    """
    from benchmarks.trials import settings_of

    models = {
        name: model if model.startswith("sample:") else str(weights / model) for name, model in cell.models.items()
    }
    more = {"dataset_name": "memory:cell", "output_dir": output_dir, "cache_dir": cache_dir}
    return settings_of(cell.recipe, {**cell.settings, **models, **more, **settings})


def data_of(cell: Cell, folder: Path, seed: int) -> datasets.DatasetDict:
    """The data of a cell: rows of training and validation are drawn, the test split is always the same.

    Args:
        cell: the task.
        folder: of the data sets.
        seed: of the draw.
    """
    whole = _sample(cell.data) if cell.data.startswith("sample:") else _READERS[cell.recipe](folder / cell.data)
    if cell.per_class is None:
        return whole
    generator = np.random.default_rng(seed)
    counts = {"train": cell.per_class, "validation": max(2, cell.per_class // VALIDATION_SHARE)}
    for split, count in counts.items():
        whole[split] = _drawn(whole[split], count, generator)
    return whole


def _drawn(rows: datasets.Dataset, count: int, generator: np.random.Generator) -> datasets.Dataset:
    labels = np.asarray(rows["label"])
    order = generator.permutation(len(labels))
    chosen = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return rows.select(sorted(int(row) for rows_of_class in chosen for row in rows_of_class))


def _sample(name: str) -> datasets.DatasetDict:
    """A sample in three splits, the same for each seed."""
    from hf_transfer.data.samples import load_sample

    whole = load_sample(name)
    if {"validation", "test"} <= whole.keys():
        return whole
    first = whole["train"].train_test_split(TEST_SHARE, seed=0, stratify_by_column="label")
    second = first["train"].train_test_split(TEST_SHARE, seed=0, stratify_by_column="label")
    whole["train"], whole["validation"], whole["test"] = second["train"], second["test"], first["test"]
    return whole


def _texts(folder: Path) -> datasets.DatasetDict:
    import datasets

    files = {split: str(folder / f"{split}.csv") for split in ("train", "validation", "test")}
    return datasets.load_dataset("csv", data_files=files)


def _pictures(folder: Path) -> datasets.DatasetDict:
    import datasets
    import pandas

    splits = datasets.DatasetDict()
    for split in ("train", "validation", "test"):
        table = pandas.read_csv(folder / split / "metadata.csv")
        files = [str(folder / split / name) for name in table["file_name"]]
        columns = {"image": files, "text": list(table["text"]), "label": list(table["label"])}
        splits[split] = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    return splits


_READERS: dict[str, Callable[[Path], datasets.DatasetDict]] = {
    "text": _texts,
    "vision": lambda folder: _pictures(folder).remove_columns("text"),
    "multimodal": _pictures,
}
