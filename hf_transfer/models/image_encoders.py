"""What a head reads of an image encoder, and image classifiers on encoders that transformers has no classifier for.

These are saved with `modeling_pooled_image.py` beside their weights. The copy of that file in such a folder is never
executed here: a folder of our model type is loaded by the class in this package.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
)

from hf_transfer.errors import user_error
from hf_transfer.models.loading import read_weights
from hf_transfer.models.modeling_pair import POOLINGS, as_sequence
from hf_transfer.models.modeling_pair import pooled as vector_of
from hf_transfer.models.modeling_pooled_image import PooledForImageClassification, PooledImageConfig, pooled
from hf_transfer.models.pooling import read_config, without_task
from hf_transfer.models.tracing import evaluating

# Height and width of a picture that an encoder is tried with, if its configuration names no size.
DEFAULT_SIZE = 64
# Of made-up outputs: at least so many places on each side.
PLACES = 3
# Between a mean and the same in another order.
LARGEST_DIFFERENCE = 1e-5
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

    What the head reads says `image_pooling`.

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
    pooling: Any = _pooling(encoder, output, missing)
    config = PooledImageConfig(
        image_config=without_task(encoder.config), pooling=pooling, width=pooled(pooling, output).shape[1],
        name_or_path=path, **labels,
    )  # fmt: skip
    model = PooledForImageClassification(config, encoder)
    names = dict(model.named_parameters())
    head = {f"classifier.{name}" for name, _ in model.classifier.named_parameters()}
    return model, frozenset({f"backbone.{name}" for name in missing} & names.keys() | head)


def image_pooling(name: str, encoder: PreTrainedModel, missing: frozenset[str]) -> str:
    """What a head reads of an image encoder, by the names of `PairConfig`: the same in all recipes.

    That is what transformers' classifier for this type reads. Where transformers has none, or its classifier reads what
    further layers make of the outputs, it is the encoder's own pooled output. Where it has none, or the checkpoint no
    weights for it, it is the class token or, without one, the mean of all places.

    Args:
        name: the checkpoint, as the user names it.
        encoder: its model.
        missing: names of the encoder's weights that the checkpoint does not have.

    Raises:
        UserError: it makes no hidden states from single pictures.
    """
    return _pooling(encoder, _output(name, encoder), missing)


def _pooling(encoder: PreTrainedModel, output: Any, missing: frozenset[str]) -> str:
    has_pooler = not {name.split(".")[0] for name in missing} & set(POOLERS)
    by_class = _read_by_class(encoder, output)
    if by_class is not None and (has_pooler or by_class != "pooler"):
        return by_class
    if getattr(output, "pooler_output", None) is not None and has_pooler:
        return "pooler"
    # Of maps the first place is a corner: CvT returns its class token beside them.
    is_sequence = output.last_hidden_state.ndim == 3
    return "first" if is_sequence and any("cls_token" in name for name, _ in encoder.named_parameters()) else "mean"


def _read_by_class(encoder: PreTrainedModel, output: Any) -> str | None:
    """Which pooling of an encoder's outputs enters the last layer of transformers' classifier for its type.

    The classifier is asked: it gets made-up outputs in place of those of its encoder, which need neither weights nor a
    picture.

    Args:
        encoder: the encoder.
        output: of it.

    Returns:
        None: there is no classifier for it, or that makes something else of the outputs.
    """
    if type(encoder.config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return None
    config = without_task(deepcopy(encoder.config))
    # For types with several classifiers transformers iterates over the names, but leaves None where a file has none.
    config.architectures = config.architectures or []
    with torch.device("meta"):
        classifier: Any = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    inside, others = classifier.base_model_prefix, dict(classifier.named_modules())
    layers = [name for name, one in others.items() if isinstance(one, nn.Linear) and name.split(".")[0] != inside]
    if inside not in others or len(layers) != 1:
        return None
    classifier.set_submodule(layers[0], nn.Identity())
    made_up = _made_up(output)
    classifier.set_submodule(inside, Answering(made_up))
    try:
        with torch.device("cpu"), evaluating(classifier), torch.no_grad():
            read = classifier(pixel_values=torch.zeros(1, 3, DEFAULT_SIZE, DEFAULT_SIZE)).logits
        assert read.device.type == "cpu", "a layer of the classifier, which has no weights here, has made it"
    except Exception:
        # It has further layers, or reads what else the encoder returns, where its own code may raise anything.
        return None
    hidden = as_sequence(made_up.last_hidden_state)
    for kind in POOLINGS:
        if kind != "pooler" or made_up.get("pooler_output") is not None:
            vector = vector_of(kind, made_up, hidden, None)
            if vector.shape == read.shape and torch.allclose(vector, read, atol=LARGEST_DIFFERENCE):
                return kind
    return None


class Answering(nn.Module):
    """Stands in the place of an encoder, and has only one answer.

    Args:
        output: the answer.
    """

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        """See above."""
        return self.output


def _made_up(output: Any) -> Any:
    """Random outputs of the same kind, of several places, so that no two poolings of them are equal."""
    generator, values = torch.Generator().manual_seed(0), {}
    for name in ("last_hidden_state", "pooler_output"):
        if (tensor := output.get(name)) is not None:
            shape = [*tensor.shape]
            if name == "last_hidden_state":
                places = slice(2, None) if tensor.ndim == 4 else slice(1, 2)
                shape[places] = [max(PLACES, size) for size in shape[places]]
            values[name] = torch.randn(shape, generator=generator, device="cpu")
    return type(output)(**values)


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
