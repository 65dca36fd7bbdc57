"""Is the strategy that `--strategy auto` chooses the right one, and what does finding it cost?

    python -m benchmarks.auto DATA WEIGHTS

Each cell of `benchmarks.auto_cells` is a data set of some size with a backbone. There every strategy is trained with
its defaults, and `auto` chooses one. DATA has the folders `wordnet`, `manpages_de` and `stamps`, each in three splits.
WEIGHTS has the models `minilm_l6` (all-MiniLM-L6-v2) and `efficientnet_lite0` (ImageNet). Training and validation rows
are drawn with the seed; test is never cut. Each run is a process with one thread. Every finished one is added to the
results at once: an interrupted measurement goes on from there.

Regret: in points of test accuracy, how far `auto` is behind the best strategy. The best one is chosen on one half of
the test rows and scored on the other, and the other way round, so that it is not the luckiest one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.auto_cells import CELLS
from benchmarks.intervals import difference

SEEDS = (0, 1, 2)
AUTO, PROBE = "auto", "linear_probe"
RESULTS = Path(__file__).parent / "results" / "auto.json"
Row = dict[str, Any]
# One training in a process of its own, which prints its figures in the last line.
CHILD = """
import json, resource, sys
from pathlib import Path
from benchmarks.auto_cells import CELLS, config_of, data_of
from hf_transfer.whole_run import run_all_steps
name, data, weights, folder, settings = json.loads(sys.argv[1])
cell = CELLS[name]
config = config_of(cell, Path(weights), f"{folder}/out", f"{folder}/cache", **settings)
run = run_all_steps(config, data_of(cell, Path(data), settings["seed"]))
used = resource.getrusage(resource.RUSAGE_SELF)
scores = {split: run.predictions[split].sample_scores() for split in ("validation", "test")}
print(json.dumps({
    "chosen": run.results.strategy, "seconds": run.results.seconds["total"],
    "cpu_seconds": used.ru_utime + used.ru_stime, "best_epoch": run.results.best_epoch,
    "history": [row["accuracy"] for row in run.results.history],
    **{split: "".join(str(int(score)) for score in values) for split, values in scores.items()},
}))
"""


def trained(cell: str, arm: str, seed: int, data: Path, weights: Path, settings: Mapping[str, Any]) -> Row:
    """The figures of a run: for each validation and test row a 1 if it is right, and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"strategy": arm, "seed": seed, **settings}
        ended = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps([cell, str(data), str(weights), folder, wanted])],
            capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{cell}, {arm}, seed {seed}: {ended.stderr[-2000:]}")
    figures: Row = json.loads(ended.stdout.splitlines()[-1])
    row = {"cell": cell, "arm": arm, "seed": seed, "settings": dict(settings), **figures}
    print(f"{cell}, {arm}, seed {seed}: {100 * accuracy(row):.1f} %, {row['cpu_seconds']:.0f} CPU s", flush=True)
    return row


def correct(row: Row) -> npt.NDArray[np.float64]:
    """Whether each test row is right [rows]."""
    return np.array(list(row["test"]), dtype=np.float64)


def accuracy(row: Row) -> float:
    """On test, from 0 to 1."""
    return float(correct(row).mean())


def best_of(others: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Whether the best arm is right on each test row; it is chosen on the other half of the rows [rows]."""
    right = np.stack([correct(row) for row in others])
    count = right.shape[1]
    first_half = np.random.default_rng(0).permutation(count) < count // 2
    best = np.empty(count)
    for half in (first_half, ~first_half):
        best[half] = right[right[:, ~half].mean(1).argmax(), half]
    return best


def regret(chosen: Sequence[Row], others: Sequence[Sequence[Row]]) -> tuple[float, float, float]:
    """The mean regret in points, and its 95 % interval by a bootstrap of seeds and test rows.

    Args:
        chosen: the row of `auto` for each seed.
        others: the rows of all arms for each seed.
    """
    # Of each seed the arms have the same training rows: only their difference varies.
    points = np.stack([best_of(rows) - correct(one) for one, rows in zip(chosen, others, strict=True)])
    return difference(points, np.zeros_like(points))


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: a line for each cell with the mean accuracy of each arm and, where it was run, of `auto`."""
    arms = list(dict.fromkeys(arm for cell in CELLS.values() for arm in cell.arms))
    yield f"| cell | {' | '.join(f'`{arm}`' for arm in arms)} | `auto` | regret | seconds of all |"
    yield f"|---|{'---:|' * (len(arms) + 3)}"
    for name, cell in CELLS.items():
        of_cell = [row for row in rows if row["cell"] == name]
        by_seed = {seed: {row["arm"]: row for row in of_cell if row["seed"] == seed} for seed in SEEDS}
        complete = [seed for seed in SEEDS if set(cell.arms) <= by_seed[seed].keys()]
        if not complete:
            continue
        means = {
            arm: np.mean([accuracy(by_seed[seed][arm]) for seed in complete]) if arm in cell.arms else None
            for arm in arms
        }
        shown = " | ".join("" if mean is None else f"{100 * mean:.1f}" for mean in means.values())
        yield f"| {name} | {shown} | {' | '.join(_cells_of_auto([by_seed[seed] for seed in complete], cell.arms))} |"


def _cells_of_auto(by_seed: Sequence[dict[str, Row]], arms: Sequence[str]) -> list[str]:
    """What stands in a line of the table about `auto`."""
    finished = [rows for rows in by_seed if AUTO in rows]
    if not finished:
        return ["", "", ""]
    mean = np.mean([accuracy(rows[AUTO]) for rows in finished])
    point, low, high = regret([rows[AUTO] for rows in finished], [[rows[arm] for arm in arms] for rows in finished])
    seconds = sum(rows[AUTO]["cpu_seconds"] for rows in finished)
    of_all = sum(rows[arm]["cpu_seconds"] for rows in finished for arm in arms)
    return [f"{100 * mean:.1f}", f"{point:+.1f} ({low:+.1f} to {high:+.1f})", f"{100 * seconds / of_all:.0f} %"]


def main() -> None:
    """Measure what is missing, save each figure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder of the data sets.")
    parser.add_argument("weights", type=Path, help="The folder of the pretrained models.")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS), metavar="CELL")
    parser.add_argument("--arms", nargs="+", default=None, help="Only these (default: all, and auto).")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), choices=SEEDS)
    parser.add_argument("--processes", type=int, default=1, help="Runs at a time, one thread each.")
    arguments = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    known = {(row["cell"], row["arm"], row["seed"]) for row in rows}
    wanted = [
        (name, arm, seed)
        for seed in arguments.seeds
        for name in arguments.cells
        for arm in (*CELLS[name].arms, AUTO)
        if arm in (arguments.arms or [arm]) and (name, arm, seed) not in known
    ]
    with ThreadPoolExecutor(arguments.processes) as pool:
        train = partial(trained, data=arguments.data, weights=arguments.weights, settings={})
        for row in pool.map(lambda one: train(*one), wanted):
            rows.append(row)
            RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
