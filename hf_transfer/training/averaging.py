"""L2-SP, moving averages of weights, the best epochs, and soups of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from hf_transfer.models.groups import Group
from hf_transfer.models.tracing import evaluating
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
        groups: the model's groups in depth order, the head last.
        alpha: strength of the pull; 0.01 to 0.1 are usual.
    """

    def __init__(self, groups: Sequence[Group], alpha: float) -> None:
        self.alpha = alpha
        self._head = frozenset(groups[-1].parameters)
        self._start: Weights = {}

    def extend(self, model: nn.Module) -> None:
        """Copy the present values of parameters that have become trainable; call it before each stage is trained."""
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
        decay: share that the average keeps of itself in each later step; 0.999 below 10,000 steps, else 0.9999.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._averages: Weights = {}

    def extend(self, model: nn.Module) -> None:
        """Also average parameters that have become trainable, starting at their present values.

        Call it before each stage is trained, with the model itself, not wrapped.
        """
        trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
        for name, value in (trainable | _statistics(model)).items():
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
            average.lerp_(value, 1.0 if name in statistics else share)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averages; afterwards, also after an error, exactly the weights from before."""
        buffers = dict(model.named_buffers())
        values = dict(model.named_parameters()) | buffers
        # All buffers, also those that are not averaged: statistics may be recomputed for the averages.
        before = {name: values[name].detach().clone() for name in self._averages.keys() | buffers.keys()}
        try:
            _write(values, self._averages)
            yield
        finally:
            _write(values, before)

    def state_dict(self) -> Weights:
        """The averages and the number of steps, for a checkpoint; not copies."""
        averages = {f"average.{name}": value for name, value in self._averages.items()}
        return {**averages, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self.steps = int(state["steps"])
        self._averages = {
            name.removeprefix("average."): value.clone() for name, value in state.items() if name != "steps"
        }


def _statistics(model: nn.Module) -> Weights:
    """Running means and variances of BatchNorm, by name."""
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and isinstance(model.get_submodule(name.rpartition(".")[0]), _BatchNorm)
    }


@torch.no_grad()
def _write(values: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    # In place: optimizers and distributed wrappers refer to the same tensors.
    for name, value in new.items():
        values[name].copy_(placed_like(value, values[name]))


class Candidate(NamedTuple):
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

    Attributes:
        candidates: the best first; of equal ones the earlier.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.candidates: list[Candidate] = []

    def offer(self, weights: Mapping[str, Tensor], scores: Scores, epoch: int) -> None:
        """Keep a copy of the weights if they are among the best so far; no score is NaN."""
        place = sum(candidate.scores >= scores for candidate in self.candidates)
        if place < self.size:
            copies = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
            self.candidates.insert(place, Candidate(copies, scores, epoch))
            del self.candidates[self.size :]


def greedy_soup(candidates: Sequence[Candidate], evaluate: Callable[[Weights], Scores]) -> tuple[Weights, list[int]]:
    """Average the candidates, from the best to the worst, leaving out those that make the average worse.

    The result is never worse on validation than the best candidate, which is not evaluated again. BatchNorm's
    statistics are averaged like the weights; to recompute them instead (`recompute_batch_norm`), do so in `evaluate`,
    and once more for a result of several candidates.

    Reference: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time", ICML 2022, https://arxiv.org/abs/2203.05482.

    Args:
        candidates: at least one, all with the same names; the best first, as in `BestEpochs`.
        evaluate: returns the scores of weights, comparable with those of the candidates.

    Returns:
        The averaged weights (integers from the best candidate), and the epochs of those averaged.
    """
    best, *others = candidates
    scores, epochs, soup = best.scores, [best.epoch], best.weights
    # In double precision: a single candidate is returned exactly, and many do not lose digits.
    mean = {name: value.double() for name, value in best.weights.items() if value.is_floating_point()}
    for other in others:
        share = 1 / (len(epochs) + 1)
        trial_mean = {name: value.lerp(other.weights[name].double(), share) for name, value in mean.items()}
        trial = best.weights | {name: value.to(best.weights[name].dtype) for name, value in trial_mean.items()}
        if (trial_scores := evaluate(trial)) >= scores:
            scores, soup, mean = trial_scores, trial, trial_mean
            epochs.append(other.epoch)
    return soup, epochs


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
        batches: the model's keyword arguments, at least one; every batch has the same weight.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    momenta = {norm: norm.momentum for norm in norms}
    with evaluating(model):
        # `train()` leaves those that are frozen in evaluation mode.
        learning = [norm for norm in norms if norm.train().training]
        for norm in learning:
            norm.reset_running_stats()
            # For torch this means the plain mean over all batches.
            norm.momentum = None
        try:
            for batch in batches if learning else ():
                model(**batch)
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
