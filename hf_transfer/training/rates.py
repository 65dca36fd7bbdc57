"""Learning rates: the optimizer's parameter groups, the schedule of a run, and moments carried from stage to stage."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from hf_transfer.models.groups import Group
from hf_transfer.models.towers import groups_of, towers_of
from hf_transfer.settings.training import TrainingSettings
from hf_transfer.strategies.freezing import Strategy
from hf_transfer.training.sharding import placed_like

Schedule = Literal["cosine", "linear", "constant_with_warmup"]


def peak_rates(strategy: Strategy, training: TrainingSettings) -> tuple[float, float | None]:
    """Peak learning rates of all parameters, and of the head if it has its own: the settings', or the strategy's."""
    rate = strategy.learning_rate if training.learning_rate is None else training.learning_rate
    open_rates = training.learning_rate is None and training.head_learning_rate is None
    return rate, strategy.head_learning_rate if open_rates else training.head_learning_rate


def parameter_groups(
    model: nn.Module, groups: Sequence[Group], *, learning_rate: float, weight_decay: float,
    layer_lr_decay: float = 1.0, head_learning_rate: float | None = None, decayed_elsewhere: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """The trainable parameters with their learning rates and weight decay, as an optimizer takes them.

    The head has the full rate, the group below it `layer_lr_decay` times that, and so on down to the embeddings, in
    each tower by itself. Groups without parameters (pooling, dropout) are not counted; frozen groups are, so that a
    rate does not depend on what else is trainable. Norms and biases (one dimension) have no weight decay.

    References: Clark, Luong, Le and Manning, "ELECTRA", ICLR 2020, https://arxiv.org/abs/2003.10555, and Bao, Dong,
    Piao and Wei, "BEiT", ICLR 2022, https://arxiv.org/abs/2106.08254 (a rate for each layer); Howard and Ruder,
    "Universal Language Model Fine-tuning for Text Classification", ACL 2018, https://arxiv.org/abs/1801.06146 (the
    idea); Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, https://arxiv.org/abs/1711.05101.

    Args:
        model: the model, not wrapped, of which the stage's parameters require a gradient.
        groups: the model's groups in depth order, the head last.
        learning_rate: peak rate of the head and, without a decay by layer, of all parameters.
        weight_decay: a step shrinks matrices and kernels by their rate times this.
        layer_lr_decay: factor from each group to the one below it; 1: all have the same rate.
        head_learning_rate: peak rate of the head; None: as `learning_rate`.
        decayed_elsewhere: L2-SP replaces the decay below the head; only the head decays.

    Returns:
        Dictionaries with `params` in model order, `lr` and `weight_decay`, none of them empty. With one rate for all
        there are two: matrices, and norms and biases.
    """
    rates = _rates(groups, learning_rate, layer_lr_decay, head_learning_rate)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    lost = [name for name, _ in trainable if name not in rates]
    assert not lost, f"trainable, but in no group, so they would never learn: {lost}"

    made: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trainable:
        decays = parameter.ndim > 1 and (not decayed_elsewhere or name in groups[-1].parameters)
        rate, decay = rates[name], weight_decay if decays else 0.0
        group = made.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(made.values())


def _rates(
    groups: Sequence[Group], learning_rate: float, layer_lr_decay: float, head_learning_rate: float | None
) -> dict[str, float]:
    """The peak rate of each parameter."""
    rates: dict[str, float] = {}
    for tower in towers_of(groups):
        deep = [group for group in groups_of(tower, groups) if group.parameters]
        for distance, group in enumerate(reversed(deep)):
            rates |= dict.fromkeys(group.parameters, learning_rate * layer_lr_decay**distance)
    if head_learning_rate is not None:
        rates |= dict.fromkeys(groups[-1].parameters, head_learning_rate)
    return rates


def learning_rate_schedule(
    optimizer: Optimizer, kind: Schedule, warmup_steps: float, total_steps: int, steps_done: int = 0
) -> LambdaLR:
    """Linear warm-up, then a half cosine to 0, a line to 0, or a constant; every group keeps its own peak.

    Do not prepare it with Accelerate, which would step it once for every process.

    References: Goyal et al., "Accurate, Large Minibatch SGD", 2017, https://arxiv.org/abs/1706.02677 (warm-up);
    Loshchilov and Hutter, "SGDR", ICLR 2017, https://arxiv.org/abs/1608.03983 (cosine).

    Args:
        optimizer: the optimizer, not wrapped; its groups' `lr` are the peaks (`initial_lr`, where a group has it).
        kind: what follows the warm-up.
        warmup_steps: a number of optimizer steps or, below 1, a share of all of them.
        total_steps: optimizer steps of the whole run.
        steps_done: optimizer steps taken before; the rates continue after them.
    """
    # torch takes the peaks from here if a schedule does not start at step 0.
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    warmup = round(warmup_steps * total_steps if warmup_steps < 1 else warmup_steps)
    total = {} if kind == "constant_with_warmup" else {"num_training_steps": total_steps}
    # Not `get_scheduler`, which begins a constant at step 0.
    make: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)]
    schedule: LambdaLR = make(optimizer, num_warmup_steps=warmup, **total, last_epoch=steps_done - 1)
    return schedule


def moments_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of an optimizer by kind and name of the parameter; not copies."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}.{names[parameter]}": value
        for parameter, values in optimizer.state.items()
        for kind, value in values.items()
    }


def set_moments(optimizer: Optimizer, model: nn.Module, moments: Mapping[str, Tensor]) -> None:
    """Give an optimizer the moments of an earlier one, for the parameters that it has.

    Other parameters start without: a later stage of gradual unfreezing continues like one optimizer that had all its
    parameters from the first step. The earlier optimizer must not step again.
    """
    optimized = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    by_name = {name: parameter for name, parameter in model.named_parameters() if parameter in optimized}
    for key, value in moments.items():
        kind, _, name = key.partition(".")
        if name in by_name:
            # Not copied, unless they have to move: moments are twice as large as the weights.
            optimizer.state[by_name[name]][kind] = placed_like(value, by_name[name])
