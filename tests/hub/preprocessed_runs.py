"""Finished runs whose predictions depend on truncation, on both texts of a pair, or on the EXIF orientation."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import hf_transfer as ht

SPLITS = {"train": 40, "validation": 16, "test": 24}
WORDS = {"spring": ("flower", "green", "tree"), "music": ("song", "piano", "violin")}
# Of a text truncated to this many tokens, only the words of its own class are left.
SHORT, OWN_WORDS, OTHER_WORDS = 5, 3, 20
UPSIDE_DOWN = 3
PROBE: dict[str, Any] = {"strategy": "linear_probe"}
LORA: dict[str, Any] = {"strategy": "lora", "learning_rate": 0.01, "num_train_epochs": 4}
BOTH: dict[str, Any] = {"max_seq_length": SHORT, "num_train_epochs": 2}
# By the name of a run: its recipe, its data, and its settings.
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "texts": ("text", "texts", PROBE | {"max_seq_length": SHORT}),
    "adapter of texts": (
        "text",
        "texts",
        LORA | {"max_seq_length": SHORT, "num_train_epochs": 2, "per_device_train_batch_size": 16},
    ),
    "pairs": ("text", "pairs", PROBE | {"text_column_name": "one", "text_pair_column_name": "two"}),
    "pictures": ("vision", "pictures", PROBE),
    "adapter of pictures": ("vision", "pictures", LORA | {"augmentation": "none"}),
    "captions": ("multimodal", "captions", PROBE | BOTH | {"augmentation": "none"}),
}
MODELS: dict[str, Any] = {
    "text": "sample:minilm", "vision": "sample:vit-glyphs", "multimodal": ("sample:vit-glyphs", "sample:minilm")
}  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """A run, and its test samples.

    Attributes:
        out: its folder.
        accuracy: on the test split, in `results.json`.
        files: the table or the pictures of the test split.
        samples: of the test split: by the example in the code of a card that each value replaces.
        labels: their true classes.
    """

    out: Path
    accuracy: float
    files: list[Path]
    samples: list[dict[str, Any]]
    labels: list[str]

    def accuracy_of(self, labels: Sequence[str]) -> float:
        """The share of the test samples for which these labels are right."""
        return float(np.mean([label == true for label, true in zip(labels, self.labels, strict=True)]))


def make_run(root: Path, name: str) -> FinishedRun:
    """Make one of the runs on the data in `root`."""
    recipe, data, settings = RUNS[name]
    out, test = root / "runs" / name, root / data / "test"
    run = ht.train(
        root / data, MODELS[recipe], modality=recipe, output_dir=out, cache_dir=str(root / "cache"), **settings
    )
    accuracy = run.metrics["test"].get("both", run.metrics["test"])["accuracy"]
    if recipe == "vision":
        files = sorted(test.rglob("*.jpg"))
        pictures = [{'"picture.png"': str(path)} for path in files]
        return FinishedRun(out, accuracy, files, pictures, [path.parent.name for path in files])
    table = test / "metadata.csv" if recipe == "multimodal" else test.with_suffix(".csv")
    rows = read_rows(table)
    samples = [_examples(row, table.parent) for row in rows]
    return FinishedRun(out, accuracy, [table], samples, [row["label"] for row in rows])


def _examples(row: Mapping[str, str], folder: Path) -> dict[str, Any]:
    if "two" in row:
        return {'{"text": "a text", "text_pair": "another"}': {"text": row["one"], "text_pair": row["two"]}}
    picture = {'"picture.png"': str(folder / row["file_name"])} if "file_name" in row else {}
    return {'"a text"': row["text"], **picture}


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(table: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def write_data(root: Path) -> None:
    """Texts, pairs of texts, pictures, and pictures with texts."""
    draw = np.random.default_rng(0)
    names = list(WORDS)
    for split, count in SPLITS.items():
        texts, pairs, captions = [], [], []
        for number in range(count):
            label, other = names[number % 2], names[1 - number % 2]
            of_class = " ".join(draw.choice(WORDS[label], OWN_WORDS))
            texts.append({"text": f"{of_class} {' '.join(draw.choice(WORDS[other], OTHER_WORDS))}", "label": label})
            alike = number % 4 < 2
            second = " ".join(draw.choice(WORDS[label if alike else other], OWN_WORDS))
            pairs.append({"one": of_class, "two": second, "label": "alike" if alike else "different"})
            captions.append({"file_name": f"{number:02}.jpg", **texts[-1]})
            for folder in (root / "pictures" / split / label, root / "captions" / split):
                _write_picture(folder / f"{number:02}.jpg", label == names[0], draw)
        write_rows(root / "texts" / f"{split}.csv", texts)
        write_rows(root / "pairs" / f"{split}.csv", pairs)
        write_rows(root / "captions" / split / "metadata.csv", captions)


def _write_picture(path: Path, bright_above: bool, draw: np.random.Generator) -> None:
    """Bright above or below, and stored upside down: who ignores the EXIF orientation sees the other class."""
    pixels = draw.integers(0, 60, (24, 24, 3))
    pixels[:12] += 190
    exif = Image.Exif()
    exif[0x0112] = UPSIDE_DOWN
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = pixels[::-1] if bright_above else pixels
    Image.fromarray(stored.astype(np.uint8)).save(path, exif=exif, quality=95)
