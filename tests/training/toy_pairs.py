"""The toy task for images with texts: picture and words show the class together."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.groups import Group
from hf_transfer.models.towers import trace
from hf_transfer.settings.run import MultimodalConfig
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.training.progress import Fit
from tests.tiny_pairs import pair_inputs, tiny_pair
from tests.training.toy_task import Rows, TextRows, train


class PairRows(Rows):
    """Samples in memory; the first has no image, the second no text."""

    def _inputs(self, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = super()._inputs(generator)
        texts = TextRows(len(self.labels))
        self.lengths = texts.lengths
        present = torch.ones(2, len(self.labels), dtype=torch.bool)
        present[0, 0] = present[1, 1] = False
        return {**pixels, **texts.inputs, "image_present": present[0], "text_present": present[1]}


def pair_settings(out: Path | str = "o", **more: Any) -> MultimodalConfig:
    """Two epochs of six batches."""
    chosen: dict[str, Any] = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3, "save_steps": 0, "cache_frozen": "off", "cache_dir": f"{out}/cache",
    }  # fmt: skip
    if not {"image_strategy", "text_strategy"} <= more.keys():
        chosen["strategy"] = "linear_probe"
    required = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": str(out)}
    return MultimodalConfig.of(**required, **(chosen | more))


def prepared_pair(
    config: MultimodalConfig, name: str = "vit", **more: Any
) -> tuple[FusionModel, list[Group], dict[str, Tensor]]:
    """A tiny model prepared for the strategies of the settings, its groups, and what it was traced with."""
    model, inputs = tiny_pair(name, modality_dropout=config.fusion.modality_dropout, **more), pair_inputs(name)
    strategy = choose_strategy(config.strategy)
    groups = trace(model, inputs)
    strategy.check(model, groups)
    prepared, groups = strategy.prepare(model, groups, inputs, config.training.seed)
    assert isinstance(prepared, FusionModel)
    return prepared, groups, inputs


def train_pair(config: MultimodalConfig, name: str = "vit", **more: Any) -> Fit:
    """The loop on a fresh copy of the same model and the same rows."""
    model, groups, _ = prepared_pair(config, name, **more)
    return train(model, groups, choose_strategy(config.strategy), config, PairRows(24), PairRows(10, seed=1))
