"""The one loop: stages of epochs on Accelerate, the best epoch kept; and prediction on a split."""

import math
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import get_scheduler

from hf_transfer.config import RunConfig, mistake
from hf_transfer.data.inputs import MASKED, Loaders
from hf_transfer.models.groups import Group
from hf_transfer.strategies.freezing import Stage, Strategy, set_trainable

Metrics = dict[str, float]
LOWER_IS_BETTER = frozenset({"loss"})


@dataclass(frozen=True)
class Predictions:
    """What a model says of a split: every sample once, on every process, in the order of its row numbers.

    Attributes:
        logits: float32 [samples, classes].
        labels: class numbers [samples].
        index: row numbers [samples].
        masked: how many samples were masked; they are not among the rows above.
    """

    logits: Tensor
    labels: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]
    masked: int

    def metrics(self) -> Metrics:
        """Accuracy, macro F1 and mean cross-entropy."""
        # Not at the top: evaluate takes seconds to import, and a wrong setting must be answered at once.
        from hf_transfer.metrics import ClassificationMetrics

        predicted = self.logits.argmax(-1).numpy()
        scores = ClassificationMetrics().compute(predictions=predicted, references=self.labels)
        loss = cross_entropy(self.logits, torch.from_numpy(self.labels)).item()
        return {**{name: float(value) for name, value in scores.items()}, "loss": loss}


@dataclass
class Fit:
    """What training came to.

    Attributes:
        model: the unwrapped model with the weights of the best epoch.
        history: a row of numbers for each epoch.
        best_epoch: position of the best in `history`; -1 if nothing was trained.
        trainable: how many parameters learned.
        seconds: time spent in training, without evaluation.
    """

    model: nn.Module
    history: list[Metrics] = field(default_factory=list)
    best_epoch: int = -1
    trainable: int = 0
    seconds: float = 0.0


def fit(
    model: nn.Module, strategy: Strategy, groups: Sequence[Group], loaders: Loaders, config: RunConfig,
    accelerator: Accelerator,
) -> Fit:  # fmt: skip
    """Train stage by stage, judge every epoch on validation, and end with the weights of the best one.

    Args:
        model: classifier in float32, not wrapped.
        strategy: what learns, and when.
        groups: the model's groups in depth order.
        loaders: batches of the three splits; the test split is not looked at.
        config: settings.
        accelerator: devices, processes, precision, trackers.

    Returns:
        The model and its history.

    Raises:
        UserError: the loss is no number any more.
    """
    result = Fit(model)
    # Dropout draws from torch's global generator, on each process from a stream of its own.
    set_seed(config.seed, device_specific=True)
    # Not before the run's folder is ready: trackers write into it.
    accelerator.init_trackers("trackers")
    stages = strategy.stages(groups, config.num_train_epochs)
    learning = frozenset[str]().union(*(stage.trainable for stage in stages))
    best_weights: dict[str, Tensor] = {}
    without_gain = 0
    for stage in stages:
        # A distributed wrapper averages only gradients that were open when it was built: a stage prepares anew.
        set_trainable(model, groups, stage.trainable)
        result.trainable = max(result.trainable, sum(p.numel() for p in model.parameters() if p.requires_grad))
        optimizer = torch.optim.AdamW(decay_groups(model, config.weight_decay), lr=_rate(config, strategy), fused=True)
        scheduler = build_scheduler(optimizer, config, stage, len(loaders.train))
        wrapped, optimizer = accelerator.prepare(model, optimizer)

        for _ in range(stage.epochs):
            epoch = len(result.history)
            loaders.train.set_epoch(epoch)
            row = train_epoch(wrapped, optimizer, scheduler, loaders, config, accelerator, epoch)
            result.seconds += row["seconds"]
            _refuse_broken_loss(row, config, strategy)
            row |= predict_split(wrapped, loaders, "validation", accelerator).metrics()
            result.history.append(row)
            accelerator.log({name: value for name, value in row.items() if name != "epoch"}, step=epoch)
            if is_better(row, result.history, result.best_epoch, config.metric_for_best_model):
                result.best_epoch, without_gain = epoch, 0
                best_weights = _copy_of_what_changes(model, learning)
            else:
                without_gain += 1
            _say_epoch(accelerator, row, is_best=result.best_epoch == epoch)
            if 0 < config.early_stopping_patience <= without_gain:
                break
        _refuse_drift(accelerator, model)
        accelerator.free_memory()
    model.load_state_dict(best_weights, strict=False)
    return result


def train_epoch(
    model: nn.Module, optimizer: Any, scheduler: Any, loaders: Loaders, config: RunConfig, accelerator: Accelerator,
    epoch: int,
) -> Metrics:  # fmt: skip
    """One pass over the training split: mean loss, last learning rate used, seconds and samples a second."""
    model.train()
    started = time.perf_counter()
    total, seen = torch.zeros((), device=accelerator.device), 0
    rate = 0.0
    progress = _progress(accelerator, len(loaders.train.dataset), f"epoch {epoch + 1}")
    for batch in loaders.train:
        inputs, labels, _ = loaders.to_inputs(batch, accelerator.device, "train", epoch)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                logits = model(**inputs).logits
            loss = _mean_loss(logits.float(), labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        rate = scheduler.get_last_lr()[0]
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            scheduler.step()
        total += loss.detach() * len(labels)
        seen += len(labels)
        if not progress.disable:
            progress.set_postfix(loss=f"{loss.item():.3f}", rate=f"{rate:.1e}", refresh=False)
            progress.update(len(labels) * accelerator.num_processes)
    progress.close()
    seconds = time.perf_counter() - started
    sums = accelerator.reduce(torch.stack([total, total.new_tensor(float(seen))]))
    return {
        "epoch": float(epoch),
        "train_loss": (sums[0] / sums[1]).item(),
        "learning_rate": float(rate),
        "seconds": seconds,
        "samples_per_second": sums[1].item() / seconds,
    }


@torch.no_grad()
def predict_split(model: nn.Module, loaders: Loaders, split_name: str, accelerator: Accelerator) -> Predictions:
    """Logits of every sample of a split, computed by all processes together.

    Args:
        model: wrapped or not.
        loaders: the loaders of the run.
        split_name: train, validation or test.
        accelerator: devices and processes.
    """
    model.eval()
    model.to(accelerator.device)
    loader = loaders.of(split_name)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in loader:
        inputs, labels, index = loaders.to_inputs(batch, accelerator.device, split_name, None)
        with accelerator.autocast():
            logits = model(**inputs).logits.float()
        gathered = accelerator.gather_for_metrics((logits, labels, index))
        parts.append(tuple(part.cpu() for part in gathered))
    logits, labels, index = (torch.cat(columns) for columns in zip(*parts, strict=True))
    rows = loader.dataset.split.rows
    assert sorted(index.tolist()) == rows.tolist(), "evaluation must see every sample exactly once"
    order = index.argsort()
    kept = order[labels[order] != MASKED]
    return Predictions(logits[kept], labels[kept].numpy(), index[kept].numpy(), masked=len(order) - len(kept))


def is_better(row: Metrics, history: Sequence[Metrics], best_epoch: int, metric: str) -> bool:
    """Whether an epoch beats the best so far; equal scores, common in small splits, go to the lower loss."""
    if best_epoch < 0:
        return True
    best = history[best_epoch]
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    return (sign * row[metric], -row["loss"]) > (sign * best[metric], -best["loss"])


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the samples that are not masked; 0 if all are."""
    counted = (labels != MASKED).sum().clamp_min(1)
    return cross_entropy(logits, labels, ignore_index=MASKED, reduction="sum") / counted


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Open parameters in two groups: matrices and kernels decay, norms and biases (one dimension) do not."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _rate(config: RunConfig, strategy: Strategy) -> float:
    return strategy.learning_rate if config.learning_rate is None else config.learning_rate


def build_scheduler(optimizer: Any, config: RunConfig, stage: Stage, batches: int) -> Any:
    """Warm-up and decay over the optimizer steps of a stage.

    It is not prepared by Accelerate, which would step it once for every process.
    """
    steps = math.ceil(batches / config.gradient_accumulation_steps) * stage.epochs
    warmup = config.warmup_steps * steps if config.warmup_steps < 1 else config.warmup_steps
    return get_scheduler(config.lr_scheduler_type, optimizer, round(warmup), steps)


def _copy_of_what_changes(model: nn.Module, learning: Set[str]) -> dict[str, Tensor]:
    """On the CPU: the parameters that learn in any stage, and the running statistics."""
    buffers = {name for name, _ in model.named_buffers()}
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in model.state_dict().items()
        if name in learning or name in buffers
    }


def _refuse_broken_loss(row: Metrics, config: RunConfig, strategy: Strategy) -> None:
    if not math.isfinite(row["train_loss"]):
        raise mistake(
            expected="a loss that is a number",
            found=f"{row['train_loss']} in epoch {int(row['epoch']) + 1}, at a peak rate of {_rate(config, strategy)}",
            do="lower --learning_rate, or leave out --fp16",
        )


def _refuse_drift(accelerator: Accelerator, model: nn.Module) -> None:
    """Stop if the processes do not hold equal weights: a result that no single model gave must not be saved."""
    if accelerator.num_processes == 1:
        return
    own = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])
    everyone = accelerator.gather(own[None])
    if not bool((everyone == everyone[0]).all()):
        raise RuntimeError("The processes hold different weights after training: please report this as a bug.")


def _progress(accelerator: Accelerator, samples: int, title: str) -> Any:
    """A bar with loss, rate and samples a second; in a file, where a bar is a nuisance, the line of each epoch does."""
    hidden = not accelerator.is_main_process or not sys.stderr.isatty()
    return tqdm(total=samples, desc=title, unit=" samples", leave=False, disable=hidden)


def _say_epoch(accelerator: Accelerator, row: Metrics, *, is_best: bool) -> None:
    accelerator.print(
        f"epoch {int(row['epoch']) + 1:3d}  loss {row['train_loss']:.4f}  rate {row['learning_rate']:.1e}  "
        f"{row['samples_per_second']:6.0f} samples/s  |  validation: accuracy {row['accuracy']:.4f}  "
        f"F1 {row['f1_macro']:.4f}  loss {row['loss']:.4f}{'  *' if is_best else ''}"
    )


@contextmanager
def start_accelerator(config: RunConfig) -> Iterator[Accelerator]:
    """Devices, processes, precision and trackers of a run; trackers are closed at the end.

    Raises:
        UserError: the precision or a tracker is not to be had on this machine.
    """
    trackers = [name for name in config.report_to if name != "none"]
    try:
        accelerator = Accelerator(
            mixed_precision="bf16" if config.bf16 else "fp16" if config.fp16 else "no",
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=trackers or None,
            project_dir=config.output_dir if trackers else None,
        )
    except (ValueError, ImportError) as error:
        raise mistake(
            expected="a precision and trackers that this machine has",
            found=str(error).splitlines()[0],
            do="leave out --fp16, or install the tracker named in --report_to",
        ) from error
    if config.fp16 and accelerator.device.type == "cpu":
        raise mistake(expected="a GPU for --fp16", found="none", do="use --bf16, which CPUs have too, or leave it out")
    try:
        yield accelerator
    finally:
        accelerator.end_training()
