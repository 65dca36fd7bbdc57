"""L2-SP, moving averages of weights, the best epochs, and soups of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from hf_transfer.models.groups import Group
from hf_transfer.training.sharding import placed_like

Weights = dict[str, Tensor]
Scores = tuple[float, ...]


class StartingPoint:
    """L2-SP: after each step, the parameters below the head are pulled back toward their pretrained values w0.

    w <- w - rate * alpha * (w - w0), decoupled from the gradient as in AdamW. It replaces weight decay: see
    `decayed_elsewhere` of `rates.parameter_groups`.

    Reference: Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", ICML 2018, https://arxiv.org/abs/1802.01483.

    Args:
        model: the model with its pretrained values, not wrapped; the trainable ones below the head are copied.
        groups: its groups in depth order, the head last.
        alpha: strength of the pull; 0.01 to 0.1 are usual.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], alpha: float) -> None:
        self.alpha = alpha
        self._head = frozenset(groups[-1].parameters)
        self._start: Weights = {}
        self.extend(model)

    def extend(self, model: nn.Module) -> None:
        """Copy the present values of parameters that have become trainable; call it before a later stage is trained."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in self._head and name not in self._start:
                self._start[name] = parameter.detach().clone()

    @torch.no_grad()
    def pull(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Pull once; call it after a step of the optimizer and before that of the schedule, which changes the rates."""
        rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        for name, start in self._start.items():
            parameter = model.get_parameter(name)
            if parameter in rates:
                start = self._start[name] = placed_like(start, parameter)
                # At most all the way back: a larger factor would overshoot.
                parameter.lerp_(start, min(1.0, float(rates[parameter]) * self.alpha))

    def state_dict(self) -> Weights:
        """The pretrained values, for a checkpoint; not copies."""
        return dict(self._start)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint, whose model no longer has its pretrained values."""
        self._start = {name: value.clone() for name, value in state.items()}


class ExponentialMovingAverage:
    """A moving average of the trainable parameters, with BatchNorm's latest statistics.

    In step t, counted from 1, the average keeps min(decay, (1 + t) / (10 + t)) of itself, so that it forgets the first
    steps quickly.

    Reference: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on Control
    and Optimization 1992, https://doi.org/10.1137/0330046; Tarvainen and Valpola, "Mean teachers are better role
    models", NeurIPS 2017, https://arxiv.org/abs/1703.01780 (exponential, for deep networks).

    Args:
        model: the model, not wrapped.
        decay: share that the average keeps of itself in each later step; 0.999 below 10,000 steps, else 0.9999.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._averages: Weights = {}
        self.extend(model)

    def extend(self, model: nn.Module) -> None:
        """Also average parameters that have become trainable, starting at their present values."""
        for name, value in _averaged(model).items():
            if name not in self._averages:
                self._averages[name] = value.detach().clone()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the present weights; call it after a step of the optimizer."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        statistics = _statistics(model)
        present = dict(model.named_parameters()) | statistics
        for name, average in self._averages.items():
            value = present[name].detach()
            average = self._averages[name] = placed_like(average, value)
            if name in statistics:
                average.copy_(value)
            else:
                average.lerp_(value, share)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averages; afterwards, also after an error, exactly the weights from before."""
        values = dict(model.named_parameters()) | dict(model.named_buffers())
        # All statistics, also those that are not averaged: they may be recomputed for the averages.
        changed = self._averages.keys() | _statistics(model, counts=True).keys()
        before = {name: values[name].detach().clone() for name in changed}
        try:
            _write(values, self._averages)
            yield
        finally:
            _write(values, before)

    def state_dict(self) -> Weights:
        """The averages and the number of steps, for a checkpoint; not copies."""
        return {
            **{f"average.{name}": value for name, value in self._averages.items()},
            "steps": torch.tensor(self.steps),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self.steps = int(state["steps"])
        self._averages = {
            name.removeprefix("average."): value.clone() for name, value in state.items() if name != "steps"
        }


def _averaged(model: nn.Module) -> Weights:
    """Trainable parameters and BatchNorm's running means and variances, by name."""
    trainable: Weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return trainable | _statistics(model)


def _statistics(model: nn.Module, *, counts: bool = False) -> Weights:
    """Buffers of BatchNorm by name: running means and variances and, with `counts`, the number of batches."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for key, buffer in module.named_buffers(recurse=False)
        if counts or buffer.is_floating_point()
    }


@torch.no_grad()
def _write(values: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    # In place: optimizers and distributed wrappers refer to the same tensors.
    for name, value in new.items():
        values[name].copy_(placed_like(value, values[name]))


@dataclass(frozen=True)
class Candidate:
    """The weights of an epoch.

    Attributes:
        weights: everything that changes in training, by name, on the CPU.
        scores: validation scores in the order of their importance; higher is better.
        epoch: the epoch they come from.
    """

    weights: Weights
    scores: Scores
    epoch: int


class BestEpochs:
    """The best epochs of a run, with copies of their weights on the CPU.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._candidates: list[Candidate] = []

    @property
    def candidates(self) -> list[Candidate]:
        """The best first; of equal ones the earlier."""
        return list(self._candidates)

    def offer(self, weights: Mapping[str, Tensor], scores: Scores, epoch: int) -> bool:
        """Keep a copy of the weights if they are among the best so far; whether they are."""
        # NaN compares with no number: it is worse than any.
        scores = tuple(-math.inf if math.isnan(score) else score for score in scores)
        place = sum(candidate.scores >= scores for candidate in self._candidates)
        if place >= self.size:
            return False
        copies = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
        candidates = [*self._candidates[:place], Candidate(copies, scores, epoch), *self._candidates[place:]]
        self._candidates = candidates[: self.size]
        return True


def greedy_soup(candidates: Sequence[Candidate], evaluate: Callable[[Weights], Scores]) -> tuple[Weights, list[int]]:
    """Average the candidates, from the best to the worst, leaving out those that make the average worse.

    The result is never worse on validation than the best candidate, which is not evaluated again. BatchNorm's
    statistics are averaged like the weights; to recompute them instead (`recompute_batch_norm`), do so in `evaluate`,
    and once more for a result of several candidates.

    Reference: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time", ICML 2022, https://arxiv.org/abs/2203.05482.

    Args:
        candidates: at least one, all with the same names.
        evaluate: returns the scores of weights, comparable with those of the candidates.

    Returns:
        The averaged weights (integers from the best candidate), and the positions in `candidates` of those averaged.
    """
    order = sorted(range(len(candidates)), key=lambda position: candidates[position].scores, reverse=True)
    best = candidates[order[0]]
    assert all(candidate.weights.keys() == best.weights.keys() for candidate in candidates), "weights of other names"
    scores, chosen, soup = best.scores, order[:1], best.weights
    # In double precision: a single candidate is returned exactly, and many do not lose digits.
    mean = {name: value.double() for name, value in best.weights.items() if value.is_floating_point()}
    for position in order[1:]:
        added = candidates[position].weights
        trial_mean = {name: value.lerp(added[name].double(), 1 / (len(chosen) + 1)) for name, value in mean.items()}
        trial = best.weights | {name: value.to(best.weights[name].dtype) for name, value in trial_mean.items()}
        if (trial_scores := evaluate(trial)) >= scores:
            scores, soup, mean = trial_scores, trial, trial_mean
            chosen.append(position)
    return soup, chosen


@torch.no_grad()
def recompute_batch_norm(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Recompute the running statistics, as the mean over the batches, of every BatchNorm that is not frozen.

    Averaged weights give other activations than those from which the running statistics were computed. Frozen modules
    stay in evaluation mode, also after `train()`, and keep their statistics. Unlike
    `torch.optim.swa_utils.update_bn`, all other modules are in evaluation mode: no dropout and no random numbers, as
    when the statistics are used. For a model without BatchNorm no batch is read.

    Reference: Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging Weights Leads to Wider Optima and Better
    Generalization", UAI 2018, https://arxiv.org/abs/1803.05407.

    Args:
        model: the model, not wrapped, on the device of the batches. If several processes share the batches, average
            the statistics over the processes afterwards.
        batches: the model's keyword arguments; every batch has the same weight.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.train()
        if norms:
            _update_statistics(model, norms, batches)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode


def _update_statistics(model: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Mapping[str, Tensor]]) -> None:
    for position, batch in enumerate(batches):
        # Only once there is a batch: without any, the old statistics stay.
        for norm in norms if position == 0 else ():
            norm.reset_running_stats()
            # For torch this means the plain mean over all batches.
            norm.momentum = None
        model(**batch)
