"""Transfer learning on the Hugging Face stack: a pretrained model learns your task.

    import hf_transfer as ht

    run = ht.train("path/to/pictures", model="google/vit-base-patch16-224", strategy="partial", output_dir="runs/first")
    print(run.metrics["test"])
    classify = ht.load("runs/first")

Names are resolved on first use, so that importing the package imports no torch.
"""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_MODULES = {
    "FusionModel": "models.fusion",
    "Predictor": "evaluation.predictor",
    "Results": "evaluation.results",
    "Run": "run",
    "UserError": "errors",
    "VisionConfig": "settings.run",
    "TextConfig": "settings.run",
    "MultimodalConfig": "settings.run",
    "check_boundary": "models.groups",
    "choose_strategy": "strategies.choice",
    "load": "evaluation.predictor",
    "open_run": "run",
    "prepare_for_trainer": "training.trainer_callback",
    "set_trainable": "strategies.freezing",
    "trace_groups": "models.groups",
    "train": "whole_run",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_transfer' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"hf_transfer.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
