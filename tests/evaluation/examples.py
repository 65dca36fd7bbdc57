"""Results of a run that was never made."""

from typing import Any

from hf_transfer.evaluation.results import Results, Scores
from hf_transfer.targets.reporting import Table

COMMIT, DATA_COMMIT = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
METRICS = {"accuracy": 0.75, "f1_macro": 0.7333, "loss": 0.61}
INTERVALS = {"accuracy": (0.41, 0.93), "f1_macro": (0.33, 1.0)}


def class_tables(*names: str) -> list[Table]:
    """The tables of a run with these classes; the second class is taken for the first twice."""
    figures = {"precision": 0.5, "recall": 1.0, "f1": 0.6667, "samples": 3}
    others = {"precision": 1.0, "recall": 0.6, "f1": 0.75, "samples": 5}
    rows = [{"label": name, **(others if number else figures)} for number, name in enumerate(names)]
    columns, titles = (
        ("label", "precision", "recall", "f1", "samples"),
        ("class", "precision", "recall", "F1", "samples"),
    )
    confused = ("true", "predicted", "samples")
    confusions = [{"true": names[1], "predicted": names[0], "samples": 2}]
    return [
        Table("classes", "Classes (test)", columns, titles, rows),
        Table("confusions", "Most confused (test)", confused, confused, confusions),
    ]


def results_of(**changes: Any) -> Results:
    """Results of a classifier of images of cats and dogs, with changes."""
    values: dict[str, Any] = {
        "recipe": "vision",
        "strategy": "full",
        "problem_type": "single_label_classification",
        "predicts": "2 classes",
        "model_name_or_path": "org/tiny",
        "names": {"model_name_or_path": "org/tiny"},
        "dataset_name": "org/pets",
        "commits": {"model_name_or_path": COMMIT, "dataset_name": DATA_COMMIT},
        "languages": [],
        "seed": 7,
        "labels": ["cat", "dog"],
        "parameters": {"total": 11_282, "trainable": 3_618},
        "scores": {split: Scores(dict(METRICS), dict(INTERVALS), 8) for split in ("validation", "test")},
        "samples": {"train": 12, "validation": 8, "test": 8},
        "masked": {"train": 0, "validation": 0, "test": 0},
        "tables": class_tables("cat", "dog"),
        "best_epoch": 2,
        "soup": [2],
        "history": [{"epoch": float(number), "train_loss": 0.5, **METRICS} for number in range(3)],
        "resumed_at_steps": [],
        "notes": ["12 train, 8 validation, 8 test images of 2 classes."],
        "frozen_store": ["Frozen store: not used; too small.", "Nearest neighbours: validation accuracy 0.7."],
        "copies_of_training": {"validation": 0, "test": 0},
        "seconds": {"total": 12.0, "train": 3.0, "frozen": 0.0},
        "peak_memory_bytes": {"host": 1, "device": 0},
        "threads": 2,
        "processes": 1,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    return Results(**values | changes)
