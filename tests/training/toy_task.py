"""A task that a tiny model learns in a few steps: a pattern or a word for each class, and noise."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from hf_transfer.data.batches import (
    Batch,
    EpochSampler,
    InputMaker,
    LabelRows,
    Loaders,
)
from hf_transfer.data.splits import Split
from hf_transfer.modalities.table import modality_named
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.settings.run import RunConfig, TextConfig, VisionConfig
from hf_transfer.strategies.freezing import FullFineTuning, LinearProbe, Stage, Strategy
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.target import Target, Values
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.loop import fit
from hf_transfer.training.progress import Fit
from tests.tiny_models import CLASSES, pixels, tiny_model
from tests.tiny_text_models import MASK, PAD, START, TEXT_ARCHITECTURES, VOCABULARY, tiny_text_model, token_ids

TARGET = Classes(tuple(f"class {number}" for number in range(CLASSES)))


class HeadAlone(LinearProbe):
    """The head is trained in steps, not solved."""

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """See `Strategy.stages`."""
        return [replace(stage, solved=False) for stage in super().stages(groups, epochs)]


class Rows(Dataset[Batch]):
    """Samples in memory, in the form that the loop expects of a split.

    Args:
        size: how many samples.
        masked: positions of samples that do not count.
        seed: of the noise.
        classes: how many.

    Attributes:
        labels: class numbers, int64 [size]; `split.targets` shares their memory.
        inputs: model inputs by name, each [size, ...].
        split: rows, targets and mask.
    """

    def __init__(self, size: int, *, masked: tuple[int, ...] = (), seed: int = 0, classes: int = CLASSES) -> None:
        self.labels = torch.arange(size) % classes
        self.inputs = self._inputs(torch.Generator().manual_seed(seed))
        nothing = datasets.Dataset.from_dict({})
        self.split = Split(nothing, np.arange(size), self.labels.numpy(), dict.fromkeys(masked, "masked"))

    def _inputs(self, generator: torch.Generator) -> Batch:
        patterns = torch.randn(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(99))
        noise = torch.randn(len(self.labels), 3, 16, 16, generator=generator) / 2
        return {"pixel_values": noise + patterns[self.labels]}

    @property
    def pixels(self) -> Tensor:
        """All pixels; not a copy."""
        return self.inputs["pixel_values"]

    @property
    def counted(self) -> Tensor:
        """Whether a sample counts, bool [size]."""
        return torch.from_numpy(self.split.counted)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Batch:
        inputs = {name: column[position] for name, column in self.inputs.items()}
        return {**inputs, **LabelRows(self.split)[position]}


class TextRows(Rows):
    """Texts of 4 to 8 tokens, padded on the right; every other token shows the class."""

    def _inputs(self, generator: torch.Generator) -> Batch:
        ids = torch.randint(MASK + 1 + CLASSES, VOCABULARY, (len(self.labels), 8), generator=generator)
        ids[:, 1::2] = MASK + 1 + self.labels[:, None]
        ids[:, 0] = START
        lengths = torch.randint(4, 9, (len(self.labels), 1), generator=generator)
        mask = (torch.arange(8) < lengths).long()
        self.lengths = lengths[:, 0].numpy()
        return {"input_ids": torch.where(mask > 0, ids, PAD), "attention_mask": mask}


class RowInputs(InputMaker):
    """The inputs of the rows as they are.

    Args:
        rows: by split.
    """

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self.rows = rows

    def fingerprint(self, split: str, epoch: int | None) -> str:
        """See `InputMaker.fingerprint`."""
        return fingerprint(self.rows[split])


def with_targets(rows: Rows, values: Values) -> Rows:
    """The same samples with other targets."""
    rows.labels, rows.split = torch.from_numpy(values), replace(rows.split, targets=values)
    return rows


def as_label_sets(rows: Rows) -> Target:
    """Give the rows two labels each, of which one is sometimes not known; the target."""
    cells = np.eye(CLASSES, dtype=np.float32)[rows.labels] + np.eye(CLASSES, dtype=np.float32)[rows.labels - 1]
    cells[::7, 0] = np.nan
    with_targets(rows, cells)
    return LabelSets(TARGET.label_names)


def as_numbers(rows: Rows) -> Target:
    """Give the rows numbers in large units, one for each output of the model; the target."""
    numbers = 1_000 + np.eye(CLASSES)[rows.labels] * np.arange(1, CLASSES + 1) + rows.labels.numpy()[:, None]
    with_targets(rows, numbers)
    return Numbers(TARGET.label_names).fitted(numbers)


def loaders_of(
    accelerator: Accelerator, train: Rows, validation: Rows, batch_size: int, seed: int = 0, target: Target = TARGET
) -> Loaders:
    """Loaders whose batches are divided among the processes, as the library's own are."""
    sampler = EpochSampler(len(train), seed)

    def loader(rows: Rows, order: EpochSampler | None) -> Any:
        batches = DataLoader(rows, batch_size=batch_size, sampler=order, generator=torch.Generator())
        return accelerator.prepare_data_loader(batches, device_placement=False)

    held_out = loader(validation, None)
    rows = {"train": train, "validation": validation, "test": validation}
    return Loaders(target, loader(train, sampler), held_out, held_out, RowInputs(rows))


def fingerprint(rows: Rows) -> str:
    """A hash of samples, labels and masks."""
    columns = [rows.labels, rows.counted, *rows.inputs.values()]
    return hashlib.sha256(b"".join(column.numpy().tobytes() for column in columns)).hexdigest()


def settings(**more: Any) -> VisionConfig:
    """Two epochs of six batches; a setting that has no effect with some strategy is no error here."""
    chosen: dict[str, Any] = {
        "strategy": "full",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "save_steps": 0,
        "cache_frozen": "off",
    }
    return VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o").replaced(**(chosen | more))


def text_settings(**more: Any) -> TextConfig:
    """The same for texts, without R-Drop."""
    same = {name: value for name, value in settings().flat().items() if name in TextConfig.settings()}
    required = {name: same.pop(name) for name in ("model_name_or_path", "dataset_name", "output_dir")}
    return TextConfig.of(**required).replaced(**{**same, "rdrop_alpha": 0.0, **more})


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


def fit_loaders(
    model: nn.Module, strategy: Strategy, groups: Sequence[Group], loaders: Loaders, config: RunConfig,
    accelerator: Accelerator, *, save_at_end: bool = False,
) -> Fit:  # fmt: skip
    """The loop, with what the modality of the settings adds to the loss."""
    samples = len(loaders.train.dataset)
    regularisation = modality_named(config.recipe).regularisation(config, model, loaders.target, samples)
    return fit(model, strategy, groups, loaders, config, accelerator, regularisation, save_at_end=save_at_end)


def train_vit(
    config: VisionConfig, *, strategy: Strategy | None = None, rows: int = 24, masked: tuple[int, ...] = (),
    **more: Any,
) -> Fit:  # fmt: skip
    """The loop on a fresh copy of the same ViT and the same rows."""
    model, groups = vit(**more)
    return train(model, groups, strategy or FullFineTuning(), config, Rows(rows, masked=masked), Rows(10, seed=1))


def train(
    model: nn.Module, groups: Sequence[Group], strategy: Strategy, config: RunConfig, train_rows: Rows,
    validation: Rows, *, views: int = 0,
) -> Fit:  # fmt: skip
    """The loop on a model and rows that are given."""
    with start_accelerator(config) as accelerator:
        batch_size, seed = config.training.train_batch_size(len(train_rows)), config.training.seed
        loaders = loaders_of(accelerator, train_rows, validation, batch_size, seed)
        return fit_loaders(model, strategy, groups, replace(loaders, views=views), config, accelerator)
