"""Train the sample backbones again and compare them with the shipped ones.

    python -m benchmarks.sample_backbones          # compare
    python -m benchmarks.sample_backbones --ship   # replace what is shipped, with its card

On the machine of the card the bytes are equal. On another machine, which rounds differently, the test accuracy must lie
in the interval that the card states.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from hf_transfer.data.sample_models import BACKBONE_FOLDER
from hf_transfer.targets.intervals import wilson_interval

REPOSITORY = Path(__file__).parents[1]
NAMES = ("vit-glyphs", "resnet-glyphs")


def config_file(name: str) -> Path:
    """The settings that trained a backbone."""
    return REPOSITORY / "recipes" / "configs" / f"{'-'.join(reversed(name.split('-')))}.yaml"


def train(name: str, output_dir: Path) -> dict[str, Any]:
    """Run the recipe as a user does, and return its results."""
    command = [sys.executable, "recipes/vision.py", "--config", str(config_file(name)), "--output_dir", str(output_dir)]
    # Threads split sums: another number of threads rounds differently.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--overwrite_output_dir"], cwd=REPOSITORY, env=environment, check=True)
    results: dict[str, Any] = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    return results


def digest(folder: Path) -> str:
    """SHA-256 of a model's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def processor_name() -> str:
    """The name of the processor: rounding depends on it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def card(name: str, results: dict[str, Any], weights: str) -> str:
    """The model card: what it is, how it was trained, how long this took, how good it is."""
    settings = yaml.safe_load(config_file(name).read_text(encoding="utf-8"))
    test, rows = results["metrics"]["test"], results["samples"]["test"]
    low, high = wilson_interval(test["accuracy"] * rows, rows)
    kind = "Vision Transformer" if name.startswith("vit") else "ResNet"
    return f"""---
library_name: transformers
pipeline_tag: image-classification
license: apache-2.0
---

# sample:{name}

A small {kind} ({results["parameters"]["total"]:,} parameters) that tells {len(results["labels"])} printed letters and
symbols apart. It has seen no digit: it is the pretrained backbone from which the demo learns handwritten ones.

- **Data**: `sample:glyphs`, {results["samples"]["train"]:,} training images rendered from the fonts that matplotlib
  carries, with random slant, rotation, stroke width, blur, noise and resolution.
- **Training**: `recipes/configs/{config_file(name).name}`: {settings["num_train_epochs"]} epochs from fresh weights,
  peak learning rate {float(settings["learning_rate"]):g}, batches of {settings["per_device_train_batch_size"]},
  seed {results["seed"]}; {results["seconds"]["train"] / 60:.0f} minutes on {results["threads"]} thread of
  {processor_name()}.
- **Test accuracy**: {test["accuracy"]:.2%} on {rows:,} held-out renderings (macro F1 {test["f1_macro"]:.4f}).
- **Repeat**: `make backbones`. On that processor, with the versions of `constraints.txt` and
  {results["threads"]} thread, `model.safetensors` comes out with SHA-256 `{weights}`;
  on others the test accuracy must lie between {low:.4f} and {high:.4f} (95 % Wilson interval).
- **Not for**: anything but demonstrations and tests.
"""


def compare(name: str, results: dict[str, Any], trained: Path) -> bool:
    """Print the comparison; True if the bytes are equal or the accuracy lies in the interval of the card."""
    shipped = BACKBONE_FOLDER / name
    if digest(shipped) == digest(trained):
        print(f"{name}: equal bytes, {digest(shipped)}")
        return True
    written = (shipped / "README.md").read_text(encoding="utf-8")
    low, high = (float(word) for word in written.split("must lie between ")[1].split(" (95")[0].split(" and "))
    accuracy = float(results["metrics"]["test"]["accuracy"])
    print(f"{name}: other bytes; test accuracy {accuracy:.4f}, stated interval {low} to {high}")
    return low <= accuracy <= high


def ship(name: str, results: dict[str, Any], trained: Path) -> None:
    """Put a trained model in the package, with its card."""
    shipped = BACKBONE_FOLDER / name
    for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copyfile(trained / file, shipped / file)
    (shipped / "README.md").write_text(card(name, results, digest(trained)), encoding="utf-8")


def main() -> None:
    """Train both, then compare or ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ship", action="store_true", help="Replace the shipped backbones.")
    parser.add_argument("names", nargs="*", default=NAMES, help="Which ones (default: both).")
    arguments = parser.parse_args()
    sound = True
    for name in arguments.names:
        folder = REPOSITORY / "runs" / f"backbone-{name}"
        results = train(name, folder)
        if arguments.ship:
            ship(name, results, folder / "model")
        sound = compare(name, results, folder / "model") and sound
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
