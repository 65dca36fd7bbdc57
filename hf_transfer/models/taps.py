"""Where a frozen backbone is read: taps at several depths, and a classifier on all of them, of which some are chosen.

What is saved in the end reads only the chosen taps: see `modeling_deep_probe.py`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_transfer.errors import user_error
from hf_transfer.models.groups import Group, Inputs
from hf_transfer.models.modeling_deep_probe import (
    FIRST,
    HEAD,
    MEAN,
    DeepProbeForImageClassification,
    DeepProbeForSequenceClassification,
    joined,
    tap_vectors,
)
from hf_transfer.models.modeling_pair import MODALITIES
from hf_transfer.models.modeling_pair_probe import PRESENT
from hf_transfer.models.modeling_pooled_probe import (
    PooledProbeForImageClassification,
    PooledProbeForSequenceClassification,
)
from hf_transfer.models.pooling import backbone_config, looks_back_only, without_task
from hf_transfer.models.tasks import WITH_OUR_HEAD
from hf_transfer.models.timm_models import PROCESSOR_TYPE
from hf_transfer.models.towers import PairTowers
from hf_transfer.models.tracing import evaluating, run_traced

# Depths at which a backbone is read, as shares of its blocks, rounded up; the first three are also read together.
COMBINED = ((1, 3), (2, 3), (1, 1))
DEPTHS = (*COMBINED, (1, 2), (3, 4))


class Tap(NamedTuple):
    """A place where a backbone is read.

    Attributes:
        kind: the input of the `head`, the `mean` over all tokens or places behind a block, or its `first` token; of one
            of two towers also whether its part of a sample is `present`.
        block: number of the block, counted from 1 at the input; 0 for the others.
        state: number of the hidden state that the block returns, or the name of the module that returns it; 0 for the
            others.
        tower: image or text, of two towers.
    """

    kind: str
    block: int = 0
    state: int | str = 0
    tower: str = ""

    @property
    def name(self) -> str:
        """As `--taps` names it."""
        name = f"{self.kind}_{self.block}" if self.block else self.kind
        return f"{self.tower}_{name}" if self.tower else name

    @property
    def saved(self) -> tuple[str, int | str] | tuple[str, str, int | str]:
        """As the configuration of a model holds it."""
        return (self.tower, self.kind, self.state) if self.tower else (self.kind, self.state)


HEAD_INPUT = Tap(HEAD)


class TapChoice(NamedTuple):
    """Taps, and the combinations among which evidence chooses.

    Attributes:
        taps: each once.
        combinations: positions of taps that are read together, in ascending order; if there is only one, there is
            nothing to choose.
    """

    taps: tuple[Tap, ...]
    combinations: tuple[tuple[int, ...], ...]

    def describe(self) -> str:
        """What the head reads, for a sentence."""
        first = self.combinations[0]
        if len(self.combinations) == 1:
            return f"the head reads {together([self.taps[place].name for place in first])}"
        names = [tap.name for tap in self.taps if tap.kind != PRESENT]
        return f"the head reads what is best of {', '.join(names)}"


def count_blocks(groups: Sequence[Group]) -> int:
    """How many repeated blocks a model has."""
    return sum(group.is_block for group in groups)


def count_depths(model: nn.Module, groups: Sequence[Group]) -> int:
    """Behind how many blocks a model can be read; a block that runs several times, as that of ALBERT, counts each time.

    Args:
        model: a classifier, or what it reads.
        groups: its groups in depth order.
    """
    config = getattr(model, "config", None)
    if isinstance(config, PretrainedConfig):
        config = backbone_config(config)
    return count_blocks(groups) or int(getattr(config, "num_hidden_layers", 0))


def tower_of(name: str) -> str:
    """What the name of a tap says: its tower; empty, if it says none."""
    tower, _, _ = name.partition("_")
    return tower if tower in MODALITIES else ""


def kind_and_block(name: str) -> tuple[str, int]:
    """What the name of a tap says: its kind and its block."""
    kind, _, block = name.removeprefix(f"{tower_of(name)}_").partition("_")
    return kind, int(block or 0)


def together(names: Sequence[str]) -> str:
    """One name for taps that are read together; that samples tell which part is present goes without saying."""
    return " + ".join(name for name in names if kind_and_block(name)[0] != PRESENT)


def without_unread_taps(model: nn.Module) -> nn.Module:
    """What a run keeps of a trained model: of one with all taps, the classifier that reads the chosen ones alone."""
    return model.with_read_taps() if isinstance(model, AllTaps) else model


def vectors_of(backbone: nn.Module, taps: Sequence[Tap], inputs: Inputs) -> list[Tensor]:
    """The vectors of some taps for a batch, by one pass [samples, width].

    Args:
        backbone: a classifier whose last layer was replaced by `nn.Identity`, or two towers.
        taps: of the backbone.
        inputs: of the backbone.
    """
    if isinstance(backbone, PairTowers):
        return backbone.vectors([tap.saved for tap in taps], inputs)
    return tap_vectors(backbone, [tap.saved for tap in taps], inputs)


@contextmanager
def without_head(model: nn.Module, layer_name: str) -> Iterator[nn.Linear]:
    """Inside, the logits of the model are the inputs of its last layer; afterwards the model is as it was."""
    layer = model.get_submodule(layer_name)
    assert isinstance(layer, nn.Linear)
    model.set_submodule(layer_name, nn.Identity())
    try:
        yield layer
    finally:
        model.set_submodule(layer_name, layer)


def widths_of(backbone: nn.Module, taps: Sequence[Tap], inputs: Inputs) -> list[int]:
    """How many features each tap has; see `vectors_of`."""
    with evaluating(backbone), torch.no_grad():
        return [vector.shape[1] for vector in vectors_of(backbone, taps, inputs)]


def taps_of(
    backbone: nn.Module, groups: Sequence[Group], inputs: Inputs, wanted: Sequence[tuple[str, int]]
) -> list[Tap]:
    """Taps of a backbone, each with the hidden state that its block returns.

    Block k of n returns hidden state k. Some models do not return what enters the first block: of these it is k - 1.
    Image models may return other states: of these it is the output of the last module of the block.

    Args:
        backbone: a classifier, with or without its last layer.
        groups: its groups in depth order.
        inputs: a small batch.
        wanted: kind and block of each tap.

    Raises:
        UserError: the model does not return a hidden state for each block.
    """
    if all(kind == HEAD for kind, _ in wanted):
        return [HEAD_INPUT for _ in wanted]
    blocks = count_depths(backbone, groups)
    with evaluating(backbone), torch.no_grad():
        states = getattr(backbone(**inputs, output_hidden_states=True), "hidden_states", None) or ()
    before = len(states) - blocks
    modules = [] if before in (0, 1) or "input_ids" in inputs else _last_modules(backbone, groups, inputs)
    if modules and all(modules):
        return [HEAD_INPUT if kind == HEAD else Tap(kind, block, modules[block - 1]) for kind, block in wanted]
    if before not in (0, 1):
        raise user_error(
            expected=f"a model that returns a hidden state for each of its {blocks} blocks",
            found=f"{type(getattr(backbone, 'tower', backbone)).__name__}, which returns {len(states)}",
            do="use --strategy linear_probe without --feature_layers",
        )
    return [HEAD_INPUT if kind == HEAD else Tap(kind, block, before + block - 1) for kind, block in wanted]


def _last_modules(backbone: nn.Module, groups: Sequence[Group], inputs: Inputs) -> list[str]:
    """The name of the module of each block that returns last; empty, if none of its modules is called."""
    trace, _ = run_traced(backbone, inputs)
    called = [[name for name in group.modules if name in trace.fed_by_data] for group in groups if group.is_block]
    return [max(names, key=lambda name: trace.end[name], default="") for names in called]


def usual_taps(backbone: nn.Module, groups: Sequence[Group], inputs: Inputs) -> TapChoice:
    """The taps that are tried where none are named: each alone, and several depths together.

    These are the input of the head; the means behind a third, a half, two thirds, three quarters and all of the
    blocks; and of texts the first token behind the last block, if it sees the whole text. Together are read the means
    behind a third, two thirds and all of the blocks, and of images the input of the head.

    Args:
        backbone: a classifier whose last layer was replaced by `nn.Identity`, or a `PooledTower`.
        groups: its groups in depth order.
        inputs: a small batch.

    Raises:
        UserError: see `taps_of`.
    """
    blocks, of_texts = count_depths(backbone, groups), "input_ids" in inputs
    config: Any = backbone.config
    # Otherwise the first token is always the same, whatever follows.
    sees_all = of_texts and not looks_back_only(config)
    depths = [math.ceil(blocks * part / whole) for part, whole in DEPTHS]
    wanted = [(HEAD, 0), *((MEAN, block) for block in sorted(set(depths)))] + [(FIRST, blocks)] * sees_all
    taps = taps_of(backbone, groups, inputs, wanted)
    together = {(MEAN, block) for block in depths[: len(COMBINED)]} | (set() if of_texts else {(HEAD, 0)})
    with evaluating(backbone), torch.no_grad():
        head, *others = vectors_of(backbone, taps, inputs)
    last = wanted.index((MEAN, blocks))
    if head.shape == others[last - 1].shape and torch.allclose(head, others[last - 1], rtol=1e-4, atol=1e-6):
        # The head reads just that mean, as in a ResNet.
        del taps[last]
        together.add((HEAD, 0))
    combined = tuple(place for place, tap in enumerate(taps) if (tap.kind, tap.block) in together)
    return TapChoice(tuple(taps), (*((place,) for place in range(len(taps))), combined))


class AllTaps(nn.Module, ABC):
    """A classifier in a run that chooses among taps: its layer has columns for all of them, of which some are read.

    Args:
        backbone: what is read, without a head.
        head: the layer that the classifier's own takes the place of.
        choice: the taps of the backbone.
        inputs: a small batch.

    Attributes:
        choice: the taps, and their combinations.
        widths: how many features each tap has.
        backbone: as it was given.
        classifier: the layer on the features of all taps.
        is_read: which taps are read, bool [taps]: a buffer, so that checkpoints have it. At first it is the last
            combination.
    """

    is_read: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Linear, choice: TapChoice, inputs: Inputs) -> None:
        super().__init__()
        self.choice, self.backbone = choice, backbone
        self.widths = widths_of(backbone, choice.taps, inputs)
        self.classifier = nn.Linear(sum(self.widths), head.out_features, bias=head.bias is not None)
        nn.init.zeros_(self.classifier.weight)
        first = choice.combinations[-1]
        self.register_buffer("is_read", torch.tensor([place in first for place in range(len(choice.taps))]))

    @property
    def config(self) -> Any:
        """The configuration of the backbone."""
        return self.backbone.config

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits [batch, outputs]."""
        vectors = vectors_of(self.backbone, self.choice.taps, inputs)
        places = self._read_places()
        parts = joined([vectors[place] for place in places]).split([self.widths[place] for place in places], 1)
        features = [torch.zeros_like(vector, dtype=parts[0].dtype) for vector in vectors]
        for place, part in zip(places, parts, strict=True):
            features[place] = part
        logits: Any = self.classifier(torch.cat(features, 1))
        return SequenceClassifierOutput(logits=logits)

    @torch.no_grad()
    def read_only(self, places: Sequence[int], weight: Tensor, bias: Tensor) -> None:
        """Read only some taps.

        Args:
            places: positions of the taps, in ascending order.
            weight: of the layer on them [outputs, features of these taps].
            bias: of the layer [outputs].
        """
        self.is_read.fill_(False)
        self.is_read[list(places)] = True
        self.classifier.weight.zero_()
        self.classifier.weight[:, self._read_columns()] = weight.to(self.classifier.weight)
        if self.classifier.bias is not None:
            self.classifier.bias.copy_(bias)

    def with_read_taps(self) -> PreTrainedModel:
        """The classifier that reads the chosen taps alone, with the same weights; the backbone is not copied."""
        places = self._read_places()
        names = (
            "id2label",
            "label2id",
            "problem_type",
            "pad_token_id",
            "padded_length",
            "pretrained_cfg",
            PROCESSOR_TYPE,
        )
        finished: Any = self._reading(
            head_bias=self.classifier.bias is not None, taps=[self.choice.taps[place].saved for place in places],
            widths=[self.widths[place] for place in places],
            **{name: getattr(self.config, name) for name in names if hasattr(self.config, name)},
        )  # fmt: skip
        with torch.no_grad():
            finished.classifier.weight.copy_(self.classifier.weight[:, self._read_columns()])
            if self.classifier.bias is not None:
                finished.classifier.bias.copy_(self.classifier.bias)
        result: PreTrainedModel = finished.train(self.training).to(self.classifier.weight.device)
        return result

    @abstractmethod
    def _reading(self, **settings: Any) -> PreTrainedModel:
        """A classifier on the same backbone with a fresh layer; its configuration has these settings."""

    def _read_places(self) -> list[int]:
        return [place for place, is_read in enumerate(self.is_read.tolist()) if is_read]

    def _read_columns(self) -> Tensor:
        """Which columns of the layer belong to taps that are read [features]."""
        return self.is_read.repeat_interleave(torch.tensor(self.widths, device=self.is_read.device))


class AllBackboneTaps(AllTaps):
    """See `AllTaps`, for a classifier of one backbone.

    Args:
        backbone: the classifier; its last layer is replaced by `nn.Identity`.
        head_layer: name of that layer.
        choice: the taps of the backbone.
        inputs: a small batch.
    """

    def __init__(self, backbone: PreTrainedModel, head_layer: str, choice: TapChoice, inputs: Inputs) -> None:
        head = backbone.get_submodule(head_layer)
        assert isinstance(head, nn.Linear)
        backbone.set_submodule(head_layer, nn.Identity())
        super().__init__(backbone, head, choice, inputs)
        self._head_layer, self._of_texts = head_layer, "input_ids" in inputs

    def _reading(self, **settings: Any) -> PreTrainedModel:
        if isinstance(self.backbone, WITH_OUR_HEAD):
            kinds: Any = (PooledProbeForImageClassification, PooledProbeForSequenceClassification)
        else:
            kinds = (DeepProbeForImageClassification, DeepProbeForSequenceClassification)
        kind = kinds[self._of_texts]
        config = kind.config_class(backbone_config=self.config, head_layer=self._head_layer, **settings)
        finished: Any = kind(config, self.backbone)
        # What is predicted stands in the outer configuration alone.
        finished.config.backbone_config = without_task(deepcopy(self.config))
        model: PreTrainedModel = finished
        return model
