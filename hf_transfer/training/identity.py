"""What identifies a run: a checkpoint is resumed only by the run that wrote it."""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_transfer.data.batches import Loaders
from hf_transfer.errors import user_error
from hf_transfer.frozen.recording import identity
from hf_transfer.modalities.modality import Regularisation
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.freezing import Stage, Strategy
from hf_transfer.training.rates import peak_rates
from hf_transfer.training.sharding import is_sharded
from hf_transfer.versions import versions

Identity = Mapping[str, Any]
# A checkpoint is refused if one of these differs; other differences can be allowed.
BINDING = ("settings", "data", "target", "strategy", "stages", "rates", "frozen weights", "processes")
# Compared value by value.
BY_NAME = ("settings", "versions", "rates")


def run_identity(
    model: nn.Module, changing: Set[str], strategy: Strategy, stages: Sequence[Stage], loaders: Loaders,
    config: RunConfig, accelerator: Accelerator, regularisation: Regularisation,
) -> Identity:  # fmt: skip
    """What a run must share with a checkpoint to resume from it. Call it while no layer is skipped.

    Args:
        model: classifier, not wrapped, as it was loaded and prepared.
        changing: names of the parameters and buffers that training can change.
        strategy: what learns, and when.
        stages: its stages.
        loaders: the batches of the run.
        config: settings.
        accelerator: device, precision, processes.
        regularisation: what the modality adds to the loss.
    """
    frozen, training = identity(model, changing, accelerator), config.training
    rate, head_rate = peak_rates(strategy, training)
    content = {
        "settings": {"recipe": config.recipe, **config.affecting("result")},
        "data": {split: loaders.fingerprint(split, None) for split in ("train", "validation")},
        "target": {"problem_type": loaders.target.problem_type, "names": loaders.target.names},
        "strategy": _strategy(strategy),
        "stages": [_stage(stage, model) for stage in stages],
        # What the settings leave open, and strategy, model or the number of samples decide.
        "rates": {
            "learning_rate": rate if training.learning_rate is None else None,
            "head_learning_rate": head_rate if training.head_learning_rate is None else None,
            "rdrop_alpha": regularisation.rdrop_alpha if config.flat().get("rdrop_alpha", 0.0) is None else None,
        },
        "frozen weights": [frozen.pop("weights"), frozen.pop("settings")],
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "accelerator": accelerator_name(accelerator),
        **frozen,
    }
    # As it comes back from a file: lists in place of tuples.
    return dict(json.loads(json.dumps(content)))


def refuse_other_run(folder: Path, saved: Identity, present: Identity, *, allow_mismatch: bool) -> None:
    """Refuse the checkpoint of another run.

    Args:
        folder: of the checkpoint.
        saved: the identity in the checkpoint.
        present: the identity of this run.
        allow_mismatch: accept what may only change rounding.

    Raises:
        UserError: with all differences.
    """
    differing = [name for name in present if saved.get(name) != present[name]]
    binding = any(name in BINDING for name in differing)
    if not differing or (allow_mismatch and not binding):
        return
    shown = "; ".join(line for name in differing for line in _difference(name, saved.get(name), present[name]))
    raise user_error(
        expected=f"the run that saved {folder}",
        found=f"another run (there -> here): {shown}",
        do="resume with the same settings, or start again with --no_resume"
        if binding
        else "resume with the same versions and machine, or add --allow_mismatch: results may then differ in rounding",
    )


def accelerator_name(accelerator: Accelerator) -> str:
    """The kind of GPU, and whether weights are sharded: both change rounding."""
    name = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else "none"
    return f"{name}, sharded weights" if is_sharded(accelerator) else name


def _difference(name: str, saved: Any, present: Any) -> list[str]:
    """Sentences on one difference; hashes and long lists are not shown."""
    if name in BY_NAME and isinstance(saved, dict):
        return [f"{key}: {saved.get(key)} -> {value}" for key, value in present.items() if saved.get(key) != value]
    if isinstance(present, dict | list):
        return [f"other {name}"]
    return [f"{name}: {saved} -> {present}"]


def _strategy(strategy: Strategy) -> str:
    """The kind of a strategy with its own settings; its learning rates are compared only where they are used."""
    options: Sequence[Field[Any]] = fields(strategy) if is_dataclass(strategy) else ()
    changed = [
        f"{one.name}={getattr(strategy, one.name)!r}"
        for one in options
        if getattr(strategy, one.name) != one.default and not one.name.endswith("learning_rate")
    ]
    return f"{type(strategy).__name__}({', '.join(changed)})"


def _stage(stage: Stage, model: nn.Module) -> dict[str, Any]:
    names = "\n".join(f"{name} {tuple(model.get_parameter(name).shape)}" for name in sorted(stage.trainable))
    updated = "\n".join(sorted(stage.updates_statistics))
    return {
        "parameters": hashlib.sha256(names.encode()).hexdigest(), "epochs": stage.epochs, "solved": stage.solved,
        "updates_statistics": hashlib.sha256(updated.encode()).hexdigest(),
    }  # fmt: skip
