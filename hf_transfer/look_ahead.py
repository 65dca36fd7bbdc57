"""What a machine has, and what a run would take on it; nothing is trained, and nothing stays but caches."""

import io
import itertools
import platform
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean

import huggingface_hub.constants
import torch

from hf_transfer import host_memory
from hf_transfer.checkpoints.files import free_bytes, in_units
from hf_transfer.data.batches import LabelledInputs
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.hub_account import describe_token, find_destination
from hf_transfer.data.processors import allowed_processors
from hf_transfer.evaluation.run_folder import peak_memory_bytes
from hf_transfer.frozen.prefix import FrozenPrefix
from hf_transfer.frozen.probe import solvable_layer
from hf_transfer.frozen.recording import Passes
from hf_transfer.run import Run, open_run
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.freezing import Stage, learning_parameters, set_trainable
from hf_transfer.training import precision
from hf_transfer.training.objective import Objective
from hf_transfer.training.resuming import COPIES, size_of
from hf_transfer.versions import versions

BATCHES_MEASURED = 3


def machine() -> Iterator[tuple[str, str]]:
    """Name and value of what numbers and speed depend on; of the Hub's token only whose it is."""
    yield from versions().items()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    home = Path(huggingface_hub.constants.HF_HOME)
    yield "machine", platform.platform()
    yield "processors", f"{allowed_processors()}, torch uses {torch.get_num_threads()} threads"
    yield "accelerators", ", ".join(devices) or "none"
    yield "precision", precision.description(torch.device("cuda" if devices else "cpu"))
    yield "memory", host_memory.description()
    yield "cache", f"{home}, {in_units(free_bytes(home))} free"
    yield "token for the Hub", describe_token()
    yield "import name", "ours alone"


def look_ahead(config: RunConfig) -> Iterator[str]:
    """What a run with these settings would read and take, in sentences.

    The Hub is asked whether the result may be published, data and model are loaded, and a few steps are timed, whose
    gradients are thrown away.

    Raises:
        UserError: whatever the run itself would stop at before training.
    """
    yield from publication(config)
    with open_run(_quiet(config), ahead=True) as run:
        # The run itself would print its notes, too.
        with redirect_stdout(io.StringIO()):
            run.load_data()
            run.load_model()
            run.choose_what_learns()
        yield from run.notes
        yield from _costs(run)


def sentences_on_data(config: RunConfig) -> Iterator[str]:
    """What a run with these settings would read; no model is loaded.

    Raises:
        UserError: the data cannot be used.
    """
    with open_run(_quiet(config), ahead=True) as run:
        with redirect_stdout(io.StringIO()):
            run.load_data()
        yield from run.notes


def _quiet(config: RunConfig) -> RunConfig:
    """Settings with which nothing is created on the Hub, and no tracker is started."""
    return config.replaced(report_to=["none"], push_to_hub=False, push_space=False, hub_model_id=None)


def publication(config: RunConfig) -> Iterator[str]:
    """Where the result would be published, which the Hub is asked about; nothing, if it would not be.

    Raises:
        UserError: it could not be published there.
    """
    output = config.output
    if output.push_to_hub:
        destination = find_destination(str(output.hub_model_id), private=output.hub_private_repo)
        state = "which exists" if destination.exists else "which will be created"
        yield f"Published by {destination.account} as {output.hub_model_id}, {state}."


def _costs(run: Run) -> Iterator[str]:
    """Time, memory and disk of the stages of a run; time and memory of an evaluation."""
    config, accelerator = run.config, run.accelerator
    run.model.to(accelerator.device)
    if not config.trains():
        seconds = sum(seconds_of_a_pass(run, split) for split in run.splits.judged())
        yield f"About {in_words(seconds)} of evaluation.\nMemory: {_peak_memory()} for a few batches."
        return
    prepared = run.prepared
    stages = run.strategy.stages(prepared.groups, config.training.num_train_epochs)
    passes = Passes.of(run.loaders, accelerator, config)
    frozen = FrozenPrefix(prepared.model, prepared.groups, passes)
    yield f"About {in_words(sum(_seconds(run, stage) for stage in stages))} of computing without a store."
    for stage in stages:
        if not stage.solved and (expected := frozen.expected(stage)):
            yield expected
    yield from _room(run, learning_parameters(stages))


def _seconds(run: Run, stage: Stage) -> float:
    """Of a stage, from a few batches; every epoch is evaluated on validation."""
    model, groups, loaders = run.prepared.model, run.prepared.groups, run.loaders
    set_trainable(model, groups, stage.trainable, updates_statistics=stage.updates_statistics)
    evaluation = seconds_of_a_pass(run, "validation")
    if stage.solved and solvable_layer(model, groups[-1], loaders.target):
        return evaluation + (1 + loaders.views) * seconds_of_a_pass(run, "train")
    return stage.epochs * (seconds_of_a_pass(run, "train", learns=True) + evaluation)


def seconds_of_a_pass(run: Run, split: str, *, learns: bool = False) -> float:
    """Of all batches, from the first few; what the very first one builds for all does not count."""
    loaders, device, seconds = run.loaders, run.accelerator.device, []
    batches = loaders.of(split)
    objective = _objective(run, learns=learns)
    run.model.train(learns)
    for batch in itertools.islice(batches, 1 + BATCHES_MEASURED):
        started = time.perf_counter()
        inputs = loaders.to_inputs(objective.repeated(batch), device, split, 0 if learns else None)
        _compute(run, objective, inputs, learns=learns)
        seconds.append(time.perf_counter() - started)
    return mean(seconds[1:] or seconds) * len(batches)


def seconds_of_rows(run: Run, positions: Sequence[int], *, learns: bool = False) -> float:
    """Of one batch of training rows, as in evaluation, through the model, without what prepares their inputs.

    Args:
        run: with a model on its device, and batches.
        positions: of the rows in the training split.
        learns: with the backward pass.
    """
    inputs = run.loaders.some_samples("train", positions, None, run.accelerator.device)
    objective = _objective(run, learns=False)
    run.model.train(learns)
    started = time.perf_counter()
    _compute(run, objective, inputs, learns=learns)
    return time.perf_counter() - started


def _objective(run: Run, *, learns: bool) -> Objective:
    return Objective(run.loaders.target, rdrop_alpha=run.regularisation.rdrop_alpha if learns else 0.0)


def _compute(run: Run, objective: Objective, batch: LabelledInputs, *, learns: bool) -> None:
    """The loss of a batch and, if the model learns, its gradients, which are thrown away."""
    model = run.model
    with torch.set_grad_enabled(learns):
        with run.accelerator.autocast():
            outputs = model(**batch.inputs).logits
        loss = objective(outputs.float(), batch.targets, batch.counted)
        if learns:
            loss.backward()
            model.zero_grad(set_to_none=True)
    # Waits for what a GPU has only been told to do.
    loss.item()


def _room(run: Run, learning: Set[str]) -> Iterator[str]:
    """Memory and disk."""
    config, prepared = run.config, run.prepared
    model = size_of(prepared.model, prepared.model.state_dict().keys())
    changing = size_of(prepared.model, learning)
    yield (
        f"Memory: {_peak_memory()} for a few steps without an optimizer, whose two moments take "
        f"{in_units(2 * changing)} more."
    )
    saved = 0 if config.checkpoints.save_steps == 0 else (config.checkpoints.save_total_limit + 1) * COPIES * changing
    out, cache = Path(config.output.output_dir), cache_folder(config.store.cache_dir)
    yield f"Disk of --output_dir {out}: up to {in_units(model + saved)} needed, {in_units(free_bytes(out))} free."
    yield f"Disk of --cache_dir {cache}: {in_units(free_bytes(cache))} free."


def _peak_memory() -> str:
    used = peak_memory_bytes()
    return in_units(used["host"]) + (f" and {in_units(used['device'])} on the accelerator" if used["device"] else "")


def in_words(seconds: float) -> str:
    """A time for people: in seconds, minutes or hours."""
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
