"""The real clients in separate processes, since they read the Hub's address when they are imported."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.conftest import REPOSITORY

LONGEST_SECONDS = 900
# Where timm is installed for some tests, it is on the path of this process.
PATH = [str(REPOSITORY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]

# One process makes several runs, since the imports take longer than a run.
SEVERAL_RUNS = """
import contextlib, io, json, sys, time, traceback
from hf_transfer import command_line
from hf_transfer.settings.run import TextConfig, VisionConfig
from hf_transfer.settings.parsing import run_recipe
from tests.conftest import load_recipe
import hf_transfer.evaluation.report, hf_transfer.models.pretrained

configs = {"vision": VisionConfig, "text": TextConfig}
for recipe, argv in json.loads(sys.argv[1]):
    out, err, code, started = io.StringIO(), io.StringIO(), 0, time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if recipe in configs:
                run_recipe(load_recipe(recipe).main, configs[recipe], argv)
            else:
                command_line.main([recipe, *argv])
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            traceback.print_exc()
    seconds = time.perf_counter() - started
    print("ENDED " + json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds}))
"""


@dataclass(frozen=True)
class Ended:
    """How one of several runs ended."""

    code: int
    out: str
    err: str
    seconds: float


def environment(endpoint: str, home: Path, token: str | None = None) -> dict[str, str]:
    """The environment of a process whose Hub is at `endpoint`, with its own cache."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    return variables | ({"HF_TOKEN": token} if token else {})


def several_runs(
    endpoint: str, home: Path, runs: dict[str, dict[str, object]], token: str | None = None
) -> dict[str, Ended]:
    """Make runs in one process whose Hub is at `endpoint`; each is given by its settings.

    `recipe` among them names the recipe; with `command` and `arguments` it is a command of `hf-transfer` instead.
    """
    pets = home.parent / "pets"
    defaults = {"model_name_or_path": "sample:vit-glyphs", "dataset_name": pets, "strategy": "scratch"}
    calls = []
    for name, changes in runs.items():
        if "command" in changes:
            calls.append((changes["command"], changes["arguments"]))
            continue
        settings: dict[str, object] = defaults | {"output_dir": home / name, "cache_dir": home / "checks"} | changes
        if settings["strategy"] != "linear_probe":
            settings |= {"num_train_epochs": 1}
        recipe = settings.pop("recipe", "vision")
        calls.append((recipe, [f"--{key}={value}" for key, value in settings.items() if value is not None]))
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_RUNS, json.dumps(calls)],
        capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS,
        env=environment(endpoint, home, token) | {"PYTHONPATH": os.pathsep.join(PATH)},
    )  # fmt: skip
    rows = [line.removeprefix("ENDED ") for line in done.stdout.splitlines() if line.startswith("ENDED ")]
    assert len(rows) == len(runs), done.stderr[-3000:]
    return {name: Ended(**json.loads(row)) for name, row in zip(runs, rows, strict=True)}


def a_model(folder: Path) -> Path:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def a_data_set(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "train" / label).mkdir(parents=True)
        for position in range(8):
            pixels = generator.integers(0, 255, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "train" / label / f"{position}.png")
    return folder
