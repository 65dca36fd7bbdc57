"""Adapters on disk, in peft's own format, and adapters merged into the weights of a plain model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_transfer.errors import user_error
from hf_transfer.models.trust import refuse_imports

if TYPE_CHECKING:
    from torch import nn

    from hf_transfer.models.pretrained import Checkpoint

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def save_adapter(model: Any, folder: Path, *, base_model_name: str | None = None) -> None:
    """Write the adapter and the head, with the base model's configuration, which has the new labels.

    Not peft's README.md: it is a template with empty fields and the path of the base model.

    Args:
        model: the model that `prepare` returned, not wrapped.
        folder: is created if it does not exist; other files in it stay.
        base_model_name: the name of the base model; None: where it was loaded from.
    """
    assert is_adapted(model)
    base: Any = model.get_base_model()
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as scratch, quiet_peft():
        # With the default "auto", peft asks the Hub whether the vocabulary has grown.
        model.save_pretrained(scratch, save_embedding_layers=False)
        settings = json.loads((Path(scratch) / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        # For files that are always equal: sets have no order, and loading a text classifier adds two names each time.
        for key in ("target_modules", "modules_to_save"):
            if isinstance(settings.get(key), list):
                settings[key] = sorted(set(settings[key]))
        if base_model_name is not None:
            settings["base_model_name_or_path"] = base_model_name
        (folder / ADAPTER_FILES[0]).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (Path(scratch) / ADAPTER_FILES[1]).replace(folder / ADAPTER_FILES[1])
    config = deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is a model of peft; peft itself, which takes long to import, is needed only for those."""
    return any(kind.__name__ == "PeftModel" and kind.__module__.startswith("peft.") for kind in type(module).__mro__)


def is_adapter_folder(folder: Path) -> bool:
    """Whether the folder holds an adapter instead of a whole model."""
    return all((folder / name).is_file() for name in ADAPTER_FILES)


def adapter_of(checkpoint: Checkpoint) -> Path | None:
    """The folder of a checkpoint that is an adapter, downloaded if necessary; None for a whole model."""
    settings, weights = (checkpoint.file(name) for name in ADAPTER_FILES)
    return settings.parent if settings and weights else None


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The settings in the folder of an adapter.

    Raises:
        UserError: they cannot be read, or would run code.
    """
    path = folder / ADAPTER_FILES[0]
    try:
        settings: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        settings["base_model_name_or_path"].strip()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise user_error(
            expected=f"the settings of an adapter in {path}, with base_model_name_or_path",
            found=f"{type(error).__name__}: {error}",
            do="name the folder OUT/model of a run with adapters",
        ) from error
    refuse_imports(str(folder), settings)
    return settings


def load_adapter(folder: Path, base_model: nn.Module) -> nn.Module:
    """The base model with the adapter and the head in `folder`, in evaluation mode.

    Args:
        folder: the folder that `save_adapter` wrote.
        base_model: the model that the adapter was trained on, with a head of the right size; changed in place.

    Raises:
        UserError: the folder has no adapter, or one of another base model.
    """
    if not is_adapter_folder(folder):
        raise user_error(
            expected=f"an adapter in {folder}: {' and '.join(ADAPTER_FILES)}",
            found="a folder without these files" if folder.is_dir() else "no such folder",
            do="name the folder OUT/model of a run with adapters",
        )
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    settings = adapter_settings(folder)
    try:
        with quiet_peft():
            model = PeftModel.from_pretrained(base_model, str(folder))
            # peft itself only warns about missing weights.
            expected = get_peft_model_state_dict(model, save_embedding_layers=False)
            if load_file(folder / ADAPTER_FILES[1]).keys() != expected.keys():
                raise ValueError("the adapter has weights of other layers")
    except Exception as error:
        # Damaged settings or weights can cause any error in peft.
        problem = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise user_error(
            expected=f"the base model of the adapter in {folder}: {settings.get('base_model_name_or_path')}",
            found=f"{type(base_model).__name__} with other layers or classes: {problem}",
            do="load the base model that adapter_config.json names, with the labels in config.json",
        ) from error
    return model.eval()


def merged(model: nn.Module) -> nn.Module:
    """A plain model with the adapters merged into its weights; `model` is not changed.

    Raises:
        UserError: adapters of this kind, or of such a layer, cannot be merged.
    """
    from peft import PeftType
    from torch import nn

    # With a parent, a whole model with adapters is replaced as a tower is.
    parent = nn.ModuleDict({"model": deepcopy(model)})
    adapted = [(name, module) for name, module in parent.named_modules() if is_adapted(module)]
    for name, part in adapted:
        try:
            with quiet_peft():
                parent.set_submodule(name, part.merge_and_unload())
        except (AttributeError, NotImplementedError, ValueError) as error:
            # Each kind of adapter raises another error if it cannot be merged at all, or not into this layer.
            raise user_error(
                expected="an adapter that can be merged into the weights",
                found=f"{PeftType(part.active_peft_config.peft_type).value}, which peft cannot merge: {error}",
                do="leave --merge_adapter out, or use --strategy lora",
            ) from error
    return parent["model"]


@contextmanager
def quiet_peft() -> Iterator[None]:
    """No warnings of peft, which are about settings that it corrects itself, and no progress bars."""
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
