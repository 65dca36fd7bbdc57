"""The training loop: stages of epochs on Accelerate, with checkpoints; the best epoch is kept."""

import gc
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm import tqdm

from hf_transfer.data.batches import Batch, Loaders
from hf_transfer.frozen import prefix, probe, recording, solvers
from hf_transfer.interruption import ending_when_asked
from hf_transfer.modalities.modality import Regularisation
from hf_transfer.models.groups import Group
from hf_transfer.models.taps import without_unread_taps
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.training import TrainingSettings
from hf_transfer.strategies.freezing import Stage, Strategy, learning_parameters, set_trainable, unfreeze
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.target import Metrics, Target
from hf_transfer.training.averaging import BestEpochs, greedy_soup, recompute_batch_norm
from hf_transfer.training.compiling import compiled
from hf_transfer.training.gradients import Gradients, batches_of_steps
from hf_transfer.training.guard import Guard, explained_failures
from hf_transfer.training.identity import run_identity
from hf_transfer.training.predictions import predict_split
from hf_transfer.training.progress import Fit
from hf_transfer.training.resuming import Checkpointing, RunState, checkpoints_of
from hf_transfer.training.steps import Learner, Steps

# In the line of an epoch.
METRICS_SHOWN = 2
NO_REGULARISATION = Regularisation()


def fit(
    model: nn.Module, strategy: Strategy, groups: Sequence[Group], loaders: Loaders, config: RunConfig,
    accelerator: Accelerator, regularisation: Regularisation = NO_REGULARISATION, *, save_at_end: bool = False,
) -> Fit:  # fmt: skip
    """Train stage by stage, evaluate every epoch on validation, and return the weights of the best one.

    Checkpoints are written on the way, and a run resumes from its newest, with the same result as in one piece.

    Args:
        model: classifier in float32, not wrapped.
        strategy: what learns, and when.
        groups: the model's groups in depth order.
        loaders: batches of the three splits; the test split is not used.
        config: settings.
        accelerator: devices, processes, precision, trackers.
        regularisation: what the modality adds to the loss.
        save_at_end: write a checkpoint at the end, from which another run with these settings has nothing to train.

    Raises:
        UserError: a setting without effect, a loss or gradient not finite, no room, or a checkpoint of another run.
        Interrupted: a signal asked the run to end; a checkpoint has been written.
    """
    training = config.training
    # Dropout draws from torch's global generator; each process has its own stream.
    set_seed(training.seed, device_specific=True)
    # Only once the folder of the run has been prepared: trackers write into it.
    accelerator.init_trackers("trackers")
    stages = strategy.stages(groups, training.num_train_epochs)
    passes = recording.Passes.of(loaders, accelerator, config)
    state, checkpointing = _start(model, strategy, stages, groups, passes, config, regularisation)
    _resume(state, checkpointing, len(stages), config, accelerator)
    lengths_vary = getattr(loaders.train.dataset, "lengths", None) is not None

    for number, stage in enumerate(stages):
        # A distributed wrapper averages only gradients that were required when it was built: a stage wraps anew.
        set_trainable(model, groups, stage.trainable, updates_statistics=stage.updates_statistics)
        state.result.count_trainable()
        solved = state.steps.solved_layer(stage)
        if stage.solved and not solved:
            config.refuse({"probe", "feature_layers"}, "a head or a target for which there is no solver")
        if number < state.position.stage:
            state.steps.skip(stage)
            continue
        if solved:
            options = solvers.SolverOptions(state.ranking, config.strategy.probe, training.class_weights == "balanced")
            probe.probe_layers(model, groups, config.strategy.feature_layers, passes, options, state.frozen.note)
            row, held_out = probe.solve_head(model, solved, passes, options, state.frozen.note)
            state.result.hold_out(held_out)
            _add_epoch(state, row, loaders.target, accelerator)
        else:
            with state.frozen.skipped(stage) as batches, compiled(model, groups, training, lengths_vary=lengths_vary):
                learner = state.steps.prepare(stage, accelerator, state.position)
                checkpointing.restore_random_numbers()
                run_stage(learner, stage, batches, state, checkpointing, training, accelerator)
        state.position.next_stage()
        checkpointing.save_if_due(state)
    checkpointing.finish(state, save=save_at_end)
    soup = _load_best(state, loaders, accelerator)
    unfreeze(model, groups)
    return state.result.finished(without_unread_taps(model), soup, state.frozen.seconds, state.frozen.notes, solved)


def _start(
    model: nn.Module, strategy: Strategy, stages: Sequence[Stage], groups: Sequence[Group], passes: recording.Passes,
    config: RunConfig, regularisation: Regularisation,
) -> tuple[RunState, Checkpointing]:  # fmt: skip
    """The state of a run that has not been trained yet, and what saves and restores it."""
    loaders, accelerator, training = passes.loaders, passes.accelerator, config.training
    changing = learning_parameters(stages) | {name for name, _ in model.named_buffers()}
    identity = partial(run_identity, model, changing, strategy, stages, loaders, config, accelerator, regularisation)
    checkpoints = checkpoints_of(config)
    checkpointing = Checkpointing(model, changing, identity, checkpoints, config.checkpoints, accelerator)
    decisions = None if config.checkpoints.save_steps == 0 else checkpoints
    frozen = prefix.FrozenPrefix(
        model, groups, passes, decisions, mixes=regularisation.mixer is not None,
        allow_mismatch=config.checkpoints.allow_mismatch,
    )  # fmt: skip
    steps = Steps(model, groups, loaders, training, strategy, stages, regularisation)
    ranking = Ranking.of(loaders.target, training.metric_for_best_model)
    return RunState(Fit(model), steps, frozen, BestEpochs(training.soup_size), changing, ranking), checkpointing


def _resume(
    state: RunState, checkpointing: Checkpointing, stages: int, config: RunConfig, accelerator: Accelerator
) -> None:
    """Go on from the newest checkpoint, if there is one."""
    checkpointing.resume(state, stages)
    if config.checkpoints.resume_from_checkpoint is not None:
        # Trackers of this run have not seen what another one has trained.
        for epoch, row in enumerate(state.result.history):
            accelerator.log(row, step=epoch)


def run_stage(
    learner: Learner, stage: Stage, loaders: Loaders, state: RunState, checkpointing: Checkpointing,
    training: TrainingSettings, accelerator: Accelerator,
) -> None:  # fmt: skip
    """Train the remaining epochs of a stage, and release what it was trained with."""
    position = state.position
    with explained_failures(loaders, training, checkpointing, accelerator), ending_when_asked() as request:
        guard = Guard(request, state, checkpointing, training, accelerator)
        while position.epoch < stage.epochs and not 0 < training.early_stopping_patience <= position.without_gain:
            row = train_epoch(learner, loaders, state, guard, accelerator)
            with guard.saved_if_interrupted(), state.steps.evaluated_weights():
                row |= predict_split(learner.model, loaders, "validation", accelerator, poll=guard.poll).metrics()
                gained = _add_epoch(state, row, loaders.target, accelerator)
            position.next_epoch(gained=gained)
        with guard.saved_if_interrupted():
            guard.poll()
    state.steps.end_stage()
    _refuse_drift(accelerator, state.result.model)
    # Removes the wrapper of mixed precision, which the next stage would put around this one's.
    accelerator.unwrap_model(learner.model, keep_fp32_wrapper=False)
    _free_memory(accelerator)


def train_epoch(learner: Learner, loaders: Loaders, state: RunState, guard: Guard, accelerator: Accelerator) -> Metrics:
    """Train the remaining batches of an epoch; mean loss, last learning rate, seconds, samples per second.

    Raises:
        UserError: the loss or a gradient is not finite, or the memory is full.
        Interrupted: a signal asked the run to end.
    """
    model, optimizer, schedule = learner
    position, steps, epoch = state.position, state.steps, state.result.epochs
    gradients = Gradients(model, steps.objective, loaders, accelerator, epoch, steps.mixer)
    model.train()
    started = time.perf_counter() - position.seconds
    total = torch.tensor(position.loss, device=accelerator.device)
    seen = torch.tensor(int(position.seen), device=accelerator.device)
    # None if the output is a file, where the line after each epoch is enough.
    hidden = None if accelerator.is_main_process else True
    title, size = f"epoch {epoch + 1}", len(loaders.train.dataset)
    progress = tqdm(total=size, desc=title, unit=" samples", leave=False, disable=hidden)
    for batches in batches_of_steps(remaining_batches(loaders, epoch, position.batches), steps.batches_per_step):
        loss = gradients.add(batches, position.batches, guard.record)
        steps.leave_out(guard.check(model))
        optimizer.step()
        optimizer.zero_grad()
        position.next_batches(len(batches), max(schedule.get_last_lr()))
        total += loss.part * loss.samples
        seen += loss.samples.long()
        # Also if the float16 scaler left out the step: to know that, the host would have to wait for the GPU.
        steps.after_step()
        schedule.step()
        position.next_step(schedule.last_epoch, time.perf_counter() - started)
        guard.save_or_stop(total, seen)
        if not progress.disable:
            mean = guard.loss * accelerator.num_processes
            progress.set_postfix(loss=f"{mean:.3f}", rate=f"{position.rate:.1e}", refresh=False)
            samples = sum(len(batch["index"]) for batch in batches) * accelerator.num_processes
            # The last batches are filled up with samples that a process has had before.
            progress.update(min(samples, size - progress.n))
    progress.close()
    guard.settle()
    position.set_loss(total.item(), float(seen.item()))
    seconds = time.perf_counter() - started
    return {
        # 0 if no sample counts.
        "train_loss": (accelerator.reduce(total) / total.new_tensor(max(position.seen, 1.0))).item(),
        "learning_rate": float(position.rate),
        "seconds": seconds,
        "samples_per_second": position.seen / seconds,
    }


def remaining_batches(loaders: Loaders, epoch: int, done: int) -> Iterable[Batch]:
    """The batches of an epoch after the first `done` ones, whose samples are not read."""
    loaders.train.set_epoch(epoch)
    if done == 0:
        return loaders.train  # type: ignore[no-any-return]
    remaining: Any = skip_first_batches(loaders.train, done)
    # After an error its workers are ended with those of the others.
    loaders.resumed.add(remaining)
    return remaining  # type: ignore[no-any-return]


def _add_epoch(state: RunState, row: Metrics, target: Target, accelerator: Accelerator) -> bool:
    """Add an epoch to the history, and keep its weights if it is one of the best; whether it is the best."""
    epoch = state.result.epochs
    state.best.offer(state.frozen.state_of(state.changing), state.ranking.scores(row), epoch)
    is_best = state.best.candidates[0].epoch == epoch
    state.result.add_epoch(row, is_best=is_best)
    accelerator.log(row, step=epoch)
    validation = "  ".join(f"{metric.title} {row[metric.name]:.4f}" for metric in target.metrics[:METRICS_SHOWN])
    accelerator.print(
        f"epoch {epoch + 1:3d}  loss {row['train_loss']:.4f}  rate {row['learning_rate']:.1e}  "
        f"{row['samples_per_second']:6.0f} samples/s  |  validation: {validation}  loss {row['loss']:.4f}"
        f"{'  *' if is_best else ''}"
    )
    return is_best


def _load_best(state: RunState, loaders: Loaders, accelerator: Accelerator) -> list[int]:
    """Load the weights of the best epoch or, if asked for, of a soup; the epochs that were averaged."""

    def load(weights: dict[str, Tensor], *, averaged: bool) -> None:
        model.load_state_dict(weights, strict=False)
        if averaged:
            loaders.train.set_epoch(0)
            inputs = (loaders.to_inputs(batch, accelerator.device, "train", 0).inputs for batch in loaders.train)
            recompute_batch_norm(model, inputs)
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(accelerator.reduce(buffer, "mean"))

    def evaluate(weights: dict[str, Tensor]) -> tuple[float, ...]:
        load(weights, averaged=True)
        return state.ranking.scores(predict_split(model, loaders, "validation", accelerator).metrics())

    model, candidates = state.result.model, state.best.candidates
    # In a run that was resumed after its last stage nothing has moved it yet.
    model.to(accelerator.device)
    weights, epochs = greedy_soup(candidates, evaluate)
    load(weights, averaged=len(epochs) > 1)
    if len(candidates) > 1:
        accelerator.print(f"soup: {len(epochs)} of the {len(candidates)} best epochs")
    return epochs


def _free_memory(accelerator: Accelerator) -> None:
    """Release the stage's wrappers and optimizer.

    Accelerate then runs a full garbage collection, which with its many modules takes longer than an epoch from a store.
    Existing objects are excluded from it, unless memory on a device has to be freed, or the caller has frozen objects
    himself: those would be unfrozen at the end.
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
    """Stop if the processes hold different weights: the metrics would not be those of one model."""
    if accelerator.num_processes == 1:
        return
    sums = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])
    gathered = accelerator.gather(sums[None].to(accelerator.device))
    if not bool((gathered == gathered[0]).all()):
        raise RuntimeError("The processes hold different weights after training: please report this as a bug.")
