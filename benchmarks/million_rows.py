"""How long until a run on a million rows trains, and how much memory does that take?

    python -m benchmarks.million_rows --kind texts --rows 1000000

The kinds are `texts` (a CSV file), `texts-parquet`, and `pictures` (a Parquet file of 28 x 28 PNGs). The data are drawn
with a seed and written into a temporary folder, about half a gigabyte for a million rows. Then the same run starts
twice, each time in a new process with a new --output_dir, and is ended after its first training step: the second start
finds what the first one has left in --cache_dir and in the cache of `datasets`. The time is that of the whole process,
from its imports on; beside it stand the seconds that it had a processor, which other work on the machine changes less.
Memory is the largest anonymous resident memory of the process and its children, looked at every 20 ms: the system can
drop the pages of mapped files at any time. Linux only.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "million_rows.json"
SEED = 0
ROWS_AT_ONCE = 50_000
TEXT_CLASSES, PICTURE_CLASSES = 20, 10
SHORTEST, LONGEST = 5, 60
# Words as in a language: a few are frequent, and many are rare.
WORDS, SYLLABLES = 20_000, 3
NOISE_PICTURES, SIDE = 2_000, 28
SECONDS_BETWEEN_LOOKS = 0.02
MODELS = {"texts": "sample:minilm", "texts-parquet": "sample:minilm", "pictures": "sample:vit-glyphs"}
STEPS = ("load_data", "load_model", "choose_what_learns", "train")


def texts(rows: int) -> Iterable[pa.Table]:
    """Tables of texts of 5 to 60 made-up words and of labels, which do not depend on the texts."""
    generator = np.random.default_rng(SEED)
    syllables = [first + second for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = np.array(
        ["".join(generator.choice(syllables, 1 + number % SYLLABLES)) for number in range(WORDS)], dtype=object
    )
    for start in range(0, rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, rows - start)
        lengths = generator.integers(SHORTEST, LONGEST + 1, count)
        drawn = words[np.minimum(generator.zipf(1.2, lengths.sum()) - 1, generator.integers(0, WORDS, lengths.sum()))]
        parts = np.split(drawn, np.cumsum(lengths)[:-1])
        labels = [f"class {number}" for number in generator.integers(0, TEXT_CLASSES, count)]
        yield pa.table({"text": [" ".join(part) for part in parts], "label": labels})


def pictures(rows: int) -> Iterable[pa.Table]:
    """Tables of pictures and class numbers: 2,000 pictures of noise, in each of which other pixels are changed."""
    generator = np.random.default_rng(SEED)
    noise = generator.integers(0, 256, (NOISE_PICTURES, SIDE, SIDE), dtype=np.uint8)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for start in range(0, rows, ROWS_AT_ONCE):
        encoded = []
        for row in range(start, min(rows, start + ROWS_AT_ONCE)):
            picture = noise[row % NOISE_PICTURES].copy()
            # The number of the row, in the first pixels: no two pictures are equal.
            picture[0, :4] = np.frombuffer(np.uint32(row).tobytes(), np.uint8)
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG", compress_level=1)
            encoded.append({"bytes": file.getvalue(), "path": None})
        labels = generator.integers(0, PICTURE_CLASSES, len(encoded))
        yield pa.table({"image": pa.array(encoded, kind), "label": labels})


def build(kind: str, rows: int, folder: Path) -> Path:
    """Write the data of a kind into a folder; the file."""
    tables = iter(pictures(rows) if kind == "pictures" else texts(rows))
    first = next(tables)
    path = folder / ("train.csv" if kind == "texts" else "train.parquet")
    writer: Any = pyarrow.csv.CSVWriter if kind == "texts" else pyarrow.parquet.ParquetWriter
    with writer(path, first.schema) as opened:
        opened.write_table(first)
        for table in tables:
            opened.write_table(table)
    return path


class _FirstStepTakenError(Exception):
    """The run has taken its first step."""


def start(kind: str, data: Path, model: str, out: Path, cache: Path) -> dict[str, float]:
    """Run in this process until the first training step; the seconds of each part."""
    from unittest import mock

    from hf_transfer.run import Run
    from hf_transfer.settings.run import TextConfig, VisionConfig
    from hf_transfer.training.guard import Guard
    from hf_transfer.whole_run import run_all_steps

    seconds = {}

    def timed(name: str) -> Callable[[Run], Any]:
        step = getattr(Run, name)

        def run_step(run: Run) -> Any:
            started = time.perf_counter()
            try:
                return step(run)
            finally:
                seconds[name] = time.perf_counter() - started

        return run_step

    def stop(*_: object) -> None:
        raise _FirstStepTakenError

    config = VisionConfig if kind == "pictures" else TextConfig
    settings = config.of(
        dataset_name=str(data), model_name_or_path=model, strategy="full", output_dir=str(out), cache_dir=str(cache),
    )  # fmt: skip
    with ExitStack() as patched:
        for name in STEPS:
            patched.enter_context(mock.patch.object(Run, name, timed(name)))
        patched.enter_context(mock.patch.object(Guard, "save_or_stop", stop))
        try:
            run_all_steps(settings)
        except _FirstStepTakenError:
            return seconds
    raise RuntimeError("the run has ended without a step")


def anonymous_bytes_below(process: int) -> int:
    """The anonymous resident memory of a process and of all below it."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    except OSError:
        # It has just ended.
        return 0
    anonymous = sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
    return anonymous + sum(anonymous_bytes_below(int(child)) for child in children)


def watched(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command that prints a JSON object in its last line: that object, with its seconds and its memory."""
    started, used, peak = time.perf_counter(), processor_seconds(), 0
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, stdout=output, env=environment) as process:
            while process.poll() is None:
                peak = max(peak, anonymous_bytes_below(process.pid))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        seconds = time.perf_counter() - started
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode:
        raise RuntimeError("\n".join(lines))
    return {
        "seconds": seconds, "processor_seconds": processor_seconds() - used, "peak_anonymous_bytes": peak,
        "parts": json.loads(lines[-1]),
    }  # fmt: skip


def processor_seconds() -> float:
    """The seconds that children of this process which have ended had a processor, in the kernel or not."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(kind: str, rows: int, model: str) -> dict[str, Any]:
    """Both starts on new data."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = build(kind, rows, folder)
        environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HUB_OFFLINE": "1"}
        starts = {}
        for name in ("first", "second"):
            paths = [str(data), model, str(folder / name), str(folder / "cache")]
            command = [sys.executable, "-m", "benchmarks.million_rows", "--kind", kind, "--start", *paths]
            starts[name] = watched(command, environment)
            print(f"{kind}, {rows:,} rows, {name} start: {described(starts[name])}", flush=True)
        return {"rows": rows, "model": model, "bytes": data.stat().st_size, **starts}


def described(figures: dict[str, Any]) -> str:
    """The figures of a start, in a line."""
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in figures["parts"].items())
    memory = figures["peak_anonymous_bytes"] / 2**30
    return (
        f"{figures['seconds']:.1f} s to the first step, {figures['processor_seconds']:.1f} s of a processor ({parts}); "
        f"{memory:.2f} GiB of anonymous memory at most"
    )


def main() -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=MODELS, default="texts")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", help="by default a small sample")
    parser.add_argument("--start", nargs=4, metavar=("DATA", "MODEL", "OUT", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        data, model, out, cache = arguments.start
        print(json.dumps(start(arguments.kind, Path(data), model, Path(out), Path(cache))))
        return
    figures = measure(arguments.kind, arguments.rows, arguments.model or MODELS[arguments.kind])
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps({**known, arguments.kind: figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
