"""A step never waits for the device: here that is `meta`, whose numbers cannot be read at all.

Whatever would make the host wait for a GPU raises an error there: `item`, `tolist`, `bool`, `cpu`, `numpy`, `nonzero`,
a boolean mask as an index.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import masking_utils

from hf_transfer.data.batches import LabelledInputs
from hf_transfer.frozen.stored_batches import _padded
from hf_transfer.modalities.augmentation import Augmentation
from hf_transfer.modalities.mixing import Mixing
from hf_transfer.modalities.modality import Regularisation
from hf_transfer.modalities.table import modality_named
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.freezing import FullFineTuning, set_trainable
from hf_transfer.targets.target import Target
from hf_transfer.training import guard
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.guard import Guard
from hf_transfer.training.loop import train_epoch
from hf_transfer.training.progress import Position
from hf_transfer.training.steps import Steps
from tests.training.toy_task import (
    TARGET,
    Rows,
    as_label_sets,
    as_numbers,
    loaders_of,
    rows_for,
    settings,
    text_settings,
    tiny,
)

META = torch.device("meta")


class Arrived:
    """Numbers of a finite step, in place of those that the device would send."""

    def __init__(self, numbers: Tensor) -> None:
        assert numbers.shape == (4,)

    def read(self) -> list[float]:
        """Finite, no signal, no checkpoint due, and a loss."""
        return [0.0, 0.0, 0.0, 0.5]


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` behaves like a GPU: fused optimizers run on it, and steps are read late."""
    # Not `torch.optim.optimizer`: the package has removed that name.
    module = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
    monkeypatch.setattr(Accelerator, "device", META)
    monkeypatch.setattr(guard, "reads_at_once", lambda _: False)
    monkeypatch.setattr(guard, "HostCopy", Arrived)
    # transformers itself reads, in each forward pass that is not compiled, whether a text is padded.
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *_: False)


def steps_before_the_first_read(name: str, config: RunConfig, relabel: Callable[[Rows], Target] | None = None) -> int:
    """How many steps an epoch takes on `meta` until a number is read; at its end the loss must be."""
    model, groups, _ = tiny(name)
    rows = rows_for(name, 24)
    target = TARGET if relabel is None else relabel(rows)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, rows, 4, target=target)
        (stage,) = FullFineTuning().stages(groups, 1)
        set_trainable(model, groups, stage.trainable)
        added: Regularisation = modality_named(config.recipe).regularisation(config, model, target, len(rows))
        steps = Steps(model, groups, loaders, config.training, FullFineTuning(), [stage], added)
        state: Any = SimpleNamespace(position=Position(), steps=steps, result=SimpleNamespace(epochs=0))
        checkpointing: Any = SimpleNamespace(due=lambda _: False, due_after_count=lambda _: False)
        learner = steps.prepare(stage, accelerator, state.position)
        request: Any = SimpleNamespace(number=0)
        checks = Guard(request, state, checkpointing, config.training, accelerator)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            train_epoch(learner, loaders, state, checks, accelerator)
    return int(state.position.steps)


@pytest.mark.parametrize(
    ("name", "config", "relabel"),
    [
        ("vit", settings(ema_decay=0.9, l2_sp=0.05, class_weights="balanced", label_smoothing_factor=0.1), None),
        ("vit", settings(mixup_alpha=0.2, cutmix_alpha=1.0), None),
        ("vit", settings(class_weights="balanced"), as_label_sets),
        ("vit", settings(regression_loss="huber"), as_numbers),
        ("resnet_bottleneck", settings(ema_decay=0.9), None),
        ("bert", text_settings(rdrop_alpha=1.0), None),
    ],
)
def test_an_epoch_reads_no_number_before_its_last_step(
    name: str, config: RunConfig, relabel: Callable[[Rows], Target] | None, on_meta: None
) -> None:
    assert steps_before_the_first_read(name, config, relabel) == 6


def test_a_step_of_several_batches_reads_no_number(on_meta: None) -> None:
    assert steps_before_the_first_read("vit", settings(gradient_accumulation_steps=4)) == 2


@pytest.mark.parametrize("kind", ["light", "standard", "trivial"])
def test_augmentation_reads_no_number(kind: Any) -> None:
    images = torch.empty(64, 3, 8, 8, device=META)
    changed = Augmentation(kind, flip=True, seed=0)(images, torch.arange(64), 0)
    assert changed.device == META
    assert changed.shape == images.shape


def test_mixing_reads_row_numbers_from_the_cpu() -> None:
    """Batches keep them there."""
    batch = {
        "pixel_values": torch.zeros(4, 3, 8, 8), "target": torch.zeros(4, dtype=torch.long),
        "counted": torch.ones(4, dtype=torch.bool), "index": torch.arange(4),
    }  # fmt: skip
    labelled: LabelledInputs = loaders_on_cpu().to_inputs(batch, META, "train", 0)
    assert labelled.rows.device.type == "cpu"
    inputs, targets = Mixing(0.2, 1.0, 0, TARGET)(*labelled, 0)
    assert inputs["pixel_values"].device == targets.device == META


def loaders_on_cpu() -> Any:
    """Loaders of a few rows."""
    with start_accelerator(settings()) as accelerator:
        return loaders_of(accelerator, Rows(8), Rows(8), 4)


def test_stored_tokens_are_padded_without_a_read() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    tokens = torch.arange(10.0).view(5, 2)
    assert _padded(tokens.to(META), mask).shape == (2, 3, 2)
    expected = torch.tensor([[[0.0, 1], [2, 3], [0, 0]], [[4, 5], [6, 7], [8, 9]]])
    assert torch.equal(_padded(tokens, mask), expected)
