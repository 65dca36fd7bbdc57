"""Strategies that keep the pretrained weights and learn small adapters beside them, with peft.

The layers that get an adapter are found in the traced model. Whether a method can adapt a kind of layer is tested with
peft itself: a layer of the same kind is adapted, run forward and backward, merged, and compared.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import PeftType, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from hf_transfer.errors import UserError, user_error
from hf_transfer.models.groups import Group, Inputs
from hf_transfer.models.pretrained import seeded
from hf_transfer.models.tasks import WITH_OUR_HEAD
from hf_transfer.models.towers import trace
from hf_transfer.strategies.adapter_files import quiet_peft
from hf_transfer.strategies.freezing import Stage, Strategy, top_blocks

# Endings of the names of modules that peft's model for text classification saves by itself.
SAVED_FOR_TEXT = ("classifier", "score")
# In each step, for each layer: it makes the loss NaN.
LARGEST_CHANCE_TO_DROP_ALL = 1e-12
# peft can attach these methods to a layer, but they need more than that, or are no adapters.
UNSUITABLE = {
    "ADALORA": "it needs the number of steps, and the training loop must call it to prune ranks",
    "LN_TUNING": "it copies whole layers; use --strategy bitfit for the norms and biases",
    "OSF": "it decomposes the whole weight, and trains as many parameters as full fine-tuning",
}


@dataclass(frozen=True, kw_only=True)
class Adapters(Strategy):
    """Base class of all methods.

    Attributes:
        layers: how many blocks get adapters, counted from the head; None for all.
        rank: rows of LoRA's A and columns of its B; the same for other methods that have a rank.
        alpha: scale of what is added to the weights, divided by the rank; None for twice the rank.
        dropout: probability of dropout of the adapter's inputs; of LoKr, of rows of the product.
        merges: whether the adapter is merged into the weights before it is saved.
    """

    layers: int | None = None
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.05
    merges: bool = False
    learning_rate: float = 5e-4
    peft_type: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """Those of rank, alpha and dropout that the method has, under peft's names."""
        known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)])}
        prefix = self.peft_type.lower()
        # OFT takes either the rank or the size of its blocks.
        values: dict[str, Any] = {"r": self.rank, "oft_block_size": 0}
        # (IA)³ scales the outputs of every layer; by default peft scales the inputs of layers in its own table.
        values["feedforward_modules"] = []
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        values |= dict.fromkeys(("alpha", f"{prefix}_alpha", "lora_alpha"), alpha)
        # Not peft's `module_dropout`, which drops whole adapters: with several processes, DDP would wait for their
        # gradients.
        values |= dict.fromkeys((f"{prefix}_dropout", "rank_dropout", "lora_dropout"), self.dropout)
        # By default these two start with random adapters, which change the pretrained outputs.
        if self.peft_type in ("FOURIERFT", "C3A"):
            values["init_weights"] = True
        return {name: value for name, value in values.items() if name in known}

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """Refuse a model that has too few blocks, or no layer that the method can adapt; weights are not read.

        Raises:
            UserError: the model is refused; or peft, which loads models of transformers alone, could not load it.
        """
        if isinstance(model, WITH_OUR_HEAD) and not self.merges:
            raise user_error(
                expected="an adapter that peft can load elsewhere, or --merge_adapter",
                found=f"{type(model).__name__}, whose code is saved with it",
                do="add --merge_adapter, or use another strategy",
            )
        self._targets(model, groups)

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Inputs, seed: int
    ) -> tuple[nn.Module, list[Group]]:
        """The model with adapters in its blocks, whose head is saved with them, and its groups.

        Args:
            model: a classifier; its layers are replaced in place.
            groups: its groups in depth order.
            inputs: a small batch to trace the result with.
            seed: seed of the adapters' weights.

        Raises:
            UserError: the model has too few blocks, or the method can adapt none of their layers.
        """
        targets = self._targets(model, groups)
        # The other tower may have another kind of adapters. They are merged before the model is saved.
        tower = f"{groups[0].tower}_tower" if groups[0].tower else ""
        config = self.config([target.removeprefix(f"{tower}.") for target in targets])
        if not tower:
            config.task_type = TaskType.SEQ_CLS if "input_ids" in inputs else None
            config.modules_to_save = _modules_to_save(model, groups, SAVED_FOR_TEXT if "input_ids" in inputs else ())
        try:
            with seeded(seed), quiet_peft():
                adapted: nn.Module = get_peft_model(model.get_submodule(tower), config)
                if tower or self.merges:
                    _show_convolutions(adapted)
                if tower:
                    model.set_submodule(tower, adapted)
                    adapted = model
                return adapted, trace(adapted, inputs)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise user_error(
                expected=f"a model that runs with the layers by which {self.peft_type} replaces its own",
                found=f"{type(model).__name__}: {error}",
                do=("" if self.merges else "add --merge_adapter, ")
                + "use another kind of adapter, or --strategy partial or full",
            ) from error

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """One stage: the adapters, the head, and the dense layers between the last block and the head."""
        prefix = PEFT_TYPE_TO_PREFIX_MAPPING[PeftType(self.peft_type)]
        learns = frozenset(
            name
            for group in groups
            for name in group.parameters
            if group.name == "head" or prefix in name or "modules_to_save" in name.split(".")
        )
        return [Stage(learns, epochs)]

    def config(self, targets: Sequence[str]) -> Any:
        """The method's peft configuration for layers of these names."""
        kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)]
        return kind(**self.settings(), target_modules=list(targets))

    def suits(self, layer: nn.Module) -> bool:  # noqa: ARG002
        """Whether the method is defined for the weights of a layer, which may be missing (device `meta`)."""
        return True

    def _targets(self, model: nn.Module, groups: Sequence[Group]) -> list[str]:
        """Names of the layers that get an adapter."""
        layers = _layers(model, _adapted_groups(groups, self.layers))
        # The repr of a layer has all that matters: its class and its sizes.
        kinds = {repr(layer): layer for layer in layers.values()}
        adaptable = {kind for kind, layer in kinds.items() if _can_adapt(self, layer)}
        targets = [name for name, layer in layers.items() if repr(layer) in adaptable and self.suits(layer)]
        if not targets and adaptable:
            raise user_error(
                expected=f"layers that {self.peft_type} can adapt with a dropout of {self.dropout}",
                found="only layers with weights of zeros, or of so few rows that dropout may drop all",
                do="use --adapter_dropout 0, or --strategy lora",
            )
        if not targets:
            raise _nothing_to_adapt(self, kinds)
        return targets


class LowRankAdaptation(Adapters):
    """LoRA: a product of two thin matrices is added to each layer's weight, W + (alpha / rank) B A; B starts at 0.

    Reference: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen, "LoRA: Low-Rank Adaptation of Large Language
    Models", ICLR 2022, https://arxiv.org/abs/2106.09685.
    """

    peft_type = "LORA"


class WeightDecomposedAdaptation(LowRankAdaptation):
    """DoRA: LoRA changes only the direction of each weight vector; its magnitude is learned separately.

    Reference: Liu, Wang, Yin, Molchanov, Wang, Cheng and Chen, "DoRA: Weight-Decomposed Low-Rank Adaptation",
    ICML 2024, https://arxiv.org/abs/2402.09353.
    """

    def settings(self) -> dict[str, Any]:
        """The settings of LoRA with `use_dora`."""
        return super().settings() | {"use_dora": True}

    def suits(self, layer: nn.Module) -> bool:
        """Not a layer with a weight vector of zeros, as pretrained convolutions have: it has no direction."""
        assert isinstance(layer.weight, Tensor)
        if layer.weight.is_meta:
            return True
        vectors = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        return bool(vectors.detach().flatten(1).norm(dim=1).all())


@dataclass(frozen=True)
class InfusedAdapters(Adapters):
    """(IA)³: each output of a layer is multiplied by a learned factor, which starts at 1.

    There are few factors, and each must change by tenths to have an effect: the paper trains them at 3e-3, six times
    our rate for LoRA.

    Reference: Liu, Tam, Muqeeth, Mohta, Huang, Bansal and Raffel, "Few-Shot Parameter-Efficient Fine-Tuning is Better
    and Cheaper than In-Context Learning", NeurIPS 2022, https://arxiv.org/abs/2205.05638.
    """

    learning_rate: float = 3e-3
    peft_type = "IA3"


class KroneckerAdaptation(Adapters):
    """LoKr: to each layer's weight a Kronecker product of two small matrices is added.

    Reference: Yeh, Hsieh, Gao, Yang, Oh and Gong, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning
    to Model Evaluation", ICLR 2024, https://arxiv.org/abs/2309.14859.
    """

    peft_type = "LOKR"


@dataclass(frozen=True)
class OtherAdapters(Adapters):
    """Any other method of peft that adapts single layers, with peft's own default settings.

    Reference: Mangrulkar, Gugger, Debut, Belkada, Paul and Bossan, "PEFT: State-of-the-art Parameter-Efficient
    Fine-Tuning methods", 2022, https://github.com/huggingface/peft; the papers are named in its documentation.

    Attributes:
        peft_type: peft's name of the method.
    """

    peft_type: str = "LOHA"  # type: ignore[misc]

    def suits(self, layer: nn.Module) -> bool:
        """Not a layer of so few rows that rank dropout may drop all: peft divides by the share that is left."""
        assert isinstance(layer.weight, Tensor)
        dropout = self.settings().get("rank_dropout", 0.0)
        return bool(dropout ** len(layer.weight) <= LARGEST_CHANCE_TO_DROP_ALL)


def _adapted_groups(groups: Sequence[Group], layers: int | None) -> list[Group]:
    """The groups that get adapters: the top blocks, or the whole backbone if it has no repeated blocks."""
    if layers is not None:
        return top_blocks(
            groups, layers, setting="adapter_layers", fewer="lower it, or leave it out for all",
            without="leave --adapter_layers out",
        )  # fmt: skip
    blocks = [group for group in groups if group.is_block]
    return blocks or [group for group in groups if group.name == "backbone"]


def _layers(model: nn.Module, groups: Sequence[Group]) -> dict[str, nn.Module]:
    """The linear layers and convolutions of some groups, by name, without those that receive no gradient."""
    return {
        name: layer
        for group in groups
        for outermost in group.modules
        for name, layer in model.get_submodule(outermost).named_modules(prefix=outermost)
        if isinstance(layer, nn.Linear | Conv1D | _ConvNd) and f"{name}.weight" in group.parameters
    }


def _show_convolutions(adapted: nn.Module) -> None:
    """Give the layers of peft the sizes of the convolutions that they adapt.

    MobileNetV2 pads by the strides of its layers, which peft's layers do not have. With peft alone its adapter could
    not be loaded: it must be merged.
    """
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer) and isinstance(base := layer.get_base_layer(), _ConvNd):
            for name in ("stride", "kernel_size", "dilation", "padding"):
                setattr(layer, name, getattr(base, name))


def _modules_to_save(model: nn.Module, groups: Sequence[Group], by_peft: tuple[str, ...]) -> list[str]:
    """Modules that are saved whole with the adapter: the head, and the dense layers between the last block and it.

    Such a layer (a pooler, the inner layer of a two-layer head) may be missing in the checkpoint: whenever the base
    model is loaded, its weights are random. Modules whose names end in one of `by_peft` are saved anyway.
    """
    dense = _layers(model, [group for group in groups if group.name == "final"])
    saved = [*groups[-1].modules, *(name for name, layer in dense.items() if isinstance(layer, nn.Linear))]
    return [name for name in saved if not any(part.endswith(by_peft) for part in name.split("."))]


def _can_adapt(strategy: Adapters, layer: nn.Module) -> bool:
    """Whether a method can adapt a layer: forward, backward, and merged into the weights to the same outputs."""
    if strategy.peft_type in UNSUITABLE:
        return False
    generator = torch.Generator().manual_seed(0)
    # The layer may be an outline without weights.
    model = nn.Sequential(OrderedDict(layer=deepcopy(layer).float().to_empty(device="cpu")))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    batch = _batch(layer, generator)
    try:
        with seeded(0), quiet_peft():
            expected = model(batch)
            adapted = get_peft_model(model, strategy.config(["layer"])).eval()
            with torch.no_grad():
                # Adapters start at zero, which hides errors.
                for parameter in adapted.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.02 * noise * parameter.requires_grad)
            output = adapted(batch)
            output.square().sum().backward()
            again = adapted.merge_and_unload()(batch)
    except Exception:  # peft refuses layers with many kinds of errors, from TypeError to IndexError
        return False
    return output.shape == expected.shape and torch.allclose(again, output, rtol=1e-3, atol=1e-3)


def _batch(layer: nn.Module, generator: torch.Generator) -> Tensor:
    """Random inputs of a layer."""
    if isinstance(layer, _ConvNd):
        sides = [5 + step * size for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return torch.randn(2, layer.in_channels, *sides, generator=generator)
    assert isinstance(layer, nn.Linear | Conv1D)
    width = layer.nx if isinstance(layer, Conv1D) else layer.in_features
    return torch.randn(2, 3, width, generator=generator)


def _nothing_to_adapt(strategy: Adapters, kinds: Mapping[str, nn.Module]) -> UserError:
    """The error that names the layers that the method can adapt, those of the model, and methods that suit them."""
    method = strategy.peft_type
    with seeded(0):
        examples = {
            "linear layers": nn.Linear(256, 256),
            "GPT-2's Conv1D": Conv1D(256, 256),
            "convolutions": nn.Conv2d(64, 64, 3, padding=1),
            "depthwise convolutions": nn.Conv2d(64, 64, 3, padding=1, groups=64),
        }
    possible = [words for words, example in examples.items() if _can_adapt(strategy, example)]
    others = [
        other.value
        for other in PeftType
        if any(_can_adapt(OtherAdapters(peft_type=other.value), layer) for layer in kinds.values())
    ]
    expected = "a method of peft that adapts single layers and needs nothing else"
    found = f"{method}: {UNSUITABLE[method]}" if method in UNSUITABLE else method
    if possible:
        expected = f"layers that {method} can adapt: {', '.join(possible)}"
        found = f"in this model {'; '.join(list(kinds)[:4]) or 'none'}"
    strategies = f"adapter with --peft_type {', '.join(others)}" if others else "linear_probe, partial or full"
    return user_error(expected=expected, found=found, do=f"use --strategy {strategies}")
