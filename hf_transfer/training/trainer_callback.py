"""For those who keep `transformers.Trainer`: a strategy decides there, too, what learns, and when.

Trainer wraps the model and takes in its parameters before any callback is asked, so there are two pieces: the model
is prepared before Trainer gets it, and a callback opens and closes its groups as the epochs go by.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.core_model_loading import revert_weight_conversion
from transformers.training_args import OptimizerNames

from hf_transfer.config import mistake
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.strategies.freezing import Stage, Strategy, learning_parameters, set_trainable
from hf_transfer.training.rates import parameter_groups


class StrategyCallback(TrainerCallback):
    """Lets learn, in each epoch, what the strategy names for it, and keeps the rest as it is.

    What learns in no stage is frozen as in our own loop. What learns in another stage only is closed: it is in
    evaluation mode, statistics of BatchNorm included, and no step of the optimizer touches it, neither momentum nor
    weight decay; its moments start when it is opened. The stage follows from the epoch alone, so that a resumed
    training is in the right one.

    What differs from our own loop:

    - A distributed wrapper averages only what required a gradient when it was built, and Trainer builds it once. So on
      several processes backward also runs through what is closed, and its gradients are thrown away: every stage takes
      the memory and time of the one in which most learns.
    - Nothing is stored of the frozen layers, which run in every epoch.
    - A stage that our loop solves (`Stage.solved`) is learned step by step: the head alone, for the stage's epochs.
      They count among `num_train_epochs`, so the last stage gets what is left.
    - Loss, order of the samples, augmentation, schedule, clipping and checkpoints are Trainer's.

    Made by `prepare_for_trainer`.

    Args:
        model: the prepared model, not wrapped; all that learns in any stage is open.
        groups: its groups in depth order.
        stages: what learns, and for how many epochs.
        optimizer: it holds all that learns in any stage.
        epochs: epochs that the stages are made for.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], stages: Sequence[Stage], optimizer: Optimizer, epochs: int
    ) -> None:
        self._model, self._groups, self._stages = model, groups, stages
        self._optimizer, self._epochs = optimizer, epochs
        self._epoch = 0
        self._distributed = False
        self._closed: list[nn.Parameter] = []
        self._handles: list[RemovableHandle] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Enter the stage in which training begins or goes on.

        Raises:
            UserError: Trainer has another model, optimizer or number of epochs than was prepared.
        """
        optimizer = kwargs["optimizer"]
        # Accelerate has wrapped it by now.
        if kwargs["model"] is not self._model or getattr(optimizer, "optimizer", optimizer) is not self._optimizer:
            raise mistake(
                expected="a Trainer with the model and the optimizer that prepare_for_trainer made",
                found="another model or optimizer",
                do="use Trainer(prepared.model, args, optimizers=(prepared.optimizer, None), ...), without DeepSpeed",
            )
        if len(self._stages) > 1 and state.num_train_epochs != self._epochs:
            raise mistake(
                expected=f"a training of {self._epochs} epochs, for which the {len(self._stages)} stages are made",
                found=f"{state.num_train_epochs} epochs",
                do="leave max_steps out, and give Trainer the same arguments as prepare_for_trainer",
            )
        self._distributed = args.world_size > 1
        # In the middle of an epoch, too, when training is resumed there.
        self._epoch = int(state.epoch)
        self._enter(self._stage())

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Enter the epoch's stage."""
        self._enter(self._stage())

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Count the epoch: `state.epoch` is no whole number where an epoch was cut short."""
        self._epoch += 1

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Leave no gradients to what is closed: with zeros, momentum and weight decay would go on."""
        for parameter in self._closed:
            parameter.grad = None

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Give the modules their own classes back, so that the model can be pickled and goes on as any other."""
        self._enter(Stage(frozenset(name for name, _ in self._model.named_parameters()), 0))
        learning = learning_parameters(self._stages)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in learning)

    def _stage(self) -> Stage:
        before = 0
        for stage in self._stages:
            before += stage.epochs
            if self._epoch < before:
                return stage
        return self._stages[-1]

    def _enter(self, stage: Stage) -> None:
        for handle in self._handles:
            handle.remove()
        set_trainable(self._model, self._groups, stage.trainable)
        closed = learning_parameters(self._stages) - stage.trainable if self._distributed else frozenset()
        self._closed = [parameter for name, parameter in self._model.named_parameters() if name in closed]
        for parameter in self._closed:
            parameter.requires_grad_(True)
        # Zeros, so that the norm by which gradients are clipped is the norm of what learns.
        self._handles = [parameter.register_hook(torch.zeros_like) for parameter in self._closed]


@dataclass(frozen=True)
class PreparedForTrainer:
    """What to give to Trainer.

    Attributes:
        model: the model, with adapters if the strategy puts some in; what never learns is frozen.
        optimizer: every parameter that learns in any stage, at its own rate; goes in as `optimizers=(optimizer, None)`.
        callback: opens and closes groups from epoch to epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    callback: StrategyCallback


def prepare_for_trainer(
    model: nn.Module, strategy: Strategy, inputs: Mapping[str, Tensor], args: TrainingArguments,
    *, layer_lr_decay: float = 1.0, head_learning_rate: float | None = None,
) -> PreparedForTrainer:  # fmt: skip
    """Make a model ready to be trained by `transformers.Trainer` as a strategy has it.

        args = TrainingArguments("out", num_train_epochs=5, learning_rate=strategy.learning_rate)
        prepared = prepare_for_trainer(model, strategy, inputs, args)
        trainer = Trainer(
            prepared.model, args, train_dataset=..., optimizers=(prepared.optimizer, None),
            callbacks=[prepared.callback],
        )

    The schedule is Trainer's: every group of the optimizer keeps its own peak. What Trainer saves is a plain
    transformers folder, or one of peft where the strategy puts adapters in. DistributedDataParallel is supported;
    FSDP and DeepSpeed, which hold the parameters elsewhere, are not.

    Args:
        model: a classifier with its head, in float32, on the device of `inputs`; adapters are put in in place.
        strategy: what learns, and when; for `FromScratch`, give a model with fresh weights.
        inputs: a small batch to trace the model with, without labels.
        args: what Trainer gets, too: epochs, learning rate, weight decay, optimizer and seed are read from it.
        layer_lr_decay: factor on the rate from each group to the one below it; see `rates.parameter_groups`.
        head_learning_rate: peak rate of the head alone, if it has its own.

    Raises:
        UserError: the strategy does not fit the model or the number of epochs, or Trainer would use an optimizer that
            is not torch's own.
    """
    epochs = math.ceil(args.num_train_epochs)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    if not kind.__module__.startswith("torch.optim.") or args.deepspeed or args.fsdp:
        raise mistake(
            expected="one of torch's own optimizers, and no FSDP or DeepSpeed",
            found=f"optim={OptimizerNames(args.optim).value}, fsdp={args.fsdp}, deepspeed={args.deepspeed}",
            do="leave them out of TrainingArguments; several GPUs work with torchrun",
        )
    groups = trace_groups(model, inputs)
    strategy.check(model, groups)
    model, groups = strategy.prepare(model, groups, inputs, args.seed)
    stages = strategy.stages(groups, epochs)
    if (before_last := sum(stage.epochs for stage in stages[:-1])) >= epochs:
        raise mistake(
            expected=f"more than {before_last} epochs, which the stages before the last take",
            found=f"num_train_epochs={args.num_train_epochs:g}",
            do="raise num_train_epochs",
        )
    set_trainable(model, groups, learning_parameters(stages))
    if isinstance(model, PreTrainedModel):
        model.register_load_state_dict_pre_hook(_take_saved_names)
    made = parameter_groups(
        model, groups, learning_rate=args.learning_rate, weight_decay=args.weight_decay,
        layer_lr_decay=layer_lr_decay, head_learning_rate=head_learning_rate,
    )  # fmt: skip
    optimizer: Optimizer = kind(made, **settings)
    return PreparedForTrainer(model, optimizer, StrategyCallback(model, groups, stages, optimizer, epochs))


def _take_saved_names(model: PreTrainedModel, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give weights that `save_pretrained` has written under an architecture's older names their present ones.

    `from_pretrained` does so, but Trainer resumes and takes the best checkpoint with `load_state_dict`: of a ViT, in
    transformers 5.23, it would load all but the blocks (https://github.com/huggingface/transformers/issues/43701).
    """
    own = model.state_dict(prefix=prefix)
    names = {id(value): name for name, value in own.items()}
    for saved, value in revert_weight_conversion(model, own).items():
        if saved in state and saved not in own and id(value) in names:
            state[names[id(value)]] = state.pop(saved)
