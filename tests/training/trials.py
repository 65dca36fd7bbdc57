"""A model that raises an out-of-memory error for batches above a size."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Trial:
    """A forward pass that was tried.

    Attributes:
        size: samples in the batch.
        training: whether the model was in training mode.
        gradients: whether gradients were recorded.
        lengths: tokens of each text, if the samples are texts.
    """

    size: int
    training: bool
    gradients: bool
    lengths: list[int]


def refusing(model: nn.Module, *, train: int, evaluation: int) -> list[Trial]:
    """Let a model accept at most so many samples; with `train` below 0 it raises another error.

    Returns:
        A list to which every forward pass is appended.
    """
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
