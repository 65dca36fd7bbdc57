"""Models of real size with random weights, for measurements that need no download.

python -m benchmarks.random_models SHAPE FOLDER
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import run_alone

REPOSITORY = Path(__file__).parents[1]
# Names of architectures with the settings that differ from their defaults, which are those of ResNet-50, ViT-B and
# BERT-base.
SHAPES: dict[str, dict[str, object]] = {
    "resnet": {},
    "vit": {},
    "bert": {},
    "efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 224, "hidden_dim": 1280},
}
SIDE = 224


def random_weights(shape: str, folder: Path) -> str:
    """Save a classifier of a shape with an image processor for 224 pixels, or a tokenizer; its folder.

    A process of its own does it, so that the memory of this one stays small.
    """
    run_alone([sys.executable, "-m", "benchmarks.random_models", shape, str(folder)], folder=REPOSITORY)
    return str(folder)


def main(shape: str, folder: str) -> None:
    """Save a model."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        ViTImageProcessor,
    )

    from hf_transfer.data.sample_models import backbone_folder

    torch.manual_seed(0)
    config = AutoConfig.for_model(shape, **SHAPES[shape])
    of_texts = shape == "bert"
    kind: Any = AutoModelForSequenceClassification if of_texts else AutoModelForImageClassification
    kind.from_config(config).save_pretrained(folder)
    if of_texts:
        AutoTokenizer.from_pretrained(backbone_folder("sample:minilm")).save_pretrained(folder)
    else:
        ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
