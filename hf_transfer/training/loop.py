"""The one loop: stages of epochs on Accelerate, the best epoch kept."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn
from tqdm import tqdm

from hf_transfer.config import RunConfig, mistake
from hf_transfer.data.inputs import Loaders
from hf_transfer.models.groups import Group
from hf_transfer.strategies.freezing import Strategy, learning_parameters, set_trainable
from hf_transfer.training.averaging import BestCheckpoints, greedy_soup, recompute_batch_norm
from hf_transfer.training.frozen import FrozenPrefix
from hf_transfer.training.layer_probes import probe_layers
from hf_transfer.training.predictions import Metrics, is_better, predict_split, scores
from hf_transfer.training.probe import last_layer, solve_head
from hf_transfer.training.steps import Steps

# The others wait while one process looks at the data, solves a head or saves.
LONGEST_WAIT = timedelta(hours=12)


@dataclass
class Fit:
    """What training came to.

    Attributes:
        model: the unwrapped model with the weights of the best epoch.
        history: a row of numbers for each epoch.
        best_epoch: position of the best in `history`; -1 if nothing was trained.
        soup: positions of the epochs whose weights were averaged; one of them if none was worth adding.
        trainable: how many parameters learned.
        seconds: time spent in training, without evaluation.
        frozen_seconds: time spent in storing what frozen layers make of the samples.
        notes: what was decided about that, in sentences.
    """

    model: nn.Module
    history: list[Metrics] = field(default_factory=list)
    best_epoch: int = -1
    soup: list[int] = field(default_factory=list)
    trainable: int = 0
    seconds: float = 0.0
    frozen_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """How many have been judged."""
        return len(self.history)

    def enter(self, row: Metrics, metric: str) -> bool:
        """Add a judged epoch to the history; whether it leads."""
        leads = is_better(row, self.history, self.best_epoch, metric)
        self.best_epoch = len(self.history) if leads else self.best_epoch
        self.history.append({"epoch": float(len(self.history)), **row})
        self.seconds += row["seconds"]
        self.frozen_seconds += row.get("frozen_seconds", 0.0)
        return leads


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

    Raises:
        UserError: the loss is no number any more.
    """
    # Dropout draws from torch's global generator, on each process from a stream of its own.
    set_seed(config.seed, device_specific=True)
    # Not before the run's folder is ready: trackers write into it.
    accelerator.init_trackers("trackers")
    stages = strategy.stages(groups, config.num_train_epochs)
    changing = learning_parameters(stages) | {name for name, _ in model.named_buffers()}
    steps = Steps(model, groups, loaders, config, strategy, stages)
    frozen = FrozenPrefix(model, groups, loaders, config, accelerator)
    result, best = Fit(model, notes=frozen.notes), BestCheckpoints(config.soup_size)

    def judged(row: Metrics) -> bool:
        """Keep the weights if they are among the best; whether they lead."""
        leads = result.enter(row, config.metric_for_best_model)
        epoch, ranked = result.epochs - 1, scores(row, config.metric_for_best_model)
        best.offer(frozen.state_of(changing), ranked, epoch)
        accelerator.log(row, step=epoch)
        _say_epoch(accelerator, result.history[-1], is_best=leads)
        return leads

    for stage in stages:
        # A distributed wrapper averages only gradients that were open when it was built: a stage prepares anew.
        set_trainable(model, groups, stage.trainable)
        result.trainable = max(result.trainable, sum(p.numel() for p in model.parameters() if p.requires_grad))
        if stage.solved and (layer := last_layer(model, groups[-1])):
            probe_layers(model, groups, loaders, accelerator, config, frozen.say)
            judged(solve_head(model, layer, loaders, accelerator, config, frozen.say))
            continue
        with frozen.skipped(stage) as batches:
            wrapped, optimizer, schedule = steps.prepare(stage, accelerator)
            without_gain = 0
            for _ in range(stage.epochs):
                row = train_epoch(wrapped, optimizer, schedule, batches, config, accelerator, result.epochs, steps)
                with steps.judged_weights():
                    row |= predict_split(wrapped, batches, "validation", accelerator).metrics()
                    without_gain = 0 if judged(row) else without_gain + 1
                if 0 < config.early_stopping_patience <= without_gain:
                    break
            _end_stage(accelerator, wrapped, model)
    result.frozen_seconds += frozen.seconds
    result.soup = _take_best(model, best, loaders, config, accelerator)
    # Every module has its own class again: the model can be pickled, and goes on as any other.
    set_trainable(model, groups, frozenset(name for name, _ in model.named_parameters()))
    return result


def train_epoch(
    model: nn.Module, optimizer: Any, scheduler: Any, loaders: Loaders, config: RunConfig, accelerator: Accelerator,
    epoch: int, steps: Steps,
) -> Metrics:  # fmt: skip
    """One pass over the training split: mean loss, last learning rate used, seconds and samples a second.

    Raises:
        UserError: the loss is no number any more.
    """
    loaders.train.set_epoch(epoch)
    model.train()
    started = time.perf_counter()
    total, seen = torch.zeros((), device=accelerator.device), 0
    rate = 0.0
    progress = _progress(accelerator, len(loaders.train.dataset), f"epoch {epoch + 1}")
    for batch in loaders.train:
        inputs, labels, index = loaders.to_inputs(batch, accelerator.device, "train", epoch)
        targets = labels
        if steps.mixing is not None:
            inputs["pixel_values"], targets = steps.mixing(inputs["pixel_values"], labels, index, epoch)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                logits = model(**inputs).logits
            loss = steps.objective(logits.float(), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        rate = max(scheduler.get_last_lr())
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            steps.after_step()
            scheduler.step()
        total += loss.detach() * len(labels)
        seen += len(labels)
        if not progress.disable:
            progress.set_postfix(loss=f"{loss.item():.3f}", rate=f"{rate:.1e}", refresh=False)
            progress.update(len(labels) * accelerator.num_processes)
    progress.close()
    seconds = time.perf_counter() - started
    sums = accelerator.reduce(torch.stack([total, total.new_tensor(float(seen))]))
    loss_of_all = (sums[0] / sums[1]).item()
    _refuse_broken_loss(loss_of_all, epoch, steps.learning_rate)
    return {
        "train_loss": loss_of_all,
        "learning_rate": float(rate),
        "seconds": seconds,
        "samples_per_second": sums[1].item() / seconds,
    }


def _take_best(
    model: nn.Module, best: BestCheckpoints, loaders: Loaders, config: RunConfig, accelerator: Accelerator
) -> list[int]:
    """Give the model the weights of the best epoch or, if asked for, of a soup; the epochs that went in."""

    def take(weights: dict[str, Tensor], *, averaged: bool) -> None:
        model.load_state_dict(weights, strict=False)
        if averaged:
            loaders.train.set_epoch(0)
            inputs = (loaders.to_inputs(batch, accelerator.device, "train", 0)[0] for batch in loaders.train)
            recompute_batch_norm(model, inputs)
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(accelerator.reduce(buffer, "mean"))

    def evaluate(weights: dict[str, Tensor]) -> tuple[float, ...]:
        take(weights, averaged=True)
        return scores(predict_split(model, loaders, "validation", accelerator).metrics(), config.metric_for_best_model)

    candidates = best.candidates
    weights, chosen = greedy_soup(candidates, evaluate)
    take(weights, averaged=len(chosen) > 1)
    if len(candidates) > 1:
        accelerator.print(f"soup: {len(chosen)} of the {len(candidates)} best epochs")
    return [candidates[position].epoch for position in chosen]


def _refuse_broken_loss(loss: float, epoch: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise mistake(
            expected="a loss that is a number",
            found=f"{loss} in epoch {epoch + 1}, at a peak rate of {learning_rate}",
            do="lower --learning_rate, or leave out --fp16",
        )


def _end_stage(accelerator: Accelerator, wrapped: nn.Module, model: nn.Module) -> None:
    _refuse_drift(accelerator, model)
    # The next stage's mixed precision must not be wrapped around this one's.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    accelerator.free_memory()


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
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
        )
    except (ValueError, ImportError) as error:
        raise mistake(
            expected="a precision and trackers that this machine has",
            found=str(error).splitlines()[0],
            do="leave out --fp16, or install the tracker named in --report_to",
        ) from error
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise mistake(
            expected="processes that hold the whole model (MULTI_GPU, or MULTI_CPU)",
            found=f"{accelerator.distributed_type.value}, which is not supported yet",
            do="choose another distributed type in `accelerate config`, or leave the flag for it out",
        )
    if config.fp16 and accelerator.device.type == "cpu":
        raise mistake(expected="a GPU for --fp16", found="none", do="use --bf16, which CPUs have too, or leave it out")
    try:
        yield accelerator
    finally:
        accelerator.end_training()
