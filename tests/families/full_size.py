"""A training step and a solved head on models of full size with random weights."""

from pathlib import Path

import numpy as np
import pytest

import hf_transfer as ht
from tests.families.abilities import pictures, texts

# One batch of training samples.
ROWS = {"train": 4, "validation": 2, "test": 2}


def assert_trains_and_is_probed(model: str, recipe: str, folder: Path) -> None:
    """Both give figures, and a finished model that answers."""
    data = pictures(folder / "data", ROWS) if recipe == "vision" else texts(folder / "data", ROWS)
    sample = str(next(data.rglob("*.png"))) if recipe == "vision" else "word5 word12"
    for strategy, epochs in (("full", {"num_train_epochs": 1}), ("linear_probe", {})):
        run = ht.train(
            data, model, output_dir=folder / strategy, modality=recipe, strategy=strategy,
            cache_dir=str(folder / "cache"), save_steps=0, **epochs,
        )  # fmt: skip
        assert np.isfinite(run.metrics["test"]["loss"])
        (answer,) = ht.load(folder / strategy)([sample])
        assert sum(answer.values()) == pytest.approx(1.0, abs=1e-5)
