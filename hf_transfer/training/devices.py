"""Devices, processes and precision of a run, which leaves none of its process-wide state behind."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin

from hf_transfer.errors import user_error
from hf_transfer.settings.run import RunConfig
from hf_transfer.training.compiling import check_compiler
from hf_transfer.training.launching import ONLY_PROCESS, Processes, check_launch, runs_on_cpus, waiting_explained
from hf_transfer.training.precision import float32_products
from hf_transfer.training.random_numbers import unchanged_random_state
from hf_transfer.training.sharding import start_sharding

# The other processes wait while one checks the data, solves a head or saves.
LONGEST_WAIT = timedelta(hours=12)


@contextmanager
def start_accelerator(config: RunConfig) -> Iterator[Accelerator]:
    """Devices, processes, precision and trackers of a run; trackers are closed at the end.

    A Python program may have several runs, with different precision, and an accelerator of its own: at the end,
    also after an error, accelerate's shared state and the global random numbers are as they were before. Only the
    connections of several processes stay, for the runs that follow; they end with the program.

    Raises:
        UserError: the precision or a tracker is not available on this machine, or the environment has variables of a
            launcher that do not belong together.
    """
    training = config.training
    connect_once()
    with _own_shared_state():
        accelerator = _accelerator(config)
        start_sharding(training, accelerator)
        if training.fp16 and accelerator.device.type == "cpu":
            raise user_error(
                expected="a GPU for --fp16", found="none", do="use --bf16, which CPUs have too, or leave it out"
            )
        check_compiler(training, accelerator.device)
        with float32_products(training.tf32, accelerator.device), unchanged_random_state(accelerator.device):
            try:
                yield accelerator
            finally:
                for tracker in accelerator.trackers:
                    tracker.finish()


def _accelerator(config: RunConfig) -> Accelerator:
    training, trackers = config.training, [name for name in config.output.report_to if name != "none"]
    try:
        return Accelerator(
            mixed_precision="bf16" if training.bf16 else "fp16" if training.fp16 else "no",
            # The loop adds up the gradients itself: accelerate would divide each by the same number of batches.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=trackers or None,
            project_dir=config.output.output_dir if trackers else None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
        )
    except (ValueError, ImportError) as error:
        raise user_error(
            expected="a precision and trackers that this machine has",
            found=str(error).splitlines()[0],
            do="leave out --fp16, or install the tracker named in --report_to",
        ) from error


@contextmanager
def _own_shared_state() -> Iterator[None]:
    """Accelerate keeps precision and gradient accumulation for the whole process: they are replaced for a while.

    What the caller's program has set up of devices and processes is used and kept: processes connect once.
    """
    shared = [AcceleratorState._shared_state, GradientState._shared_state, PartialState._shared_state]
    before = [dict(state) for state in shared]
    were_connected = dist.is_available() and dist.is_initialized()
    for state in shared[:2]:
        state.clear()
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized() and not were_connected:
            PartialState().destroy_process_group()
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)


def connect_once() -> Processes:
    """The processes of this program, connected for all runs that follow in it.

    They connect once: while one process closes its connections, another would connect anew to what is being closed.

    Raises:
        UserError: the environment has variables of a launcher that do not belong together.
    """
    # A program that has connected its processes itself needs no variables.
    if not PartialState._shared_state:
        check_launch()
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return ONLY_PROCESS
        with waiting_explained():
            state = PartialState(cpu=runs_on_cpus(), timeout=LONGEST_WAIT)
        atexit.register(state.destroy_process_group)
    state = PartialState()
    return ONLY_PROCESS if state.num_processes == 1 else state
