"""A task that a tiny model learns in a few steps: for each class a pattern or a word, and noise."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from hf_transfer.config import RunConfig, TextConfig, VisionConfig
from hf_transfer.data.inputs import MASKED, EpochSampler, Loaders
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.freezing import FullFineTuning, LinearProbe, Stage, Strategy
from hf_transfer.training.loop import fit, start_accelerator
from hf_transfer.training.progress import Fit
from tests.tiny_models import CLASSES, pixels, tiny_model
from tests.tiny_text_models import MASK, PAD, START, TEXT_ARCHITECTURES, VOCABULARY, tiny_text_model, token_ids

Batch = dict[str, Tensor]


class HeadAlone(LinearProbe):
    """The head learns step by step, and is not solved."""

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """See `Strategy.stages`."""
        return [replace(stage, solved=False) for stage in super().stages(groups, epochs)]


class Rows(Dataset[Batch]):
    """Samples in memory, in the form that the loop expects of a split."""

    def __init__(self, size: int, *, masked: tuple[int, ...] = (), seed: int = 0, classes: int = CLASSES) -> None:
        self.labels = torch.arange(size) % classes
        self.inputs = self._inputs(torch.Generator().manual_seed(seed))
        self.labels[list(masked)] = MASKED
        self.split = SimpleNamespace(rows=np.arange(size), labels=self.labels.numpy(), bad={})

    def _inputs(self, generator: torch.Generator) -> Batch:
        patterns = torch.randn(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(99))
        noise = torch.randn(len(self.labels), 3, 16, 16, generator=generator) / 2
        return {"pixel_values": noise + patterns[self.labels]}

    @property
    def pixels(self) -> Tensor:
        """All pixels; not a copy."""
        return self.inputs["pixel_values"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Batch:
        columns = {"labels": self.labels, **self.inputs}
        return {name: column[position] for name, column in columns.items()} | {"index": torch.tensor(position)}


class TextRows(Rows):
    """Texts of 4 to 8 tokens, padded on the right; every other word tells the class."""

    def _inputs(self, generator: torch.Generator) -> Batch:
        ids = torch.randint(MASK + 1 + CLASSES, VOCABULARY, (len(self.labels), 8), generator=generator)
        ids[:, 1::2] = MASK + 1 + self.labels[:, None]
        ids[:, 0] = START
        lengths = torch.randint(4, 9, (len(self.labels), 1), generator=generator)
        mask = (torch.arange(8) < lengths).long()
        self.lengths = lengths[:, 0].numpy()
        return {"input_ids": torch.where(mask > 0, ids, PAD), "attention_mask": mask}


def to_inputs(batch: Batch, device: torch.device, split: str, epoch: int | None) -> tuple[Batch, Tensor, Tensor]:
    """See `Loaders.to_inputs`."""
    inputs = {name: column for name, column in batch.items() if name not in ("labels", "index")}
    return inputs, batch["labels"], batch["index"]


def loaders_of(accelerator: Accelerator, train: Rows, validation: Rows, batch_size: int, seed: int = 0) -> Loaders:
    """Loaders shared out among the processes, as the library's own are."""
    sampler = EpochSampler(len(train), seed)

    def loader(rows: Rows, order: EpochSampler | None) -> Any:
        batches = DataLoader(rows, batch_size=batch_size, sampler=order, generator=torch.Generator())
        return accelerator.prepare_data_loader(batches, device_placement=False)

    held_out = loader(validation, None)
    rows = {"train": train, "validation": validation, "test": validation}
    return Loaders(loader(train, sampler), held_out, held_out, to_inputs, lambda split, _: fingerprint(rows[split]))


def fingerprint(rows: Rows) -> str:
    """A hash of samples and labels."""
    columns = [rows.labels, *rows.inputs.values()]
    return hashlib.sha256(b"".join(column.numpy().tobytes() for column in columns)).hexdigest()


def settings(**more: Any) -> VisionConfig:
    """Two epochs of six batches."""
    chosen: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "save_steps": 0,
        "cache_frozen": "off",
    }
    return VisionConfig(model_name_or_path="m", dataset_name="d", **{"output_dir": "o", **chosen, **more})


def text_settings(**more: Any) -> TextConfig:
    """The same for texts, which go through the model once."""
    known = {field.name for field in fields(TextConfig)}
    same = {name: value for name, value in asdict(settings()).items() if name in known}
    once = None if more.get("strategy") == "linear_probe" else 0.0
    return TextConfig(**{**same, "rdrop_alpha": once, **more})


def tiny(name: str, **more: Any) -> tuple[PreTrainedModel, list[Group], Batch]:
    """A tiny image or text model, its groups, and what it was traced with."""
    text = name in TEXT_ARCHITECTURES
    model = tiny_text_model(name, **more) if text else tiny_model(name, **more)
    inputs = token_ids() if text else pixels(name)
    return model, trace_groups(model, inputs), inputs


def rows_for(name: str, size: int, **more: Any) -> Rows:
    """Samples for a tiny model."""
    return (TextRows if name in TEXT_ARCHITECTURES else Rows)(size, **more)


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


def train(
    model: nn.Module, groups: Sequence[Group], strategy: Strategy, config: RunConfig, train_rows: Rows,
    validation: Rows, *, views: int = 0,
) -> Fit:  # fmt: skip
    """The loop on a model and rows that are given."""
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, train_rows, validation, config.per_device_train_batch_size, config.seed)
        return fit(model, strategy, groups, replace(loaders, views=views), config, accelerator)
