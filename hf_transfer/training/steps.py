"""How parameters are updated: the loss, learning rates, L2-SP and moving averages, from stage to stage."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_transfer.checkpoints.checkpoint import Tensors
from hf_transfer.data.batches import Loaders
from hf_transfer.data.transfers import to_device
from hf_transfer.frozen.probe import solvable_layer
from hf_transfer.modalities.modality import Regularisation
from hf_transfer.models.groups import Group
from hf_transfer.settings.training import TrainingSettings
from hf_transfer.strategies.freezing import Stage, Strategy
from hf_transfer.targets.target import LossOptions
from hf_transfer.training import averaging, rates
from hf_transfer.training.objective import Objective
from hf_transfer.training.progress import Position
from hf_transfer.training.sharding import gather, is_sharded, sharded_copy, whole_on_first


class Learner(NamedTuple):
    """What a stage trains with: the wrapped model, its optimizer, its schedule."""

    model: nn.Module
    optimizer: Any
    schedule: Any


class Steps:
    """Loss, rates, L2-SP and moving average of a run, from stage to stage.

    Args:
        model: classifier in float32, not wrapped.
        groups: its groups in depth order.
        loaders: the batches of the run.
        training: settings.
        strategy: gives the learning rates that the settings leave open.
        stages: what learns, and for how long.
        regularisation: what the modality adds to the loss.

    Attributes:
        learning_rate: the peak.
        objective: the loss.
        mixer: mixes the samples of a batch; None: they are not mixed.
        batches_per_step: how many batches of each process make up a step; in the last step of an epoch there may be
            fewer.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], loaders: Loaders, training: TrainingSettings,
        strategy: Strategy, stages: Sequence[Stage], regularisation: Regularisation,
    ) -> None:  # fmt: skip
        self.learning_rate, self._head_rate = rates.peak_rates(strategy, training)
        split, target = loaders.train.dataset.split, loaders.target
        weights = target.loss_weights(split.targets[split.counted], training.class_weights == "balanced")
        kind = "" if target.loss_setting is None else str(getattr(training, target.loss_setting))
        options = LossOptions(training.label_smoothing_factor, weights, kind)
        self.objective = Objective(target, options, regularisation.auxiliary_weight, regularisation.rdrop_alpha)
        self.mixer = regularisation.mixer
        self._target = target
        self._model, self._groups, self._training = model, groups, training
        self.batches_per_step = training.gradient_accumulation_steps
        self._steps_per_epoch = math.ceil(len(loaders.train) / self.batches_per_step)
        self._total = sum(self._steps_of(stage) for stage in stages)
        self._done = 0
        self._start = averaging.StartingPoint(groups, training.l2_sp) if training.l2_sp > 0 else None
        self._average = averaging.ExponentialMovingAverage(training.ema_decay) if training.ema_decay > 0 else None
        both = {"start": self._start, "average": self._average}
        # By their files in a checkpoint.
        self._followers = {name: follower for name, follower in both.items() if follower is not None}
        # The model that the optimizer updates: the model itself, or its sharded copy.
        self._updated = model
        self._optimizer: Any = None
        self._scaled = False
        self._moments: dict[str, Tensor] = {}
        # Whether the optimizer leaves out its next step: 1.0 or 0.0, a scalar on the device.
        self._left_out: Tensor | None = None

    def skip(self, stage: Stage) -> None:
        """Count the steps of a stage that an earlier process has trained."""
        self._done += self._steps_of(stage)

    def solved_layer(self, stage: Stage) -> str | None:
        """The layer that is solved in a stage; None if the stage trains."""
        return solvable_layer(self._model, self._groups[-1], self._target) if stage.solved else None

    def _steps_of(self, stage: Stage) -> int:
        return 0 if self.solved_layer(stage) else self._steps_per_epoch * stage.epochs

    def restore(self, saved: Mapping[str, Tensors]) -> None:
        """Continue with what `tensors` returned in an earlier process, from a checkpoint."""
        self._moments = saved.get("optimizer", {})
        for name in self._followers.keys() & saved.keys():
            self._followers[name].load_state_dict(saved[name])

    def prepare(self, stage: Stage, accelerator: Accelerator, position: Position) -> Learner:
        """The wrapped model, its optimizer and its schedule for a stage whose parameters require a gradient.

        Args:
            stage: what learns.
            accelerator: devices and processes.
            position: how far the run has come.
        """
        training, sharded = self._training, is_sharded(accelerator)
        self.end_stage()
        # Moments, averages and starting points go to the device of the parameters, so these move first.
        model = sharded_copy(self._model, self._groups, accelerator) if sharded else self._model.to(accelerator.device)
        self._updated = model
        if (weights := self.objective.options.weights) is not None:
            options = replace(self.objective.options, weights=to_device(weights, accelerator.device))
            self.objective = replace(self.objective, options=options)
        for follower in self._followers.values():
            follower.extend(model)
        groups = rates.parameter_groups(
            model, self._groups, learning_rate=self.learning_rate, weight_decay=training.weight_decay,
            layer_lr_decay=training.layer_lr_decay, head_learning_rate=self._head_rate,
            decayed_elsewhere=training.l2_sp > 0,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, fused=True)
        rates.set_moments(optimizer, model, self._moments)
        optimizer.register_step_pre_hook(self._mark)
        self._optimizer, self._moments, self._scaled = optimizer, {}, accelerator.scaler is not None
        done = self._done if (position.epoch, position.batches) == (0, 0) else position.schedule
        schedule = rates.learning_rate_schedule(
            optimizer, training.lr_scheduler_type, training.warmup_steps, self._total, done
        )
        self.skip(stage)
        if sharded:
            return Learner(model, accelerator.prepare_optimizer(optimizer, device_placement=False), schedule)
        wrapped, prepared = accelerator.prepare(model, optimizer)
        return Learner(wrapped, prepared, schedule)

    def gather(self) -> None:
        """Update the model from its sharded copy, if there is one; all processes call it together."""
        if self._updated is not self._model:
            gather(self._updated, self._model)

    def end_stage(self) -> None:
        """Update the model, and keep the moments for the next stage."""
        self.gather()
        if self._optimizer is not None:
            self._moments = rates.moments_of(self._optimizer, self._updated)
        self._updated, self._optimizer = self._model, None

    def leave_out(self, non_finite: Tensor | None) -> None:
        """Have the optimizer leave weights and moments as they are in its next step, if this scalar on the device is 1.

        Nobody waits for its value: the fused kernel of the optimizer reads it. `torch.amp.GradScaler` does the same.
        None: the step is known to be finite.
        """
        self._left_out = non_finite

    def _mark(self, optimizer: Any, _arguments: Any, _more: Any) -> None:
        if self._left_out is None:
            return
        # The float16 scaler has its own reason to leave out a step.
        left_out = torch.maximum(self._left_out, optimizer.found_inf) if self._scaled else self._left_out
        optimizer.found_inf = left_out

    def after_step(self) -> None:
        """Call it after each step of the optimizer, before that of the schedule."""
        if self._start is not None:
            self._start.pull(self._updated, self._optimizer)
        if self._average is not None:
            self._average.update(self._updated)

    def tensors(self) -> dict[str, Tensors]:
        """Moments, averages and starting point, by file of a checkpoint and name; not copies.

        All processes call it together; sharded tensors are gathered on the first.
        """
        moments = self._moments if self._optimizer is None else rates.moments_of(self._optimizer, self._updated)
        files = {"optimizer": moments} | {name: follower.state_dict() for name, follower in self._followers.items()}
        return {
            file: {name: whole_on_first(value) for name, value in tensors.items()} for file, tensors in files.items()
        }

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """The model has the weights that are evaluated and kept: the moving averages, if there are any."""
        with nullcontext() if self._average is None else self._average.applied(self._updated):
            self.gather()
            yield
