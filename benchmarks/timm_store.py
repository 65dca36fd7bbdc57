"""What does the store bring to a large convolutional network of timm, and what could it bring at most?

    python -m benchmarks.timm_store [--architecture vgg16] [--layers 2] [--rounds 1]

A model of full size with random weights is trained by `--strategy partial`, ten epochs of 32 pictures of noise with 16
for validation, with the store (nothing stored yet) and without it. The bound is that of `benchmarks.frozen_store`: the
frozen groups once, the others in every epoch, by times measured in the same round. It needs timm: see docs/timm.md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.freed_memory import build
from benchmarks.frozen_store import Task, measure_partial

RESULTS = Path(__file__).parent / "results" / "timm_store.json"


def random_weights(architecture: str, folder: Path) -> str:
    """Save a model of timm with random weights, as timm's own program does; its folder."""
    import timm
    from safetensors.torch import save_model

    torch.manual_seed(0)
    model: Any = timm.create_model(architecture, num_classes=10)
    folder.mkdir()
    config = {"architecture": architecture, "num_classes": 10, "pretrained_cfg": dict(model.pretrained_cfg)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_model(model, str(folder / "model.safetensors"))
    return str(folder)


def line(row: dict[str, Any]) -> str:
    """Markdown: a line for an architecture."""
    seconds = row["seconds"]
    gains = [row["cold"][0], row["warm"][0], row["bound"][0], row["share_of_bound"][0]]
    cells = [f"{seconds['off']:.0f} s", f"{seconds['cold']:.0f} s", *(f"{gain:.2f}" for gain in gains)]
    return f"| `{row['architecture']}` | {row['layers']} | {' | '.join(cells)} |"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    head = (
        "| model | blocks that learn | without store | with it, cold | gain, cold | gain, warm | bound | cold / bound |"
    )
    return "\n".join([head, f"|---|{'---:|' * 7}", *(line(row) for row in rows.values())])


def main() -> None:
    """Measure, save the figures beside those of other architectures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="vgg16")
    parser.add_argument("--layers", type=int, default=2, help="Blocks that learn.")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model_name_or_path": random_weights(arguments.architecture, Path(folder) / "model"),
            "dataset_name": str(build(Path(folder)) / "vision"), "augmentation": "none",
        }  # fmt: skip
        measured = measure_partial(Task("vision", settings, (arguments.layers,)), arguments.layers, arguments.rounds)
    rows[arguments.architecture] = {"architecture": arguments.architecture, "rounds": arguments.rounds, **measured}
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
