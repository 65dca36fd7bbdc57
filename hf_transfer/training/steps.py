"""How parameters move in a run: what is minimised, at which rates, and what is kept of each step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_transfer.config import RunConfig, VisionConfig
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.data.inputs import MASKED, Loaders
from hf_transfer.data.mixing import Mixing
from hf_transfer.models.groups import Group
from hf_transfer.strategies.choice import rdrop_alpha
from hf_transfer.strategies.freezing import Stage, Strategy
from hf_transfer.training.averaging import ExponentialMovingAverage, StartingPoint
from hf_transfer.training.objective import Objective, balanced_class_weights
from hf_transfer.training.probe import last_layer
from hf_transfer.training.progress import Position
from hf_transfer.training.rates import give_moments, learning_rate_schedule, moments_of, parameter_groups
from hf_transfer.training.sharding import gather, is_sharded, sharded_copy, whole_on_first

Files = Mapping[str, Mapping[str, Tensor]]


class Learner(NamedTuple):
    """What learns in a stage: the wrapped model, its optimizer, its schedule."""

    model: nn.Module
    optimizer: Any
    schedule: Any


class Steps:
    """Loss, rates, pull toward the start and moving average of a run, from stage to stage.

    Args:
        model: classifier in float32, not wrapped.
        groups: its groups in depth order.
        loaders: the batches of the run.
        config: settings.
        strategy: it has a learning rate, if the settings name none.
        stages: what will learn, and for how long.

    Attributes:
        learning_rate: the peak.
        objective: what is minimised.
        mixing: mixes the images of a batch; None if nothing is mixed.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], loaders: Loaders, config: RunConfig, strategy: Strategy,
        stages: Sequence[Stage],
    ) -> None:  # fmt: skip
        self.learning_rate = strategy.learning_rate if config.learning_rate is None else config.learning_rate
        named = config.learning_rate is None and config.head_learning_rate is None
        self._head_rate = strategy.head_learning_rate if named else config.head_learning_rate
        self.objective = _objective(config, loaders, _classes(model, groups), rdrop_alpha(config, model))
        self.mixing = _mixing(config, _classes(model, groups))
        self._model, self._groups, self._config = model, groups, config
        self._steps_per_epoch = math.ceil(len(loaders.train) / config.gradient_accumulation_steps)
        self._total = sum(self._steps_of(stage) for stage in stages)
        self._done = 0
        self._start: StartingPoint | None = None
        self._average: ExponentialMovingAverage | None = None
        # What the optimizer's parameters belong to: the model, or its sharded copy.
        self._learning = model
        self._optimizer: Any = None
        self._moments: dict[str, Tensor] = {}

    def pass_by(self, stage: Stage) -> None:
        """Leave a stage behind that an earlier process has trained."""
        self._done += self._steps_of(stage)

    def _steps_of(self, stage: Stage) -> int:
        solved = stage.solved and last_layer(self._model, self._groups[-1])
        return 0 if solved else self._steps_per_epoch * stage.epochs

    def prepare(
        self, stage: Stage, accelerator: Accelerator, saved: Files | None = None, position: Position | None = None
    ) -> Learner:
        """The wrapped model, its optimizer and its schedule for a stage whose parameters are open.

        Args:
            stage: what learns.
            accelerator: devices and processes.
            saved: what `files` gave in an earlier process, and was written to a checkpoint.
            position: where the run stood then.
        """
        config, sharded = self._config, is_sharded(accelerator)
        self.leave()
        # On their device before anything takes in what is known of them.
        model = sharded_copy(self._model, self._groups, accelerator) if sharded else self._model.to(accelerator.device)
        self._learning = model
        self._follow(saved or {})
        groups = parameter_groups(
            model, self._groups, learning_rate=self.learning_rate, weight_decay=config.weight_decay,
            layer_lr_decay=config.layer_lr_decay, head_learning_rate=self._head_rate,
            decayed_elsewhere=config.l2_sp > 0,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, fused=True)
        give_moments(optimizer, model, self._moments | dict((saved or {}).get("optimizer", {})))
        self._optimizer, self._moments = optimizer, {}
        # In the middle of a stage, steps of a scaler that were left out do not count.
        inside = position is not None and (position.epoch, position.batches) != (0, 0)
        done = position.schedule if position is not None and inside else self._done
        schedule = learning_rate_schedule(optimizer, config.lr_scheduler_type, config.warmup_steps, self._total, done)
        self.pass_by(stage)
        if sharded:
            return Learner(model, accelerator.prepare_optimizer(optimizer, device_placement=False), schedule)
        wrapped, prepared = accelerator.prepare(model, optimizer)
        return Learner(wrapped, prepared, schedule)

    def gather(self) -> None:
        """Let the model have what its sharded copy, if there is one, has learned; all processes call it together."""
        if self._learning is not self._model:
            gather(self._learning, self._model)

    def leave(self) -> None:
        """When a stage is over: the model has the weights, and the moments wait for the next stage."""
        self.gather()
        if self._optimizer is not None:
            self._moments = moments_of(self._optimizer, self._learning)
        self._learning, self._optimizer = self._model, None

    def _follow(self, saved: Files) -> None:
        """Let the pull toward the start and the moving average know what is open now."""
        model, config = self._learning, self._config
        if config.l2_sp > 0:
            self._start = self._start or StartingPoint(model, self._groups, config.l2_sp)
            if saved.get("start"):
                self._start.load_state_dict(saved["start"])
            self._start.extend(model)
        if config.ema_decay > 0:
            self._average = self._average or ExponentialMovingAverage(model, config.ema_decay)
            if saved.get("average"):
                self._average.load_state_dict(saved["average"])
            self._average.extend(model)

    def after_step(self) -> None:
        """To be called after each step of the optimizer, before that of the schedule."""
        if self._start is not None:
            self._start.pull(self._learning, self._optimizer)
        if self._average is not None:
            self._average.update(self._learning)

    def files(self) -> Files:
        """What moves parameters and is none, for a checkpoint: moments, averages, starting point; not copies.

        All processes call it together, and the first gets what they share out among them.
        """
        moments = self._moments if self._optimizer is None else moments_of(self._optimizer, self._learning)
        average = {} if self._average is None else self._average.state_dict()
        start = {} if self._start is None else self._start.state_dict()
        files = {"optimizer": moments, "average": average, "start": start}
        return {
            file: {name: whole_on_first(value) for name, value in tensors.items()} for file, tensors in files.items()
        }

    @contextmanager
    def judged_weights(self) -> Iterator[None]:
        """The model has the weights that are judged and kept: the moving averages, if there are any."""
        with nullcontext() if self._average is None else self._average.applied(self._learning):
            self.gather()
            yield


def _classes(model: nn.Module, groups: Sequence[Group]) -> int:
    # Where the head has more layers than one, the last gives the logits.
    layer = model.get_submodule(groups[-1].modules[-1])
    assert isinstance(layer, nn.Linear)
    return layer.out_features


def _objective(config: RunConfig, loaders: Loaders, classes: int, alpha: float) -> Objective:
    weights = None
    if config.class_weights == "balanced":
        split = loaders.train.dataset.split
        labels = np.where(np.isin(split.rows, list(split.bad)), MASKED, split.labels)
        weights = balanced_class_weights(labels, classes)
    alone = config.auxiliary_weight if isinstance(config, MultimodalConfig) else 0.0
    return Objective(config.label_smoothing_factor, weights, alone, alpha)


def _mixing(config: RunConfig, classes: int) -> Mixing | None:
    if not isinstance(config, VisionConfig) or config.mixup_alpha == config.cutmix_alpha == 0:
        return None
    return Mixing(config.mixup_alpha, config.cutmix_alpha, config.seed, classes)
