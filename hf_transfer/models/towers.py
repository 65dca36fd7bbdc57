"""Two pretrained backbones, or the two halves of a dual encoder, become the towers of one classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_transfer.models.fusion import FusionConfig, FusionModel, as_places, pooled
from hf_transfer.models.groups import Group, Inputs, trace_groups

TOWERS = ("image", "text")
# What runs before the projections of a tower, and what only the tower alone has.
FINAL, ALONE = "final", "head"


@dataclass(frozen=True)
class Tower:
    """A pretrained backbone, and how its outputs become one vector.

    Attributes:
        backbone: loaded, in float32.
        pooling: see `FusionConfig.image_pooling`.
        projection: what a dual encoder projects its vectors with, into the space that both halves share
            [width of the space, width of the vectors]; None if there is none.
    """

    backbone: PreTrainedModel
    pooling: str
    projection: Tensor | None = None


def image_pooling_of(backbone: PreTrainedModel, lacking: frozenset[str]) -> str:
    """The backbone's own pooling if the checkpoint has it, else its first token, if it has been made for that.

    Args:
        backbone: an image backbone.
        lacking: names of its weights that the checkpoint does not have.
    """
    pooler = [name for name, _ in backbone.named_parameters() if name.startswith("pooler.")]
    pools = hasattr(backbone, "pooler") or not any("cls_token" in name for name, _ in backbone.named_parameters())
    if pools and backbone.__dict__.get("_modules", {}).get("pooler") is not None and not lacking.intersection(pooler):
        return "pooler"
    return "first" if any("cls_token" in name for name, _ in backbone.named_parameters()) else "mean"


def fuse(image: Tower, text: Tower, *, image_size: int, labels: Mapping[str, Any], **settings: Any) -> FusionModel:
    """A classifier of two towers; its own layers are drawn from torch's global generator.

    The projections of a dual encoder are taken over, so that both vectors lie in the space that it was trained for.

    Args:
        image: the tower for images.
        text: the tower for texts.
        image_size: height and width of the images that the tower takes.
        labels: `id2label` and `label2id`.
        **settings: what else `FusionConfig` takes.
    """
    image_width = _width(image, image_size)
    text_width = int(text.backbone.config.hidden_size)
    widths = [len(tower.projection) for tower in (image, text) if tower.projection is not None]
    config = FusionConfig(
        _named_nowhere(image.backbone.config),
        _named_nowhere(text.backbone.config),
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


class Alone(nn.Module):
    """A classifier of images alone, or of texts alone, of the same modules under the same names.

    Args:
        model: what it is a part of.
        tower: image or text.
    """

    def __init__(self, model: FusionModel, tower: str) -> None:
        super().__init__()
        self._model, self._logits = (model,), f"{tower}_logits"
        for name in (f"{tower}_tower", f"{tower}_projection", f"{tower}_norm", f"{tower}_classifier"):
            self.add_module(name, model.get_submodule(name))

    def forward(self, **inputs: Tensor) -> Any:
        """See `FusionModel`; `logits` are those of the tower alone."""
        found = self._model[0](**inputs)
        found["logits"] = found[self._logits]
        return found


def trace_towers(model: FusionModel, inputs: Inputs) -> list[Group]:
    """The groups of both towers in depth order, image first, then all that sees both, and the head.

    Args:
        model: a classifier of two towers.
        inputs: a small batch of both.
    """
    groups: list[Group] = []
    for tower, names in zip(
        TOWERS, (("pixel_values",), ("input_ids", "attention_mask", "token_type_ids")), strict=True
    ):
        own = {name: inputs[name] for name in names if name in inputs}
        groups += [_named(tower, group) for group in trace_groups(Alone(model, tower), own) if group.name != ALONE]
    taken = {name for group in groups for name in group.parameters}
    head = [f"classifier.{name}" for name, _ in model.classifier.named_parameters()]
    modules = ("missing", "mixture", "inner", "image_classifier", "text_classifier")
    mine = [name for name, _ in model.named_parameters() if name.split(".")[0] in modules and name not in taken]
    return [*groups, Group(FINAL, modules, tuple(mine)), Group("head", ("classifier",), tuple(head))]


def groups_of(tower: str, groups: Sequence[Group]) -> list[Group]:
    """Those of a tower, in depth order, with what sees both and the head."""
    return [group for group in groups if group.name.startswith(f"{tower}_") or group.name in (FINAL, "head")]


def _named(tower: str, group: Group) -> Group:
    name = group.name if group.name.startswith(f"{tower}_") else f"{tower}_{group.name}"
    return Group(name, group.modules, group.parameters)


def _width(tower: Tower, size: int) -> int:
    pixels = torch.zeros(1, 3, size, size, device=tower.backbone.device)
    tower.backbone.train(False)
    with torch.no_grad():
        output = tower.backbone(pixel_values=pixels)
    return pooled(tower.pooling, output, as_places(output.last_hidden_state), None).shape[1]


def _named_nowhere(config: PretrainedConfig) -> PretrainedConfig:
    """Without what an earlier task has left: it is saved whole."""
    config.id2label = None
    config.num_labels = 2
    config.name_or_path = ""
    return config
