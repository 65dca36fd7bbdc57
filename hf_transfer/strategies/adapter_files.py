"""Adapters in a folder, as peft writes and reads them, and worked into the weights of a plain model."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel, PeftType, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from hf_transfer.config import mistake
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.trust import refuse_imports

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def save_adapter(model: nn.Module, folder: Path, *, base_model_name: str | None = None) -> None:
    """Write the adapter and the head, with the configuration of the base that knows the new labels.

    peft's own README.md is left out: it is a template of blanks that holds the path of the base model.

    Args:
        model: what `prepare` gave back, unwrapped.
        folder: is created if need be; other files in it stay.
        base_model_name: where the base model is to be found; None for where it was loaded from.
    """
    assert isinstance(model, PeftModel)
    base: Any = model.get_base_model()
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as scratch, quietly():
        # Without "auto", for which peft asks the Hub whether the vocabulary has grown.
        model.save_pretrained(scratch, save_embedding_layers=False)
        settings = json.loads((Path(scratch) / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        # Sets have no order, and loading for text classification adds its two names each time.
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


def is_adapter_folder(folder: Path) -> bool:
    """Whether the folder holds an adapter instead of a whole model."""
    return all((folder / name).is_file() for name in ADAPTER_FILES)


def adapter_of(checkpoint: Checkpoint) -> Path | None:
    """The folder of a checkpoint that is an adapter, downloaded if need be; None for a whole model."""
    settings, weights = (checkpoint.file(name) for name in ADAPTER_FILES)
    return settings.parent if settings and weights else None


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What the folder of an adapter says of it.

    Raises:
        UserError: nothing that can be read, or more than data.
    """
    path = folder / ADAPTER_FILES[0]
    try:
        settings: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        settings["base_model_name_or_path"].strip()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise mistake(
            expected=f"the settings of an adapter in {path}, with base_model_name_or_path",
            found=f"{type(error).__name__}: {error}",
            do="name the folder OUT/model of a run with adapters",
        ) from error
    refuse_imports(str(folder), settings)
    return settings


def load_adapter(folder: Path, base_model: nn.Module) -> nn.Module:
    """The base model with the adapter and the head in `folder`, in evaluation mode.

    Args:
        folder: what `save_adapter` has written.
        base_model: the model that the adapter was trained on, with a head of the right size; changed in place.

    Raises:
        UserError: no adapter is there, or it belongs to another base model.
    """
    if not is_adapter_folder(folder):
        raise mistake(
            expected=f"an adapter in {folder}: {' and '.join(ADAPTER_FILES)}",
            found="a folder without them" if folder.is_dir() else "no such folder",
            do="name the folder OUT/model of a run with adapters",
        )
    settings = adapter_settings(folder)
    problem = "layers that it does not name"
    try:
        with quietly():
            model = PeftModel.from_pretrained(base_model, str(folder))
            stored = load_file(folder / ADAPTER_FILES[1])
            expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    except Exception as error:
        # Settings or weights that are damaged can lead peft to any error.
        stored, expected, problem = (
            {},
            {"": torch.empty(0)},
            (str(error).strip() or type(error).__name__).splitlines()[-1].strip(),
        )
    if stored.keys() != expected.keys():
        raise mistake(
            expected=f"the base model of the adapter in {folder}: {settings.get('base_model_name_or_path')}",
            found=f"{type(base_model).__name__} of other layers or classes: {problem}",
            do="load the base model that adapter_config.json names, with the labels in config.json",
        )
    return model.eval()


def merged(model: nn.Module) -> nn.Module:
    """A plain model with the adapters worked into its weights; the one with the adapters stays as it is.

    Raises:
        UserError: the method has no such weights.
    """
    adapted = [name for name, module in model.named_modules() if isinstance(module, PeftModel)]
    plain: Any = deepcopy(model)
    try:
        with quietly():
            for name in adapted:
                # The whole model, or one of its towers.
                own: Any = plain.get_submodule(name).merge_and_unload()
                plain = own if name == "" else _with(plain, name, own)
    except (AttributeError, NotImplementedError, ValueError) as error:
        # Each kind of adapter refuses in its own way, if it can be merged not at all or not into this layer.
        first: Any = model.get_submodule(adapted[0])
        method = first.active_peft_config.peft_type
        raise mistake(
            expected="an adapter that can be worked into the weights",
            found=f"{PeftType(method).value}, which peft cannot merge: {error}",
            do="leave --merge_adapter out, or use --strategy lora",
        ) from error
    assert isinstance(plain, nn.Module)
    return plain


def _with(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    model.set_submodule(name, module)
    return model


@contextmanager
def quietly() -> Iterator[None]:
    """Without peft's remarks on what it has corrected itself, and its progress bars."""
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
