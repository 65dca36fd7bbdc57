"""Transfer learning on the Hugging Face stack: a pretrained model learns your task.

Names are resolved on first use, so that importing the package imports no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "UserError": "config",
    "VisionConfig": "config",
    "TextConfig": "config",
    "MultimodalConfig": "config_multimodal",
    "load_image_splits": "data.sources",
    "load_text_splits": "data.sources",
    "load_pair_splits": "data.pairs",
    "image_loaders": "data.inputs",
    "text_loaders": "data.tokens",
    "pair_loaders": "data.pair_batches",
    "load_classifier": "models.pretrained",
    "FusionModel": "models.fusion",
    "PairCheckpoint": "models.pretrained_pair",
    "trace_groups": "models.groups",
    "check_boundary": "models.groups",
    "choose_strategy": "strategies.choice",
    "set_trainable": "strategies.freezing",
    "fit": "training.loop",
    "prepare_for_trainer": "training.trainer_callback",
    "predict_split": "training.predictions",
    "classify_images": "evaluation.predict",
    "classify_texts": "evaluation.predict",
    "classify_pairs": "evaluation.predict",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_transfer' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"hf_transfer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
