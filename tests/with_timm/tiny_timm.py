"""Small models of timm with perturbed random weights, and checkpoints as the Hub has them."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.tiny_models import perturb

# Names of the classes that a checkpoint was trained for.
EARLIER = ["tench", "goldfish", "shark"]


def tiny_timm(architecture: str, classes: int = len(EARLIER), **arguments: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(architecture, num_classes=classes, **arguments)
    perturb(model, 1)
    return model.eval()


def save_timm(
    folder: Path, architecture: str = "test_resnet", *, arguments: dict[str, Any] | None = None, **pretrained_cfg: Any
) -> Path:
    """A folder as timm's own program writes it, with some values of `pretrained_cfg` replaced."""
    model: Any = tiny_timm(architecture, **(arguments or {}))
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": architecture,
        "num_classes": len(EARLIER),
        "num_features": model.num_features,
        "label_names": EARLIER,
        "label_descriptions": dict(zip(EARLIER, EARLIER, strict=True)),
        "pretrained_cfg": {**model.pretrained_cfg, "num_classes": len(EARLIER), **pretrained_cfg},
        "model_args": {**(arguments or {}), "num_classes": len(EARLIER)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder
