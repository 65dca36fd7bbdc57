"""Image classifiers on encoders for which transformers has no classifier.

They are saved with `modeling_pooled_image.py` beside their weights. The copy of that file in such a folder is never
executed here: a folder of our model type is loaded by the class in this package.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from hf_transfer.errors import user_error
from hf_transfer.models.loading import read_weights
from hf_transfer.models.modeling_pooled_image import PooledForImageClassification, PooledImageConfig, pooled
from hf_transfer.models.pooling import read_config, without_task
from hf_transfer.models.tracing import evaluating

# Height and width of a picture that an encoder is tried with, if its configuration names no size.
DEFAULT_SIZE = 64
# The parts of encoders that make their pooled output, by the names of transformers.
POOLERS = ("pooler", "head")


def read_encoder(
    path: str, revision: str, labels: Mapping[str, Any], *, fresh_weights: bool
) -> tuple[PreTrainedModel, frozenset[str]]:
    """An encoder, or a classifier of our type with a head for the labels, in float32; and its missing weights.

    Args:
        path: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.
        labels: the target's values for the model's configuration.
        fresh_weights: use only the architecture; no weights are read, and no names are returned.
    """
    config = read_config(path, revision=revision)
    if isinstance(config, PooledImageConfig):
        if fresh_weights:
            return PooledForImageClassification(PooledImageConfig.from_dict(config.to_dict(), **labels)), frozenset()
        return read_weights(PooledForImageClassification.from_pretrained, path, revision, **labels)
    if fresh_weights:
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False), frozenset()
    return read_weights(AutoModel.from_pretrained, path, revision)


def with_image_head(
    name: str, encoder: PreTrainedModel, missing: frozenset[str], labels: Mapping[str, Any]
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A classifier on an encoder, and the names of its weights that the checkpoint does not have.

    The head reads the encoder's own pooled output. Where it has none, or the checkpoint no weights for it, the head
    reads the class token or, without one, the mean of all places.

    Args:
        name: the checkpoint, as the user names it.
        encoder: its model; or a classifier of our type, which is returned as it is.
        missing: names of the encoder's weights that the checkpoint does not have.
        labels: the target's values for the model's configuration.

    Raises:
        UserError: it makes no hidden states from single pictures.
    """
    if isinstance(encoder, PooledForImageClassification):
        return encoder, missing
    path, output = encoder.name_or_path, _output(name, encoder)
    pooling = _pooling(encoder, output, missing)
    config = PooledImageConfig(
        image_config=without_task(encoder.config), pooling=pooling, width=pooled(pooling, output).shape[1],
        name_or_path=path, **labels,
    )  # fmt: skip
    model = PooledForImageClassification(config, encoder)
    names = dict(model.named_parameters())
    head = {f"classifier.{name}" for name, _ in model.classifier.named_parameters()}
    return model, frozenset({f"backbone.{name}" for name in missing} & names.keys() | head)


def _pooling(encoder: PreTrainedModel, output: Any, missing: frozenset[str]) -> Any:
    unread = {name.split(".")[0] for name in missing} & set(POOLERS)
    if getattr(output, "pooler_output", None) is not None and not unread:
        return "pooler"
    return "first" if any("cls_token" in name for name, _ in encoder.named_parameters()) else "mean"


def _output(name: str, encoder: PreTrainedModel) -> Any:
    """What the encoder makes of one black picture."""
    stated = getattr(encoder.config, "image_size", None) or DEFAULT_SIZE
    size = max(stated) if isinstance(stated, list | tuple) else stated
    try:
        with evaluating(encoder), torch.no_grad():
            output = encoder(pixel_values=torch.zeros(1, 3, size, size, device=encoder.device))
        assert output.last_hidden_state.ndim in (3, 4), f"hidden states of shape {[*output.last_hidden_state.shape]}"
    except Exception as error:
        if encoder.device.type == "meta":
            # Some models read the values of their inputs, which this device does not have.
            raise NotImplementedError from error
        # The encoder's own code may raise anything.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise user_error(
            expected="an encoder that makes hidden states from a picture alone",
            found=f"{name}, a {encoder.config.model_type} model: {reason}",
            do="choose another image model",
        ) from error
    return output
