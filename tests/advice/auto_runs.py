"""Texts on which a probe or a trained strategy is best, and records of decisions."""

from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.evaluation.auto_record import AutoRecord, TriedArm
from hf_transfer.settings.run import TextConfig
from tests.tiny_text_models import save_text_checkpoint

# The steps in which a tiny model learns when two words differ.
LEARNS = {"num_train_epochs": 12, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "rdrop_alpha": 0.0}


def write_texts(folder: Path, *, parity: bool, rows: tuple[int, int, int] = (240, 60, 60)) -> Path:
    """Tables whose label is the parity of two words, which no linear head can read, or else the first word alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate(zip(("train", "validation", "test"), rows, strict=True)):
        generator, lines = np.random.default_rng(seed), ["text,label"]
        for _ in range(count):
            first, second = generator.integers(0, 2, 2)
            noise = " ".join(f"word{number}" for number in generator.integers(10, 50, 4))
            label = "xy"[first ^ second if parity else first]
            lines.append(f"word{1 + first} word{3 + second} {noise},{label}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def settings(folder: Path, **more: Any) -> TextConfig:
    """Settings of `--strategy auto` on the texts in a folder, with a tiny model that is saved beside them."""
    if not (model := folder.parent / "model").is_dir():
        save_text_checkpoint(model)
    given: dict[str, Any] = {
        "model_name_or_path": str(model), "dataset_name": str(folder), "output_dir": str(folder.parent / "out"),
        "cache_dir": str(folder.parent / "cache"), "strategy": "auto",
    }  # fmt: skip
    return TextConfig.of(**given | more)


def arm(name: str, seconds: float = 10.0, **more: Any) -> TriedArm:
    """A planned arm of a strategy of this name."""
    return TriedArm(**{
        "name": name, "settings": {"strategy": name}, "reason": "It may be good.", "estimated_seconds": seconds, **more
    })  # fmt: skip


def record(*arms: TriedArm, seconds: float = 0.0) -> AutoRecord:
    """A decision on its way."""
    return AutoRecord(began="2030-01-01", settings={}, arms=arms, seconds=seconds)
