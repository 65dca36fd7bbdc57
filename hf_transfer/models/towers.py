"""A classifier of two towers: two pretrained backbones, or the two halves of a dual encoder."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_transfer.models.fusion import FusionConfig, FusionModel
from hf_transfer.models.groups import Group, Inputs, trace_groups
from hf_transfer.models.modeling_pair import INPUTS, as_sequence, pooled
from hf_transfer.models.modeling_pair_probe import pair_vectors, pooled_tower
from hf_transfer.models.pooling import without_task


@dataclass(frozen=True)
class Tower:
    """A pretrained backbone, and how its outputs become one vector.

    Attributes:
        backbone: the model, in float32.
        pooling: see `PairConfig`.
        projection: weight of a dual encoder's projection into the space that both halves share [width of the space,
            width of the vectors]; None: the backbone has no projection.
    """

    backbone: PreTrainedModel
    pooling: str
    projection: Tensor | None = None


def fuse(image: Tower, text: Tower, *, image_size: int, labels: Mapping[str, Any], **settings: Any) -> FusionModel:
    """A classifier of two towers; the weights of its new layers are drawn from torch's global generator.

    The projections of a dual encoder are kept, so that both vectors are in the space that it was trained for.

    Args:
        image: the tower for images.
        text: the tower for texts.
        image_size: height and width of the tower's images.
        labels: the target's values for the model's configuration.
        **settings: further arguments of `FusionConfig`.
    """
    image_width = _width(image, image_size)
    text_width = int(text.backbone.config.hidden_size)
    widths = [len(tower.projection) for tower in (image, text) if tower.projection is not None]
    config = FusionConfig(
        without_task(image.backbone.config),
        without_task(text.backbone.config),
        image_width=image_width,
        text_width=text_width,
        image_pooling=image.pooling,
        text_pooling=text.pooling,
        **{"hidden_size": max(widths or (image_width, text_width)), **labels, **settings},
    )
    model = FusionModel(config, image.backbone, text.backbone)
    for layer, tower in ((model.image_projection, image), (model.text_projection, text)):
        if tower.projection is not None and tower.projection.shape == layer.weight.shape:
            with torch.no_grad():
                layer.weight.copy_(tower.projection)
                layer.bias.zero_()
    return model


class SingleTower(nn.Module):
    """The part of a classifier that reads only images, or only texts: the same modules, under the same names.

    Args:
        model: the whole classifier.
        tower: image or text.
    """

    def __init__(self, model: FusionModel, tower: str) -> None:
        super().__init__()
        # In a tuple, so that it is not registered as a part of this model.
        self._model, self._logits = (model,), f"{tower}_logits"
        for name in (f"{tower}_tower", f"{tower}_projection", f"{tower}_norm", f"{tower}_classifier"):
            self.add_module(name, model.get_submodule(name))

    def forward(self, **inputs: Tensor) -> Any:
        """See `FusionModel`; `logits` are those of the tower alone."""
        output = self._model[0](**inputs)
        output["logits"] = output[self._logits]
        return output


class PairTowers(nn.Module):
    """The two towers of a classifier, to be read at several depths; its head is left out.

    Args:
        model: the classifier, whose towers these are.
    """

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.config: Any = model.config
        self.image_tower, self.text_tower = model.image_tower, model.text_tower

    def vectors(self, taps: Sequence[Sequence[Any]], inputs: Inputs) -> list[Tensor]:
        """See `pair_vectors`."""
        return pair_vectors(self, taps, inputs)

    def alone(self, tower: str) -> "PooledTower":
        """One of the towers, `image` or `text`."""
        return PooledTower(self.get_submodule(f"{tower}_tower"), getattr(self.config, f"{tower}_pooling"))


class PooledTower(nn.Module):
    """One tower, read as a classifier without its last layer: its `logits` are the pooled vector.

    Args:
        tower: a backbone.
        pooling: see `PairConfig`.
    """

    def __init__(self, tower: nn.Module, pooling: str) -> None:
        super().__init__()
        self.tower, self.pooling, self.config = tower, pooling, tower.config

    def forward(self, **inputs: Any) -> Any:
        """See `pooled_tower`."""
        return pooled_tower(self.tower, self.pooling, **inputs)


def trace(model: nn.Module, inputs: Inputs) -> list[Group]:
    """The groups of a classifier in depth order; the last one is the head.

    Of a classifier of two towers: those of the image tower, those of the text tower, and all layers that are not
    pretrained.

    Args:
        model: a classifier.
        inputs: a small batch; for two towers, of both.
    """
    if not isinstance(model, FusionModel):
        return trace_groups(model, inputs)
    # The projections belong to the head: they are new, too.
    new = [name for name, _ in model.named_children() if not name.endswith("_tower")]

    def pretrained(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name.split(".")[0] not in new)

    groups: list[Group] = []
    for tower, names in INPUTS.items():
        tower_inputs = {name: inputs[name] for name in names if name in inputs}
        groups += [
            Group(group.name, pretrained(group.modules), pretrained(group.parameters), tower)
            for group in trace_groups(SingleTower(model, tower), tower_inputs)[:-1]
        ]
    head = [name for name, _ in model.named_parameters() if name.split(".")[0] in new]
    return [*(group for group in groups if group.modules or group.parameters), Group("head", tuple(new), tuple(head))]


def output_layers(model: nn.Module, groups: Sequence[Group]) -> list[nn.Linear]:
    """The layers that compute the outputs of a classifier; of two towers, also those of each tower alone.

    Args:
        model: a classifier.
        groups: its groups in depth order.
    """
    layers = [model.get_submodule(name) for name in groups[-1].modules]
    if isinstance(model, FusionModel):
        layers = [model.classifier, model.image_classifier, model.text_classifier]
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def towers_of(groups: Sequence[Group]) -> list[str]:
    """The names of the towers, in order; an empty name if the model has only one tower."""
    return list(dict.fromkeys(group.tower for group in groups if group.tower)) or [""]


def groups_of(tower: str, groups: Sequence[Group]) -> list[Group]:
    """The groups of a tower in depth order, and the head."""
    return [group for group in groups if group.tower in (tower, "")]


def renew_tower(model: nn.Module, tower: str) -> None:
    """Give a tower fresh weights, drawn from torch's global generator."""
    assert isinstance(model, FusionModel)
    name = f"{tower}_tower"
    config: Any = deepcopy(model.config)
    model.get_submodule(name).load_state_dict(FusionModel(config).get_submodule(name).state_dict())


def _width(tower: Tower, size: int) -> int:
    pixels = torch.zeros(1, 3, size, size, device=tower.backbone.device)
    tower.backbone.train(False)
    with torch.no_grad():
        output = tower.backbone(pixel_values=pixels)
    return pooled(tower.pooling, output, as_sequence(output.last_hidden_state), None).shape[1]
