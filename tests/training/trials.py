"""A model that refuses batches above a size, as a full memory does."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Trial:
    """A forward pass that was tried.

    Attributes:
        size: samples.
        training: whether the model was in training mode.
        gradients: whether they were to be had.
        lengths: tokens of each text, if these were texts.
    """

    size: int
    training: bool
    gradients: bool
    lengths: list[int]


def refusing(model: nn.Module, *, train: int, evaluation: int) -> list[Trial]:
    """Let a model have room for so many samples; below none, it fails in another way. What is tried is in the list."""
    tried: list[Trial] = []
    forward = model.forward

    def limited(**inputs: Any) -> Any:
        size = len(next(iter(inputs.values())))
        lengths = inputs["attention_mask"].sum(1).tolist() if "attention_mask" in inputs else []
        tried.append(Trial(size, model.training, torch.is_grad_enabled(), lengths))
        if train < 0:
            raise RuntimeError("something else")
        if size > (train if model.training else evaluation):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    model.forward = limited
    return tried
