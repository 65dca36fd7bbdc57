"""A linear probe on texts next to `transformers.Trainer` with a frozen backbone: how good, and how long does it take?

    python -m benchmarks.text_probe FOLDER        # FOLDER as written by `python -m benchmarks.debian_texts`

Ours is the recipe as a user runs it: first with nothing stored, then with the activations that the first run has
stored. Its accuracy is that of the reloaded `OUT/model`. Trainer has three epochs, with the rate of the grid that is
best on validation.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.full_fine_tuning import BACKBONE, table, trainers

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
EPOCHS = 3
SEEDS = (0, 1, 2)
POOLINGS = ("own", "mean")
RESULTS = Path(__file__).parent / "results" / "text_probe.json"


def ours(folder: Path, pooling: str, seed: int, cache: Path) -> dict[str, float]:
    """Test accuracy of the reloaded model, and seconds of forward passes and solving."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "recipes/text.py", "--model_name_or_path", BACKBONE, "--dataset_name", str(folder),
            "--strategy", "linear_probe", "--pooling", pooling, "--seed", str(seed), "--cache_frozen", "on",
            "--cache_dir", str(cache), "--output_dir", out,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        results = json.loads((Path(out) / "results.json").read_text(encoding="utf-8"))
    return {"accuracy": results["metrics"]["test"]["accuracy"], "seconds": results["seconds"]["train"]}


def measure(folder: Path, seeds: tuple[int, ...]) -> dict[str, list[dict[str, float]]]:
    """All arms, one after the other for each seed."""
    judged = {
        rate: trainers(folder, EPOCHS, rate, 0, frozen=True, judged_by="validation")["accuracy"] for rate in RATES
    }
    rate = max(judged, key=judged.__getitem__)
    arms: dict[str, list[dict[str, float]]] = {}

    def note(arm: str, figures: dict[str, float]) -> None:
        arms.setdefault(arm, []).append(figures)
        print(arm, figures, flush=True)

    for seed in seeds:
        note(f"Trainer, frozen backbone, {EPOCHS} epochs, {rate:g}", trainers(folder, EPOCHS, rate, seed, frozen=True))
        for pooling in POOLINGS:
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    arm = f"ours, `linear_probe`, `--pooling {pooling}`, {state}"
                    note(arm, ours(folder, pooling, seed, Path(cache)))
    return arms


def main() -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    arms = measure(arguments.folder, tuple(arguments.seeds))
    results = {"threads": torch.get_num_threads(), "seeds": arguments.seeds, "arms": arms}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(arms, "seconds after loading", digits=1))


if __name__ == "__main__":
    main()
