"""A script for two processes: gathers augmented pixels by row, and lets the weights of the processes differ.

It writes `augmented.safetensors` and `drift.json` into a folder.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_transfer.data.checked import load_splits
from hf_transfer.modalities.image import ImageModality
from hf_transfer.settings.run import VisionConfig
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.loop import _refuse_drift

EPOCHS = (0, 3)


def augmented_pixels(accelerator: Accelerator, config: VisionConfig) -> dict[str, Tensor]:
    """Every training image as the model gets it, by epoch and row number."""
    modality = ImageModality()
    preprocessing = modality.preprocessing(modality.checkpoint(config), config, {})
    with accelerator.main_process_first():
        splits = load_splits(config, modality)
    loaders = modality.loaders(splits, preprocessing, config, accelerator, frozen_prefix=False)
    images: dict[str, Tensor] = {}
    for epoch in EPOCHS:
        loaders.train.set_epoch(epoch)
        for batch in loaders.train:
            labelled = loaders.to_inputs(batch, accelerator.device, "train", epoch)
            pixels, rows = accelerator.gather((labelled.inputs["pixel_values"], labelled.rows))
            for row, image in zip(rows.tolist(), pixels, strict=True):
                # The last batch is filled with rows of an earlier one: their images must be equal.
                assert torch.equal(images.setdefault(f"{epoch}/{row}", image.clone()), image)
    return images


def settings(folder: Path, augmentation: str) -> VisionConfig:
    """Three digits of each class."""
    return VisionConfig.of(
        model_name_or_path="sample:vit-glyphs",
        dataset_name="sample:digits",
        output_dir=str(folder / "out"),
        cache_dir=str(folder / "cache"),
        max_train_samples_per_class=3,
        strategy="full",
        augmentation=augmentation,
        horizontal_flip=True,
        per_device_train_batch_size=4,
        verify_samples=10,
    )


def drift(accelerator: Accelerator, shift: float) -> str:
    """The error of the loop for weights that differ by `shift` from process to process; "equal" if there is none."""
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 0.5 + shift * accelerator.process_index)
    nn.init.zeros_(model.bias)
    try:
        _refuse_drift(accelerator, model)
    except RuntimeError as error:
        return str(error)
    return "equal"


def main(folder: Path) -> None:
    """Both in one start, which takes most of the time."""
    tensors: dict[str, Tensor] = {}
    with start_accelerator(settings(folder, "standard")) as accelerator:
        for kind in ("standard", "trivial"):
            pixels = augmented_pixels(accelerator, settings(folder, kind))
            tensors |= {f"{kind}/{name}": image for name, image in pixels.items()}
        messages = {str(shift): drift(accelerator, shift) for shift in (0.0, 1e-6)}
        if accelerator.is_main_process:
            save_file(tensors, folder / "augmented.safetensors")
            (folder / "drift.json").write_text(json.dumps({"processes": accelerator.num_processes, **messages}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
