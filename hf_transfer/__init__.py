"""Transfer learning on the Hugging Face stack: a pretrained model learns your task.

    import hf_transfer as ht

    run = ht.train("path/to/pictures", model="google/vit-base-patch16-224", output_dir="runs/first")
    print(run.metrics["test"])
    classify = ht.load("runs/first")

Names are resolved on first use, so that importing the package imports no torch.
"""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_MODULES = {
    "errors": ("UserError",),
    "evaluation.predictor": ("Predictor", "load"),
    "evaluation.results": ("Results",),
    "models.fusion": ("FusionModel",),
    "models.modeling_pair_probe": ("PairProbeModel",),
    "models.groups": ("check_boundary", "trace_groups"),
    "run": ("Run", "open_run"),
    "settings.run": ("MultimodalConfig", "TextConfig", "VisionConfig"),
    "strategies.choice": ("choose_strategy",),
    "strategies.freezing": ("set_trainable",),
    "training.trainer_callback": ("prepare_for_trainer",),
    "whole_run": ("advise", "rank", "train"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hf_transfer' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"hf_transfer.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
