"""Strategies for users of `transformers.Trainer`.

Trainer wraps the model and makes its optimizer before it calls any callback. So there are two parts: the model is
prepared before Trainer gets it, and a callback freezes and unfreezes groups of it from epoch to epoch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.core_model_loading import revert_weight_conversion
from transformers.training_args import OptimizerNames

from hf_transfer.errors import user_error
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.freezing import Stage, Strategy, learning_parameters, set_trainable
from hf_transfer.training.rates import parameter_groups


class StrategyCallback(TrainerCallback):
    """In each epoch trains exactly the parameters of the strategy's stage.

    Parameters that learn in no stage are frozen as in our own loop. Parameters of another stage are frozen for a
    while: their modules are in evaluation mode, with the statistics of BatchNorm, and the steps of the optimizer do not
    change them, neither by momentum nor by weight decay; their moments start when they become trainable. The stage
    depends on the epoch alone, so that a resumed training is in the right one.

    Differences to our own loop:

    - A distributed wrapper averages only gradients that were required when it was built, and Trainer builds it once. So
      on several processes backward also runs through parameters of other stages, whose gradients are discarded: every
      stage takes the memory and time of the one with the most parameters.
    - Outputs of frozen layers are not stored; they are computed in every epoch.
    - A stage that our loop solves (`Stage.solved`) is trained step by step: the head alone, for the stage's epochs,
      which count among `num_train_epochs`; the last stage has the remaining ones.
    - Loss, order of the samples, augmentation, schedule, clipping and checkpoints are Trainer's.

    Made by `prepare_for_trainer`.

    Args:
        model: the prepared model, not wrapped; the parameters of all stages require a gradient.
        groups: its groups in depth order.
        stages: what learns, and for how many epochs.
        optimizer: has the parameters of all stages.
        epochs: number of epochs that the stages are made for.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], stages: Sequence[Stage], optimizer: Optimizer, epochs: int
    ) -> None:
        self._model, self._groups, self._stages = model, groups, stages
        self._optimizer, self._epochs = optimizer, epochs
        self._epoch = 0
        self._distributed = False
        # Parameters of other stages, which require a gradient only for the distributed wrapper.
        self._frozen: list[nn.Parameter] = []
        self._handles: list[RemovableHandle] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Find the epoch in which training starts or resumes.

        Raises:
            UserError: Trainer has another model, optimizer or number of epochs than the prepared ones.
        """
        optimizer = kwargs["optimizer"]
        # Accelerate has wrapped the optimizer by now.
        if kwargs["model"] is not self._model or getattr(optimizer, "optimizer", optimizer) is not self._optimizer:
            raise user_error(
                expected="a Trainer with the model and the optimizer that prepare_for_trainer made",
                found="another model or optimizer",
                do="use Trainer(prepared.model, args, optimizers=(prepared.optimizer, None), ...), without DeepSpeed",
            )
        if len(self._stages) > 1 and state.num_train_epochs != self._epochs:
            raise user_error(
                expected=f"a training of {self._epochs} epochs, for which the {len(self._stages)} stages are made",
                found=f"{state.num_train_epochs} epochs",
                do="leave max_steps out, and give Trainer the same arguments as prepare_for_trainer",
            )
        self._distributed = args.world_size > 1
        # Rounded down, if training resumes in the middle of an epoch.
        self._epoch = int(state.epoch)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Enter the epoch's stage."""
        by_epoch = [stage for stage in self._stages for _ in range(stage.epochs)]
        self._enter(by_epoch[min(self._epoch, len(by_epoch) - 1)])

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Count the epoch: `state.epoch` is not a whole number if an epoch was stopped early."""
        self._epoch += 1

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Remove the gradients of other stages: with zeros, momentum and weight decay would still be applied."""
        for parameter in self._frozen:
            parameter.grad = None

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Restore the classes of the modules, so that the model can be pickled and trained further."""
        names = frozenset(name for name, _ in self._model.named_parameters())
        self._enter(Stage(names, 0, updates_statistics=names))
        trainable = learning_parameters(self._stages)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in trainable)

    def _enter(self, stage: Stage) -> None:
        for handle in self._handles:
            handle.remove()
        set_trainable(self._model, self._groups, stage.trainable, updates_statistics=stage.updates_statistics)
        others = learning_parameters(self._stages) - stage.trainable if self._distributed else frozenset()
        self._frozen = [parameter for name, parameter in self._model.named_parameters() if name in others]
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        # Zeros, so that gradients are clipped by the norm of the parameters that learn.
        self._handles = [parameter.register_hook(torch.zeros_like) for parameter in self._frozen]


class PreparedForTrainer(NamedTuple):
    """The arguments of a Trainer.

    Attributes:
        model: the model, with adapters if the strategy adds some; parameters that never learn are frozen.
        optimizer: the parameters of all stages, each with its rate; pass it as `optimizers=(optimizer, None)`.
        callback: freezes and unfreezes groups from epoch to epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    callback: StrategyCallback


def prepare_for_trainer(
    model: nn.Module, strategy: Strategy, inputs: Mapping[str, Tensor], args: TrainingArguments,
    *, layer_lr_decay: float = 1.0, head_learning_rate: float | None = None,
) -> PreparedForTrainer:  # fmt: skip
    """Prepare a model for training with a strategy by `transformers.Trainer`.

        args = TrainingArguments("out", num_train_epochs=5, learning_rate=strategy.learning_rate)
        prepared = prepare_for_trainer(model, strategy, inputs, args)
        trainer = Trainer(
            prepared.model, args, train_dataset=..., optimizers=(prepared.optimizer, None),
            callbacks=[prepared.callback],
        )

    The schedule is Trainer's: every group of the optimizer keeps its own peak. Trainer saves a plain transformers
    folder, or a peft folder if the strategy adds adapters. DistributedDataParallel is supported; FSDP and DeepSpeed are
    not, because they replace the parameters.

    Args:
        model: a classifier with its head, in float32, on the device of `inputs`; adapters are added in place.
        strategy: what learns, and when; for `FromScratch`, pass a model with fresh weights.
        inputs: a small batch to trace the model with, without labels.
        args: of the Trainer: epochs, learning rate, weight decay, optimizer and seed are read from it.
        layer_lr_decay: factor of the rate from each group to the one below it; see `rates.parameter_groups`.
        head_learning_rate: peak rate of the head; None: as the rest.

    Raises:
        UserError: the strategy does not fit the model or the number of epochs, or Trainer would use an optimizer that
            is not torch's own.
    """
    epochs = math.ceil(args.num_train_epochs)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    if not kind.__module__.startswith("torch.optim.") or args.deepspeed or args.fsdp:
        raise user_error(
            expected="one of torch's own optimizers, and no FSDP or DeepSpeed",
            found=f"optim={OptimizerNames(args.optim).value}, fsdp={args.fsdp}, deepspeed={args.deepspeed}",
            do="leave them out of TrainingArguments; several GPUs work with torchrun",
        )
    groups = trace_groups(model, inputs)
    strategy.check(model, groups)
    model, groups = strategy.prepare(model, groups, inputs, args.seed)
    stages = strategy.stages(groups, epochs)
    if (before_last := sum(stage.epochs for stage in stages[:-1])) >= epochs:
        raise user_error(
            expected=f"more than {before_last} epochs, which the stages before the last take",
            found=f"num_train_epochs={args.num_train_epochs:g}",
            do="raise num_train_epochs",
        )
    set_trainable(model, groups, learning_parameters(stages))
    if isinstance(model, PreTrainedModel):
        model.register_load_state_dict_pre_hook(_rename_saved)
    parameters = parameter_groups(
        model, groups, learning_rate=args.learning_rate, weight_decay=args.weight_decay,
        layer_lr_decay=layer_lr_decay, head_learning_rate=head_learning_rate,
    )  # fmt: skip
    optimizer: Optimizer = kind(parameters, **settings)
    return PreparedForTrainer(model, optimizer, StrategyCallback(model, groups, stages, optimizer, epochs))


def _rename_saved(model: PreTrainedModel, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Rename weights that `save_pretrained` has written under older names of an architecture.

    `from_pretrained` does this, but Trainer resumes, and loads the best checkpoint, with `load_state_dict`: for a ViT,
    in transformers 5.23, it would skip the blocks (https://github.com/huggingface/transformers/issues/43701).
    """
    present = model.state_dict(prefix=prefix)
    names = {id(value): name for name, value in present.items()}
    for saved, value in revert_weight_conversion(model, present).items():
        if saved in state and saved not in present and id(value) in names:
            state[names[id(value)]] = state.pop(saved)
