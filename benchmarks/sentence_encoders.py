"""What a prefix before each text, and scaling to unit length, change for a solved head on a frozen sentence encoder.

    python -m benchmarks.sentence_encoders WEIGHTS/minilm_l6 WEIGHTS/e5_small_enpt        # folders of pretrained models
    python -m benchmarks.sentence_encoders WEIGHTS/minilm_l6 --data DATA/wordnet --sizes 8 16

The head reads the mean of all tokens of texts of `sample:intents`, or of a folder with train.csv, validation.csv and
test.csv. Training and validation rows are drawn for each seed, the test rows are always the same. Features are computed
once for each model and prefix; the head is solved by `frozen.features.best_solution`, as `linear_probe` does.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.auto_cells import VALIDATION_SHARE, Cell, data_of
from benchmarks.intervals import mean_interval
from hf_transfer.frozen.features import Features, best_solution
from hf_transfer.frozen.solvers import SolverOptions
from hf_transfer.modalities.text_prefixes import with_prefix
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.taps import without_head
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.predictions import Ranking

if TYPE_CHECKING:
    import datasets

SIZES = (8, 16, 60)
SEEDS = (0, 1, 2, 3, 4)
PREFIXES = ("", "query: ", "passage: ")
TEXTS_AT_ONCE = 64
# Of a folder.
MOST_TEST_TEXTS = 1_000
RESULTS = Path(__file__).parent / "results" / "sentence_encoders.json"
# What is measured: data, model, prefix, whether features are scaled to unit length, and texts of each class.
KEYS = ("data", "model", "prefix", "scaled", "per_class")
Row = dict[str, Any]
# Features [texts, width] and classes [texts].
Embedded = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class InMemory:
    """Features and classes of texts; see `frozen.features.Stored`."""

    features: Tensor
    classes: Tensor

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.classes)

    @property
    def chunks(self) -> Sequence[range]:
        """One chunk of all."""
        return [range(self.samples)]

    def chunk(self, number: int) -> list[Tensor]:  # noqa: ARG002
        """The features, the classes, and that all of them count."""
        return [self.features, self.classes, torch.ones(self.samples, dtype=torch.bool)]


def texts_of(data: Path | None, most: int) -> "datasets.DatasetDict":
    """Enough texts of each class to draw from, and those to test with."""
    if data is None:
        return data_of(Cell("text", "sample:intents", {}, None), Path(), 0)
    whole = data_of(Cell("text", data.name, {}, 2 * most), data.parent, 0)
    whole["test"] = whole["test"].shuffle(seed=0).select(range(min(MOST_TEST_TEXTS, len(whole["test"]))))
    return whole.class_encode_column("label")


def embedded(folder: Path, prefix: str, target: Classes, data: "datasets.DatasetDict") -> dict[str, Embedded]:
    """The features of all texts, by split."""
    checkpoint = Checkpoint(str(folder), task="text-classification", pooling="mean")
    model = checkpoint.classifier(target, seed=0, fresh_weights=False).eval()
    tokenizer = with_prefix(checkpoint.tokenizer(), prefix, checkpoint.tokenizer_in)
    splits = {}
    for name, rows in data.items():
        texts, parts = list(rows["text"]), []
        with without_head(model, "classifier"), torch.inference_mode():
            for begin in range(0, len(texts), TEXTS_AT_ONCE):
                batch = texts[begin : begin + TEXTS_AT_ONCE]
                parts.append(model(**tokenizer(batch, padding=True, truncation=True, return_tensors="pt")).logits)
        splits[name] = torch.cat(parts).clone(), torch.tensor(rows["label"])
    return splits


def accuracy(splits: dict[str, Embedded], target: Classes, per_class: int, seed: int) -> float:
    """The accuracy of a solved head on the test split."""
    generator = np.random.default_rng(seed)
    counts = {"train": per_class, "validation": max(2, per_class // VALIDATION_SHARE)}
    drawn = {name: InMemory(*_drawn(splits[name], count, generator)) for name, count in counts.items()}
    options = SolverOptions(Ranking.of(target, None))
    features = Features([drawn["train"]], drawn["validation"], target)
    solution = best_solution(options.solver(target), features, options, intercept=True)
    vectors, classes = splits["test"]
    answers = (vectors.double() @ solution.weight.T + solution.bias).argmax(1)
    return float((answers == classes).double().mean())


def _drawn(rows: Embedded, count: int, generator: np.random.Generator) -> Embedded:
    features, classes = rows
    order = generator.permutation(len(classes))
    labels = classes.numpy()
    chosen = np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])
    return features[chosen], classes[chosen]


def measure(
    folder: Path, data: "datasets.DatasetDict", prefixes: Sequence[str], sizes: Sequence[int], seeds: Sequence[int]
) -> Iterator[Row]:
    """The accuracies of all seeds for each prefix, scaling and size."""
    target = Classes(tuple(data["train"].features["label"].names))
    for prefix in prefixes:
        plain = embedded(folder, prefix, target, data)
        scaled = {name: (normalize(features), classes) for name, (features, classes) in plain.items()}
        for is_scaled, splits in ((False, plain), (True, scaled)):
            for size in sizes:
                accuracies = [accuracy(splits, target, size, seed) for seed in seeds]
                yield {
                    "model": folder.name, "prefix": prefix, "scaled": is_scaled, "per_class": size,
                    "accuracies": accuracies,
                }  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Accuracy of the plain features, and what each change adds to it in points, paired by seed."""
    known = {tuple(row[key] for key in KEYS): row["accuracies"] for row in rows}
    changes = [("query: ", False), ("passage: ", False), ("", True), ("query: ", True)]
    lines = [
        "| data, model | of each class | no prefix | `query: ` | `passage: ` | unit length | `query: `, unit length |",
        "|---|---:|" + "---:|" * (1 + len(changes)),
    ]
    for data, model, prefix, is_scaled, size in known:
        if prefix or is_scaled:
            continue
        plain = known[data, model, "", False, size]
        cells = [f"{100 * sum(plain) / len(plain):.1f} %"]
        cells += [_change(plain, known.get((data, model, *change, size))) for change in changes]
        lines.append(f"| {data}, {model} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _change(plain: Sequence[float], other: Sequence[float] | None) -> str:
    if other is None:
        return ""
    center, half = mean_interval([100 * (second - first) for first, second in zip(plain, other, strict=True)])
    return f"{center:+.1f} ± {half:.1f}"


def main() -> None:
    """Measure, add to what is known of other models and data, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, help="such a folder (default: sample:intents)")
    parser.add_argument("--prefixes", nargs="+", default=PREFIXES)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="training texts of each class")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    data, name = texts_of(arguments.data, max(arguments.sizes)), arguments.data.name if arguments.data else "intents"
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    known = {tuple(row[key] for key in KEYS): row for row in rows}
    for model in arguments.models:
        for row in measure(model, data, arguments.prefixes, arguments.sizes, arguments.seeds):
            print(row, flush=True)
            whole = {"data": name, **row}
            known[tuple(whole[key] for key in KEYS)] = whole
    rows = list(known.values())
    results = {"threads": torch.get_num_threads(), "rows": rows}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
