"""Do augmented views help a head that is solved? With few and with many training images.

    python -m benchmarks.augmented_views MODEL DATA [MODEL DATA ...]

Features of all training images, in themselves and in four views of `--augmentation light`, are computed once. Then
heads are solved on samples of some images of each class, with 0, 1, 2 and 4 views, and judged on the test split. Each
line has the mean accuracy without views, and how much views add, with a 95 % interval over the draws.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.trials import settings_of
from hf_transfer.frozen.features import Features, best_solution, features_of
from hf_transfer.frozen.recording import Passes, fill, stores_of
from hf_transfer.frozen.solvers import SolverOptions
from hf_transfer.frozen.store import Column
from hf_transfer.models.tracing import evaluating
from hf_transfer.run import Run, open_run
from hf_transfer.targets.predictions import Ranking

VIEWS = (0, 1, 2, 4)
EACH = (4, 8, 16, 60)
DRAWS = 20


@dataclass(frozen=True)
class SomeFeatures(Features):
    """Features of which only chosen training samples are seen, bool [samples]."""

    seen: Tensor | None = None

    def blocks(self, chosen: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Features.blocks`."""
        return super().blocks(self.seen if chosen is None else chosen)


def accuracies(run: Run) -> Iterator[tuple[int, dict[int, list[float]]]]:
    """For each number of images of a class: by number of views the test accuracy of each draw."""
    passes = Passes(run.loaders, run.accelerator, 32, run.config.store)
    model, target = run.model, run.loaders.target
    options = SolverOptions(Ranking.of(target, None))
    name, layer = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear)][-1]
    model.set_submodule(name, nn.Identity())
    compute_of = lambda _: lambda inputs: [model(**inputs).logits]  # noqa: E731
    material = {"features": "of benchmarks.augmented_views"}
    with evaluating(model), torch.no_grad():
        (test,) = stores_of(passes, [("test", None)], [Column((layer.in_features,), torch.float32)], material).values()
        fill({("test", None): test}, compute_of, passes)
        with features_of(compute_of, [layer.in_features], max(VIEWS), [material], passes) as features:
            first = features.train[0]
            classes = np.concatenate([first.chunk(number)[-2].numpy() for number in range(len(first.chunks))])
            judged = replace(features, validation=test)
            for each in EACH:
                by_views: dict[int, list[float]] = {views: [] for views in VIEWS}
                for seed in range(DRAWS if each < max(EACH) else 1):
                    seen = torch.from_numpy(drawn(classes, each, seed))
                    for views in VIEWS:
                        some = SomeFeatures(features.train[: 1 + views], features.validation, target, seen=seen)
                        head = best_solution(options.solver(target), some, options, intercept=True)
                        by_views[views].append(judged.predictions(head).metrics("accuracy")["accuracy"])
                yield each, by_views


def drawn(classes: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Which samples are drawn: `each` of every class, or all if there are fewer [samples]."""
    generator, seen = np.random.default_rng(seed), np.zeros(len(classes), dtype=bool)
    for one in np.unique(classes):
        seen[generator.permutation(np.flatnonzero(classes == one))[:each]] = True
    return seen


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", help="A model, its data, another model, its data, ...")
    pairs = parser.parse_args().pairs
    show = partial(print, flush=True)
    show(
        "| data, model | of each class | without views |"
        + "".join(f" {views} view{'' if views == 1 else 's'} |" for views in VIEWS[1:])
    )
    show("|---|---:|---:|" + "---:|" * len(VIEWS[1:]))
    for model, data in zip(pairs[::2], pairs[1::2], strict=True):
        with tempfile.TemporaryDirectory() as folder:
            config = settings_of("vision", {
                "strategy": "linear_probe", "dataset_name": data, "model_name_or_path": model,
                "output_dir": f"{folder}/out", "cache_dir": f"{folder}/cache", "save_steps": 0,
            })  # fmt: skip
            with open_run(config) as run:
                run.load_data()
                run.load_model()
                run.choose_what_learns()
                for each, by_views in accuracies(run):
                    plain = np.array(by_views[0])
                    cells = []
                    for views in VIEWS[1:]:
                        gain = 100 * (np.array(by_views[views]) - plain)
                        spread = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else None
                        cells.append(f"{gain.mean():+.1f}" + ("" if spread is None else f" ± {spread:.1f}"))
                    row = [f"{Path(data).name}, {Path(model).name}", str(each), f"{100 * plain.mean():.1f} %", *cells]
                    show(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
