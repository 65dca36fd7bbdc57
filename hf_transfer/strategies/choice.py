"""Which strategy the settings name, and the model made ready for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hf_transfer.config import RunConfig, TextConfig, mistake
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.models.groups import Group, describe_frozen
from hf_transfer.models.pretrained import AnyCheckpoint, load_classifier
from hf_transfer.models.towers import groups_of, towers_of
from hf_transfer.strategies.adapter_files import adapter_of
from hf_transfer.strategies.adapters import (
    InfusedAdapters,
    KroneckerAdaptation,
    LowRankAdaptation,
    OtherAdapters,
    WeightDecomposedAdaptation,
)
from hf_transfer.strategies.each_tower import EachTower
from hf_transfer.strategies.freezing import (
    BiasTuning,
    FromScratch,
    FullFineTuning,
    GradualUnfreezing,
    LinearProbe,
    LinearProbeThenFineTuning,
    PartialFineTuning,
    Strategy,
    frozen_towers,
)

# Measured, as README says: with 160 texts of a class it gained, with eight it did not.
OWN_RDROP_ALPHA = {"full": 1.0}


def choose_strategy(config: RunConfig) -> Strategy:
    """The strategy that the settings name, for all or for each tower."""
    if isinstance(config, MultimodalConfig):
        return EachTower({tower: _strategy(name, config) for tower, name in config.by_tower().items()})
    return _strategy(config.strategy, config)


def _strategy(name: str, config: RunConfig) -> Strategy:
    rank, alpha, dropout = config.adapter_rank, config.adapter_alpha, config.adapter_dropout
    layers = config.adapter_layers
    strategies: dict[str, Strategy] = {
        "linear_probe": LinearProbe(),
        "partial": PartialFineTuning(layers=config.trainable_layers),
        "gradual": GradualUnfreezing(),
        "lp_ft": LinearProbeThenFineTuning(),
        "full": FullFineTuning(larger_head=isinstance(config, TextConfig)),
        "scratch": FromScratch(),
        "bitfit": BiasTuning(),
        "lora": LowRankAdaptation(rank=rank, alpha=alpha, dropout=dropout, layers=layers),
        "dora": WeightDecomposedAdaptation(rank=rank, alpha=alpha, dropout=dropout, layers=layers),
        "ia3": InfusedAdapters(layers=layers),
        "lokr": KroneckerAdaptation(rank=rank, alpha=alpha, dropout=dropout, layers=layers),
        "adapter": OtherAdapters(peft_type=config.peft_type, rank=rank, alpha=alpha, dropout=dropout, layers=layers),
    }
    return strategies[name]


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be trained as a strategy has it.

    Attributes:
        model: a classifier with a new head, and with adapters if the strategy puts some in.
        groups: its groups in depth order.
        frozen: those of each tower that never learn, counted from the input; "" stands for the only one.
        notes: sentences on what is frozen, and on what the checkpoint lacked.
    """

    model: nn.Module
    groups: list[Group]
    frozen: dict[str, list[Group]]
    notes: list[str]

    @property
    def frozen_blocks(self) -> bool:
        """Whether whole blocks, of the tower for images if there are two, never learn, so that storing pays."""
        first = self.frozen[towers_of(self.groups)[0]]
        return any(group.is_block or group.name == "backbone" for group in first)


def prepare_model(
    checkpoint: AnyCheckpoint, strategy: Strategy, label_names: Sequence[str], config: RunConfig,
    inputs: dict[str, Tensor],
) -> Prepared:  # fmt: skip
    """Load the backbone, give it a new head, and make it ready for the strategy.

    Args:
        checkpoint: what to start from.
        strategy: what learns, and when.
        label_names: class names.
        config: settings.
        inputs: a small batch to trace the model with.

    Raises:
        UserError: before weights are read: the model has fewer blocks than named, or no layer that adapters can
            attach to; later: the checkpoint is not complete.
    """
    if any(adapter_of(part) for part in checkpoint.parts):
        raise mistake(
            expected="a whole model to start from",
            found=f"an adapter in {checkpoint.name}",
            do="name its base model, or the model of a run with --merge_adapter",
        )
    outline, groups = checkpoint.outline(label_names, inputs)
    strategy.check(outline, groups)
    blocks = sum(group.is_block for group in groups)
    if max(config.feature_layers, default=0) > blocks:
        raise mistake(
            expected=f"--feature_layers from 1 to {blocks}, the blocks of this model",
            found=" ".join(map(str, config.feature_layers)),
            do="leave out what is above",
        )
    model, groups = load_classifier(checkpoint, label_names, config, inputs, fresh_weights=strategy.fresh_weights)
    fresh = checkpoint.describe_fresh(groups)
    prepared, groups = strategy.prepare(model, groups, inputs, config.seed)
    stages = strategy.stages(groups, config.num_train_epochs)
    if config.cache_frozen == "on" and not any(any(frozen_towers(groups, [stage]).values()) for stage in stages):
        raise mistake(
            expected="with --cache_frozen on a strategy that leaves the first layers frozen",
            found=f"--strategy {config.strategy}, with which every layer learns",
            do="use --strategy partial, linear_probe or adapters with --adapter_layers, or --cache_frozen auto",
        )
    frozen = frozen_towers(groups, stages)
    said = [
        f"{tower.capitalize()}{': ' if tower else ''}"
        f"{describe_frozen(prepared, groups_of(tower, groups), len(found), inputs)}"
        for tower, found in frozen.items()
    ]
    if alpha := rdrop_alpha(config, prepared):
        said.append(f"R-Drop: a step looks at each text twice (--rdrop_alpha {alpha:g}).")
    return Prepared(prepared, groups, frozen, [*said, *fresh])


def rdrop_alpha(config: RunConfig, model: nn.Module) -> float:
    """The weight of R-Drop: as set, and else that of the strategy, which asks for none of a model without dropout.

    Raises:
        UserError: it is set, and the model has no dropout.
    """
    if not isinstance(config, TextConfig):
        return 0.0
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    if config.rdrop_alpha and not drops:
        raise mistake(
            expected="for --rdrop_alpha a model with dropout, of which two draws can be compared",
            found=f"none in {config.model_name_or_path}",
            do="leave --rdrop_alpha out",
        )
    own = OWN_RDROP_ALPHA.get(config.strategy, 0.0)
    return config.rdrop_alpha if config.rdrop_alpha is not None else own * drops
