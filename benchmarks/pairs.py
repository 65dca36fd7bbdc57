"""Image and text together: what fusion is worth, what a missing modality costs, and what the store for both saves.

    OMP_NUM_THREADS=1 python -m benchmarks.pairs

`sample:glyph-names` with the settings of `recipes/configs/glyph_names.yaml`, on test samples that no run has looked at.
"""

import argparse
import contextlib
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.intervals import mean_interval

SETTINGS = Path(__file__).parents[1] / "recipes" / "configs" / "glyph_names.yaml"
RESULTS = Path(__file__).parent / "results" / "pairs.json"
SEEDS = (0, 1, 2, 3, 4)
MISSING = 0.3
EPOCHS_OF_STORE = 20
# What is trained: on both with modality dropout and without it, and on one modality that is all there is.
ARMS = ("both", "both without dropout", "image", "text")


class Bench:
    """The sample, loaded once; the towers' outputs for the test split, computed once, as no run changes the towers."""

    def __init__(self, cache: Path) -> None:
        from hf_transfer.config_multimodal import MultimodalConfig
        from hf_transfer.data.pairs import load_pair_splits
        from hf_transfer.models.pretrained_pair import PairCheckpoint, pipelines_of
        from hf_transfer.parsing import load

        self.config = replace(load(MultimodalConfig, SETTINGS), cache_dir=str(cache), save_steps=0)
        self.pixels, self.tokens = pipelines_of(PairCheckpoint(self.config))
        self.splits = load_pair_splits(self.config)
        self._outputs: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def trained(self, modality: str | None = None, **settings: Any) -> Iterator[tuple[Any, Any, Any, float, float]]:
        """Model, loaders, accelerator, and seconds of wall and of processor that the training took."""
        from hf_transfer.data.pair_batches import alone, pair_example, pair_loaders
        from hf_transfer.models.pretrained_pair import PairCheckpoint
        from hf_transfer.strategies.choice import choose_strategy, prepare_model
        from hf_transfer.training.loop import fit, start_accelerator

        with tempfile.TemporaryDirectory() as folder:
            config = replace(self.config, output_dir=folder, **settings)
            strategy, example = choose_strategy(config), pair_example(self.pixels, self.tokens)
            with start_accelerator(config) as accelerator, contextlib.redirect_stdout(io.StringIO()):
                prepared = prepare_model(PairCheckpoint(config), strategy, self.splits.label_names, config, example)
                loaders = pair_loaders(
                    self.splits, self.pixels, self.tokens, config, accelerator, frozen_prefix=prepared.frozen_blocks
                )
                given = loaders if modality is None else alone(loaders, modality)
                began, worked = time.perf_counter(), time.process_time()
                fitted = fit(prepared.model, strategy, prepared.groups, given, config, accelerator)
                wall, processor = time.perf_counter() - began, time.process_time() - worked
                yield fitted.model, loaders, accelerator, wall, processor

    def accuracy(self, model: Any, loaders: Any, accelerator: Any) -> float:
        """On test, by the towers' outputs."""
        from hf_transfer.training.predictions import predict_split

        if not self._outputs:
            self._outputs = _outputs(model, loaders, accelerator)
        images, texts = (_Recorded([pair[place] for pair in self._outputs]) for place in (0, 1))
        kept = model.image_tower, model.text_tower
        model.image_tower, model.text_tower = images, texts
        try:
            return float(predict_split(model, loaders, "test", accelerator).metrics()["accuracy"])
        finally:
            model.image_tower, model.text_tower = kept


def _outputs(model: Any, loaders: Any, accelerator: Any) -> list[tuple[Any, Any]]:
    import torch

    model.eval()
    found = []
    with torch.no_grad():
        for batch in loaders.test:
            inputs = loaders.to_inputs(batch, accelerator.device, "test", None)[0]
            words = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs}
            found.append((model.image_tower(pixel_values=inputs["pixel_values"]), model.text_tower(**words)))
    return found


def _Recorded(outputs: Sequence[Any]) -> Any:  # noqa: N802 (a class, made where torch is imported)
    """A tower that gives what it has been given, batch by batch."""
    from torch import nn

    class Recorded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = iter(outputs)

        def forward(self, **_: Any) -> Any:
            return next(self.left)

    return Recorded()


def missing(loaders: Any, modality: str, share: float) -> Any:
    """A share of the complete samples, drawn by their row numbers, has lost its image or its text."""
    import torch

    def to_inputs(batch: Any, device: Any, split: str, epoch: int | None) -> Any:
        inputs, labels, index = loaders.to_inputs(batch, device, split, epoch)
        drawn = torch.tensor([np.random.default_rng((7, row)).random() for row in index.tolist()])
        complete = inputs["image_present"] & inputs["text_present"]
        there = inputs[f"{modality}_present"] & ~(complete & (drawn < share))
        return inputs | {f"{modality}_present": there}, labels, index

    return replace(loaders, to_inputs=to_inputs)


def measure(bench: Bench, arm: str, seed: int) -> dict[str, Any]:
    """One training, and how good it is with all that there is and with less."""
    from hf_transfer.data.pair_batches import alone

    settings = {"modality_dropout": 0.0} if arm != "both" else {}
    modality = arm if arm in ("image", "text") else None
    with bench.trained(modality, seed=seed, **settings) as (model, loaders, accelerator, wall, processor):

        def judged(given: Any) -> float:
            return bench.accuracy(model, given, accelerator)

        row = {"arm": arm, "seed": seed, "seconds": wall, "processor_seconds": processor}
        if modality is not None:
            return row | {"test": judged(alone(loaders, modality))}
        row |= {"test": judged(loaders)}
        for name in ("image", "text"):
            row |= {
                f"{name}_only": judged(alone(loaders, name)),
                f"{name}_missing": judged(missing(loaders, name, MISSING)),
            }
        return row


def speed(bench: Bench) -> list[dict[str, Any]]:
    """The same training side by side, with the store (which is made anew) and without it."""
    rows = []
    for cache in ("on", "off"):
        with tempfile.TemporaryDirectory() as folder:
            settings: dict[str, Any] = {
                "cache_frozen": cache, "cache_dir": folder, "num_train_epochs": EPOCHS_OF_STORE,
            }  # fmt: skip
            with bench.trained(**settings) as (model, loaders, accelerator, wall, processor):
                test = bench.accuracy(model, loaders, accelerator)
                rows.append({"store": cache, "seconds": wall, "processor_seconds": processor, "test": test})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what is learned from, and what is left when less is there."""
    columns = ("test", "image_only", "text_only", "image_missing", "text_missing")
    lines = [
        f"| trained on | all there is | image alone | text alone | {MISSING:.0%} of images missing | of texts |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        cells = []
        for column in columns:
            values = [100 * row[column] for row in own if column in row]
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

    found = {
        "both - better modality alone": over_seeds(
            lambda seed: by_arm["both"][seed]["test"] - max(by_arm[name][seed]["test"] for name in ("image", "text"))
        )
    }
    for name in ("image", "text"):
        column = f"{name}_missing"
        found[f"lost with {MISSING:.0%} of {name}s missing, without dropout - with it"] = over_seeds(
            lambda seed, column=column: lost("both without dropout", column, seed) - lost("both", column, seed)  # type: ignore[misc]
        )
    return found


def main() -> None:
    """Measure, save the figures, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=["worth", "store"], choices=["worth", "store"], help="Only these."
    )
    arguments = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench(Path(cache))
        if "worth" in arguments.parts:
            rows = []
            for seed, arm in itertools.product(SEEDS, ARMS):
                rows.append(measure(bench, arm, seed))
                print(json.dumps(rows[-1]), flush=True)
            found |= {"missing": MISSING, "rows": rows, "differences": differences(rows)}
            print(table(rows))
            for name, (mean, half) in differences(rows).items():
                print(f"{name}: {mean:+.1f} ± {half:.1f} points")
        if "store" in arguments.parts:
            found["store"] = speed(bench)
            print(json.dumps(found["store"], indent=2))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
