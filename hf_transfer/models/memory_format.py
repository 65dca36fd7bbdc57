"""How the weights of convolutions lie in memory."""

from typing import TypeVar

from torch import channels_last, contiguous_format, memory_format, nn

Model = TypeVar("Model", bound=nn.Module)


def in_channels_last(model: Model) -> Model:
    """The model, with its convolutions over images in `channels_last`: the channels of a place lie side by side.

    Libraries for convolutions compute in such formats, and else convert inputs and outputs of each layer. Names, shapes
    and values stay the same; outputs may be rounded otherwise.
    """
    return _with(model, channels_last)


def contiguous(model: Model) -> Model:
    """The model, with its convolutions over images as torch creates them."""
    return _with(model, contiguous_format)


def _with(model: Model, chosen: memory_format) -> Model:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=chosen)
    return model
