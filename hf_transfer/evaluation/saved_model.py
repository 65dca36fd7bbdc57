"""The model of a run: written into its folder, and loaded again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.evaluation.run_folder import MODEL_FOLDER
from hf_transfer.modalities.modality import Preprocessing, save_preprocessing
from hf_transfer.models.memory_format import in_channels_last
from hf_transfer.models.pretrained import AnyCheckpoint, Checkpoint
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.adapter_files import (
    adapter_of,
    adapter_settings,
    is_adapted,
    load_adapter,
    merged,
    save_adapter,
)
from hf_transfer.targets.table import target_of_model, write_settings
from hf_transfer.targets.target import Target

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn


def save_model(
    model: Any, folder: Path, *, base: str | None = None, revision: str = "main", merge: bool = False
) -> None:
    """Write a model as plain transformers or peft files into a new folder.

    Args:
        model: unwrapped, with adapters or without.
        folder: to write into.
        base: for an adapter: the path or Hub id of its base model.
        revision: branch, tag or commit of a base on the Hub.
        merge: merge an adapter into the weights.
    """
    if is_adapted(model) and not merge:
        if base is not None and Path(base).is_dir():
            # Loaded from another folder, a relative path would be taken for a Hub id.
            base = str(Path(base).resolve())
        else:
            model.active_peft_config.revision = revision
        save_adapter(model, folder, base_model_name=base)
    else:
        adapted = any(is_adapted(module) for module in model.modules())
        whole: Any = merged(model) if adapted else model
        whole.save_pretrained(folder)


def save_and_load(
    model: Any, preprocessing: Preprocessing, modality: str, columns: Mapping[str, str], target: Target,
    checkpoint: AnyCheckpoint, config: RunConfig, accelerator: Accelerator,
) -> tuple[nn.Module, Target]:  # fmt: skip
    """Write a trained model into the folder of its run, completely or not at all, and load it again.

    Args:
        model: unwrapped, with adapters or without.
        preprocessing: of the run.
        modality: its name.
        columns: of the data.
        target: what it predicts, written into its configuration.
        checkpoint: what it was trained from.
        config: the settings of the run.
        accelerator: the main process writes, and all read.

    Returns:
        The model as loaded from the files, and what it predicts.
    """
    folder = Path(config.output.output_dir)
    if accelerator.is_main_process:
        partial = folder / ".model-partial"
        shutil.rmtree(partial, ignore_errors=True)
        base: Any = model.get_base_model() if is_adapted(model) else model
        write_settings(base.config, target)
        save_model(
            model, partial, base=checkpoint.path, revision=checkpoint.commit or config.model.model_revision,
            merge=config.strategy.merge_adapter,
        )  # fmt: skip
        save_preprocessing(preprocessing, modality, columns, target.problem_type, partial)
        partial.rename(folder / MODEL_FOLDER)
    accelerator.wait_for_everyone()
    saved = Checkpoint(str(folder / MODEL_FOLDER), task=checkpoint.task)
    finished = target_of_model(saved.config, target.problem_type)
    return load_finished(saved, finished), finished


def load_finished(checkpoint: Checkpoint, target: Target) -> nn.Module:
    """Load a finished model with its own head; an adapter is loaded with its base.

    Args:
        checkpoint: a folder OUT/model, a model on the Hub, or a sample.
        target: what it predicts.

    Raises:
        UserError: the base of an adapter cannot be loaded.
    """
    folder = adapter_of(checkpoint)
    if folder is None:
        return in_channels_last(checkpoint.finished_classifier())
    settings = adapter_settings(folder)
    base = Checkpoint(settings["base_model_name_or_path"], settings.get("revision") or "main", checkpoint.task)
    return in_channels_last(load_adapter(folder, base.classifier(target, seed=0, fresh_weights=False)))


def size_of_model(model: nn.Module) -> int:
    """Bytes of the weights that `save_model` would write: of a model with adapters, those that are not its base's."""
    names = {name for name, one in model.named_parameters() if one.requires_grad} if is_adapted(model) else None
    return sum(value.nbytes for name, value in model.state_dict().items() if names is None or name in names)


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has, without the copies that peft keeps of what it has replaced."""
    return sum(value.numel() for name, value in model.named_parameters() if ".original_module." not in name)
