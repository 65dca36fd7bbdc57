"""The folder of a run: whose it is, whether it is finished, and what is written into it."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from hf_transfer.config import RunConfig, mistake
from hf_transfer.models.pretrained import AnyCheckpoint, Checkpoint
from hf_transfer.parsing import load
from hf_transfer.strategies.adapter_files import adapter_of, adapter_settings, load_adapter, merged, save_adapter

CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
LOCK_FILE = ".lock"
PARTIAL_CONFIG = ".config-partial"
OURS = (RESULTS_FILE, "model", "report.md", "curves.png", "confusion.png", ".card")
# What a run has made of a new folder that was killed before it had written its settings.
LEFT_OVER = (LOCK_FILE, PARTIAL_CONFIG)


def finished_results(config: RunConfig) -> dict[str, Any] | None:
    """The results that `--output_dir` already holds for these settings, or None if the run is still to be done.

    Raises:
        UserError: the folder is somebody else's, or has a run of other settings; nothing is changed.
    """
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise mistake(expected="a folder for --output_dir", found=f"a file, {folder}", do="name another folder")
    if not folder.exists() or all(path.name in LEFT_OVER for path in folder.iterdir()):
        return None
    if not _is_a_run(folder):
        raise mistake(
            expected="an empty or new folder for --output_dir, or one with an earlier run",
            found=f"{folder} with other files and no {CONFIG_FILE} of ours",
            do="name another folder",
        )
    if config.overwrite_output_dir:
        return None
    differences = load(type(config), folder / CONFIG_FILE).differences(config)
    if differences:
        raise mistake(
            expected=f"the settings of the run that is in {folder}",
            found=f"other settings (there -> here): {'; '.join(differences)}",
            do="name another --output_dir, or add --overwrite_output_dir to replace that run",
        )
    results = folder / RESULTS_FILE
    return json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None


def _is_a_run(folder: Path) -> bool:
    """Whether the settings of a run are in the folder; other programs have a config.yaml, too."""
    path = folder / CONFIG_FILE
    return path.is_file() and path.read_bytes().startswith(b"recipe: ")


def open_run_folder(config: RunConfig, accelerator: Accelerator) -> Path:
    """Make the folder ready: an earlier run's files are removed, any others stay, the settings are written.

    The checkpoints of an interrupted run stay, unless it is to begin anew. No other process can have the folder until
    this one ends.

    One process writes; the others have all looked at the folder before it does.

    Raises:
        UserError: the folder cannot be written to, or another run is writing into it.
    """
    folder = Path(config.output_dir)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock(folder)
        if finished_results(config):
            # While this one was loading; what it has come to must not be removed.
            raise mistake(
                expected=f"a run in {folder} that is still to be done",
                found="that another process has just finished it",
                do="repeat the command: it prints the results",
            )
        # Results first and settings never: wherever this is interrupted, the folder is that of an unfinished run.
        anew = config.overwrite_output_dir or config.no_resume or config.evaluate_only
        for name in (*OURS, "checkpoints") if anew else OURS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        config.save(folder / PARTIAL_CONFIG)
        (folder / PARTIAL_CONFIG).replace(folder / CONFIG_FILE)
    except OSError as error:
        raise mistake(
            expected="an --output_dir that can be written to", found=str(error), do="name another folder"
        ) from error
    return folder


def lock(folder: Path) -> None:
    """Take the folder for this process, until it ends, however it ends.

    Raises:
        UserError: another process has it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    # A lock of the process, not of the file handle: loaders' workers that outlive it do not keep it. To be held to the
    # end, the handle is never closed.
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise mistake(
            expected="an --output_dir that no other run is writing into",
            found=f"{folder}, in use by {holder}",
            do="wait for it to end, or name another folder",
        ) from error
    except OSError as error:
        # Some network disks know no locks: that is no reason not to train.
        print(f"{folder} cannot be locked ({error}): let no other run write into it.")
    os.truncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())


def save_model(
    model: Any, processor: Any, folder: Path, *, base: str | None = None, revision: str = "main", merge: bool = False
) -> Path:  # fmt: skip
    """Write `folder/model`, whole or not at all: plain transformers or peft files.

    Args:
        model: unwrapped, with adapters or without.
        processor: image processor or tokenizer; both of them, in a tuple, for images with texts.
        folder: the run's folder.
        base: for an adapter: where its base model is to be found.
        revision: branch, tag or commit of a base on the Hub.
        merge: work an adapter into the weights.
    """
    partial, final = folder / ".model-partial", folder / "model"
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(model, PeftModel) and not merge:
        if base is not None and Path(base).is_dir():
            # From another folder a relative path would be taken for a name on the Hub.
            base = str(Path(base).resolve())
        else:
            model.active_peft_config.revision = revision
        save_adapter(model, partial, base_model_name=base)
    else:
        adapted = any(isinstance(module, PeftModel) for module in model.modules())
        plain: Any = merged(model) if adapted else model
        plain.save_pretrained(partial)
    for part in processor if isinstance(processor, tuple) else (processor,):
        part.save_pretrained(partial)
    partial.rename(final)
    return final


def save_and_load(
    model: Any, processor: Any, checkpoint: AnyCheckpoint, label_names: Sequence[str], config: RunConfig,
    accelerator: Accelerator,
) -> Any:  # fmt: skip
    """Write a trained model into the run's folder and read it again: what counts is what was saved.

    Args:
        model: unwrapped, with adapters or without.
        processor: see `save_model`.
        checkpoint: what it was trained from.
        label_names: its classes.
        config: the run's settings.
        accelerator: the main process writes, and all read.

    Returns:
        The model of the files.
    """
    folder = Path(config.output_dir)
    if accelerator.is_main_process:
        save_model(
            model, processor, folder,
            base=checkpoint.path, revision=checkpoint.commit or config.model_revision, merge=config.merge_adapter,
        )  # fmt: skip
    accelerator.wait_for_everyone()
    return load_finished(Checkpoint(str(folder / "model"), task=checkpoint.task), label_names)


def load_finished(checkpoint: Checkpoint, label_names: Sequence[str] | None = None) -> nn.Module:
    """A finished model with its own head, whole or as an adapter beside its base.

    Args:
        checkpoint: a folder OUT/model, a model on the Hub, or a sample.
        label_names: the classes it must have, in their order; None takes any.

    Raises:
        UserError: its classes are others, or the base of an adapter is not to be had.
    """
    folder = adapter_of(checkpoint)
    if folder is None:
        return checkpoint.finished_classifier(label_names)
    names = checkpoint.class_names(label_names)
    settings = adapter_settings(folder)
    base = Checkpoint(settings["base_model_name_or_path"], settings.get("revision") or "main", checkpoint.task)
    return load_adapter(folder, base.classifier(names, seed=0, fresh_weights=False))


def peak_memory_bytes() -> dict[str, int]:
    """The most memory this process has held: in the host, and on its accelerator (0 without one)."""
    host = 0
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"host": host, "device": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}
