"""Does memory grow with the number of samples? A store of a million feature vectors, written and read.

    python -m benchmarks.large_store

The features are synthetic. Only anonymous memory counts: the system can drop the pages of mapped files at any time.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hf_transfer.frozen.linear_classifier import LinearProblem
from hf_transfer.frozen.store import Column, Store

FEATURES, CLASSES, BATCH_SIZE = 384, 12, 256
RESULTS = Path(__file__).parent / "results" / "large_store.json"


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(samples: int, folder: Path) -> dict[str, object]:
    """Write, check, read in random batches, and solve with one regularisation; the memory meanwhile, in MiB."""
    columns, target = [Column((FEATURES,), torch.float32)], Column((), torch.int64)
    store = Store(folder, {"synthetic": samples}, columns, samples, target=target)
    generator = torch.Generator().manual_seed(0)
    memory: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}

    def note(step: str) -> None:
        memory.setdefault(step, []).append(anonymous_bytes() / 2**20)

    started = time.perf_counter()
    for number, positions in enumerate(store.chunks):
        features = torch.randn(len(positions), FEATURES, generator=generator)
        targets, counted = features[:, :CLASSES].argmax(1), torch.ones(len(positions), dtype=torch.bool)
        store.write(number, [features, targets, counted])
        note("write")
    seconds["write"] = time.perf_counter() - started
    started = time.perf_counter()
    for number in range(len(store.chunks)):
        assert store.check(number)
        note("check")
    seconds["check"] = time.perf_counter() - started
    order = np.random.default_rng(0).permutation(samples)
    started = time.perf_counter()
    for start in range(0, samples, BATCH_SIZE):
        store.read(order[start : start + BATCH_SIZE])
        if start % (BATCH_SIZE * 64) == 0:
            note("read")
    seconds["read"] = time.perf_counter() - started
    started = time.perf_counter()

    def blocks() -> object:
        for number in range(len(store.chunks)):
            features, targets, _ = store.chunk(number)
            note("solve")
            yield features, targets

    next(LinearProblem(blocks, CLASSES, intercept=True).path([1e-2]))  # type: ignore[arg-type]
    seconds["solve"] = time.perf_counter() - started
    # Libraries are loaded at the start of a step, which happens once.
    without_first = {step: values[2:] or values for step, values in memory.items()}
    return {
        "samples": samples,
        "bytes": store.bytes,
        "seconds": seconds,
        "memory": {step: [min(later), max(later), later[-1]] for step, later in without_first.items()},
    }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(parser.parse_args().samples, Path(folder))
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
