"""Run in two processes: gathers augmented pixels by row, and makes the processes drift apart.

Writes `augmented.safetensors` and `drift.json` into the folder that it is given.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_transfer.config import VisionConfig
from hf_transfer.data.inputs import PixelPipeline, image_loaders
from hf_transfer.data.sources import load_image_splits
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.training.loop import _refuse_drift, start_accelerator

EPOCHS = (0, 3)


def augmented_pixels(accelerator: Accelerator, config: VisionConfig) -> dict[str, Tensor]:
    """Every training image as the model would get it, by epoch and row number."""
    pipeline = PixelPipeline(Checkpoint(config.model_name_or_path).processor())
    with accelerator.main_process_first():
        splits = load_image_splits(config)
    loaders = image_loaders(splits, pipeline, config, accelerator, frozen_prefix=False)
    found: dict[str, Tensor] = {}
    for epoch in EPOCHS:
        loaders.train.set_epoch(epoch)
        for batch in loaders.train:
            inputs, _, index = loaders.to_inputs(batch, accelerator.device, "train", epoch)
            pixels, rows = accelerator.gather((inputs["pixel_values"], index))
            for row, image in zip(rows.tolist(), pixels, strict=True):
                # The last batch is filled up with rows that were already there: they must look the same.
                assert torch.equal(found.setdefault(f"{epoch}/{row}", image.clone()), image)
    return found


def settings(folder: Path, augmentation: str) -> VisionConfig:
    """Three digits of each class."""
    return VisionConfig(
        model_name_or_path="sample:vit-glyphs",
        dataset_name="sample:digits",
        output_dir=str(folder / "out"),
        cache_dir=str(folder / "cache"),
        max_train_samples_per_class=3,
        augmentation=augmentation,  # type: ignore[arg-type]
        horizontal_flip=True,
        per_device_train_batch_size=4,
        verify_samples=10,
    )


def drift(accelerator: Accelerator, shift: float) -> str:
    """What the loop says of weights that differ by `shift` from process to process."""
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 0.5 + shift * accelerator.process_index)
    nn.init.zeros_(model.bias)
    try:
        _refuse_drift(accelerator, model)
    except RuntimeError as error:
        return str(error)
    return "equal"


def main(folder: Path) -> None:
    """Both at once: starting processes is what takes the time."""
    tensors: dict[str, Tensor] = {}
    with start_accelerator(settings(folder, "none")) as accelerator:
        for kind in ("standard", "trivial"):
            pixels = augmented_pixels(accelerator, settings(folder, kind))
            tensors |= {f"{kind}/{name}": image for name, image in pixels.items()}
        says = {str(shift): drift(accelerator, shift) for shift in (0.0, 1e-6)}
        if accelerator.is_main_process:
            save_file(tensors, folder / "augmented.safetensors")
            (folder / "drift.json").write_text(json.dumps({"processes": accelerator.num_processes, **says}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
