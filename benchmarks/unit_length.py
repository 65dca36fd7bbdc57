"""What does it change that the head of a sentence encoder reads vectors of one length?

    python -m benchmarks.unit_length DATA WEIGHTS/minilm_l6 WEIGHTS/e5_small_enpt

The head reads the mean of all tokens, as it is and scaled to the length of the square root of its width. A run does
that for a solved head if the files of the model name Normalize; here it is also tried where layers are trained. DATA
has the folders `wordnet` and `manpages_de`, each in three splits. Training and validation rows are drawn with the seed,
the test rows are always the same. Runs have the defaults of their strategy. Every finished pair of runs is added to the
results at once: an interrupted measurement goes on from there.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.auto_cells import Cell, config_of, data_of
from benchmarks.intervals import Floats, difference
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.targets.classes import Classes
from hf_transfer.whole_run import run_all_steps

STRATEGIES = ("linear_probe", "deep_probe", "full")
DATA: dict[str, dict[str, Any]] = {
    "sample:intents": {},
    "wordnet": {},
    # Long texts: their beginning is enough to compare.
    "manpages_de": {"max_seq_length": 64},
}
SIZES = (8, 32)
SEEDS = (0, 1, 2)
MOST_TEST_TEXTS = 1_000
RESULTS = Path(__file__).parent / "results" / "unit_length.json"
# What a pair of runs is told apart by.
KEYS = ("data", "model", "per_class", "strategy", "seed")
Row = dict[str, Any]


def encoder(weights: Path, folder: Path, *, is_normalized: bool) -> Path:
    """A model to start from, whose head reads the mean of all tokens, as it is or scaled to one length."""
    checkpoint = Checkpoint(str(weights), task="text-classification", pooling="mean")
    # No data set here has so few classes: each run makes a head of its own.
    model = checkpoint.classifier(Classes(("first", "second")), seed=0, fresh_weights=False)
    model.config.normalized = is_normalized
    model.save_pretrained(folder)
    checkpoint.tokenizer().save_pretrained(folder)
    return folder


def right_answers(cell: Cell, strategy: str, seed: int, data: Path, weights: Path) -> str:
    """For each test row a 1 if the finished model is right."""
    rows = data_of(cell, data, seed)
    rows["test"] = rows["test"].shuffle(seed=0).select(range(min(MOST_TEST_TEXTS, len(rows["test"]))))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        config = config_of(
            cell, weights, f"{folder}/out", f"{folder}/cache", strategy=strategy, seed=seed, pooling="own"
        )
        run = run_all_steps(config, rows)
    return "".join(str(int(score)) for score in run.predictions["test"].sample_scores())


def measured(key: Row, data: Path, weights: Path) -> Row:
    """A pair of runs."""
    answers = {}
    for is_normalized in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            start = encoder(weights, Path(folder) / weights.name, is_normalized=is_normalized)
            cell = Cell("text", key["data"], {"model_name_or_path": start.name}, key["per_class"], DATA[key["data"]])
            answers[is_normalized] = right_answers(cell, key["strategy"], key["seed"], data, Path(folder))
    return {**key, "plain": answers[False], "normalized": answers[True]}


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: test accuracy without, and the change in points with its 95 % interval."""
    yield "| data, model | of each class | strategy | seeds | without | of one length |"
    yield "|---|---:|---|---:|---:|---:|"
    known: dict[str, list[Row]] = {}
    for row in rows:
        known.setdefault(json.dumps([row[key] for key in KEYS[:-1]]), []).append(row)
    for pairs in known.values():
        first = pairs[0]
        plain, normalized = _right(pairs, "plain"), _right(pairs, "normalized")
        # Both runs of a seed have the same rows: only the difference of them varies.
        center, low, high = difference(normalized - plain, np.zeros_like(plain))
        yield (
            f"| {first['data'].removeprefix('sample:')}, {first['model']} | {first['per_class']} | {first['strategy']} "
            f"| {len(pairs)} | {100 * plain.mean():.1f} % | {center:+.1f} ({low:+.1f} to {high:+.1f}) |"
        )


def _right(rows: Sequence[Row], name: str) -> Floats:
    """Whether each test row is right [seeds, rows]."""
    return np.stack([np.array(list(row[name]), dtype=np.float64) for row in rows])


def main() -> None:
    """Measure what is missing, save each pair, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder of the data sets.")
    parser.add_argument("models", nargs="+", type=Path, help="Folders of pretrained models.")
    parser.add_argument("--names", nargs="+", default=list(DATA), choices=list(DATA), help="Data sets.")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="Training texts of each class.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    known = [{name: row[name] for name in KEYS} for row in rows]
    wanted = product(arguments.models, arguments.strategies, arguments.sizes, arguments.names, arguments.seeds)
    for model, strategy, size, data, seed in wanted:
        values = (data, model.name, size, strategy, seed)
        key = dict(zip(KEYS, values, strict=True))
        if key not in known:
            rows.append(measured(key, arguments.data, model))
            RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
            *_, line = table(rows[-1:])
            print(line, flush=True)
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
