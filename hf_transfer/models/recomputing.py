"""Which models can recompute activations in the backward pass, as `--gradient_checkpointing` asks."""

from transformers import PreTrainedModel

from hf_transfer.errors import user_error


def recompute(model: PreTrainedModel) -> None:
    """Let a model recompute its activations in the backward pass.

    Reference: Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016,
    https://arxiv.org/abs/1604.06174.

    Raises:
        UserError: it cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise user_error(
            expected="a model that supports --gradient_checkpointing",
            found=f"{type(model).__name__}, which does not",
            do="leave the flag out, or lower --per_device_train_batch_size",
        )
    model.activation_checkpointing_enable({"use_reentrant": False})
