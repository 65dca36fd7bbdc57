"""Models to cut: all tiny architectures, each cut at every place, and a toy model with unusual blocks."""

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModelForSequenceClassification, CLIPConfig, CLIPForImageClassification

from hf_transfer.models.cutting import CannotCutError, Cut
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.models.stubs import with_stored
from tests.tapped_models import tapped
from tests.tiny_models import ALL, CLASSES, logits, perturb, pixels
from tests.tiny_text_models import PAD, TEXT_ARCHITECTURES, VOCABULARY, model_and_inputs, token_ids

Batch = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "num_labels": CLASSES, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 24,
}  # fmt: skip
# Of these the encoder alone.
ENCODERS = ("t5", "mt5", "umt5")
NAMES = [*ALL, *TEXT_ARCHITECTURES, "clip", "albert", *ENCODERS]
LONGEST = 13


def _clip() -> nn.Module:
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    words = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    vision = SIZES | {"image_size": 16, "patch_size": 8}
    parts: dict[str, Any] = {"vision_config": vision, "text_config": text | words, "num_labels": CLASSES}
    return CLIPForImageClassification(CLIPConfig(**parts))


def _albert() -> nn.Module:
    words: dict[str, Any] = {"vocab_size": VOCABULARY, "embedding_size": 16, "pad_token_id": PAD}
    model: nn.Module = AutoModelForSequenceClassification.from_config(AlbertConfig(**SIZES, **words))
    return model


@cache
def cut_everywhere(name: str) -> tuple[nn.Module, list[Group], dict[int, Cut], dict[int, str]]:
    """A model, its groups, its cuts, and the reasons why it cannot be cut elsewhere; every test restores the model."""
    if name in ("clip", "albert"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = _clip() if name == "clip" else _albert()
        perturb(model, 1)
        model.eval()
    else:
        model = tapped(name).model if name in ENCODERS else model_and_inputs(name)[0]
    groups = trace_groups(model, batch(name, seed=0))
    cuts: dict[int, Cut] = {}
    reasons: dict[int, str] = {}
    for count in range(1, len(groups)):
        try:
            cuts[count] = Cut(model, groups, count, batch(name, seed=0), longest=LONGEST)
        except CannotCutError as reason:
            reasons[count] = str(reason)
    assert cuts, reasons
    return model, groups, cuts, reasons


def is_text(name: str) -> bool:
    return name in TEXT_ARCHITECTURES or name in ("albert", *ENCODERS)


def batch(name: str, *, seed: int, rows: int = 2, length: int = 9) -> Batch:
    if is_text(name):
        return token_ids(seed=seed, rows=rows, length=length)
    return pixels("vit" if name == "clip" else name, seed=seed, rows=rows)


def logits_after(cut: Cut, model: nn.Module, recorded: Sequence[Tensor], inputs: Batch) -> Tensor:
    """The logits from stored activations; the inputs are blank."""
    with cut.skipped(model):
        return logits(model, with_stored(cut.blank(inputs), recorded))


class NoTensor:
    """An output that cannot be stored."""


class Block(nn.Module):
    """A layer whose output has the form that a test asks for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.form = form

    def forward(self, hidden: Tensor) -> Any:
        if self.form == "acts in place":
            return self.layer(hidden.relu_())
        hidden = torch.tanh(self.layer(hidden))
        forms: dict[str, Any] = {
            "a tensor for each sample": hidden.unbind(0),
            "another size": (hidden, hidden.repeat(2, 1)),
            "an object": (hidden, NoTensor()),
            "a number of the batch": (hidden, len(hidden)),
            "fixed numbers": (hidden, 7, None, "word"),
            "integers": (hidden, (hidden > 0).long()),
            "not by sample": (hidden, hidden.sum(0)),
            "by the last sample": (hidden, hidden[-1:]),
            "the same for all samples": (hidden, self.layer.bias[None]),
            "more than is needed": {"unused": hidden.relu(), "hidden": hidden, "flag": True},
        }
        return forms.get(self.form, hidden)


class Toy(nn.Module):
    """A stem and three blocks; `variant` is what is unusual about them."""

    def __init__(self, variant: str = "") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Linear(6, 8)
            self.blocks = nn.ModuleList(Block(variant) for _ in range(3))
            self.classifier = nn.Linear(8, CLASSES)
        self.variant = variant

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        early = hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = self._plain(block(hidden))
        if self.variant == "skip":
            hidden = hidden + early
        if self.variant == "pixels":
            hidden = hidden + pixel_values.sum(1, keepdim=True)
        if self.variant == "twice":
            hidden = self.blocks[2](hidden)
        return SimpleNamespace(logits=self.classifier(hidden))

    def _plain(self, output: Any) -> Any:
        """The input of the next block."""
        if self.variant == "a tensor for each sample":
            return torch.stack(output)
        if self.variant == "integers":
            return output[0] * output[1]
        if self.variant in ("not by sample", "by the last sample", "the same for all samples"):
            return output[0] + output[1]
        if self.variant == "more than is needed":
            # Its shape is read, its values are not.
            return output["hidden"] + torch.zeros(output["unused"].shape)
        return output[0] if isinstance(output, tuple) else output


EXAMPLE = {"pixel_values": torch.linspace(-1, 1, 12).reshape(2, 6)}
