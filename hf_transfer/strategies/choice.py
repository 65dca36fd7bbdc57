"""The strategy that the settings name, and the model prepared for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_transfer.errors import user_error
from hf_transfer.modalities.modality import Modality, Regularisation
from hf_transfer.models.groups import Group, Inputs, describe_frozen
from hf_transfer.models.memory_format import in_channels_last
from hf_transfer.models.modeling_deep_probe import DeepProbeConfig
from hf_transfer.models.pretrained import AnyCheckpoint, load_classifier
from hf_transfer.models.taps import AllTaps
from hf_transfer.models.towers import groups_of, towers_of
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import ADAPTERS, PairStrategySettings, StrategySettings
from hf_transfer.strategies import freezing
from hf_transfer.strategies.adapter_files import adapter_of
from hf_transfer.strategies.deep_probe import DeepProbe, PairProbe
from hf_transfer.strategies.each_tower import EachTower
from hf_transfer.strategies.freezing import Strategy, frozen_towers, has_batch_norm
from hf_transfer.targets.target import Target


def choose_strategy(settings: StrategySettings, *, larger_head: bool = False) -> Strategy:
    """The strategy that the settings name, for the whole model or for each tower.

    Args:
        settings: the name, and the settings of single strategies.
        larger_head: see `FullFineTuning.larger_head`.
    """
    settings.refuse_auto()
    names = settings.by_tower()
    if "" in names:
        is_pair = isinstance(settings, PairStrategySettings)
        return PairProbe(taps=tuple(settings.taps)) if is_pair else _strategy(names[""], settings, larger_head)
    return EachTower({tower: _strategy(name, settings, False) for tower, name in names.items()})


def _strategy(name: str, settings: StrategySettings, larger_head: bool) -> Strategy:
    updates = settings.batch_norm_statistics == "updated"
    if name in ADAPTERS:
        return _adapters(name, settings)
    strategies: dict[str, Strategy] = {
        "linear_probe": freezing.LinearProbe(),
        "deep_probe": DeepProbe(taps=tuple(settings.taps)),
        "partial": freezing.PartialFineTuning(settings.trainable_layers, updates_statistics=updates),
        "gradual": freezing.GradualUnfreezing(updates_statistics=updates),
        "lp_ft": freezing.LinearProbeThenFineTuning(updates_statistics=updates),
        "full": freezing.FullFineTuning(larger_head=larger_head, updates_statistics=updates),
        "scratch": freezing.FromScratch(larger_head=larger_head),
        "bitfit": freezing.BiasTuning(),
    }
    return strategies[name]


def _adapters(name: str, settings: StrategySettings) -> Strategy:
    from hf_transfer.strategies import adapters

    shared: dict[str, Any] = {"layers": settings.adapter_layers, "merges": settings.merge_adapter}
    shaped = shared | {
        "rank": settings.adapter_rank, "alpha": settings.adapter_alpha, "dropout": settings.adapter_dropout,
    }  # fmt: skip
    strategies: dict[str, Strategy] = {
        "lora": adapters.LowRankAdaptation(**shaped),
        "dora": adapters.WeightDecomposedAdaptation(**shaped),
        "ia3": adapters.InfusedAdapters(**shared),
        "lokr": adapters.KroneckerAdaptation(**shaped),
        "adapter": adapters.OtherAdapters(peft_type=settings.peft_type, **shaped),
    }
    return strategies[name]


@dataclass(frozen=True)
class NewModel:
    """A pretrained model with a new head, before it is prepared for a strategy.

    Attributes:
        model: a classifier.
        groups: its groups in depth order.
        notes: sentences on weights that the checkpoint does not have.
    """

    model: nn.Module
    groups: list[Group]
    notes: list[str]


@dataclass(frozen=True)
class Prepared(NewModel):
    """A model that is ready to be trained with a strategy: with adapters if it adds them, and notes on what is frozen.

    Attributes:
        frozen: for each tower, the groups that never learn, counted from the input; the key is "" for a single tower.
    """

    frozen: dict[str, list[Group]]

    @property
    def frozen_blocks(self) -> bool:
        """Whether whole blocks never learn, so that it can pay to store their outputs; of two towers, in the first."""
        first = self.frozen[towers_of(self.groups)[0]]
        return any(group.is_block or group.name == "backbone" for group in first)


def load_model(
    checkpoint: AnyCheckpoint, strategy: Strategy, target: Target, inputs: Inputs, *, seed: int,
    feature_layers: Sequence[int] = (), gradient_checkpointing: bool = False,
) -> NewModel:  # fmt: skip
    """Load the backbone and give it a new head, if the strategy suits it.

    Args:
        checkpoint: the pretrained model.
        strategy: what learns, and when.
        target: what is predicted.
        inputs: a small batch to trace the model with.
        seed: seed of the head.
        feature_layers: numbers of blocks, from 1, that the model must have.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        UserError: before weights are read: the model has too few blocks, or no layer that can have adapters; later:
            the checkpoint is not complete.
    """
    if any(adapter_of(part) for part in checkpoint.parts):
        raise user_error(
            expected="a whole model to start from",
            found=f"an adapter in {checkpoint.name}",
            do="name its base model, or the model of a run with --merge_adapter",
        )
    if any(isinstance(part.config, DeepProbeConfig) for part in checkpoint.parts):
        raise user_error(
            expected="a whole model to start from",
            found=f"a linear layer on a backbone that is read at several depths, in {checkpoint.name}",
            do="name the model that it was trained from",
        )
    outline, groups = checkpoint.outline(target, inputs)
    strategy.check(outline, groups)
    blocks = sum(group.is_block for group in groups)
    if max(feature_layers, default=0) > blocks:
        raise user_error(
            expected=f"--feature_layers from 1 to {blocks}, the blocks of this model",
            found=" ".join(map(str, feature_layers)),
            do="leave out higher numbers",
        )
    model, groups = load_classifier(
        checkpoint, target, inputs, seed=seed, fresh_weights=strategy.fresh_weights,
        gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    in_channels_last(model)
    return NewModel(model, groups, [*checkpoint.notes, *checkpoint.describe_missing(groups)])


def prepare_model(
    loaded: NewModel, strategy: Strategy, inputs: Inputs, *, seed: int, epochs: int, cache_frozen: str = "auto"
) -> Prepared:
    """Prepare a model for a strategy: add adapters, and find the groups that never learn.

    Args:
        loaded: a model with a new head; it is changed.
        strategy: what learns, and when.
        inputs: a small batch to trace the model with.
        seed: seed of the weights that are added.
        epochs: length of the training.
        cache_frozen: `on` requires frozen groups.

    Raises:
        UserError: `cache_frozen` is on, and no group is frozen in any stage.
    """
    model, groups = strategy.prepare(loaded.model, loaded.groups, inputs, seed)
    stages = strategy.stages(groups, epochs)
    if cache_frozen == "on" and not any(any(frozen_towers(groups, [stage]).values()) for stage in stages):
        raise user_error(
            expected="with --cache_frozen on a strategy that leaves the first layers frozen",
            found="a strategy with which every layer learns",
            do="use --strategy partial, linear_probe or adapters with --adapter_layers, or --cache_frozen auto",
        )
    frozen = frozen_towers(groups, stages)
    return Prepared(model, groups, [*_notes_on_frozen(model, groups, frozen, inputs), *loaded.notes], frozen)


def regularisation_of(
    config: RunConfig, modality: Modality[Any], model: nn.Module, target: Target, samples: int
) -> Regularisation:
    """Additions to the loss of a step.

    Args:
        config: the settings of the run.
        modality: what a sample is.
        model: that is trained.
        target: what is predicted.
        samples: of the training split.

    Raises:
        UserError: the settings name one, or statistics of BatchNorm layers, that this model cannot have.
    """
    if not has_batch_norm(model):
        config.refuse({"batch_norm_statistics"}, "a model without BatchNorm")
    return modality.regularisation(config, model, target, samples)


def _notes_on_frozen(
    model: nn.Module, groups: Sequence[Group], frozen: Mapping[str, Sequence[Group]], inputs: Inputs
) -> list[str]:
    if isinstance(model, AllTaps):
        count = sum(map(len, frozen.values()))
        return [f"{count} of {len(groups)} groups are frozen; {model.choice.describe()}."]
    sentences = {
        tower: describe_frozen(model, groups_of(tower, groups), len(prefix), inputs) for tower, prefix in frozen.items()
    }
    return [f"{tower.capitalize()}: {sentence}" if tower else sentence for tower, sentence in sentences.items()]
