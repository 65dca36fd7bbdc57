"""Small models of timm with perturbed random weights, and checkpoints as the Hub has them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.tiny_models import perturb, set_running_statistics

# Height and width of the pictures of timm's architectures for tests, of which some take no other.
SIDE = 160
# Names of the classes that a checkpoint was trained for.
EARLIER = ["tench", "goldfish", "shark"]


class Classifier(nn.Module):
    """As transformers wraps a model of timm."""

    def __init__(self, timm_model: nn.Module) -> None:
        super().__init__()
        self.timm_model = timm_model

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.timm_model(pixel_values))


def tiny_timm(architecture: str, classes: int = len(EARLIER), *, is_deep: bool = False, **arguments: Any) -> nn.Module:
    """A model of timm; of a deep one matrices are not perturbed, since its activations would grow beyond all bounds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(architecture, num_classes=classes, **arguments)
        side = arguments.get("img_size", SIDE)
        set_running_statistics(Classifier(model), {"pixel_values": torch.randn(8, 3, side, side)})
    matrices = {name: value.clone() for name, value in model.named_parameters() if value.ndim > 1 and is_deep}
    perturb(model, 1)
    model.load_state_dict(matrices, strict=False)
    return model.eval()


def save_timm(
    folder: Path, architecture: str = "test_resnet", *, arguments: dict[str, Any] | None = None, is_deep: bool = False,
    **pretrained_cfg: Any,
) -> Path:  # fmt: skip
    """A folder as timm's own program writes it, with some values of `pretrained_cfg` replaced."""
    model: Any = tiny_timm(architecture, is_deep=is_deep, **(arguments or {}))
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
