"""Dropout in a model."""

from torch import nn


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes through a model that is trained differ by dropout."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
