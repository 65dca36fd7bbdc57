"""How long does it take until a command answers? Wrong settings and data, a finished run again, and one prediction.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m benchmarks.start
    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m benchmarks.start --checkout PATH_OF_ANOTHER_VERSION

Each command is a process of its own. Rounds are interleaved: in each, all commands run once, in an order drawn at
random; the first round fills the caches of the disk, and does not count. Seconds of the processor are those of the
process and of all that it starts, so that they hardly depend on what else the machine does; those of the clock do.

Beside our commands there is what cannot be quicker: Python itself, importing torch, an empty script behind
`accelerate launch`, and transformers alone that loads the same model and answers for the same picture.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.processes import run_alone

ROUNDS = 5
HERE = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "start.json"
BY_TRANSFORMERS = """
import sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
pixels = AutoImageProcessor.from_pretrained(sys.argv[1], backend="pil")(
    Image.open(sys.argv[2]).convert("RGB"), return_tensors="pt"
)
with torch.no_grad():
    print(model(**pixels).logits.softmax(-1))
"""


class Seconds(NamedTuple):
    """How long a command took: by the clock, and of the processor in user and system mode together."""

    clock: float
    processor: float


class Command(NamedTuple):
    """A command.

    Attributes:
        words: what is started.
        code: its exit code.
    """

    words: tuple[str, ...]
    code: int = 0


def pictures(folder: Path) -> Path:
    """Noisy pictures of three colours, 20 of each, in folders."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for count in range(20):
            noise = generator.integers(0, 160, (64, 64, 3), dtype=np.uint8)
            noise[..., number] += 90
            Image.fromarray(noise).save(folder / name / f"{count}.png")
    return folder


def commands(folder: Path) -> tuple[Command, dict[str, Command]]:
    """The run that comes first, and the commands that are timed, by name.

    Args:
        folder: for data and runs.
    """
    python, data, out = sys.executable, pictures(folder / "pictures"), folder / "out"
    launch = (str(Path(python).with_name("accelerate")), "launch", "--num_processes", "1", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
    table, empty, plain = folder / "table.csv", folder / "empty.py", folder / "plain.py"
    table.write_text("text,label\n" + "".join(f"message {number},{number % 2}\n" for number in range(1_000)))
    empty.write_text("")
    plain.write_text(BY_TRANSFORMERS)
    caches = ("--cache_dir", str(folder / "cache"))
    run = ("recipes/vision.py", "--dataset_name", str(data), "--model_name_or_path", "sample:resnet-glyphs",
           "--strategy", "linear_probe", "--output_dir", str(out), *caches)  # fmt: skip
    other = ("--model_name_or_path", "sample:resnet-glyphs", "--output_dir", str(folder / "other"), *caches)
    wrong_name = ("recipes/vision.py", "--dataset_name", str(folder / "missing"), *other)
    wrong_column = ("recipes/text.py", "--dataset_name", str(table), "--text_column_name", "words", *other)
    transfer, picture = (python, "-m", "hf_transfer.command_line"), str(data / "red/7.png")
    return Command((python, *run)), {
        "Python alone": Command((python, "-c", "")),
        "import torch": Command((python, "-c", "import torch")),
        "recipe --help": Command((python, "recipes/vision.py", "--help")),
        "hf-transfer --help": Command((*transfer, "--help")),
        "unknown setting": Command((python, *run, "--seeed", "1"), 2),
        "wrong --dataset_name": Command((python, *wrong_name), 2),
        "missing column": Command((python, *wrong_column), 2),
        "finished run again": Command((python, *run)),
        "accelerate launch, empty script": Command((*launch, str(empty))),
        "accelerate launch, wrong --dataset_name": Command((*launch, *wrong_name), 1),
        "accelerate launch, finished run again": Command((*launch, *run)),
        "predict one picture": Command((*transfer, "predict", str(out), picture)),
        "transformers alone, one picture": Command((python, str(plain), str(out / "model"), picture)),
    }


def timed(command: Command, checkout: Path) -> Seconds:
    """Run a command in a checkout, whose package it imports."""
    environment = {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": ""}
    ended = run_alone(command.words, folder=checkout, environment=environment, code=command.code)
    return Seconds(ended.clock, ended.processor)


def measure(checkout: Path, rounds: int) -> dict[str, Seconds]:
    """The medians of each command.

    Args:
        checkout: of the version that is measured.
        rounds: that count.
    """
    generator = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        first, compared = commands(Path(folder))
        timed(first, checkout)
        seconds: dict[str, list[Seconds]] = {name: [] for name in compared}
        for number in range(rounds + 1):
            for name in generator.permutation(list(compared)).tolist():
                if number:
                    seconds[name].append(timed(compared[name], checkout))
                else:
                    timed(compared[name], checkout)
    return {
        name: Seconds(*(median(values) for values in zip(*of_command, strict=True)))
        for name, of_command in seconds.items()
    }


def show(medians: Mapping[str, Seconds]) -> None:
    """Print the table."""
    print("| command | seconds of the clock | of the processor |\n|---|---:|---:|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds.clock:.2f} | {seconds.processor:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=HERE, help="Of another version (default: this one).")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    medians = measure(arguments.checkout.resolve(), arguments.rounds)
    show(medians)
    if arguments.checkout == HERE:
        RESULTS.write_text(json.dumps({name: one._asdict() for name, one in medians.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
