"""Images with texts: what both are worth together, what a missing part costs, and what stored activations save.

    OMP_NUM_THREADS=1 python -m benchmarks.pairs

`sample:glyph-names` with the settings of `recipes/configs/glyph_names.yaml`. The test split chooses nothing.
"""

import argparse
import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.intervals import mean_interval
from benchmarks.trials import ready_run, train
from hf_transfer.data.batches import Batch, InputMaker, LabelledInputs, Loaders
from hf_transfer.modalities.pair_batches import part_alone
from hf_transfer.run import Run
from hf_transfer.settings.parsing import load_settings
from hf_transfer.settings.run import MultimodalConfig
from hf_transfer.training.predictions import predict_split

SETTINGS = Path(__file__).parents[1] / "recipes" / "configs" / "glyph_names.yaml"
RESULTS = Path(__file__).parent / "results" / "pairs.json"
SEEDS = (0, 1, 2, 3, 4)
MISSING = 0.3
EPOCHS_OF_STORE = 20
# What is trained: on both parts, with modality dropout and without, and on one part alone.
ARMS = ("both", "both without dropout", "image", "text")


class Bench:
    """The settings of all trainings, and the outputs of the towers for the test split: no training changes the towers.

    Args:
        cache: a folder for stored activations.
    """

    def __init__(self, cache: Path) -> None:
        self.config = load_settings(MultimodalConfig, SETTINGS).replaced(cache_dir=str(cache), save_steps=0)
        self._outputs: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def trained(self, part: str | None = None, **settings: Any) -> Iterator["Trained"]:
        """A trained model.

        Args:
            part: image or text: it learns from that part alone; None: from both.
            **settings: that differ from those of the file.
        """
        # With save_steps=0 nothing is written there.
        with ready_run(self.config.replaced(output_dir="unused", **settings)) as run:
            loaders = run.loaders if part is None else part_alone(run.loaders, part)
            started = time.process_time()
            fitted, seconds = train(run, loaders)
            yield Trained(run, fitted.model, seconds, time.process_time() - started)

    def accuracy(self, trained: "Trained", loaders: Loaders) -> float:
        """The accuracy on the test split, by the outputs of the towers."""
        model: Any = trained.model
        self._outputs = self._outputs or _outputs(model, trained.run)
        images, texts = (_Recorded([pair[place] for pair in self._outputs]) for place in (0, 1))
        towers = model.image_tower, model.text_tower
        model.image_tower, model.text_tower = images, texts
        try:
            return predict_split(model, loaders, "test", trained.run.accelerator).metrics()["accuracy"]
        finally:
            model.image_tower, model.text_tower = towers


class Trained(NamedTuple):
    """A trained model: its run, the model, seconds by the clock, seconds of the processor."""

    run: Run
    model: nn.Module
    seconds: float
    processor_seconds: float


def _outputs(model: Any, run: Run) -> list[tuple[Any, Any]]:
    model.eval()
    outputs = []
    with torch.no_grad():
        for batch in run.loaders.test:
            inputs = run.loaders.to_inputs(batch, run.accelerator.device, "test", None).inputs
            words = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs}
            outputs.append((model.image_tower(pixel_values=inputs["pixel_values"]), model.text_tower(**words)))
    return outputs


class _Recorded(nn.Module):
    """A tower that returns recorded outputs, batch by batch."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        super().__init__()
        self.left = iter(outputs)

    def forward(self, **_: Any) -> Any:
        return next(self.left)


class _WithMissingParts(InputMaker):
    """The inputs of another maker, in which a share of the complete samples lacks its image or its text.

    Args:
        pairs: makes the inputs.
        part: image or text.
        share: of the complete samples; they are drawn by their row numbers.
    """

    def __init__(self, pairs: InputMaker, part: str, share: float) -> None:
        self.pairs, self.part, self.share = pairs, part, share

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        """See `InputMaker`."""
        labelled, name = self.pairs(batch, device, split, epoch), f"{self.part}_present"
        inputs, _, _, index = labelled
        drawn = torch.tensor([np.random.default_rng((7, row)).random() for row in index.tolist()])
        complete = inputs["image_present"] & inputs["text_present"]
        return labelled._replace(inputs=inputs | {name: inputs[name] & ~(complete & (drawn < self.share))})

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        return f"{self.pairs.fingerprint(split, epoch)} without {self.share} of {self.part}"


def measure(bench: Bench, arm: str, seed: int) -> dict[str, Any]:
    """One training, and its accuracy with everything and with missing parts."""
    settings = {"modality_dropout": 0.0} if arm != "both" else {}
    part = arm if arm in ("image", "text") else None
    with bench.trained(part, seed=seed, **settings) as trained:
        loaders = trained.run.loaders
        row = {
            "arm": arm, "seed": seed, "seconds": trained.seconds, "processor_seconds": trained.processor_seconds,
        }  # fmt: skip
        if part is not None:
            return row | {"test": bench.accuracy(trained, part_alone(loaders, part))}
        row |= {"test": bench.accuracy(trained, loaders)}
        for name in ("image", "text"):
            fewer = replace(loaders, to_inputs=_WithMissingParts(loaders.to_inputs, name, MISSING))
            row |= {
                f"{name}_only": bench.accuracy(trained, part_alone(loaders, name)),
                f"{name}_missing": bench.accuracy(trained, fewer),
            }
        return row


def speed(bench: Bench) -> list[dict[str, Any]]:
    """The same training with stored activations (nothing is stored before) and without."""
    rows = []
    for cache in ("on", "off"):
        with tempfile.TemporaryDirectory() as folder:
            settings: dict[str, Any] = {
                "cache_frozen": cache, "cache_dir": folder, "num_train_epochs": EPOCHS_OF_STORE,
            }  # fmt: skip
            with bench.trained(**settings) as trained:
                test = bench.accuracy(trained, trained.run.loaders)
                rows.append(
                    {
                        "store": cache, "seconds": trained.seconds, "processor_seconds": trained.processor_seconds,
                        "test": test,
                    }
                )  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: accuracy of each arm, with everything and with missing parts."""
    columns = ("test", "image_only", "text_only", "image_missing", "text_missing")
    lines = [
        f"| trained on | all there is | image alone | text alone | {MISSING:.0%} of images missing | of texts |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        cells = []
        for column in columns:
            values = [100 * row[column] for row in of_arm if column in row]
            cells.append("{:.1f} ± {:.1f} %".format(*mean_interval(values)) if len(values) > 1 else "")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Points of accuracy with their 95 % intervals over the seeds: mean, half width."""
    by_arm = {arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in ARMS}

    def over_seeds(value: Callable[[int], float]) -> tuple[float, float]:
        return mean_interval([100 * value(seed) for seed in SEEDS])

    def lost(arm: str, column: str, seed: int) -> float:
        return float(by_arm[arm][seed]["test"] - by_arm[arm][seed][column])

    points = {
        "both - better modality alone": over_seeds(
            lambda seed: by_arm["both"][seed]["test"] - max(by_arm[name][seed]["test"] for name in ("image", "text"))
        )
    }
    for name in ("image", "text"):
        column = f"{name}_missing"
        points[f"lost with {MISSING:.0%} of {name}s missing, without dropout - with it"] = over_seeds(
            lambda seed, column=column: lost("both without dropout", column, seed) - lost("both", column, seed)  # type: ignore[misc]
        )
    return points


def main() -> None:
    """Measure, save the figures, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=["worth", "store"], choices=["worth", "store"], help="Only these."
    )
    arguments = parser.parse_args()
    figures = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench(Path(cache))
        if "worth" in arguments.parts:
            rows = []
            for seed, arm in itertools.product(SEEDS, ARMS):
                rows.append(measure(bench, arm, seed))
                print(json.dumps(rows[-1]), flush=True)
            figures |= {"missing": MISSING, "rows": rows, "differences": differences(rows)}
            print(table(rows))
            for name, (mean, half) in differences(rows).items():
                print(f"{name}: {mean:+.1f} ± {half:.1f} points")
        if "store" in arguments.parts:
            figures["store"] = speed(bench)
            print(json.dumps(figures["store"], indent=2))
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
