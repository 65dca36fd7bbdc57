"""The one loop: stages of epochs on Accelerate, the best epoch kept, and no step lost."""

import gc
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, skip_first_batches
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm import tqdm

from hf_transfer.config import RunConfig, mistake
from hf_transfer.data.inputs import Batch, Loaders
from hf_transfer.interruption import ending_when_asked
from hf_transfer.models.groups import Group
from hf_transfer.strategies.freezing import Stage, Strategy, learning_parameters, set_trainable
from hf_transfer.training.averaging import BestCheckpoints, greedy_soup, recompute_batch_norm
from hf_transfer.training.frozen import FrozenPrefix
from hf_transfer.training.guard import Guard, failures_in_words
from hf_transfer.training.layer_probes import probe_layers
from hf_transfer.training.predictions import Metrics, predict_split, scores
from hf_transfer.training.probe import last_layer, solve_head
from hf_transfer.training.progress import Fit, Position
from hf_transfer.training.resuming import Course, Resuming
from hf_transfer.training.sharding import start_sharding
from hf_transfer.training.steps import Learner, Steps

# The others wait while one process looks at the data, solves a head or saves.
LONGEST_WAIT = timedelta(hours=12)


def fit(
    model: nn.Module, strategy: Strategy, groups: Sequence[Group], loaders: Loaders, config: RunConfig,
    accelerator: Accelerator,
) -> Fit:  # fmt: skip
    """Train stage by stage, judge every epoch on validation, and end with the weights of the best one.

    Checkpoints are written on the way; from the newest that `--output_dir` has, the run goes on, to the same end.

    Args:
        model: classifier in float32, not wrapped.
        strategy: what learns, and when.
        groups: the model's groups in depth order.
        loaders: batches of the three splits; the test split is not looked at.
        config: settings.
        accelerator: devices, processes, precision, trackers.

    Raises:
        UserError: the loss or a gradient is no number any more, the memory or the disk is full, or the checkpoint to
            go on from is another run's.
        Interrupted: a signal asked the run to end; a checkpoint has been written.
    """
    # Dropout draws from torch's global generator, on each process from a stream of its own.
    set_seed(config.seed, device_specific=True)
    # Not before the run's folder is ready: trackers write into it.
    accelerator.init_trackers("trackers")
    stages = strategy.stages(groups, config.num_train_epochs)
    changing = learning_parameters(stages) | {name for name, _ in model.named_buffers()}
    resuming = Resuming(model, changing, loaders, config, accelerator)
    steps = Steps(model, groups, loaders, config, strategy, stages)
    frozen = FrozenPrefix(model, groups, loaders, config, accelerator, resuming.decisions)
    result, best = Fit(model, notes=frozen.notes), BestCheckpoints(config.soup_size)
    course = Course(Position(), result, steps, frozen, best, changing)
    resuming.take_up(course)

    for number, stage in enumerate(stages):
        # A distributed wrapper averages only gradients that were open when it was built: a stage prepares anew.
        set_trainable(model, groups, stage.trainable)
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        result.trainable = max(result.trainable, learning)
        solved = stage.solved and last_layer(model, groups[-1])
        if number < course.position.stage:
            steps.pass_by(stage)
            continue
        if solved:
            probe_layers(model, groups, loaders, accelerator, config, frozen.say)
            _judge(course, solve_head(model, solved, loaders, accelerator, config, frozen.say), config, accelerator)
        else:
            with frozen.skipped(stage) as batches:
                learner = steps.prepare(stage, accelerator, resuming.files, course.position)
                resuming.restore_random_numbers()
                run_stage(learner, stage, batches, course, resuming, config, accelerator)
                _end_stage(accelerator, steps, learner.model, model)
        course.position.next_stage()
        resuming.save_if_due(course)
    resuming.wait()
    result.frozen_seconds += frozen.seconds
    result.soup = _take_best(model, best, loaders, config, accelerator)
    # Every module has its own class again: the model can be pickled, and goes on as any other.
    set_trainable(model, groups, frozenset(name for name, _ in model.named_parameters()))
    return result


def run_stage(
    learner: Learner, stage: Stage, loaders: Loaders, course: Course, resuming: Resuming, config: RunConfig,
    accelerator: Accelerator,
) -> None:  # fmt: skip
    """The epochs of a stage that are still to be done."""
    position = course.position
    with failures_in_words(config, resuming), ending_when_asked() as request:
        guard = Guard(request, course, resuming, config, accelerator)
        while position.epoch < stage.epochs and not 0 < config.early_stopping_patience <= position.without_gain:
            row = train_epoch(learner, loaders, course, guard, accelerator)
            with guard.saved_if_left(), course.steps.judged_weights():
                row |= predict_split(learner.model, loaders, "validation", accelerator, poll=guard.poll).metrics()
                leads = _judge(course, row, config, accelerator)
            position.next_epoch(gained=leads)
        guard.leave_if_asked()


def train_epoch(learner: Learner, loaders: Loaders, course: Course, guard: Guard, accelerator: Accelerator) -> Metrics:
    """What is left of a pass over the training split: mean loss, last learning rate used, seconds, samples a second.

    Raises:
        UserError: the loss or a gradient is no number any more, or the memory is full.
        Interrupted: a signal asked the run to end.
    """
    model, optimizer, scheduler = learner
    position, steps, epoch = course.position, course.steps, course.result.epochs
    model.train()
    started = time.perf_counter() - position.seconds
    total, seen = torch.tensor(position.loss, device=accelerator.device), position.seen
    progress = _progress(accelerator, len(loaders.train.dataset), f"epoch {epoch + 1}")
    for batch in batches_left(loaders, epoch, position.batches):
        samples = len(batch["labels"])
        inputs, labels, index = loaders.to_inputs(
            steps.objective.as_seen(batch), accelerator.device, "train", epoch
        )  # fmt: skip
        targets = labels
        if steps.mixing is not None:
            inputs["pixel_values"], targets = steps.mixing(inputs["pixel_values"], labels, index, epoch)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                output = model(**inputs)
            loss = steps.objective.of_output(output, inputs, targets)
            accelerator.backward(loss)
            guard.see(loss, output.logits, index)
            if accelerator.sync_gradients:
                guard.check(model)
            optimizer.step()
            optimizer.zero_grad()
        position.rate = max(scheduler.get_last_lr())
        total += loss.detach() * samples
        seen += samples
        position.batches += 1
        if accelerator.sync_gradients:
            if not accelerator.optimizer_step_was_skipped:
                steps.after_step()
                scheduler.step()
            position.steps, position.schedule = position.steps + 1, scheduler.last_epoch
            position.seconds = time.perf_counter() - started
            guard.save_or_leave(total, seen)
        if not progress.disable:
            progress.set_postfix(loss=f"{loss.item():.3f}", rate=f"{position.rate:.1e}", refresh=False)
            progress.update(samples * accelerator.num_processes)
    progress.close()
    position.loss, position.seen = total.item(), seen
    seconds = position.seconds = time.perf_counter() - started
    sums = accelerator.reduce(torch.stack([total, total.new_tensor(float(seen))]))
    return {
        "train_loss": (sums[0] / sums[1]).item(),
        "learning_rate": float(position.rate),
        "seconds": seconds,
        "samples_per_second": sums[1].item() / seconds,
    }


def batches_left(loaders: Loaders, epoch: int, taken: int) -> Iterable[Batch]:
    """The batches of an epoch, without the first ones, whose samples are not even read."""
    loaders.train.set_epoch(epoch)
    left: Iterable[Batch] = loaders.train if taken == 0 else skip_first_batches(loaders.train, taken)
    return left


def _judge(course: Course, row: Metrics, config: RunConfig, accelerator: Accelerator) -> bool:
    """Keep the weights if they are among the best; whether they lead."""
    result = course.result
    leads = result.enter(row, config.metric_for_best_model)
    epoch, ranked = result.epochs - 1, scores(row, config.metric_for_best_model)
    course.best.offer(course.frozen.state_of(course.changing), ranked, epoch)
    accelerator.log(row, step=epoch)
    _say_epoch(accelerator, result.history[-1], is_best=leads)
    return leads


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

    # A run that was taken up behind its last stage has not moved it yet.
    model.to(accelerator.device)
    candidates = best.candidates
    weights, chosen = greedy_soup(candidates, evaluate)
    take(weights, averaged=len(chosen) > 1)
    if len(candidates) > 1:
        accelerator.print(f"soup: {len(chosen)} of the {len(candidates)} best epochs")
    return [candidates[position].epoch for position in chosen]


def _end_stage(accelerator: Accelerator, steps: Steps, wrapped: nn.Module, model: nn.Module) -> None:
    steps.leave()
    _refuse_drift(accelerator, model)
    # The next stage's mixed precision must not be wrapped around this one's.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    _free_memory(accelerator)


def _free_memory(accelerator: Accelerator) -> None:
    """Let go of the stage's wrappers and optimizer.

    Accelerate then has Python look through all objects that there are, which with its many modules takes longer than
    an epoch from a store. Only on a device is the memory so scarce that what refers to itself must not wait. Where the
    caller has spared Python the modules, they stay so.
    """
    if accelerator.device.type != "cpu" or gc.get_freeze_count():
        accelerator.free_memory()
        return
    gc.freeze()
    try:
        accelerator.free_memory()
    finally:
        gc.unfreeze()


def _refuse_drift(accelerator: Accelerator, model: nn.Module) -> None:
    """Stop if the processes do not hold equal weights: a result that no single model gave must not be saved."""
    if accelerator.num_processes == 1:
        return
    own = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])
    everyone = accelerator.gather(own[None].to(accelerator.device))
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
    start_sharding(config, accelerator)
    if config.fp16 and accelerator.device.type == "cpu":
        raise mistake(expected="a GPU for --fp16", found="none", do="use --bf16, which CPUs have too, or leave it out")
    try:
        yield accelerator
    finally:
        accelerator.end_training()
