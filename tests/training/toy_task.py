"""A task that a tiny ViT learns in a few steps: a pattern for each class, and noise."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from hf_transfer.config import VisionConfig
from hf_transfer.data.inputs import MASKED, EpochSampler, Loaders
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.freezing import FullFineTuning, LinearProbe, Stage, Strategy
from hf_transfer.training.loop import Fit, fit, start_accelerator
from tests.tiny_models import CLASSES, pixels, tiny_model

Batch = dict[str, Tensor]


class HeadAlone(LinearProbe):
    """The head learns step by step, and is not solved."""

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """See `Strategy.stages`."""
        return [replace(stage, solved=False) for stage in super().stages(groups, epochs)]


class Rows(Dataset[Batch]):
    """Samples in memory, in the form that the loop expects of a split."""

    def __init__(self, size: int, *, masked: tuple[int, ...] = (), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(size) % CLASSES
        patterns = torch.randn(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(99))
        self.pixels = torch.randn(size, 3, 16, 16, generator=generator) / 2 + patterns[self.labels]
        self.labels[list(masked)] = MASKED
        self.split = SimpleNamespace(rows=np.arange(size), labels=self.labels.numpy(), bad={})

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Batch:
        return {
            "pixel_values": self.pixels[position],
            "labels": self.labels[position],
            "index": torch.tensor(position),
        }


def to_inputs(batch: Batch, device: torch.device, split: str, epoch: int | None) -> tuple[Batch, Tensor, Tensor]:
    """See `Loaders.to_inputs`."""
    return {"pixel_values": batch["pixel_values"]}, batch["labels"], batch["index"]


def loaders_of(accelerator: Accelerator, train: Rows, validation: Rows, batch_size: int, seed: int = 0) -> Loaders:
    """Loaders shared out among the processes, as the library's own are."""
    sampler = EpochSampler(len(train), seed)

    def loader(rows: Rows, order: EpochSampler | None) -> Any:
        batches = DataLoader(rows, batch_size=batch_size, sampler=order)
        return accelerator.prepare_data_loader(batches, device_placement=False)

    held_out = loader(validation, None)
    return Loaders(loader(train, sampler), held_out, held_out, to_inputs)


def settings(**more: Any) -> VisionConfig:
    """Two epochs of six batches."""
    chosen: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    return VisionConfig(model_name_or_path="m", dataset_name="d", **{"output_dir": "o", **chosen, **more})


def vit(**more: Any) -> tuple[PreTrainedModel, list[Group]]:
    """A tiny ViT and its groups."""
    model = tiny_model("vit", **more)
    return model, trace_groups(model, pixels("vit"))


def train_vit(
    config: VisionConfig, *, strategy: Strategy | None = None, rows: int = 24, masked: tuple[int, ...] = (),
    **more: Any,
) -> Fit:  # fmt: skip
    """The loop on a fresh copy of the same ViT and the same rows."""
    model, groups = vit(**more)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(
            accelerator, Rows(rows, masked=masked), Rows(10, seed=1), config.per_device_train_batch_size, config.seed
        )
        return fit(model, strategy or FullFineTuning(), groups, loaders, config, accelerator)


def in_folder(config: VisionConfig, folder: Path) -> VisionConfig:
    """The same settings with another output folder."""
    return replace(config, output_dir=str(folder))
