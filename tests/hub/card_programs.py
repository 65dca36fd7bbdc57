"""Run the programs in model cards as they are printed, in a process that cannot import hf_transfer."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_transfer.hub.card import write_card
from tests.blocked_imports import BLOCK_HF_TRANSFER

# The lines before the first example run once; the others run for every sample, in place of the examples.
PROGRAM = (
    BLOCK_HF_TRANSFER
    + """
import json, sys

answers = {}
for name, (code, samples) in json.loads(sys.stdin.read()).items():
    lines, printed = code.splitlines(), []
    first = next(number for number, line in enumerate(lines) if any(example in line for example in samples[0]))
    scope = {"print": lambda *values: printed.append(values)}
    exec("\\n".join(lines[:first]), scope)
    for sample in samples:
        rest = "\\n".join(lines[first:])
        for example, value in sample.items():
            rest = rest.replace(example, repr(value))
        exec(rest, scope)
    answers[name] = printed
assert "hf_transfer" not in sys.modules
print("PRINTED " + json.dumps(answers))
"""
)


def card_code(out: Path) -> str:
    """The program in the card of a finished run, for the model in its folder in place of one on the Hub."""
    card = write_card(out, str(out / "model"))
    return str(ModelCard(card.read_text(encoding="utf-8")).text).split("```python\n")[1].split("```")[0]


def printed_by(programs: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]], folder: Path) -> dict[str, list[Any]]:
    """What each program prints, with one entry for each call of `print`.

    Args:
        programs: code and samples of each, by its name: a sample has a value for each example in the code.
        folder: to run in.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(programs), capture_output=True, text=True, check=False,
        cwd=folder, env=variables | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("PRINTED ")]
    printed: dict[str, list[Any]] = json.loads(line.removeprefix("PRINTED "))
    return printed


def label_of(printed: Sequence[Any]) -> str:
    """The most probable label that a program prints: a label, or what a pipeline returns."""
    value = printed[0][0] if isinstance(printed[0], list) else printed[0]
    return str(value["label"] if isinstance(value, dict) else value)
