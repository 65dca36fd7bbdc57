"""A check that a model gives the same answer twice: what is random in evaluation cannot be stored or compared."""

import torch
from torch import nn

from hf_transfer.errors import user_error
from hf_transfer.models.groups import Inputs
from hf_transfer.models.tracing import evaluating

# Outputs of two passes that differ by more than this share of the largest are random; rounding gives less.
ROUNDING = 1e-4


def refuse_random_outputs(name: str, model: nn.Module, inputs: Inputs) -> None:
    """Refuse a model whose outputs differ from one pass to the next, although it is in evaluation mode.

    Args:
        name: the checkpoint, as the user names it.
        model: a classifier.
        inputs: a small batch, whose first sample is passed twice.

    Raises:
        UserError: it is such a model.
    """
    one = {key: value[:1] for key, value in inputs.items()}
    with evaluating(model), torch.no_grad():
        first, second = (model(**one).logits.float() for _ in range(2))
    difference = float((first - second).abs().max())
    if difference > ROUNDING * float(first.abs().max()):
        raise user_error(
            expected="a model that gives the same outputs for the same inputs in evaluation mode",
            found=f"{name}, a {type(model).__name__}: two passes differ by {difference:.2g}, so a part of it is random",
            do="choose another model, or one whose configuration turns that off (such as masking in pretraining)",
        )
