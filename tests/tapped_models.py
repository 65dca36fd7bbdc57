"""Tiny perturbed classifiers that are read at several depths, and what their modules return."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    EfficientNetConfig,
    MPNetConfig,
    PreTrainedModel,
)

from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.taps import AllBackboneTaps, AllTaps, TapChoice, usual_taps
from hf_transfer.targets.classes import Classes
from tests.models.families import FAMILIES, Family
from tests.tiny_models import CLASSES, Inputs, perturb, set_running_statistics
from tests.tiny_text_models import PAD, VOCABULARY, model_and_inputs, token_ids

IMAGES = ("vit", "swin", "convnext", "resnet_basic", "efficientnet", "mobilenet_v2")
LABELS: dict[str, Any] = {"num_labels": CLASSES}
TEXTS = ("bert", "mpnet", "gpt2", "distilbert", "albert")
# Encoders with a head of ours.
OUR_IMAGES = ("dinov3_vit", "dinov3_convnext", "clip_vision", "siglip_vision", "aimv2_vision", "pixio")
OUR_TEXTS = ("t5", "mt5", "umt5", "clip_text", "splinter")
OF_TEXTS = (*TEXTS, *OUR_TEXTS)


@dataclass
class Tapped:
    """A tiny classifier.

    Attributes:
        model: in evaluation mode.
        groups: in depth order.
        inputs: a batch; texts are padded on the right.
        head: name of its last layer.
    """

    model: PreTrainedModel
    groups: list[Group]
    inputs: Inputs
    head: str

    @property
    def blocks(self) -> list[str]:
        """Module names of the blocks; that of ALBERT once for each time that it runs."""
        blocks = [group.name for group in self.groups if group.is_block]
        return blocks or ["albert.encoder.albert_layer_groups.0"] * 3

    def without_head(self) -> PreTrainedModel:
        """The same model; its last layer is replaced by the identity."""
        self.model.set_submodule(self.head, nn.Identity())
        return self.model

    def usual(self) -> TapChoice:
        """The usual taps of the model, which keeps its head."""
        layer = self.model.get_submodule(self.head)
        choice = usual_taps(self.without_head(), self.groups, self.inputs)
        self.model.set_submodule(self.head, layer)
        return choice

    def all_taps(self, choice: TapChoice | None = None) -> AllTaps:
        """A classifier on all taps, with random weights; the model loses its head."""
        model = AllBackboneTaps(self.model, self.head, choice or self.usual(), self.inputs)
        nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(5))
        return model.eval()


def tapped(name: str) -> Tapped:
    """A tiny classifier by its architecture."""
    if name in (*OUR_IMAGES, *OUR_TEXTS):
        model, inputs = _with_our_head(FAMILIES[name])
    elif name in ("efficientnet", "mpnet", "albert"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = {"efficientnet": _efficientnet, "mpnet": _mpnet, "albert": _albert}[name]()
        inputs = pictures(2) if name == "efficientnet" else token_ids()
        perturb(model, 1)
        if name == "efficientnet":
            set_running_statistics(model, pictures(8))
        model.eval()
    else:
        model, inputs = model_and_inputs(name)
    groups = trace_groups(model, inputs)
    return Tapped(model, groups, inputs, groups[-1].modules[0])


def _with_our_head(family: Family) -> tuple[PreTrainedModel, Inputs]:
    with TemporaryDirectory() as folder:
        checkpoint = Checkpoint(str(family.checkpoint(Path(folder))), task=family.task, pooling="own")
        model = checkpoint.classifier(Classes(tuple("abcde")), seed=0, fresh_weights=False)
    return model.eval(), family.inputs()


def pictures(rows: int) -> Inputs:
    """Random images of 32 pixels a side."""
    return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def _efficientnet() -> PreTrainedModel:
    sizes: dict[str, Any] = {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320, "image_size": 32}
    # With its usual epsilon, BatchNorm would leave of small random activations next to nothing.
    config = EfficientNetConfig(**sizes, dropout_rate=0.0, drop_connect_rate=0.0, batch_norm_eps=1e-9, **LABELS)
    model: PreTrainedModel = AutoModelForImageClassification.from_config(config)
    return model


def _mpnet() -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 40, "vocab_size": VOCABULARY, "pad_token_id": PAD}
    config = MPNetConfig(**sizes, **LABELS)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model


def _albert() -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "embedding_size": 16}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 40, "vocab_size": VOCABULARY, "pad_token_id": PAD}
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(AlbertConfig(**sizes, **LABELS))
    return model


def outputs_of(model: nn.Module, modules: list[str], inputs: Inputs) -> tuple[list[Tensor], Tensor]:
    """The outputs of some modules of a live model in one pass, by hooks, and the logits; one named twice runs twice."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in modules}

    def keep(name: str, _module: nn.Module, _args: object, output: Any) -> None:
        outputs[name].append(output if isinstance(output, Tensor) else output[0])

    hooks = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in outputs]
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    return [outputs[name].pop(0) for name in modules], logits


def mean_by_hand(output: Tensor, inputs: Inputs) -> Tensor:
    """The mean over places, or over the tokens that are not padding, sample by sample."""
    if output.ndim == 4:
        return output.mean((2, 3))
    mask = inputs.get("attention_mask", torch.ones(output.shape[:2])).bool()
    return torch.stack([sample[tokens].mean(0) for sample, tokens in zip(output, mask, strict=True)])


def padded_left(inputs: Inputs) -> Inputs:
    """The same texts, padded on the left."""
    moved = {name: torch.full_like(value, PAD) for name, value in inputs.items()}
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        for name, value in inputs.items():
            moved[name][row, len(mask) - int(mask.sum()) :] = value[row, mask]
    return moved
