"""The folder of a run: which run it belongs to, whether the run is finished, and its lock."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import filelock

from hf_transfer import host_memory
from hf_transfer.checkpoints.earlier import EARLIER_RUN, EarlierRun, is_there
from hf_transfer.checkpoints.files import free_bytes, in_units
from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation import inputs
from hf_transfer.evaluation.auto_record import remove_arms
from hf_transfer.evaluation.results import RESULTS_FILE, Results
from hf_transfer.evaluation.row_file import PACKED_ROW_FILE, ROW_FILE
from hf_transfer.settings.output import CHECKPOINTS_FOLDER, PREDICTIONS_FILE
from hf_transfer.settings.parsing import load_settings
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.table import TARGETS
from hf_transfer.training.launching import Processes, main_process_first

CONFIG_FILE = "config.yaml"
MODEL_FOLDER = "model"
# The model in another format; a later run in the same folder replaces both.
ONNX_FOLDER = "onnx"
# Of the model.
CARD_FILE = "README.md"
LOCK_FILE = ".lock"
PARTIAL_CONFIG = ".config-partial"
PICTURES = ("curves.png", *(name for target in TARGETS.values() for name in target.picture_files))
OURS = (
    RESULTS_FILE, MODEL_FOLDER, ONNX_FOLDER, "report.md", ".card", PREDICTIONS_FILE, ROW_FILE, PACKED_ROW_FILE,
    *PICTURES,
)  # fmt: skip
# The files of a run that was killed before its settings were written.
WITHOUT_SETTINGS = (LOCK_FILE, PARTIAL_CONFIG)


def finished_results(config: RunConfig) -> Results | None:
    """The results of a finished run with these settings in `--output_dir`; None if there are none.

    Raises:
        UserError: the folder holds other files, or a run with other settings; nothing is changed.
    """
    folder = Path(config.output.output_dir)
    if folder.exists() and not folder.is_dir():
        raise user_error(expected="a folder for --output_dir", found=f"a file, {folder}", do="name another folder")
    if not folder.exists() or all(path.name in WITHOUT_SETTINGS for path in folder.iterdir()):
        return None
    settings = folder / CONFIG_FILE
    # Other programs write a config.yaml, too.
    if not settings.is_file() or not settings.read_bytes().startswith(b"recipe: "):
        raise user_error(
            expected="an empty or new folder for --output_dir, or one with an earlier run",
            found=f"{folder} with other files and no {CONFIG_FILE} of ours",
            do="name another folder",
        )
    if config.output.overwrite_output_dir:
        return None
    if differences := load_settings(type(config), settings).differences(config):
        raise other_settings(folder, differences)
    return Results.read(folder) if (folder / RESULTS_FILE).is_file() else None


def other_settings(folder: Path, differences: Sequence[str]) -> UserError:
    """The error for a folder that has a run with other settings.

    Args:
        folder: of the run.
        differences: `name: there -> here` of each setting that differs.
    """
    return user_error(
        expected=f"the settings of the run in {folder}",
        found=f"other settings (there -> here): {'; '.join(differences)}",
        do="give it the settings that it had, name another --output_dir, or add --overwrite_output_dir to replace it",
    )


def finished_run(out: Path) -> tuple[Results, Path]:
    """The results of a finished run, and the folder of its model.

    Args:
        out: the run's folder.

    Raises:
        UserError: there is no finished run, or it has no model.
    """
    model = out / MODEL_FOLDER
    if not (out / RESULTS_FILE).is_file() or not model.is_dir():
        raise user_error(
            expected=f"a finished run in {out}: {RESULTS_FILE} and {MODEL_FOLDER}/",
            found="a folder without them" if out.is_dir() else "no such folder",
            do=f"name {earlier}, the run that it was to replace"
            if (earlier := out / EARLIER_RUN).is_dir()
            else "name the --output_dir of a run, and finish the run first: the same command resumes it",
        )
    return Results.read(out), model


def has_card(out: Path) -> bool:
    """Whether the model of a run has a card: it is written last, and only publishing changes it."""
    return (out / MODEL_FOLDER / CARD_FILE).is_file()


def results_or_start(config: RunConfig, processes: Processes) -> Results | None:
    """The results of the run, if it is finished; else None, and the run may start.

    What a killed process has left of an earlier run in `--output_dir` is put right first.

    Raises:
        UserError: the folder holds other files or another run, or the run would replace files that it reads.
    """
    _settle_earlier_run(Path(config.output.output_dir), processes)
    return results_or_refusal(config)


def results_or_refusal(config: RunConfig) -> Results | None:
    """The results of the run, if it is finished; else None: see `results_or_start`; nothing is changed.

    Raises:
        UserError: see there.
    """
    results = finished_results(config)
    if results is None and (present := earlier_run(Path(config.output.output_dir)).present()):
        inputs.refuse_replaced_inputs(config, present)
    return results


def _settle_earlier_run(folder: Path, processes: Processes) -> None:
    earlier = earlier_run(folder)
    if processes.is_main_process and any(map(is_there, (earlier.aside, earlier.moving))):
        try:
            # If another run holds the lock, that one will do it.
            with suppress(UserError), locked(folder):
                print(earlier.settle())
        except OSError as error:
            raise not_writable(error) from error
    processes.wait_for_everyone()


def earlier_run(folder: Path) -> EarlierRun:
    """The earlier run in a folder, if there is one."""
    names = (*(name for name in OURS if name != RESULTS_FILE), CHECKPOINTS_FOLDER)
    return EarlierRun(folder, CONFIG_FILE, RESULTS_FILE, names, MODEL_FOLDER, CHECKPOINTS_FOLDER)


@contextmanager
def open_run_folder(config: RunConfig, processes: Processes, needed: int = 0) -> Iterator[Path]:
    """Lock and prepare the folder: files of an earlier run are moved aside, all others stay, the settings are written.

    At the end they are removed if the run is finished, and brought back if it has left nothing: see `EarlierRun`. The
    checkpoints of an interrupted run stay, unless it is to start again. Only the main process writes, and not before
    all processes have looked at the folder.

    Args:
        config: the settings.
        processes: of the run.
        needed: bytes of the model that will be written.

    Raises:
        UserError: the folder cannot be written to, it has too little room, or another run is writing into it.
    """
    folder, is_main = Path(config.output.output_dir), processes.is_main_process
    processes.wait_for_everyone()
    with ExitStack() as held:
        with main_process_first(processes):
            try:
                if is_main:
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(folder))
                    _prepare(folder, config, needed)
            except OSError as error:
                raise not_writable(error) from error
        try:
            yield folder
        finally:
            if is_main:
                _print(earlier_run(folder).settle())
                if (folder / RESULTS_FILE).is_file():
                    remove_arms(folder)


def not_writable(error: OSError) -> UserError:
    """The error for a folder of a run that cannot be written to."""
    return user_error(expected="an --output_dir that can be written to", found=str(error), do="name another folder")


def _print(sentence: str) -> None:
    if sentence:
        print(sentence)


def _prepare(folder: Path, config: RunConfig, needed: int) -> None:
    earlier = earlier_run(folder)
    _print(earlier.settle())
    if finished_results(config):
        # Finished while this process was loading: those results must not be removed.
        raise user_error(
            expected=f"a run in {folder} that is not finished",
            found="that another process has just finished it",
            do="repeat the command: it prints the results",
        )
    _refuse_without_room(folder, needed)
    # The settings are never missing, and the results go first: interrupted anywhere here, the run is not finished.
    starts_again = config.output.overwrite_output_dir or config.checkpoints.no_resume or config.output.evaluate_only
    if starts_again:
        _print(earlier.move_aside())
    else:
        earlier.remove_unfinished()
    save_settings(folder, config)


def save_settings(folder: Path, config: RunConfig) -> None:
    """Write the settings of the run in a folder, whole or not at all."""
    config.save(folder / PARTIAL_CONFIG)
    (folder / PARTIAL_CONFIG).replace(folder / CONFIG_FILE)


def _refuse_without_room(folder: Path, needed: int) -> None:
    """Refuse a model for which there is no room beside the files that are in the folder, or are kept aside in it."""
    if needed > (free := free_bytes(folder)):
        raise user_error(
            expected=f"room for a model of {in_units(needed)} in {folder}",
            found=f"{in_units(free)} free; an earlier run in this folder stays until this one is finished",
            do=f"make room, name another --output_dir, or remove an earlier run first: rm -r {folder}",
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: the system releases it when the process ends, even if it is killed.

    Processes forked meanwhile, such as loader workers, do not hold it: they may outlive a killed process for a while.

    Raises:
        UserError: another process holds the lock, or another run in this process.
    """
    path = folder / LOCK_FILE
    # A run may be closed in another thread than it was opened in. A lock that is only a file would outlive a kill.
    lock = filelock.FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False, on_acquired=_write_holder)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise user_error(
            expected="an --output_dir that no other run is writing into",
            found=f"{folder}, in use by {path.read_text(errors='replace').strip() or 'another process'}",
            do="wait for it to end, or name another folder",
        ) from error
    except OSError as error:
        # Some network disks have no locks: that is no reason not to train.
        print(f"{folder} cannot be locked ({error}): let no other run write into it.")
    try:
        yield
    finally:
        lock.release()


def _write_holder(descriptor: int) -> None:
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())


def peak_memory_bytes() -> dict[str, int]:
    """The peak memory of this process: of the host, and of its accelerator (0 without one)."""
    import torch

    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"host": host_memory.peak_bytes(), "device": device}
