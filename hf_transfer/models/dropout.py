"""Dropout in a model, and what needs it."""

from torch import nn

from hf_transfer.targets.target import Target


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes through a model that is trained differ by dropout."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def suits_rdrop(model: nn.Module, target: Target) -> bool:
    """Whether the outputs of two passes differ, and the target says by how much."""
    return has_dropout(model) and "rdrop_alpha" in target.supported_settings
