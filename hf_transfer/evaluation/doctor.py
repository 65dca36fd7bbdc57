"""What a machine has, and what a run would take on it; nothing is trained, and nothing stays on disk."""

import importlib.metadata
import itertools
import os
import platform
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from statistics import mean

import huggingface_hub.constants
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from hf_transfer.config import RunConfig, TextConfig, VisionConfig
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.hub_account import describe_token, find_destination
from hf_transfer.data.inputs import MASKED, Loaders, PixelPipeline, image_loaders
from hf_transfer.data.pair_batches import pair_example, pair_loaders
from hf_transfer.data.pairs import load_pair_splits
from hf_transfer.data.sources import Splits, load_image_splits, load_text_splits
from hf_transfer.data.tokens import TokenPipeline, text_loaders
from hf_transfer.evaluation.run_folder import peak_memory_bytes
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.pretrained_pair import PairCheckpoint, pipelines_of
from hf_transfer.strategies.choice import Prepared, choose_strategy, prepare_model, rdrop_alpha
from hf_transfer.strategies.freezing import Stage, learning_parameters, set_trainable
from hf_transfer.training.frozen import FrozenPrefix
from hf_transfer.training.loop import start_accelerator
from hf_transfer.training.objective import Objective
from hf_transfer.training.probe import last_layer
from hf_transfer.training.resuming import COPIES, size_of
from hf_transfer.training.store import free_bytes, in_units
from hf_transfer.versions import versions

BATCHES_MEASURED = 3


def machine() -> Iterator[tuple[str, str]]:
    """Name and value of what numbers and speed depend on; of the Hub's token only whose it is."""
    yield "hf-transfer-learning", importlib.metadata.version("hf-transfer-learning")
    yield from versions().items()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    home = Path(huggingface_hub.constants.HF_HOME)
    yield "machine", platform.platform()
    yield "processors", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"
    yield "accelerators", ", ".join(devices) or "none"
    yield "cache", f"{home}, {in_units(free_bytes(home))} free"
    yield "token for the Hub", describe_token()
    yield "import name", "ours alone"


def run_ahead(config: RunConfig) -> Iterator[str]:
    """What a run with these settings would find and take, in sentences.

    The Hub is asked whether the result may be published, data and model are loaded, and a few steps are timed, whose
    gradients are thrown away.

    Raises:
        UserError: whatever the run itself would stop at before training.
    """
    if config.push_to_hub:
        there = find_destination(str(config.hub_model_id), private=config.hub_private_repo)
        made = "which is there" if there.exists else "which is to be made"
        yield f"Published by {there.account} as {there.name}, {made}."
    with start_accelerator(replace(config, report_to=["none"])) as accelerator:
        prepared, splits, loaders = _loaded(config, accelerator)
        yield from splits.describe()
        yield from (*prepared.notes, *loaders.notes)
        stages = choose_strategy(config).stages(prepared.groups, config.num_train_epochs)
        frozen = FrozenPrefix(prepared.model, prepared.groups, loaders, config, accelerator)
        prepared.model.to(accelerator.device)
        seconds = _seconds(stages, prepared, loaders, config, accelerator)
        yield f"About {_in_words(seconds)} of computing without a store."
        for stage in stages:
            if not stage.solved and (expected := frozen.expected(stage)):
                yield expected
        yield from _room(config, prepared, learning_parameters(stages))


def _loaded(config: RunConfig, accelerator: Accelerator) -> tuple[Prepared, Splits, Loaders]:
    strategy = choose_strategy(config)
    if isinstance(config, TextConfig):
        checkpoint = Checkpoint(
            config.model_name_or_path, config.model_revision, "text-classification", config.pooling
        )  # fmt: skip
        tokens = TokenPipeline(
            checkpoint.tokenizer(), model_limit=checkpoint.longest_input, max_seq_length=config.max_seq_length
        )
        splits = load_text_splits(config)
        prepared = prepare_model(checkpoint, strategy, splits.label_names, config, tokens.example())
        return prepared, splits, text_loaders(splits, tokens, config, accelerator)
    if isinstance(config, MultimodalConfig):
        both = PairCheckpoint(config)
        pixels, tokens = pipelines_of(both, max_seq_length=config.max_seq_length)
        splits = load_pair_splits(config)
        prepared = prepare_model(both, strategy, splits.label_names, config, pair_example(pixels, tokens))
        frozen = prepared.frozen_blocks
        loaders = pair_loaders(splits, pixels, tokens, config, accelerator, frozen_prefix=frozen)
        return prepared, splits, loaders
    assert isinstance(config, VisionConfig)
    checkpoint = Checkpoint(config.model_name_or_path, config.model_revision)
    pixels = PixelPipeline(checkpoint.processor())
    splits = load_image_splits(config)
    prepared = prepare_model(checkpoint, strategy, splits.label_names, config, pixels.example())
    loaders = image_loaders(splits, pixels, config, accelerator, frozen_prefix=prepared.frozen_blocks)
    return prepared, splits, loaders


def _seconds(
    stages: Sequence[Stage], prepared: Prepared, loaders: Loaders, config: RunConfig, accelerator: Accelerator
) -> float:
    """Of all stages, from a few batches of each; every epoch is judged on validation."""
    model, groups = prepared.model, prepared.groups
    objective, total = Objective(rdrop_alpha=rdrop_alpha(config, model)), 0.0
    for stage in stages:
        set_trainable(model, groups, stage.trainable)
        judged = _seconds_of_a_pass(model, loaders, "validation", accelerator)
        if stage.solved and last_layer(model, groups[-1]):
            views = 1 + loaders.views
            total += judged + views * _seconds_of_a_pass(model, loaders, "train", accelerator)
        else:
            trained = _seconds_of_a_pass(model, loaders, "train", accelerator, objective)
            total += stage.epochs * (trained + judged)
    return total


def _seconds_of_a_pass(
    model: nn.Module, loaders: Loaders, split: str, accelerator: Accelerator, objective: Objective | None = None
) -> float:
    """Of all batches, from the first few; what the very first one builds for all does not count.

    With an objective the model learns from batches as that sees them, and its gradients are thrown away.
    """
    batches, taken, learns = loaders.of(split), [], objective is not None
    model.train(learns)
    with torch.set_grad_enabled(learns):
        for batch in itertools.islice(batches, 1 + BATCHES_MEASURED):
            started = time.perf_counter()
            seen = objective.as_seen(batch) if objective else batch
            inputs, labels, _ = loaders.to_inputs(seen, accelerator.device, split, 0 if learns else None)
            with accelerator.autocast():
                logits = model(**inputs).logits
            loss = cross_entropy(logits.float(), labels, ignore_index=MASKED)
            if learns:
                loss.backward()
                model.zero_grad(set_to_none=True)
            # Waits for what a GPU has only been told to do.
            loss.item()
            taken.append(time.perf_counter() - started)
    return mean(taken[1:] or taken) * len(batches)


def _room(config: RunConfig, prepared: Prepared, learning: Set[str]) -> Iterator[str]:
    """Memory and disk."""
    model = size_of(prepared.model, prepared.model.state_dict().keys())
    changing = size_of(prepared.model, learning)
    used = peak_memory_bytes()
    device = f" and {in_units(used['device'])} on the accelerator" if used["device"] else ""
    yield (
        f"Memory: {in_units(used['host'])}{device} for a few steps without an optimizer, whose two moments take "
        f"{in_units(2 * changing)} more."
    )
    saved = 0 if config.save_steps == 0 else (config.save_total_limit + 1) * COPIES * changing
    for what, folder, needed in (
        ("--output_dir", Path(config.output_dir), model + saved),
        ("--cache_dir", cache_folder(config.cache_dir), 0),
    ):
        up_to = f"up to {in_units(needed)} needed, " if needed else ""
        yield f"Disk of {what} {folder}: {up_to}{in_units(free_bytes(folder))} free."


def _in_words(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
